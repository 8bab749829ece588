"""Gateways and workers that are closed when the test ends, with a leak gate around each test."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))

from recording_worker import RecordingWorker
from rig import Gateway, Sim, start_gateway, start_sim


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
async def recorded(sim: Callable[..., Awaitable[Sim]]) -> AsyncIterator[Callable[..., Awaitable[RecordingWorker]]]:
    """Start a worker that keeps every byte that it is sent; keyword arguments are of ``SimConfig``."""
    workers: list[RecordingWorker] = []

    async def start(**config: Any) -> RecordingWorker:
        workers.append(RecordingWorker(await sim(**config)))
        await workers[-1].open()
        return workers[-1]

    yield start
    for one in workers:
        await one.close()


@pytest.fixture
async def gateway(recorded: Callable[..., Any]) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Start a gateway over ports or worker settings; keyword arguments are settings. Closed before its workers."""
    gateways: list[Gateway] = []

    async def start(*workers: Any, **settings: Any) -> Gateway:
        gateways.append(await start_gateway(*workers, **settings))
        return gateways[-1]

    yield start
    for one in gateways:
        if not one.closed:
            await one.back_to_baseline()
            await one.close()
