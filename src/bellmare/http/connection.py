"""One client's connection: reads heads and bodies, one request at a time, and cuts clients that are slow or wrong.

Phases: ``idle`` -> ``head`` -> ``body`` -> ``answering`` -> ``idle`` ...; every phase may go to ``lingering`` (answered
early, the client may still send) or ``closing`` (nothing more is read). Each phase has at most one deadline, looked at
by the server's sweep; nothing here starts a timer or a task.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, cast

from bellmare.http.bodies import Body, BodySink, body_of
from bellmare.http.exchange import Exchange, render_head
from bellmare.http.framing import Head, Malformed, check_partial, parse_head
from bellmare.http.messages import Refusal, Request
from bellmare.http.repeats import KnownHead, know

if TYPE_CHECKING:
    from bellmare.http.server import Server


class Phase(Enum):
    """Where a connection is; see the module's text."""

    idle = "idle"
    head = "head"
    body = "body"
    answering = "answering"
    lingering = "lingering"
    closing = "closing"


# Module-level names: before Python 3.12 each ``Phase.idle`` costs 0.1 us, and a request needs a dozen.
_IDLE, _HEAD, _BODY, _ANSWERING, _LINGERING, _CLOSING = Phase


class Connection(asyncio.Protocol):
    """The protocol object of one accepted socket."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_checked_bytes",
        "_body_deadline",
        "_buffer",
        "_bytes_out",
        "_consuming",
        "_exchange",
        "_head",
        "_known",
        "_known_bytes_max",
        "_reading_paused",
        "_request",
        "_sink",
        "_stall_mark",
        "_transport",
        "deadline",
        "held_bytes",
        "keep_alive",
        "peer",
        "phase",
        "server",
        "write_paused",
    )

    _transport: asyncio.Transport
    _head: Head
    _request: Request

    def __init__(self, server: Server) -> None:
        self.server = server
        self.phase = _IDLE
        self.deadline = inf
        """Loop time at which the sweep calls ``on_deadline``."""
        self.peer = ""
        self.keep_alive = True
        self.write_paused = False
        self.held_bytes = 0
        """What its request counts in the server's sum of bodies; the server's to change."""
        self._reading_paused = False
        self._buffer = b""
        """A begun head, or bytes of later requests while one is answered."""
        self._consuming = False
        self._exchange: Exchange | None = None
        self._known: KnownHead[Request] | None = None
        """The last head that kept the connection, should it come again; and its request without a body."""
        self._known_bytes_max = 0
        self._body: Body | None = None
        self._sink: BodySink | None = None
        """Takes the body that is coming, in place of the request."""
        self._body_bytes = 0
        self._body_checked_bytes = 0
        self._body_deadline = inf
        self._bytes_out = 0
        self._stall_mark = 0
        """Bytes that had left the buffer when write progress was last looked at."""

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        limits = self.server.limits
        self._transport.set_write_buffer_limits(high=limits.write_buffer_high_bytes)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.deadline = self.server.now() + limits.head_timeout_s
        if not self.server.admit(self):
            if self.server.overcrowded:
                self.cut()
            else:
                self._refuse_malformed(Malformed(503, "too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = _CLOSING
        self.server.forget(self)
        self._let_go()
        self._lose_exchange()

    def eof_received(self) -> None:
        """A half-close is a cancel, as in Go: nobody is left to read the answer."""
        if self._exchange is not None:
            self.cut()
        else:
            self._close()

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and self.phase is _IDLE and not self._buffer and not self.write_paused:
            body = known.body(data)
            if body and len(body) <= self._known_bytes_max:
                self.server.note_busy(self)
                self.keep_alive = True
                self._hand_over(known.meaning.again(body), minor=1)
                return
        if self.phase is _LINGERING or self.phase is _CLOSING:
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if self.phase is _ANSWERING or self.write_paused:
            self._hold(data)
        else:
            self._consume(data)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.phase is _ANSWERING:
            self._watch_writes()
        if self._exchange is not None and self._exchange.listener is not None:
            self._exchange.listener.on_pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.phase is _ANSWERING:
            self.deadline = inf
            if self._exchange is not None and self._exchange.listener is not None:
                self._exchange.listener.on_resume()
        elif self.phase is _IDLE:
            self._rest()

    # What an exchange calls

    def write(self, data: bytes) -> None:
        """Send bytes; may call ``on_pause`` before it returns."""
        self._bytes_out += len(data)
        self._transport.write(data)

    def stays_open(self) -> bool:
        """Whether another request may follow this one."""
        if self.server.closing:
            self.keep_alive = False
        return self.keep_alive

    def exchange_ended(self) -> None:
        """The answer is written: wait for the next request, or close."""
        self._exchange = None
        self._let_go()
        if not self.stays_open():
            self._close()
            return
        self.phase = _IDLE
        if not self.write_paused:
            self._rest()

    def cut(self) -> None:
        """Close at once, dropping unsent bytes."""
        self.phase = _CLOSING
        self._let_go()
        self._transport.abort()
        self._lose_exchange()

    # What a sink calls

    def pause_body(self) -> None:
        """See ``BodyFlow``."""
        if self.phase is _BODY and not self._transport.is_closing():
            self._transport.pause_reading()
            self.deadline = inf

    def resume_body(self) -> None:
        """See ``BodyFlow``."""
        if self.phase is _BODY and not self._transport.is_closing():
            self._transport.resume_reading()
            self.deadline = self.server.now() + self.server.limits.body_rate_window_s
            self._body_checked_bytes = 0

    # What the server calls

    def refuse_for_room(self) -> None:
        """All bodies together are too large, and this one, still coming, is the largest."""
        verdict = Malformed(503, "too many large requests at once", self._request.target)
        self._refuse_malformed(verdict, head_only=self._request.method == "HEAD")

    def close_if_idle(self) -> bool:
        """Close if no request has begun; returns whether it did."""
        if self.phase is not _IDLE:
            return False
        self._close()
        return True

    def on_deadline(self, now: float) -> None:
        """The sweep found ``deadline`` passed."""
        if self.phase is _HEAD:
            self._refuse_malformed(Malformed(408, "request head took too long"))
        elif self.phase is _BODY:
            self._check_body_rate(now)
        elif self.phase is _LINGERING:
            self.cut()
        elif self._transport.get_write_buffer_size():
            if self._bytes_out - self._transport.get_write_buffer_size() == self._stall_mark:
                self.cut()
            else:
                self._watch_writes()
        elif self.phase is _IDLE:
            self._close()
        elif self.phase is _CLOSING:
            self._transport.abort()
        else:
            self.deadline = inf

    # Reading

    def _consume(self, data: bytes) -> None:
        """Work through ``data`` until it is used up or a request is being answered; hold what is left."""
        self._consuming = True
        try:
            while data and not self.write_paused:
                phase = self.phase
                if phase is _IDLE or phase is _HEAD:
                    data = self._read_head(data)
                elif phase is _BODY:
                    data = self._read_body(data)
                else:
                    break
        except Malformed as verdict:
            method = self._request.method if self.phase is _BODY else "HEAD" if data.startswith(b"HEAD ") else ""
            self._refuse_malformed(verdict, head_only=method == "HEAD")
        finally:
            self._consuming = False
        if self.phase is _LINGERING or self.phase is _CLOSING:
            self._buffer = b""
        elif data:
            self._hold(data)
        elif self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self.phase is _IDLE and not self.write_paused:
            self.server.note_idle(self)

    def _hold(self, data: bytes) -> None:
        self._buffer = data
        too_much = len(data) > self.server.limits.pipelined_bytes_max
        if too_much != self._reading_paused and not self._transport.is_closing():
            self._reading_paused = too_much
            if too_much:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _rest(self) -> None:
        """Nothing is under way: take up what the client sent meanwhile, or wait for it."""
        server = self.server
        self.deadline = server.now() + server.limits.keep_alive_timeout_s
        if self._consuming:
            return
        if not self._buffer and not self._reading_paused:
            server.note_idle(self)
            return
        data, self._buffer = self._buffer, b""
        self._consume(data)

    def _read_head(self, data: bytes) -> bytes:
        """Read one head and whatever of its body is there; the bytes behind."""
        server = self.server
        limits = server.limits
        if data[0] == 0x0D:
            # One empty line before a request is ignored (RFC 9112 2.2: old clients send it after a body).
            if data[:2] == b"\r\n" and len(data) > 2 and data[2] != 0x0D:
                return data[2:]
            if b"\r\n".startswith(data):
                return self._wait_for_head(data)
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            check_partial(data, limits)
            return self._wait_for_head(data)
        if end > limits.head_bytes_max:
            check_partial(data[: limits.head_bytes_max + 1], limits)
        head, method, target = parse_head(data[:end], limits)
        server.note_busy(self)
        self._head = head
        self._request = request = Request(method, target, headers=head.headers, peer=self.peer)
        self.keep_alive = head.keep_alive
        try:
            verdict = server.app.on_head(request)
        except Exception as error:  # noqa: BLE001  # the application's bug must cost one request, not the listener
            server.report("on_head raised", error)
            verdict = server.app.on_bad_request(500, "internal error", target)
        if isinstance(verdict, Refusal):
            self._refuse(verdict)
            return data[end:]
        if not isinstance(verdict, int):
            self._sink = verdict
            return self._begin_body(data[end:], verdict.bytes_max)
        if head.length > 0 and head.minor and head.keep_alive and not head.continues and request.ticket is not None:
            self._known = know(data[:end], request.again(b""))
            self._known_bytes_max = min(verdict, limits.body_small_bytes)
        return self._begin_body(data[end:], verdict)

    def _wait_for_head(self, data: bytes) -> bytes:
        if self.phase is _IDLE:
            self.server.note_busy(self)
            self.phase = _HEAD
            self.deadline = min(self.deadline, self.server.now() + self.server.limits.head_timeout_s)
        self._buffer = data
        return b""

    def _begin_body(self, data: bytes, body_bytes_max: int) -> bytes:
        """The head is accepted: take the body if it is all there, else wait for it."""
        head = self._head
        length = head.length
        if length == 0:
            self._sink = None
            self._dispatch()
            return data
        if length > body_bytes_max:
            raise Malformed(413, "request body too large", self._request.target)
        sink = self._sink
        if 0 < length <= len(data) and sink is None:
            if length > self.server.limits.body_small_bytes and not self.server.hold(self, length):
                raise Malformed(503, "too many large requests at once", self._request.target)
            self._request.body_parts = [data[:length]]
            self._request.body_bytes = length
            self._dispatch()
            return data[length:]
        if head.continues and not data:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        limits = self.server.limits
        now = self.server.now()
        self.phase = _BODY
        self._body = body_of(length, body_bytes_max, limits)
        self._body_bytes = self._body_checked_bytes = 0
        self._body_deadline = now + limits.body_timeout_s if sink is None else inf  # gigabytes take their time
        self.deadline = min(self._body_deadline, now + limits.body_first_byte_timeout_s)
        if sink is not None:
            sink.begin(self)
        return data

    def _read_body(self, data: bytes) -> bytes:
        """Take body bytes; the bytes behind its end, empty while it goes on."""
        self._body_bytes += len(data)
        sink, body, small = self._sink, self._body, self.server.limits.body_small_bytes
        assert body is not None, "a body is read once its head is accepted"
        if sink is None and self._body_bytes > small and not self.server.receive(self, self._body_bytes):
            return b""
        try:
            rest = body.feed(data)
        except Malformed as verdict:
            verdict.target = self._request.target
            raise
        if sink is not None:
            for part in body.take():
                sink.take(part)
        if rest is None or self.phase is not _BODY:
            return b""
        if sink is not None and not self._transport.is_closing():
            self._transport.resume_reading()  # held back at the last piece: it asks for no more
        self._request.body_parts = body.take()
        self._request.body_bytes = body.size
        self._body = self._sink = None
        self._dispatch()
        return rest

    def _check_body_rate(self, now: float) -> None:
        limits = self.server.limits
        fresh = self._body_bytes - self._body_checked_bytes
        # The first window only asks for a byte; every later one for the rate.
        wanted = 1.0
        if self._body_checked_bytes:
            wanted = limits.body_rate_min_bytes_per_s * limits.body_rate_window_s
        if now >= self._body_deadline or fresh < wanted:
            verdict = Malformed(408, "request body took too long", self._request.target)
            self._refuse_malformed(verdict, head_only=self._request.method == "HEAD")
            return
        self._body_checked_bytes = self._body_bytes
        self.deadline = min(self._body_deadline, now + limits.body_rate_window_s)

    # Answering

    def _dispatch(self) -> None:
        """Hand the complete request to the application."""
        if self.held_bytes:
            self.server.received(self)
        request, minor = self._request, self._head.minor
        # A connection that idles afterwards must not keep a body of megabytes.
        del self._request, self._head
        self._hand_over(request, minor=minor)

    def _hand_over(self, request: Request, *, minor: int) -> None:
        server = self.server
        self.phase = _ANSWERING
        self.deadline = inf
        self._exchange = exchange = Exchange(self, request, minor, request.method == "HEAD")
        try:
            server.app.on_request(exchange)
        except Exception as error:  # noqa: BLE001  # the application's bug must cost one request, not the listener
            server.report("on_request raised", error)
            if exchange.started:
                exchange.abort()
            else:
                refusal = server.app.on_bad_request(500, "internal error", exchange.request.target)
                self.keep_alive = False
                exchange.respond(refusal.status, refusal.headers, refusal.body)

    def _refuse_malformed(self, verdict: Malformed, *, head_only: bool = False) -> None:
        refusal = self.server.app.on_bad_request(verdict.status, verdict.reason, verdict.target)
        self._answer_early(refusal, head_only=head_only)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer ``on_head``'s refusal: in turn if the connection can go on, else early."""
        if self._head.length == 0:
            self.keep_alive = self.keep_alive and not refusal.close
            self.phase = _ANSWERING
            request = self._request
            exchange = Exchange(self, request, self._head.minor, request.method == "HEAD")
            exchange.respond(refusal.status, refusal.headers, refusal.body)
        else:
            self._answer_early(refusal, head_only=self._request.method == "HEAD")

    def _answer_early(self, refusal: Refusal, *, head_only: bool) -> None:
        """Answer, say that no more is read, and discard what still comes until the client has seen it."""
        self.server.note_busy(self)
        self.keep_alive = False
        framing = b"content-length: %d\r\n%bconnection: close\r\n" % (len(refusal.body), self.server.date_line)
        self.write(render_head(refusal.status, refusal.headers, framing) + (b"" if head_only else refusal.body))
        self.phase = _LINGERING
        self.deadline = self.server.now() + self.server.limits.linger_timeout_s
        self._buffer = b""
        self._let_go()
        if self._transport.is_closing():
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._transport.write_eof()

    # Ending

    def _close(self) -> None:
        """Close once what is written has been taken; the sweep cuts it if that stalls."""
        self.phase = _CLOSING
        self._let_go()
        self.server.note_busy(self)
        self._buffer = b""
        self._watch_writes()
        self._transport.close()

    def _let_go(self) -> None:
        """Its body counts no longer, and if it was still coming it will not be complete."""
        if self.held_bytes:
            self.server.let_go(self)
        sink, self._sink, self._body = self._sink, None, None
        if sink is not None:
            sink.lost()

    def _watch_writes(self) -> None:
        self._stall_mark = self._bytes_out - self._transport.get_write_buffer_size()
        self.deadline = self.server.now() + self.server.limits.write_stall_timeout_s

    def _lose_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
