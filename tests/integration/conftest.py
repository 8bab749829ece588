"""Gateways and workers that are closed when the test ends, with a leak gate around each test."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lifecycle_rig import GatewayProcess
from rig import Gateway, Sim, start_gateway
from shared_fixtures import *  # noqa: F403 pytest finds fixtures by their names


@pytest.fixture
async def gateway(sim: Callable[..., Awaitable[Sim]]) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Start a gateway over ports or worker settings; keyword arguments are settings. Closed before its workers."""
    gateways: list[Gateway] = []

    async def start(*workers: Any, **settings: Any) -> Gateway:
        gateways.append(await start_gateway(*workers, **settings))
        return gateways[-1]

    yield start
    for one in gateways:
        if not one.closed:
            await one.close()


@pytest.fixture
def unused_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def served(sim: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a gateway process; every process of it is gone at the end."""
    started: list[GatewayProcess] = []

    async def start(*workers: Any, **settings: Any) -> GatewayProcess:
        started.append(GatewayProcess(tmp_path, list(workers), **settings))
        await started[-1].started()
        return started[-1]

    yield start
    for one in started:
        one.kill()
