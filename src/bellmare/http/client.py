"""Requests to one upstream server: a bounded LIFO pool, one dial per missing connection, one sweep for all timeouts.

``send`` is synchronous and calls back; ``fetch`` is for everything that is not a client's request. Nothing of a
client's head ever reaches an upstream server: the head is built here.
"""

import asyncio
import re
from functools import partial
from math import inf

import msgspec

from bellmare.http.call import Call, Receiver, UpstreamError, UpstreamFailure, UpstreamFailureKind
from bellmare.http.messages import KIB, Headers, Response, header_lines
from bellmare.http.repeats import KnownHead
from bellmare.http.upstream_connection import Answered, UpstreamConnection

__all__ = [
    "Call",
    "Receiver",
    "Upstream",
    "UpstreamError",
    "UpstreamFailure",
    "UpstreamFailureKind",
    "UpstreamLimits",
]

_CLOSE_TIMEOUT_S = 5.0
_RENDERED_MAX = 32
_TARGET = re.compile(r"/[!-~]*")
_METHOD = re.compile(r"[A-Z]+")


class UpstreamLimits(msgspec.Struct, frozen=True):
    """Bounds on one upstream server."""

    connect_timeout_s: float = 2.0
    """A LAN answers within milliseconds, a busy machine within one retransmission (1 s); a black hole must not hold a
    request (reliability reference, A2)."""
    head_bytes_max: int = 64 * KIB
    headers_max: int = 200
    interim_max: int = 8
    """So many 1xx heads are a flood: 200,000 cost 1.2-1.6 s of CPU (reliability reference, rule 11)."""
    receive_bytes: int = 32 * KIB
    """Of the kernel, for one connection: what one read may bring, and a client that stalls may leave with us. A LAN's
    bandwidth for one stream needs less."""
    idle_max: int = 1024
    """Connections kept without a call."""
    idle_timeout_s: float = 15.0
    """Shorter than what a server allows, so that it is we who close (stale keep-alive, rule 10)."""
    sweep_interval_s: float = 0.25
    """How often timeouts are looked at, so how late they may be."""


DEFAULT_UPSTREAM_LIMITS = UpstreamLimits()


