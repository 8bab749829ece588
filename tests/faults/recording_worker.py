"""A worker that keeps every byte it is sent, and the grammar of what we send: whatever else it reads was smuggled."""

from __future__ import annotations

import asyncio
import json
import re

from rig import Sim

READ_BYTES = 1 << 16
_GET = rb"GET /api/(?:version|tags|ps|bellmare) HTTP/1\.1\r\n"
_POST = rb"POST /api/(?:chat|generate|embed|embeddings|show) HTTP/1\.1\r\n"
_HOST = rb"host: 127\.0\.0\.1:%d\r\naccept-encoding: identity\r\n"
_BODY = rb"content-type: application/json\r\ncontent-length: ([1-9][0-9]*)\r\n\r\n"


class RecordingWorker:
    """A simulated worker behind a relay that keeps what comes in."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.port = 0
        self.streams: list[bytearray] = []
        """What each connection brought."""
        self.hold: asyncio.Event | None = None
        """Where set, what a worker says from its last line on waits for it."""
        self.held = 0
        """Answers that wait so."""
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task, writer in tuple(self._tasks.items()):
            writer.transport.abort()
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        stream = bytearray()
        self.streams.append(stream)
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.sim.port)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_keep(reader, outer, stream))
                    both.create_task(self._answer(inner, writer))
            except* (ConnectionError, RuntimeError, _Ended):  # RuntimeError: uvloop, of a closed transport
                pass
            finally:
                outer.transport.abort()
        finally:
            writer.transport.abort()
            del self._tasks[task]

    async def _answer(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(READ_BYTES):
            if self.hold is not None and (last := data.find(b'"done":true')) >= 0:
                start = max(data.rfind(b"\r\n", 0, data.rfind(b"\r\n", 0, last)), 0)  # before the size of its chunk
                sink.write(data[:start])
                self.held += 1
                await self.hold.wait()
                data = data[start:]
            sink.write(data)
            await sink.drain()
        raise _Ended

    def requests(self) -> list[tuple[bytes, bytes]]:
        """Head and body of everything it was asked, by the strict grammar of our own heads. Fails on anything else."""
        head = re.compile(b"(?:" + _GET + _HOST % self.port + rb"\r\n|" + _POST + _HOST % self.port + _BODY + b")")
        found = []
        for stream in self.streams:
            data, position = bytes(stream), 0
            while position < len(data):
                match = head.match(data, position)
                assert match is not None, f"not ours: {data[position : position + 300]!r}"
                position = match.end() + int(match[1] or 0)
                body = data[match.end() : position]
                if match[1] is not None and len(body) == int(match[1]):  # else it was given up while it was sent
                    assert isinstance(json.loads(body), dict)
                found.append((match[0], body))
        return found


class _Ended(Exception):
    """One side has closed: so will the other."""


async def _keep(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
    while data := await source.read(READ_BYTES):
        kept += data
        sink.write(data)
        await sink.drain()
    raise _Ended
