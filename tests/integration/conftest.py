"""Gateways and workers that are closed when the test ends, with a leak gate around each test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from lifecycle_rig import GatewayProcess
from rig import Gateway, Process, Sim, start_gateway, start_sim


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def _gate(leak_gate: list[dict[str, Any]]) -> AsyncIterator[None]:
    yield


@pytest.fixture
async def sim(_gate: None) -> AsyncIterator[Callable[..., Awaitable[Sim]]]:
    """Start a simulated worker; keyword arguments are of ``SimConfig``."""
    sims: list[Sim] = []

    async def start(**config: Any) -> Sim:
        sims.append(await start_sim(**config))
        return sims[-1]

    yield start
    for one in sims:
        await one.server.close()


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
def process() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(port: int = 0, *, time_scale: float = 0.02) -> Process:
        started.append(Process(port, time_scale=time_scale))
        return started[-1]

    yield start
    for one in started:
        one.kill()


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