class Upstream:
    """One upstream server by address. Must be made inside a running loop, and closed."""

    def __init__(
        self, host: str, port: int, *, limits: UpstreamLimits = DEFAULT_UPSTREAM_LIMITS, base_path: str = ""
    ) -> None:
        self.host = host
        self.port = port
        self.limits = limits
        self.dialled_total = 0
        """Connections ever begun; proves reuse."""
        self.base_path = base_path.rstrip("/")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._head_tail = b" HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n" % address.encode("ascii")
        self._rendered: dict[tuple[str, str], bytes] = {}
        """Heads of requests with a body, up to its length: there are as many as routes."""
        self.known: KnownHead[Answered] | None = None
        """The head of the last answer that was there in one read: mostly the next one's too, until the date changes."""
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._calls: set[Call] = set()
        self._connections: set[UpstreamConnection] = set()
        self._idle: dict[UpstreamConnection, None] = {}
        """Oldest first: taken from the end, aged from the beginning."""
        self._dials: dict[Call, asyncio.Task[UpstreamConnection]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Calls that have not ended, dialling ones included."""
        return len(self._calls)

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return len(self._idle)

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._connections)

    def send(  # tidy: both timeouts must come from the caller, beside what makes a request
        self,
        method: str,
        path: str,
        *,
        body: bytes | list[bytes] = b"",
        headers: Headers = (),
        receiver: Receiver,
        first_byte_timeout_s: float | None,
        idle_timeout_s: float | None,
    ) -> Call:
        """Send a request; the answer goes to ``receiver``, never before this returns.

        A ``body`` in parts is never joined. ``first_byte_timeout_s`` runs from now to the end of the response head,
        ``idle_timeout_s`` from read to read after it; None is no limit.
        """
        head = self._rendered.get((method, path)) if body and not headers else None
        message: bytes | list[bytes]
        if head is not None and isinstance(body, bytes):
            message = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        else:
            message = self._render(method, path, body=body, headers=headers)
        deadline = inf if first_byte_timeout_s is None else self._loop.time() + first_byte_timeout_s
        call = Call(
            self, message, receiver, method == "HEAD", inf if idle_timeout_s is None else idle_timeout_s, deadline
        )
        self._calls.add(call)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable:
                connection.carry(call, reused=True)
                return call
        self._dial(call)
        return call

    async def fetch(
        self, method: str, path: str, *, body: bytes = b"", timeout_s: float, body_max_bytes: int = 16 * KIB * KIB
    ) -> Response:
        """Request and collect a whole answer within ``timeout_s`` seconds. Raises UpstreamError."""
        collector = _Collector(self._loop.create_future(), body_max_bytes)
        call = self.send(method, path, body=body, receiver=collector, first_byte_timeout_s=None, idle_timeout_s=None)
        collector.call = call
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.future
        except TimeoutError:
            failure = UpstreamFailure(UpstreamFailureKind.timeout, f"no answer in {timeout_s} s", collector.status > 0)
            raise UpstreamError(failure) from None
        finally:
            call.abort()

    async def close(self) -> None:
        """Fail what is in flight, close all connections and wait until they are gone."""
        self._closed = True
        for call in tuple(self._calls):
            self._give_up(call, UpstreamFailureKind.reset, "the client was closed")
        for connection in tuple(self._connections):
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        dials = tuple(self._dials.values())
        if dials:
            await asyncio.wait(dials, timeout=self.limits.connect_timeout_s)
        # An aborted connection is reported lost in the next turns of the loop; the bound is for our own bugs.
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await self._empty.wait()
        assert not self._connections, "connections outlived the client"

    # What calls and connections use

    def abandon(self, call: Call) -> None:
        """The user aborts a call."""
        self._retire(call)
        if call.connection is not None:
            call.connection.abort()

    def end(self, call: Call) -> None:
        """The answer is complete."""
        self._retire(call).on_end()

    def fail(self, call: Call, failure: UpstreamFailure) -> None:
        """The call cannot be completed."""
        self._retire(call).on_failure(failure)

    def retry(self, call: Call) -> None:
        """A reused connection turned out to be stale: once more on a fresh one."""
        call.retried = True
        self._dial(call)

    def release(self, connection: UpstreamConnection) -> None:
        """A connection has done its call and may do another."""
        if self._closed or len(self._idle) >= self.limits.idle_max:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle[connection] = None

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if not self._connections:
            self._empty.set()

    # Own

    def _render(self, method: str, path: str, *, body: bytes | list[bytes], headers: Headers) -> bytes | list[bytes]:
        target = self.base_path + path
        assert _METHOD.fullmatch(method) and _TARGET.fullmatch(target), "request line from outside"
        lines = header_lines(headers)
        framing = b""
        if body:
            size = len(body) if isinstance(body, bytes) else sum(map(len, body))
            framing = b"content-type: application/json\r\ncontent-length: %d\r\n" % size
            if not headers and len(self._rendered) < _RENDERED_MAX:
                start = b"%b %b%bcontent-type: application/json\r\ncontent-length: "
                self._rendered[method, path] = start % (method.encode(), target.encode(), self._head_tail)
        elif method in ("POST", "PUT", "PATCH"):
            framing = b"content-length: 0\r\n"
        head = b"%b %b%b%b%b\r\n" % (method.encode(), target.encode(), self._head_tail, lines, framing)
        return head + body if isinstance(body, bytes) else [head, *body]

    def _dial(self, call: Call) -> None:
        if self._closed:
            self._loop.call_soon(self._give_up, call, UpstreamFailureKind.refused, "the client is closed")
            return
        self.dialled_total += 1
        task = self._loop.create_task(self._connect())
        self._dials[call] = task
        task.add_done_callback(partial(self._dialled, call))

    async def _connect(self) -> UpstreamConnection:
        async with asyncio.timeout(self.limits.connect_timeout_s):
            _, connection = await self._loop.create_connection(lambda: UpstreamConnection(self), self.host, self.port)
        return connection

    def _dialled(self, call: Call, task: asyncio.Task[UpstreamConnection]) -> None:
        """A dial ended, in whatever way; its call may have ended before it."""
        self._dials.pop(call, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            connection = task.result()
            if connection.usable:
                # Registered only now: uvloop closes the socket of a cancelled dial without calling connection_lost.
                self._connections.add(connection)
                self._empty.clear()
            if call.ended:
                connection.abort()
            elif connection.usable:
                connection.carry(call, reused=False)
            else:
                self._give_up(call, UpstreamFailureKind.closed_early, "closed right after connecting")
        elif isinstance(error, TimeoutError):
            self._give_up(call, UpstreamFailureKind.connect_timeout, f"{self.limits.connect_timeout_s} s")
        else:
            self._give_up(call, UpstreamFailureKind.refused, str(error) or type(error).__name__)
            if not isinstance(error, OSError):
                self._loop.call_exception_handler({"message": "dialling failed", "exception": error, "task": task})

    def _give_up(self, call: Call, kind: UpstreamFailureKind, detail: str) -> None:
        """Fail a call wherever it is."""
        if call.ended:
            return
        if call.connection is not None:
            call.retried = True
            call.connection.fail(kind, detail)
        else:
            self.fail(call, UpstreamFailure(kind, detail, received=False))

    def _retire(self, call: Call) -> Receiver:
        """Take a call off the books before its user hears of it."""
        self._calls.discard(call)
        if self._dials:
            dial = self._dials.get(call)
            if dial is not None:
                dial.cancel()
        return call.retire()

    def _sweep(self) -> None:
        """Look at all deadlines; stops itself when there is nothing to watch."""
        now = self._loop.time()
        self._sweeper = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)
        while self._idle:
            oldest = next(iter(self._idle))
            if now - oldest.idle_since < self.limits.idle_timeout_s:
                break
            del self._idle[oldest]
            oldest.abort()
        for call in tuple(self._calls):
            if call.check(now):
                headed = call.connection is not None and call.connection.head_received
                kind = UpstreamFailureKind.stalled if headed else UpstreamFailureKind.timeout
                self._give_up(call, kind, "nothing more came" if headed else "no response head in time")
        if not self._calls and not self._connections:
            self._sweeper.cancel()
            self._sweeper = None


class _Collector:
    """Receiver of ``fetch``: keeps the whole answer, up to a bound."""

    def __init__(self, future: asyncio.Future[Response], body_max_bytes: int) -> None:
        self.future = future
        self.status = 0
        self.call: Call | None = None
        self._body_left = body_max_bytes
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self._headers = headers

    def on_data(self, data: bytes) -> None:
        self._body_left -= len(data)
        if self._body_left >= 0:
            self._parts.append(data)
        else:
            assert self.call is not None, "send returns before it calls back"
            self.call.abort()
            self.on_failure(UpstreamFailure(UpstreamFailureKind.too_large, "response body", received=True))

    def on_end(self) -> None:
        if not self.future.done():
            self.future.set_result(Response(self.status, self._headers, b"".join(self._parts)))

    def on_failure(self, failure: UpstreamFailure) -> None:
        if not self.future.done():
            self.future.set_exception(UpstreamError(failure))
