"""The production loop and the leak gate."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

# The rig of whole gateways, and the models of the real engine, are shared with other suites.
sys.path += [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[1])]


collect_ignore = ["clients"]
"""Run in an environment of their own: ``test_clients_python``."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def _gate(leak_gate: list[dict[str, Any]]) -> AsyncIterator[None]:
    yield
