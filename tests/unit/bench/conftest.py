"""The leak gate around each test, and a port without a server."""

import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

collect_ignore = [] if sys.platform == "linux" else ["test_proxy_load.py", "test_proxy_upstream.py"]
"""They use epoll."""


@pytest.fixture(autouse=True)
async def _gate(leak_gate: list[dict[str, Any]]) -> AsyncIterator[None]:
    yield


@pytest.fixture
def unused_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
