"""The express lane changes nothing but cost: the same decisions and, but for the order inside a burst, the same books."""

from __future__ import annotations

import msgspec
from core_script import Script

from bellmare.core import engine as engine_module
from bellmare.core.decisions import CacheState, Dispatch
from bellmare.core.express import BURST_US
from bellmare.core.units import SECOND_US


def test_placeholder() -> None: ...
