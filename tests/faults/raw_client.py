"""A client that sends bytes as they are, and reads answers strictly: what is no whole answer fails the test."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass

WAIT_S = 30.0
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*\r\n")
_HEADER_LINE = re.compile(rb"([a-z0-9-]+): ([\t -~]*)\r\n")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def split_answers(raw: bytes, *, head_only: bool = False) -> list[Answer]:
    """All answers in ``raw``; ``head_only`` is about the first. Interim answers are checked and left out."""
    answers: list[Answer] = []
    position = 0
    while position < len(raw):
        match = _STATUS_LINE.match(raw, position)
        assert match is not None, f"no answer begins here: {raw[position : position + 200]!r}"
        status, position = int(match[1]), match.end()
        headers: dict[str, str] = {}
        while (line := _HEADER_LINE.match(raw, position)) is not None:
            name = line[1].decode()
            assert name not in headers, f"{name} twice"
            headers[name], position = line[2].decode(), line.end()
        assert raw.startswith(b"\r\n", position), raw[position : position + 200]
        position += 2
        if status < 200:
            assert (status, headers) == (100, {})
            continue
        assert "date" in headers
        body, position = _body(raw, position, headers, empty=head_only and not answers)
        answers.append(Answer(status, headers, body))
    return answers


def _body(raw: bytes, position: int, headers: dict[str, str], *, empty: bool) -> tuple[bytes, int]:
    assert not ("content-length" in headers and "transfer-encoding" in headers)
    if empty:
        return b"", position
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size_line, _, _ = raw[position:].partition(b"\r\n")
            size = int(size_line, 16)
            position += len(size_line) + 2
            body += raw[position : position + size]
            position += size
            assert raw.startswith(b"\r\n", position)
            position += 2
            if not size:
                return body, position
    size = int(headers["content-length"])
    assert len(raw) >= position + size, "an answer was cut"
    return raw[position : position + size], position + size


async def exchange(port: int, data: bytes, *, wait_s: float = WAIT_S) -> bytes:
    """Send ``data`` and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(wait_s):
            return await _everything(reader)
    finally:
        writer.transport.abort()


async def _everything(reader: asyncio.StreamReader) -> bytes:
    raw = b""
    try:
        while piece := await reader.read(1 << 16):
            raw += piece
    except ConnectionError:
        pass  # what came before counts
    return raw


class Rude:
    """A socket of a client without manners, driven from the loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def dial(cls, port: int, *, window: int = 0) -> Rude:
        sock = socket.socket()
        sock.setblocking(False)
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.loop.sock_sendall(self.sock, data)

    async def read(self, size: int = 1 << 16) -> bytes:
        """What is there; empty at the end, however it came."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.loop.sock_recv(self.sock, size)
            except ConnectionError:
                return b""

    async def read_until(self, mark: bytes) -> bytes:
        """At least up to ``mark``; fails if the end comes before."""
        raw = b""
        while mark not in raw:
            piece = await self.read()
            assert piece, f"{mark!r} never came: {raw[-300:]!r}"
            raw += piece
        return raw

    async def rest(self) -> bytes:
        raw = b""
        while piece := await self.read():
            raw += piece
        return raw

    def fin(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
