"""Changes of one name at the same time: the old version stays addressable until the last of them, and then leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bellmare.gateway.management.keeping import Keeper
from bellmare.runtime.tasks import Tasks

OLD, NEW = "sha256:old", "sha256:new"


class Worker:
    """What of a port ``keeping`` uses: names with digests, runners by digest, as in Ollama."""

    def __init__(self) -> None:
        self.worker = "w"
        self.names = {"a:1": OLD}
        self.loaded = {OLD}
        self.upstream = self
        self.copying: asyncio.Event | None = None
        self._look()

    def _look(self) -> None:
        self.tags = {name: SimpleNamespace(name=name, digest=digest) for name, digest in self.names.items()}
        self.running = tuple(SimpleNamespace(digest=digest) for digest in self.loaded)

    async def observe(self, *, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        self._look()
        return SimpleNamespace(stored=[SimpleNamespace(name=n, digest=d) for n, d in self.names.items()])

    async def fetch(self, method: str, path: str, *, body: bytes, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        said = msgspec.json.decode(body)
        if path == "/api/copy":
            if self.copying is not None:
                await self.copying.wait()
            self.names[said["destination"]] = self.names[said["source"]]
        elif path == "/api/delete":
            self.names.pop(said["model"], None)
        else:
            assert said["keep_alive"] == 0
            self.loaded.discard(self.names.get(said["model"], ""))
        return SimpleNamespace(status=200, body=b"")


@pytest.fixture
def worker() -> Any:
    return Worker()


@pytest.fixture
async def keeper() -> AsyncIterator[Keeper]:
    errors: list[BaseException] = []
    tasks = Tasks(lambda _, error: errors.append(error))
    yield Keeper(tasks)
    await tasks.close()
    assert not errors


async def test_the_first_to_end_takes_nothing_from_the_second(keeper: Keeper, worker: Any) -> None:
    failed = asyncio.Event()

    async def fails() -> None:
        async with keeper.keeping(worker, "a:1"):
            await asyncio.sleep(0)
        failed.set()

    async def moves() -> None:
        async with keeper.keeping(worker, "a:1"):
            await failed.wait()
            worker.names["a:1"] = NEW

    await asyncio.wait_for(asyncio.gather(fails(), moves()), 5)
    assert worker.names == {"a:1": NEW}
    assert worker.loaded == set()
    assert len(keeper) == 0


async def test_nobody_moves_a_name_before_its_version_has_another(keeper: Keeper, worker: Any) -> None:
    worker.copying = asyncio.Event()

    async def deletes() -> None:
        async with keeper.keeping(worker, "a:1"):
            worker.names.pop("a:1", None)

    both = asyncio.gather(deletes(), deletes())
    await asyncio.sleep(0.01)
    assert "a:1" in worker.names
    worker.copying.set()
    await asyncio.wait_for(both, 5)
    assert worker.names == {}
    assert worker.loaded == set()


@pytest.mark.parametrize("steps", range(12))
async def test_a_client_that_leaves_at_any_step_leaves_no_name_behind(steps: int, keeper: Keeper, worker: Any) -> None:
    async def deletes() -> None:
        async with keeper.keeping(worker, "a:1"):
            await asyncio.sleep(0)
            worker.names.pop("a:1")
            await asyncio.sleep(0)

    task = asyncio.get_running_loop().create_task(deletes())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,), timeout=5)
    async with asyncio.timeout(5):
        while len(keeper):
            await asyncio.sleep(0.01)
    assert set(worker.names) <= {"a:1"}
    assert worker.loaded == ({OLD} if worker.names else set())
