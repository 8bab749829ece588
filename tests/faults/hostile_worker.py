"""A worker that does to us, byte by byte, whatever a script says: the fake of part A of the fault catalogue.

It stands in front of a simulated worker, which answers all that is not scripted: lists, loads, unloads, and requests
once no script is left. So it is a whole Ollama for the gateway, until a request meets its script.

A script is a sequence of acts. An act is an async function of the open connection; those here are the vocabulary.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

INFERENCE = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
DRAIN_S = 30.0
"""A reader that takes nothing for so long ends the script."""

Act = Callable[["Scene"], Awaitable[None]]
Script = tuple[Act, ...]


class Scene:
    """One request and its open connection, for the acts of a script."""

    def __init__(self, worker: HostileWorker, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self.worker = worker
        self.writer = writer
        self.body = body
        self.over = False
        """The connection will carry no other request."""

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(DRAIN_S):
            await self.writer.drain()


class HostileWorker:
    """Listens on loopback. ``scripts`` are used up one by one by requests for inference; ``always`` by all others."""

    def __init__(self, behind: int, *, port: int = 0) -> None:
        """``behind``: the port of the simulated worker."""
        self.behind = behind
        self.port = port
        self.scripts: deque[Script] = deque()
        self.always: Script | None = None
        self.marked: dict[str, Script] = {}
        """Scripts of requests whose body contains a word: poison."""
        self.edits: dict[str, Callable[[Any], Any]] = {}
        """Path to what becomes of the simulated worker's JSON there: lies."""
        self.served: list[dict[str, Any]] = []
        """Bodies of the requests for inference, scripted or not."""
        self.accepted = 0
        """Connections."""
        self.aborted = 0
        """Scripts whose connection the gateway closed before their end."""
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Nothing listens any more, and nothing that was open stays; ``open`` ends it, on the same port."""
        assert self._server is not None
        self._server.close()
        self._server = None
        tasks = dict(self._tasks)
        for writer in tasks.values():
            abort(writer)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)

    async def close(self) -> None:
        if self._server is not None:
            await self.refuse()

    def script(self, *acts: Act, times: int = 1) -> None:
        self.scripts.extend([acts] * times)

    # ------------------------------------------------------------------ connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)
        self.accepted += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, RuntimeError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            pass  # the other side has left, or we do
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        data = await reader.readexactly(length)
        if path in INFERENCE:
            body = json.loads(data)
            script = self._script(body, data) if _is_work(path, body) else None
            if script is not None:
                return await self._play(script, Scene(self, writer, body))
        await self._relay(head, data, writer, path=path)
        return True

    def _script(self, body: dict[str, Any], data: bytes) -> Script | None:
        self.served.append(body)
        marked = next((script for word, script in self.marked.items() if word.encode() in data), None)
        return marked or (self.scripts.popleft() if self.scripts else self.always)

    async def _play(self, script: Script, scene: Scene) -> bool:
        try:
            for act in script:
                await act(scene)
        except (ConnectionError, TimeoutError):
            self.aborted += 1
            raise
        return not scene.over

    async def _relay(self, head: bytes, data: bytes, writer: asyncio.StreamWriter, *, path: str) -> None:
        """Ask the simulated worker, on a connection of its own, and pass on what it says as it comes."""
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.behind)
        try:
            behind.write(head[:-2] + b"connection: close\r\n\r\n" + data)
            answer = await behind_reader.readuntil(b"\r\n\r\n")
            answer = b"\r\n".join(line for line in answer.split(b"\r\n") if not line.lower().startswith(b"connection:"))
            edit = self.edits.get(path)
            if edit is not None:
                found = edit(json.loads(await behind_reader.read()))
                body = json.dumps(found).encode()
                answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
                writer.write(answer + body)
            else:
                writer.write(answer)
                while piece := await behind_reader.read(65_536):
                    writer.write(piece)
                    await writer.drain()
            await writer.drain()
        finally:
            behind.transport.abort()


def _is_work(path: str, body: dict[str, Any]) -> bool:
    """Not a load or an unload."""
    if path.startswith("/api/embed"):
        return bool(body.get("input") or body.get("prompt"))
    return bool(body.get("prompt") or body.get("messages"))


def abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of a FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ---------------------------------------------------------------------- acts


def raw(data: bytes) -> Act:
    """These bytes, whatever they mean."""

    async def act(scene: Scene) -> None:
        await scene.write(data)

    return act


def sliced(data: bytes, *, every: int = 1) -> Act:
    """The same in pieces, each in a packet of its own as far as the kernel allows."""

    async def act(scene: Scene) -> None:
        sock = scene.writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), every):
            await scene.write(data[at : at + every])
            await asyncio.sleep(0)

    return act


def status(code: int, text: str, *, reason: str = "Error") -> Act:
    """An error answer as Ollama gives it."""
    body = json.dumps({"error": text}).encode()
    head = f"HTTP/1.1 {code} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    return raw(head + body)


def chunk(data: bytes) -> Act:
    return raw(chunked(data))


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def lines(*objects: Any, ends: bool = True) -> Act:
    """A streamed answer of these objects (or raw lines); ``ends``: with its last chunk."""
    body = b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in objects)
    return raw(CHUNKED + (chunked(body) if body else b"") + (b"0\r\n\r\n" if ends else b""))


def whole(value: Any) -> Act:
    """An unstreamed answer."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def flood(piece: bytes, count: int) -> Act:
    """The same bytes again and again, until they are sent or the reader has had enough."""

    async def act(scene: Scene) -> None:
        for _ in range(count):
            await scene.write(piece)

    return act


def pause(seconds: float) -> Act:
    async def act(scene: Scene) -> None:
        await asyncio.sleep(seconds)

    return act


def until_set(event: asyncio.Event) -> Act:
    """Say nothing before the test lets it go on."""

    async def act(scene: Scene) -> None:
        await event.wait()

    return act


async def hang(scene: Scene) -> None:
    """Say nothing more and keep the connection, until the other side gives up."""
    while not scene.writer.transport.is_closing():
        await asyncio.sleep(0.01)
    scene.over = True


async def reset(scene: Scene) -> None:
    abort(scene.writer)
    scene.over = True


async def close(scene: Scene) -> None:
    """End the connection in order, whatever is missing."""
    scene.writer.close()
    scene.over = True


def token(text: str, *, model: str = "a:1") -> dict[str, Any]:
    """One line of a streamed chat."""
    return {
        "model": model,
        "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": text},
        "done": False,
    }


def done(*, model: str = "a:1", tokens: int = 2) -> dict[str, Any]:
    """Its last line."""
    return token("", model=model) | {
        "done": True, "done_reason": "stop", "total_duration": 9, "load_duration": 1, "prompt_eval_count": 3,
        "prompt_eval_duration": 2, "eval_count": tokens, "eval_duration": 5,
    }  # fmt: skip


GOOD = lines(token("hel"), token("lo"), done())
"""What a healthy worker says to a streaming client."""
GOOD_WHOLE = whole(done() | {"message": {"role": "assistant", "content": "hello"}})


async def honest(scene: Scene) -> None:
    """The answer that was asked for."""
    await (GOOD if scene.body.get("stream", True) else GOOD_WHOLE)(scene)
