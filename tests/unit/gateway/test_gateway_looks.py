"""Two looks at one worker at once, as after a change of models: neither takes from the other what it has read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bellmare.core.units import WorkerId
from bellmare.http.messages import Response
from bellmare.workers.ollama import OllamaWorker, WorkerSettings


class Server:
    """An upstream whose list of models changes from one look to the next, and which describes "slow" late."""

    def __init__(self, *lists: list[str]) -> None:
        self.lists = list(lists)
        self.slow = asyncio.Event()

    async def fetch(self, method: str, path: str, *, body: bytes = b"", timeout_s: float, body_max_bytes: int) -> Any:
        await asyncio.sleep(0)
        if path == "/api/tags":
            names = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            models = [{"name": f"{name}:1", "model": f"{name}:1", "size": 1, "digest": name * 9} for name in names]
            return Response(200, [], json.dumps({"models": models}).encode())
        if path == "/api/show":
            if "slow" in json.loads(body)["model"]:
                await self.slow.wait()
            return Response(200, [], b'{"modelfile":"","details":{},"model_info":{}}')
        return Response(200, [], b'{"models":[],"version":"1"}')


async def test_a_look_that_was_overtaken_still_ends_in_order() -> None:
    server = Server(["first", "slow"], ["other"])
    upstream: Any = server
    worker = OllamaWorker(WorkerId("w"), upstream, settings=WorkerSettings(), now_utc=lambda: "2026-01-01T00:00:00Z")
    loop = asyncio.get_running_loop()
    first = loop.create_task(worker.observe(timeout_s=5))
    await asyncio.sleep(0.02)
    second = loop.create_task(worker.observe(timeout_s=5))
    await asyncio.sleep(0.02)
    server.slow.set()
    assert {one.name for one in (await first).stored} == {"first:1", "slow:1"}
    assert {one.name for one in (await second).stored} == {"other:1"}
    assert set(worker.tags) == {"other:1"}, "what was seen last holds"
