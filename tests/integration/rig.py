"""A running gateway with its workers, and a raw client that shows an answer exactly as it came."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from bellmare.cli.service import Service
from bellmare.core.decisions import Decision
from bellmare.core.events import Event
from bellmare.core.units import WorkerId
from bellmare.observability.logs import open_logs
from bellmare.runtime.replay import Report, replay
from bellmare.settings import load_settings
from bellmare.workers.sim import SimConfig, SimModel, SimServer, start_sim_worker

WAIT_S = 30.0
"""Bound of every wait of a test."""
EMBEDDER = SimModel(
    "e:1", "nomic-bert", 12, 12, 12, 0, 768, 3072, 30_522, 2048, quantization="F16", capabilities=("embedding",)
)
SMALL = (SimModel("a:1", capabilities=("completion", "tools", "vision")), SimModel("b:1"), SimModel("c:1"), EMBEDDER)
"""Three models of 4.9 GB, of which two fit into 24 GB with four slots of 8,192 tokens, and one for embeddings."""
RUNNER = Path(__file__).with_name("sim_process.py")
HUGE = SimModel("huge:1", "llama", 120, 128, 8, 0, 16_384, 53_248)
"""Some 230 GB: larger than any worker of these tests."""

_D = TypeVar("_D", bound=Decision)
_E = TypeVar("_E", bound=Event)


class Talk:
    """One request on a connection of its own, read piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        """The answer's framing says that it is whole."""
        self._left = -1
        self._buffer = b""

    async def head(self) -> int:
        """Read the head; returns the status."""
        async with asyncio.timeout(WAIT_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").strip().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        self._left = int(self.headers.get("content-length", "-1"))
        return self.status

    async def piece(self) -> bytes:
        """The next chunk, or the whole body; empty at the end, however it came about."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self._piece()
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""

    async def _piece(self) -> bytes:
        if self.complete:
            return b""
        if self._left >= 0:
            body = await self._reader.readexactly(self._left)
            self.complete = True
            return body
        if self.headers.get("transfer-encoding") != "chunked":
            return await self._reader.read(65_536)
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size + 2)
        self.complete = size == 0
        return data[:-2]

    async def line(self) -> bytes:
        """The next line of the body; empty at its end."""
        while b"\n" not in self._buffer:
            piece = await self.piece()
            if not piece:
                line, self._buffer = self._buffer, b""
                return line
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    async def rest(self) -> bytes:
        """Everything up to the end."""
        pieces, self._buffer = [self._buffer], b""
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    def leave(self) -> None:
        """Go away at once, as a killed client does."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass  # the other side was faster


class Reply:
    """A whole answer."""

    def __init__(self, talk: Talk, body: bytes) -> None:
        self.status, self.headers, self.complete, self.body = talk.status, talk.headers, talk.complete, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """NDJSON."""
        assert self.body.endswith(b"\n"), self.body[-200:]
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def events(self) -> list[str]:
        """The data of server-sent events."""
        assert self.body.endswith(b"\n\n"), self.body[-200:]
        frames = self.body.decode().removesuffix("\n\n").split("\n\n")
        assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
        return [frame.removeprefix("data: ") for frame in frames]

    @property
    def error(self) -> str:
        """The error's text in either dialect."""
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


async def open_talk(
    port: int, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None, window: int = 0
) -> Talk:
    """Send a request; the answer is the caller's to read. ``body``: bytes, or what becomes JSON."""
    sock = socket.socket()
    sock.setblocking(False)
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    limit = window or 2**20
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"host": f"127.0.0.1:{port}", "connection": "close"}
    if data or method == "POST":
        sent |= {"content-type": "application/json", "content-length": str(len(data))}
    lines = [f"{key}: {value}" for key, value in (sent | (headers or {})).items()]
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + data)
    await writer.drain()
    return Talk(reader, writer)


async def ask(
    port: int, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
) -> Reply:
    """One request, its whole answer."""
    talk = await open_talk(port, method, path, body, headers=headers)
    try:
        await talk.head()
        return Reply(talk, b"" if method == "HEAD" else await talk.rest())
    finally:
        await talk.close()


def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run ``work`` beside the test, which awaits or cancels it."""
    return asyncio.get_running_loop().create_task(work)


async def until(holds: Callable[[], object], what: str = "the condition") -> None:
    """Wait for something that has no event of its own; bounded. The only polling of these tests."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"{what} never held"
        await asyncio.sleep(0.005)


