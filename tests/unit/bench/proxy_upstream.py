"""The benchmark's upstream in a thread of the test: a port, and an end with the block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bellmare.bench.proxy.upstream import Upstream


@contextmanager
def upstream_running() -> Iterator[int]:
    upstream = Upstream()
    stop, ask = os.pipe()
    thread = threading.Thread(target=upstream.run, kwargs={"stop_fd": stop})
    thread.start()
    try:
        yield upstream.port
    finally:
        os.close(ask)
        thread.join(5)
        assert not thread.is_alive()
        os.close(stop)
        upstream.close()
