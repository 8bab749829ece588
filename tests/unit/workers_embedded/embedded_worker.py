"""A worker over the real engine in this process, and a client of it; its children are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bellmare.workers.embedded.server import EmbeddedServer


class Worker:
    """The worker and a client of it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60, trust_env=False)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def generate(self, model: str, **body: Any) -> dict[str, Any]:
        """One unstreamed answer, which must be a 200."""
        answer = await self.post("/api/generate", model=model, stream=False, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def ps(self) -> dict[str, dict[str, Any]]:
        models = (await self.client.get("/api/ps")).json()["models"]
        return {model["name"]: model for model in models}

    async def counters(self) -> dict[str, int]:
        return (await self.client.get("/api/bellmare")).json()["counters"]  # type: ignore[no-any-return]

    async def until_gone(self, name: str) -> None:
        async with asyncio.timeout(10):
            while name in await self.ps():
                await asyncio.sleep(0.01)

    async def until_held(self, references: int) -> None:
        """Until so many requests hold a runner, waiting for a slot or running."""
        async with asyncio.timeout(10):
            while sum(runner.references for runner in self.server.engine.runners()) != references:
                await asyncio.sleep(0.002)

    def pid(self, name: str) -> int:
        (runner,) = (one for one in self.server.engine.runners() if one.model.name == name)
        assert runner.process is not None
        return runner.process.pid

    async def close(self) -> None:
        await self.client.aclose()
        await self.server.close(grace_s=0.5)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.sleep(0.01)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


StartWorker = Callable[..., Any]
"""The fixture ``start_worker``: settings in, a :class:`Worker` out, to be awaited."""
