"""Fixtures of all suites that run whole gateways: import them in a conftest. A leak gate around each test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from rig import Process, Sim, start_sim

__all__ = ["_gate", "process", "pytest_asyncio_loop_factories", "sim"]


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
def process() -> Iterator[Callable[..., Process]]:
    """Start a simulated worker as a process of its own, to be killed."""
    started: list[Process] = []

    def start(port: int = 0, *, time_scale: float = 0.02) -> Process:
        started.append(Process(port, time_scale=time_scale))
        return started[-1]

    yield start
    for one in started:
        one.kill()
