"""What all modes of the load generator share: connections, checked answers and streams, the window that counts."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.jobs import Job, Outcome
from bellmare.bench.proxy.processes import Used, used

RECEIVE_BYTES = 65536
EVENTS_MAX = 1024
CONNECT_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 5.0
"""For what was begun in the window to end."""
FINE_WAIT_S = 0.002
_OK = (b"HTTP/1.1 200", b"HTTP/1.0 200")


def connect(port: int) -> socket.socket:
    """A connection to loopback, non-blocking from here on. Raises OSError."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def control(upstream_port: int) -> dict[str, object]:
    """The upstream's own report; what it says is gone it says once."""
    with socket.create_connection(("127.0.0.1", upstream_port), timeout=CONNECT_TIMEOUT_S) as sock:
        sock.sendall(wire.get(f"127.0.0.1:{upstream_port}", wire.CONTROL_PATH))
        data = b""
        while b"\r\n\r\n" not in data or not whole(data):
            piece = sock.recv(RECEIVE_BYTES)
            if not piece:
                raise ConnectionError("the upstream closed")
            data += piece
    report: dict[str, object] = json.loads(data.partition(b"\r\n\r\n")[2])
    return report


def whole(data: bytes) -> bool:
    """Whether ``data`` is a complete answer, by its length or by its last chunk."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    found = wire.LENGTH.search(data, 0, end + 2)
    if found is None:
        return data.endswith(wire.LAST_CHUNK)
    return len(data) >= end + 4 + int(found[1])


def receive(sock: socket.socket) -> bytes:
    """What is there; empty if the other side has closed or broken the connection."""
    try:
        return sock.recv(RECEIVE_BYTES)
    except OSError:
        return b""


class Answers:
    """Unstreamed answers by descriptor: collects, checks, tells which are complete."""

    def __init__(self, sockets: dict[int, socket.socket], outcome: Outcome) -> None:
        self._sockets = sockets
        self._outcome = outcome
        self._partial: dict[int, bytes] = {}

    def read(self, fd: int) -> bool | None:
        """True: an answer is complete; False: not yet; None: the connection is of no use any more."""
        data = receive(self._sockets[fd])
        if not data:
            self._outcome.fail("connection closed")
            return None
        if fd in self._partial:
            data = self._partial.pop(fd) + data
        if not whole(data):
            self._partial[fd] = data
            return False
        if not data.startswith(_OK):
            self._outcome.fail(f"answer begins {data[:60]!r}")
        else:
            self._outcome.served += 1
        return True


class StreamCheck:
    """Reads one streamed answer: every chunk must come, once and in order, and then the end."""

    __slots__ = ("_chunks", "_end", "_started", "_tail", "done", "ended", "number", "problem")

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._tail = b""
        self._end = b""
        """The last bytes, from the closing line on: the end of the body may come in pieces."""
        self._started = False
        self.number = 0
        """Chunks seen."""
        self.done = False
        """The closing line has come."""
        self.ended = False
        """The body is over."""
        self.problem = ""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Number and stamp of each chunk in ``data``; sets ``problem`` at the first thing that is wrong."""
        fresh = data
        if not self._started:
            if not data.startswith(_OK):
                self.problem = f"answer begins {data[:60]!r}"
                return []
            self._started = True
        if self._tail:
            data = self._tail + data
        cut = data.rfind(b"\n") + 1
        self._tail = data[cut:]
        found: list[tuple[bytes, bytes]] = wire.STAMP.findall(data, 0, cut)
        number = self.number
        for text, _ in found:
            if int(text) != number:
                self.problem = self.problem or f"chunk {int(text)} came in place of {number}"
            number += 1
        self.number = number
        if not self.done and wire.DONE in data:
            self.done = True
            if number != self._chunks:
                self.problem = self.problem or f"{number} chunks of {self._chunks}"
        if self.done:
            self._end = self._end[-len(wire.LAST_CHUNK) :] + fresh[-len(wire.LAST_CHUNK) :]
            self.ended = self._end.endswith(wire.LAST_CHUNK)
        return found


class Clients:
    """Open connections on one epoll."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.address = f"127.0.0.1:{job.port}"

    def open(self) -> int:
        """One more connection; its descriptor."""
        sock = connect(self.job.port)
        fd = sock.fileno()
        self.sockets[fd] = sock
        self.epoll.register(fd, select.EPOLLIN)
        return fd

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()
        self.epoll.close()

    def ready(self, wait_s: float) -> list[tuple[int, int]]:
        """Descriptors with something to read, after at most ``wait_s``; exact below a few milliseconds."""
        if wait_s <= 0:
            return self.epoll.poll(0, EVENTS_MAX)
        if wait_s <= FINE_WAIT_S:
            select.select([self.epoll.fileno()], (), (), wait_s)
            return self.epoll.poll(0, EVENTS_MAX)
        return self.epoll.poll(wait_s - 0.001, EVENTS_MAX)

    def request(self, number: int, *, prompt: str, stream: bool) -> bytes:
        """The request of the connection with this number; models in turn."""
        model = wire.MODELS[number % len(wire.MODELS)]
        return wire.request(self.address, model=model, prompt=prompt, stream=stream, body_bytes=self.job.body_bytes)


@contextlib.contextmanager
def clients(job: Job, outcome: Outcome) -> Iterator[Clients]:
    """Connections of one job; how many the upstream accepted meanwhile, and what broke, is noted in ``outcome``."""
    before = int(str(control(job.upstream_port)["accepted"]))
    made = Clients(job)
    try:
        yield made
    except OSError as error:
        outcome.fail(f"{type(error).__name__}: {error}")
    finally:
        made.close()
        outcome.upstream_connections = int(str(control(job.upstream_port)["accepted"])) - before


class Window:
    """Warm-up, the part that counts, and the end, with the proxy's CPU read at both edges."""

    def __init__(self, job: Job, outcome: Outcome) -> None:
        self._job = job
        self._outcome = outcome
        self._used = Used()
        self.opens_ns = time.monotonic_ns() + int(job.warmup_s * 1e9)
        self.closes_ns = 0
        self.counting = False
        self.over = False

    def tick(self, now_ns: int) -> None:
        """Open or close if it is time. Called at every turn of a loop."""
        if not self.counting and not self.over and now_ns >= self.opens_ns:
            self._used = used(self._job.pid)
            self.opens_ns = time.monotonic_ns()
            self.closes_ns = self.opens_ns + int(self._job.window_s * 1e9)
            self.counting = True
        elif self.counting and now_ns >= self.closes_ns:
            since = used(self._job.pid)
            self._outcome.cpu_us = since.cpu_us - self._used.cpu_us
            self._outcome.waited_us = since.waited_us - self._used.waited_us
            self._outcome.window_s = (time.monotonic_ns() - self.opens_ns) / 1e9
            self.counting = False
            self.over = True
