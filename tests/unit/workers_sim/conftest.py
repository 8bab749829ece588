"""Simulated workers that are closed when the test ends."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sim_client import Worker, start

Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start_worker() -> AsyncIterator[Start]:
    workers: list[Worker] = []

    async def begin(**config: Any) -> Worker:
        workers.append(await start(**config))
        return workers[-1]

    yield begin
    for worker in workers:
        await worker.server.close()


@pytest.fixture
async def worker(start_worker: Start) -> Worker:
    return await start_worker()