class Gateway:
    """One gateway in this process. Every step of its core is kept."""

    def __init__(self, service: Service, log: io.StringIO) -> None:
        self.service = service
        self.driver = service.driver
        self.steps: list[tuple[int, Event, list[Decision]]] = []
        self.log = log
        self.closed = False
        self.errors_expected = 0
        """Lines at level error in the log; each is a bug of ours."""
        self.driver.watch(lambda now_us, event, decisions: self.steps.append((now_us, event, decisions)))

    @property
    def port(self) -> int:
        return self.service.port

    @property
    def admin_port(self) -> int:
        assert self.service.admin_port is not None
        return self.service.admin_port

    @property
    def state(self) -> Any:
        return self.driver.engine.fleet.state

    def decisions(self, kind: type[_D]) -> list[_D]:
        return [one for _, _, decisions in self.steps for one in decisions if isinstance(one, kind)]

    def events(self, kind: type[_E]) -> list[_E]:
        return [event for _, event, _ in self.steps if isinstance(event, kind)]

    def in_flight(self, worker: str = "") -> int:
        """Calls to workers that have not ended, observations included."""
        ports = self.service.fleet.ports
        chosen = [ports[WorkerId(worker)]] if worker else list(ports.values())
        return sum(port.upstream.in_flight for port in chosen)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        return await ask(self.port, method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def post(self, path: str, body: object, **headers: str) -> Reply:
        return await self.ask("POST", path, body, **headers)

    async def chat(self, model: str = "a:1", **more: Any) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": False}
        return await self.post("/api/chat", body | more)

    async def open_chat(self, model: str = "a:1", *, window: int = 0, **more: Any) -> Talk:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return await open_talk(self.port, "POST", "/api/chat", body | more, window=window)

    async def open_completion(self, model: str = "a:1", **more: Any) -> Talk:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
        return await open_talk(self.port, "POST", "/v1/chat/completions", body | more)

    async def admin(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        return await ask(
            self.admin_port, method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind; complete once the gateway is closed."""
        rows = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [row for row in rows if row["event"] == event]

    async def settled(self) -> None:
        """Wait until nothing is under way: no request, no operation, no call but observations."""
        await until(lambda: not self.driver.requests and not self.state.operations, "quiet")

    async def back_to_baseline(self) -> None:
        """Wait until nothing of any request is left anywhere: connection, body, conversation, slot, upstream call."""
        gateway, server = self.service.gateway, self.service._server
        assert server is not None
        await until(lambda: not server.connections, "no client's connection")
        await until(lambda: not gateway._open and not gateway.large_bodies.waiting, "no conversation")
        assert server.held_bytes == 0
        await self.settled()
        runners = [runner for worker in self.state.workers.values() for runner in worker.runners.values()]
        assert self.state.waiting == 0
        assert all(not runner.in_flight for runner in runners)
        await until(lambda: not self.in_flight(), "no call")
        assert self.driver.engine.check() == []

    async def close(self) -> None:
        """Close, and demand that nothing is left of anything that was asked."""
        self.closed = True
        await self.service.close(grace_s=0.2)
        assert self.in_flight() == 0
        assert [
            port.upstream.connections for port in self.service.fleet.ports.values() if port.upstream.connections
        ] == []
        self.service.logs.close()
        assert len(self.lines_of_errors()) == self.errors_expected, self.lines_of_errors()[:3]
        assert self.driver.engine.check() == []

    def lines_of_errors(self) -> list[str]:
        return [line for line in self.log.getvalue().splitlines() if '"level":"error"' in line]


async def start_gateway(*workers: Any, observe_every_s: float = 0.2, **settings: Any) -> Gateway:
    """``workers``: ports of servers on loopback, or entries of the settings. Keys of the settings by name."""
    entries = [
        {"url": f"http://127.0.0.1:{one}", "name": f"w{i}"} if isinstance(one, int) else one
        for i, one in enumerate(workers)
    ]
    chosen = {"listen": "127.0.0.1:0", "admin": "off", "record": "off"} | settings
    log = io.StringIO()
    loaded = load_settings(None, environment={}, overrides={**chosen, "workers": entries})
    gateway = Gateway(Service(loaded, open_logs(stream=log, line_format="json"), observe_every_s=observe_every_s), log)
    try:
        await gateway.service.start()
    except OSError:
        await gateway.close()
        raise
    return gateway


class Sim:
    """A simulated worker in this process."""

    def __init__(self, server: SimServer) -> None:
        self.server = server
        self.port = server.port
        self.faults = server.faults
        self.twin = server.twin

    async def counters(self) -> dict[str, Any]:
        """As the worker tells them over HTTP."""
        counters: dict[str, Any] = (await ask(self.port, "GET", "/api/bellmare")).json["counters"]
        return counters

    def loaded(self) -> list[str]:
        return [row.name for row in self.twin.loaded()]

    def busy(self) -> int:
        return sum(row.refcount for row in self.twin.loaded())


async def start_sim(port: int = 0, **config: Any) -> Sim:
    """Fast and small unless told otherwise."""
    chosen = {"models": SMALL, "time_scale": 0.01, "parallel": 4, "vram_bytes": 24 * 10**9} | config
    return Sim(await start_sim_worker(SimConfig(**chosen), port=port))


class Process:
    """One simulated worker that can be killed."""

    def __init__(self, port: int = 0, *, time_scale: float, parallel: int = 0) -> None:
        said = [str(port), str(time_scale), str(parallel)]
        self.child = subprocess.Popen([sys.executable, RUNNER, *said], stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        self.port = int(self.child.stdout.readline())

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()
        self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()


def replayed(folder: Path) -> Report:
    """The whole log of a closed gateway, replayed."""
    report = Report()
    for report in replay(folder):  # noqa: B007 - the last one counts
        pass
    return report


@asynccontextmanager
async def at_most(seconds: float) -> Any:
    """The block must end within ``seconds``."""
    start = time.monotonic()
    async with asyncio.timeout(seconds):
        yield
    assert time.monotonic() - start < seconds
