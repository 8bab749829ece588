"""A raw client: one connection, one request, everything as it came, and the instants at which it came."""

import asyncio
import json
import socket
import time
from typing import Any

from bellmare.workers.sim import SimConfig, SimModel, SimServer, start_sim_worker

FAST = {"time_scale": 0.01, "context_length": 4096}
SMALL = (
    SimModel("a:1", capabilities=("completion", "tools")),
    SimModel("b:1"),
    SimModel("r:1", capabilities=("completion", "thinking")),
    SimModel(
        "e:1", "nomic-bert", 12, 12, 12, 0, 768, 3072, 30_522, 2048, quantization="F16", capabilities=("embedding",)
    ),
)


class Reply:
    """One HTTP answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.raw_body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
        self.complete = True
        self.body = self._dechunked() if self.headers.get("transfer-encoding") == "chunked" else self.raw_body

    def _dechunked(self) -> bytes:
        rest, body = self.raw_body, b""
        while True:
            size, found, rest = rest.partition(b"\r\n")
            if not found:
                self.complete = False
                return body
            length = int(size, 16)
            if not length:
                return body
            body, rest = body + rest[:length], rest[length + 2 :]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def error(self) -> str:
        return str(self.json["error"])


class Worker:
    """A simulated worker and ways to talk to it."""

    def __init__(self, server: SimServer) -> None:
        self.server = server
        self.twin = server.twin
        self.url = f"http://127.0.0.1:{server.port}"

    async def open(
        self, method: str, path: str, body: object = None, *, buffer_bytes: int = 0, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request and leave the rest to the caller. ``buffer_bytes`` makes a client with a small window."""
        sock = socket.socket()
        sock.setblocking(False)
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"host": f"127.0.0.1:{self.server.port}", "connection": "close", "content-length": str(len(data))}
        lines = [f"{key}: {value}" for key, value in (sent | headers).items()]
        writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + data)
        await writer.drain()
        return reader, writer

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        reader, writer = await self.open(method, path, body, **headers)
        async with asyncio.timeout(20):
            raw = await reader.read()
        writer.close()
        return Reply(raw)

    async def post(self, path: str, body: object, **headers: str) -> Reply:
        return await self.ask("POST", path, body, **headers)

    async def generate(self, model: str = "a:1", **more: Any) -> Reply:
        return await self.post("/api/generate", {"model": model, "prompt": "hello"} | more)

    async def loaded(self) -> list[str]:
        return [row["name"] for row in (await self.ask("GET", "/api/ps")).json["models"]]

    async def until(self, holds: Any, *, timeout_s: float = 10.0) -> None:
        """Wait for a condition of the twin; the only polling here."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, "the condition never held"
            await asyncio.sleep(0.005)


async def start(**config: Any) -> Worker:
    return Worker(await start_sim_worker(SimConfig(**({"models": SMALL} | FAST | config))))
