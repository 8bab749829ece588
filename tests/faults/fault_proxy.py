"""A TCP proxy that spoils what passes: toxiproxy's toxics, byte by byte, settable while connections are open.

It may stand between gateway and worker or between client and gateway. A toxic works on one direction: ``down`` is from
the server to the client. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

from hostile_worker import abort

READ_BYTES = 16_384


@dataclass
class Toxics:
    """What is done to one direction. Each may be changed at any time; zero is harmless."""

    latency_s: float = 0.0
    """Every piece comes so much later."""
    jitter_s: float = 0.0
    """Give or take so much."""
    lost_percent: int = 0
    """So many pieces in a hundred seem lost and come after a retransmission's time."""
    retransmit_s: float = 0.2
    bytes_per_s: int = 0
    """At most; zero: as fast as it goes."""
    slice_bytes: int = 0
    """Cut into pieces of at most so many bytes."""
    slice_pause_s: float = 0.0
    """Between them."""
    reset_after: int = -1
    """After so many bytes of a connection a RST to both sides; -1: never."""
    limit_bytes: int = -1
    """After so many bytes of a connection the end, in order."""
    stall_after: int = -1
    """After so many bytes nothing passes any more, and the connection stays open until ``stalled`` is let go."""
    slow_close_s: float = 0.0
    """The end is passed on so much later."""
    corrupt_every: int = 0
    """Every so manieth byte is another one."""
    passed: int = 0
    """Bytes so far, over all connections."""


@dataclass
class _Pipe:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    toxics: Toxics
    passed: int = 0
    cut: bool = False


@dataclass
class FaultProxy:
    """Passes connections on to ``target``. ``up`` and ``down`` hold for all of them."""

    target: int
    seed: int = 1
    up: Toxics = field(default_factory=Toxics)
    down: Toxics = field(default_factory=Toxics)
    refusing: bool = False
    """Accepts and resets at once."""
    port: int = 0
    connections: int = 0
    """Ever accepted."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._tasks: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut_all()

    async def cut_all(self) -> None:
        """A RST on everything that is open."""
        tasks = dict(self._tasks)
        for task, writers in tasks.items():
            for writer in writers:
                abort(writer)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self.connections += 1
        self._tasks[task] = (writer,)
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        if self.refusing:
            abort(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            abort(writer)
            return
        self._tasks[task] = (writer, server_writer)
        pipes = (_Pipe(reader, server_writer, self.up), _Pipe(server_reader, writer, self.down))
        try:
            async with asyncio.TaskGroup() as group:
                for pipe in pipes:
                    group.create_task(self._pass_on(pipe))
        except* (
            ConnectionError,
            OSError,
            RuntimeError,
            asyncio.CancelledError,
        ):  # RuntimeError: uvloop, of a closed one
            pass
        finally:
            for end in (writer, server_writer):
                if any(pipe.cut for pipe in pipes):
                    abort(end)
                else:
                    with contextlib.suppress(RuntimeError):  # uvloop, of one that is closed already
                        end.close()

    async def _pass_on(self, pipe: _Pipe) -> None:
        toxics = pipe.toxics
        while data := await pipe.reader.read(READ_BYTES):
            await self._delay(toxics, len(data))
            if toxics.corrupt_every:
                data = self._corrupt(data, pipe.passed, toxics.corrupt_every)
            for piece in self._slices(data, toxics.slice_bytes):
                if not await self._let_pass(pipe, piece):
                    return
        await asyncio.sleep(toxics.slow_close_s)
        if not pipe.writer.transport.is_closing():
            pipe.writer.write_eof()

    async def _delay(self, toxics: Toxics, count: int) -> None:
        wait_s = toxics.latency_s + self._random.uniform(-1, 1) * toxics.jitter_s
        if toxics.bytes_per_s:
            wait_s += count / toxics.bytes_per_s
        if self._random.randrange(100) < toxics.lost_percent:
            wait_s += toxics.retransmit_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _let_pass(self, pipe: _Pipe, piece: bytes) -> bool:
        """Pass a piece, up to the bound that is met first; whether the connection goes on."""
        toxics = pipe.toxics
        for bound in sorted(
            bound for bound in (toxics.reset_after, toxics.limit_bytes, toxics.stall_after) if bound >= 0
        ):
            if pipe.passed + len(piece) < bound:
                continue
            await self._write(pipe, piece[: max(0, bound - pipe.passed)])
            if bound == toxics.reset_after:
                pipe.cut = True
                raise ConnectionResetError
            if bound == toxics.limit_bytes:
                pipe.writer.close()
                raise ConnectionAbortedError
            while toxics.stall_after >= 0:
                await asyncio.sleep(0.01)
                if pipe.writer.transport.is_closing():
                    return False
            piece = piece[max(0, bound - pipe.passed) :] if bound > pipe.passed else piece
        await self._write(pipe, piece)
        if toxics.slice_bytes and toxics.slice_pause_s:
            await asyncio.sleep(toxics.slice_pause_s)
        return True

    async def _write(self, pipe: _Pipe, data: bytes) -> None:
        if data:
            pipe.passed += len(data)
            pipe.toxics.passed += len(data)
            pipe.writer.write(data)
            await pipe.writer.drain()

    def _slices(self, data: bytes, size: int) -> list[bytes]:
        return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]

    def _corrupt(self, data: bytes, offset: int, every: int) -> bytes:
        return bytes(byte ^ 0x55 if (offset + at + 1) % every == 0 else byte for at, byte in enumerate(data))
