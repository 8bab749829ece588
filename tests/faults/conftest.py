"""Hostile workers and fault proxies beside the rig of the integration tests, with its leak gate around each test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

for place in ("integration", "unit/core"):  # their rig and their script
    sys.path.insert(0, str(Path(__file__).parent.parent / place))

from fault_proxy import FaultProxy  # noqa: E402
from hostile_worker import HostileWorker  # noqa: E402
from recording_worker import RecordingWorker  # noqa: E402
from rig import Gateway, start_gateway  # noqa: E402
from shared_fixtures import *  # noqa: E402, F403 pytest finds fixtures by their names

Start = Callable[..., Awaitable[Any]]


@pytest.fixture
async def recorded(sim: Start) -> AsyncIterator[Start]:
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
async def hostile(sim: Start) -> AsyncIterator[Start]:
    """Start a hostile worker in front of a simulated one of its own."""
    workers: list[HostileWorker] = []

    async def start(**config: Any) -> HostileWorker:
        worker = HostileWorker((await sim(**config)).port)
        workers.append(worker)
        await worker.open()
        return worker

    yield start
    for worker in workers:
        await worker.close()


@pytest.fixture
async def proxy(sim: Start) -> AsyncIterator[Start]:
    """Start a fault proxy in front of a port."""
    proxies: list[FaultProxy] = []

    async def start(target: int, **config: Any) -> FaultProxy:
        proxies.append(FaultProxy(target, **config))
        await proxies[-1].open()
        return proxies[-1]

    yield start
    for one in proxies:
        await one.close()


@pytest.fixture
async def gateway(hostile: Start, recorded: Start, proxy: Start) -> AsyncIterator[Start]:
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
