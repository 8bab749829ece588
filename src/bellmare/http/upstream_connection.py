"""One connection to an upstream server: carries one call at a time and never believes more than that call's answer.

Heads are bounded and checked by a grammar of our own, then parsed by llhttp, which also takes the chunks apart.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools

from bellmare.http.call import Call, UpstreamFailure, UpstreamFailureKind
from bellmare.http.framing import SIZE_LINES, ChunkedBody, Malformed
from bellmare.http.messages import Limits
from bellmare.http.repeats import know

if TYPE_CHECKING:
    from bellmare.http.client import Upstream

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*)?\r\n(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
)
_BODILESS = frozenset((204, 304))
UNBOUNDED = 1 << 62
"""Of a body's length: its receiver has a bound of its own."""
_ANY_CHUNKS = Limits(chunks_free=UNBOUNDED)
"""A worker sends a chunk for each token, however short."""


class _Bad(Exception):  # noqa: N818  # a verdict on the server's bytes, not an error of ours
    def __init__(self, detail: str, kind: UpstreamFailureKind = UpstreamFailureKind.bad_response) -> None:
        super().__init__(detail)
        self.kind = kind


class Answered(NamedTuple):
    """What a head means that came before from this server."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """All but the content-length."""


class UpstreamConnection(asyncio.Protocol):
    """The protocol object of one dialled socket."""

    __slots__ = (
        "_buffer",
        "_call",
        "_chunks",
        "_complete",
        "_headers",
        "_interim",
        "_keep",
        "_may_keep",
        "_parser",
        "_parts",
        "_reading_paused",
        "_received",
        "_reused",
        "_transport",
        "_until_eof",
        "_upstream",
        "head_received",
        "idle_since",
    )

    _transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser: httptools.HttpResponseParser | None = None
        """Made with the first head, and after an answer in chunks, of which it saw the head only, anew."""
        self._call: Call | None = None
        self._buffer = b""
        self._chunks: ChunkedBody | None = None
        self._may_keep = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._interim = 0
        self._reused = False
        self._reading_paused = False
        self._received = False
        self._complete = False
        self._keep = False
        self._until_eof = False
        self.head_received = False
        self.idle_since = 0.0

    # What the upstream and its calls use

    @property
    def usable(self) -> bool:
        """Whether a call may be put on it."""
        return self._call is None and not self._transport.is_closing()

    def carry(self, call: Call, *, reused: bool) -> None:
        """Send a call's request; its answer comes to the call's receiver."""
        assert self._call is None, "one call at a time"
        self._call = call
        call.connection = self
        self._reused = reused
        self._headers = []
        self._buffer = b""
        self._interim = 0
        self._chunks = None
        self._received = self._complete = self._keep = self._until_eof = self.head_received = False
        message = call.message
        if isinstance(message, bytes):
            self._transport.write(message)
        else:
            self._transport.writelines(message)
        if call.paused:
            self.pause()

    def pause(self) -> None:
        """Stop reading."""
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once and forget the call; it hears nothing."""
        self._drop_call()
        self._transport.abort()

    def fail(self, kind: UpstreamFailureKind, detail: str) -> None:
        """Close at once; the call hears of it, or is tried once more if the connection was only stale."""
        call = self._drop_call()
        self._transport.abort()
        if call is None:
            return
        stale = self._reused and not self._received
        if stale and kind in _STALE and not call.retried:
            self._upstream.retry(call)
        else:
            self._upstream.fail(call, UpstreamFailure(kind, detail, self._received))

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._upstream.limits.receive_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.lost(self)
        if self._call is None:
            return
        if self._until_eof and self.head_received and exc is None:
            self._finish()
        elif exc is None:
            self.fail(UpstreamFailureKind.closed_early, "connection closed before the end of the response")
        else:
            self.fail(UpstreamFailureKind.reset, str(exc) or type(exc).__name__)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            # Bytes that nobody asked for: a second answer must never meet the next request.
            self._transport.abort()
            return
        call.active = self._received = True
        if self.head_received:
            chunks = self._chunks
            if chunks is not None and chunks.between:
                begin = data.find(b"\r\n") + 2
                if len(data) == begin + SIZE_LINES.get(data[:begin], -9) + 2 and data.endswith(b"\r\n"):
                    # One chunk and no more, as a worker's tokens come.
                    relay = call.relay
                    if relay is None or not relay(data):
                        call.receiver.on_data(data[begin:-2])
                    return
        elif not self._buffer:
            known = self._upstream.known
            if known is not None and not call.head_only:
                body = known.body(data)
                if body:
                    self._take_whole(call, known.meaning, body)
                    return
        try:
            if not self.head_received:
                data = self._read_head(call, self._buffer + data if self._buffer else data)
            if data and self._call is call and not self._complete:
                self._parse(data)
            elif data:
                self._keep = False
        except _Bad as verdict:
            self._deliver(call)
            if self._call is call:
                self.fail(verdict.kind, str(verdict))
            return
        self._deliver(call)
        if self._complete and self._call is call:
            self._finish()

    def _take_whole(self, call: Call, known: Answered, body: bytes) -> None:
        """A head that came before, and all of its body."""
        self.head_received = self._complete = self._keep = True
        call.message = b""
        call.receiver.on_response(known.status, [*known.headers, (b"content-length", b"%d" % len(body))])
        if self._call is call:
            call.receiver.on_data(body)
        if self._call is call:
            self._finish()

    # What llhttp calls

    def on_message_begin(self) -> None:
        if self.head_received:
            raise _Bad("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_received:  # else a trailer: dropped
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None, "it calls"
        self._complete = True
        # Only valid in here: afterwards the parser has been reset and the connection would never be reused.
        self._keep = self._parser.should_keep_alive()

    # Reading

    def _parse(self, data: bytes) -> None:
        """Read body bytes. Anything wrong behind a complete answer only costs the connection."""
        chunks = self._chunks
        if chunks is not None:
            try:
                rest = chunks.feed(data)
            except Malformed as verdict:
                raise _Bad(verdict.reason) from None
            finally:
                self._parts += chunks.take()
            if rest is not None:
                self._complete = True
                self._keep = self._may_keep and not rest
            return
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            if not self._complete:
                raise _Bad(str(error)) from None

    def _read_head(self, call: Call, data: bytes) -> bytes:
        """Take interim heads and the final one; the bytes behind it, empty while it is not complete."""
        limits = self._upstream.limits
        while True:
            end = data.find(b"\r\n\r\n", 0, limits.head_bytes_max) + 4
            if end < 4:
                if len(data) > limits.head_bytes_max:
                    raise _Bad("response head too large", UpstreamFailureKind.too_large)
                if not data.startswith(b"HTTP/1."[: len(data)]) or b"\n\n" in data:
                    raise _Bad("not an HTTP/1 response")
                self._buffer = data
                return b""
            head = data[:end]
            match = _HEAD.fullmatch(head)
            if match is None:
                raise _Bad("malformed response head")
            data = data[end:]
            if match[1][0] != 0x31:  # "1": interim
                break
            self._interim += 1
            if match[1] == b"101" or self._interim >= limits.interim_max:
                raise _Bad("unexpected 101" if match[1] == b"101" else "too many interim responses")
            if not data:
                self._buffer = b""
                return b""
        self._buffer = b""
        self._parse(head)
        self._accept_head(call, int(match[1]), head)
        return data

    def _accept_head(self, call: Call, status: int, head: bytes) -> None:
        """Check what the head says about the body, and tell the receiver."""
        length = coding = None
        framings = 0
        closes = not head.startswith(b"HTTP/1.1")
        for name, value in self._headers:
            if name == b"content-length":
                length = value
                framings += 1
            elif name == b"transfer-encoding":
                coding = value
                framings += 1
            elif name == b"connection":
                closes = True  # whatever it says: a server that keeps the connection needs not say so
            elif name == b"content-encoding" and value.lower() not in (b"identity", b""):
                raise _Bad("compressed response, though identity was asked for")
        if framings > 1:
            raise _Bad("ambiguous body length")
        if length is not None and not length.isdigit():
            raise _Bad("bad content-length")
        if coding is not None and coding.lower() != b"chunked":
            raise _Bad("unknown transfer-encoding")
        if len(self._headers) > self._upstream.limits.headers_max:
            raise _Bad("too many response headers", UpstreamFailureKind.too_large)
        self.head_received = True
        call.message = b""
        if call.head_only and not self._complete:
            # llhttp does not know the method and waits for a body: the connection cannot be used again.
            self._complete = True
            self._keep = False
        elif coding is not None and not self._complete:
            # llhttp would take chunks apart as well, but it goes on into whatever follows, and reads laxly.
            self._chunks = ChunkedBody(UNBOUNDED, _ANY_CHUNKS, of_request=False)
            self._may_keep = not closes
            self._parser = None
        elif length is not None and status == 200 and not closes and not self._interim and not self._complete:
            others = [item for item in self._headers if item[0] != b"content-length"]
            self._upstream.known = know(head, Answered(status, others)) or self._upstream.known
        self._until_eof = not framings and not self._complete and status not in _BODILESS
        headers, self._headers = self._headers, []
        call.receiver.on_response(status, headers)

    def _deliver(self, call: Call) -> None:
        """Hand over the body bytes of this read, joined."""
        parts = self._parts
        if not parts:
            return
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._call is call and not call.head_only:
            call.receiver.on_data(data)

    # Ending

    def _finish(self) -> None:
        """The answer is complete: free the connection, then tell the receiver."""
        keep = self._keep and not self._until_eof
        call = self._drop_call()
        assert call is not None, "only a call's answer ends"
        if keep and not self._transport.is_closing():
            self.resume()
            self._upstream.release(self)
        else:
            self._transport.abort()
        self._upstream.end(call)

    def _drop_call(self) -> Call | None:
        call, self._call = self._call, None
        if call is not None:
            call.connection = None
        self._parts.clear()
        self._buffer = b""
        return call


_STALE = frozenset((UpstreamFailureKind.reset, UpstreamFailureKind.closed_early))
"""Failures of a reused connection that may only mean that the server had closed it meanwhile."""
