"""A server that answers nonsense is a fault with a kind, never an exception of a library, and never a wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bellmare.core.events import FaultKind
from bellmare.core.units import WorkerId
from bellmare.http.client import Upstream
from bellmare.runtime.clock import Clock
from bellmare.workers.ollama import OllamaWorker, WorkerSettings
from bellmare.workers.port import WorkerFault

TIMEOUT_S = 5.0
DIGEST = "a" * 64
TAG = {"name": "a:1", "model": "a:1", "modified_at": "2026-01-01T00:00:00Z", "size": 5, "digest": DIGEST, "details": {}}
ROW = {"name": "a:1", "model": "a:1", "size": 5, "size_vram": 5, "digest": DIGEST, "context_length": 2048}
SANE: dict[str, Any] = {
    "/api/bellmare": (404, b"404 page not found"),
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [TAG]},
    "/api/show": {"modelfile": f"FROM /models/blobs/sha256-{DIGEST}", "details": {}, "model_info": {}, "tensors": []},
    "/api/ps": {"models": [ROW | {"expires_at": "2318-01-01T00:00:00Z", "details": {}}]},
    "/api/generate": {"model": "a:1", "created_at": "x", "response": "", "done": True, "done_reason": "load"},
    "/api/embed": {"model": "a:1", "embeddings": []},
}
JUNK = {
    "nothing": (200, b""),
    "text": (200, b"not json"),
    "a list": (200, b"[]"),
    "null": (200, b"null"),
    "a number": (200, b"5"),
    "wrong kinds": (200, b'{"models":5,"version":[],"done":"x","modelfile":7,"model_info":[]}'),
    "wrong rows": (200, b'{"models":[5,null,{"name":7}],"model_info":{"general.architecture":5},"tensors":[7]}'),
    "invalid UTF-8": (200, b'{"models":[{"name":"\xff"}],"version":"\xff"}'),
    "deep nesting": (200, b'{"models":' + b"[" * 5000 + b"]" * 5000 + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "huge numbers": (200, b'{"models":[{"name":"a:1","size":1e400,"digest":"' + DIGEST.encode() + b'"}]}'),
    "an error": (200, b'{"error":"no"}'),
    "a redirect": (302, b""),
    "a crash": (500, b'{"error":"llama-server process has terminated"}'),
    "a page": (502, b"<html>"),
}


class Odd:
    """A server that answers each path with what it is told."""

    def __init__(self) -> None:
        self.answers = dict(SANE)
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        length = next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)
        await reader.readexactly(length)
        answer = self.answers[path]
        status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


@pytest.fixture
async def odd(_gate: None) -> AsyncIterator[Odd]:
    server = Odd()
    await server.open()
    yield server
    await server.close()


@pytest.fixture
async def worker(odd: Odd) -> AsyncIterator[OllamaWorker]:
    made = OllamaWorker(
        WorkerId("w"), Upstream("127.0.0.1", odd.port), settings=WorkerSettings(), now_utc=Clock().rfc3339
    )
    yield made
    assert made.upstream.in_flight == 0
    await made.close()


CALLS: dict[str, Callable[[OllamaWorker], Any]] = {
    "profile": lambda worker: worker.profile(timeout_s=TIMEOUT_S),
    "observe": lambda worker: worker.observe(timeout_s=TIMEOUT_S),
    "load": lambda worker: worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S),
    "embed": lambda worker: worker.load("a:1", num_ctx=2048, embedding=True, timeout_s=TIMEOUT_S),
    "unload": lambda worker: worker.unload("a:1", timeout_s=TIMEOUT_S),
}


async def test_the_sane_server_is_understood(worker):
    seen = await worker.observe(timeout_s=TIMEOUT_S)
    assert [model.name for model in seen.stored] == ["a:1"]
    loaded = await CALLS["load"](worker)
    assert (loaded.name, loaded.num_ctx, loaded.pinned) == ("a:1", 2048, True)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("path", SANE)
@pytest.mark.parametrize("known", [True, False], ids=["later", "from the start"])
async def test_junk_on_any_route_is_a_fault_or_is_ignored(odd, worker, known, path, junk):
    if known:
        await worker.observe(timeout_s=TIMEOUT_S)
    odd.answers[path] = JUNK[junk]
    for name, call in CALLS.items():
        if name == "unload":
            odd.answers["/api/ps"] = {"models": []} if path != "/api/ps" else JUNK[junk]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await call(worker)
        except WorkerFault as fault:
            assert fault.fault in (FaultKind.bad_answer, FaultKind.failed)
            assert fault.detail


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_about_one_model_hides_that_model_alone(odd, worker, junk):
    odd.answers["/api/tags"] = {"models": [TAG, TAG | {"name": "../evil", "model": "x"}, TAG | {"name": "b:cloud"}]}
    odd.answers["/api/show"] = JUNK[junk]
    seen = await worker.observe(timeout_s=TIMEOUT_S)
    assert {model.name for model in seen.stored} <= {"a:1"}
    odd.answers["/api/show"] = SANE["/api/show"]
    again = await worker.observe(timeout_s=TIMEOUT_S)
    assert again.stored is None or [model.name for model in again.stored] == ["a:1"]
