"""The other side in the tests of http: a raw client, a recording application, a server that answers given bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bellmare.http.client import UpstreamFailure
from bellmare.http.messages import Refusal, Request
from bellmare.http.server import Exchange

WAIT_S = 5.0
"""No test waits longer for anything that must happen."""


class App:
    """Records what reaches it. With ``auto`` it echoes the body at once, else the test answers ``exchanges``."""

    def __init__(self, *, auto: bool = True, body_bytes_max: int = 1 << 20) -> None:
        self.auto = auto
        self.verdict: Refusal | int = body_bytes_max
        self.heads: list[Request] = []
        self.requests: list[Request] = []
        self.bad: list[tuple[int, str, str]] = []
        self.exchanges: asyncio.Queue[Exchange] = asyncio.Queue()

    def on_head(self, request: Request) -> Refusal | int:
        assert request.body == b""
        self.heads.append(request)
        return self.verdict

    def on_request(self, exchange: Exchange) -> None:
        self.requests.append(exchange.request)
        if self.auto:
            exchange.respond(200, [(b"x-path", exchange.request.path.encode())], exchange.request.body or b"ok")
        else:
            self.exchanges.put_nowait(exchange)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        self.bad.append((status, reason, target))
        return Refusal(status, ((b"content-type", b"text/plain"),), reason.encode())

    async def exchange(self) -> Exchange:
        async with asyncio.timeout(WAIT_S):
            return await self.exchanges.get()


class Listener:
    """Hears what an exchange says about its client."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.left = asyncio.Event()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    def on_disconnect(self) -> None:
        self.events.append("disconnect")
        self.left.set()

    def on_pause(self) -> None:
        self.events.append("pause")
        self.paused.set()

    def on_resume(self) -> None:
        self.events.append("resume")
        self.resumed.set()


async def happens(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()


class Answer:
    """One response as raw bytes say it."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, chunks: list[bytes] | None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.chunks = chunks


class RawClient:
    """A socket that sends what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "RawClient":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head[:-4].split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            status = int(status_line.split(" ")[1])
            if head_only or status < 200 or status in (204, 304):
                return Answer(status, headers, b"", None)
            if "transfer-encoding" in headers:
                chunks = []
                while size := int(await self.reader.readline(), 16):
                    chunks.append(await self.reader.readexactly(size))
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
                return Answer(status, headers, b"".join(chunks), chunks)
            if "content-length" in headers:
                return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])), None)
            return Answer(status, headers, await self.reader.read(), None)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


Script = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CLOSE = b""
"""Scripted answer: close without a word."""


class ScriptedUpstream:
    """Reads a request, answers with the next script (bytes, or a coroutine function that has the streams)."""

    def __init__(self, answers: list[Script]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.lost = asyncio.Event()
        self.port = 0
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = dict(self._tasks)
        for writer in tasks.values():
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=WAIT_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.lost.set()
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.startswith(b"content-length: "):
                    length = int(line[16:])
            self.requests.append(head + await reader.readexactly(length))
            answer = self.answers.pop(0)
            if callable(answer):
                await answer(reader, writer)
            elif answer:
                writer.write(answer)
                if b"content-length" not in answer.lower() and b"chunked" not in answer.lower():
                    await writer.drain()
                    writer.close()
                    return
            else:
                return


class Recorder:
    """A receiver that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.failure: UpstreamFailure | None = None
        self.headed = asyncio.Event()
        self.fed = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.events.append("response")
        self.status, self.headers = status, headers
        self.headed.set()

    def on_data(self, data: bytes) -> None:
        assert data
        self.events.append("data")
        self.parts.append(data)
        self.fed.set()

    def on_end(self) -> None:
        self.events.append("end")
        self.ended.set()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.events.append("failure")
        self.failure = failure
        self.ended.set()
