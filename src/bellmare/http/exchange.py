"""One request and its answer, and what an application must be to be served.

An exchange ends exactly once: answered, aborted, or left by the client. Calls after its end do nothing, so that a late
token needs no check in the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from bellmare.http.messages import STATUS_TEXT, HeaderLines, Headers, Refusal, Request, header_lines

if TYPE_CHECKING:
    from bellmare.http.bodies import BodySink
    from bellmare.http.connection import Connection

_STATUS_LINE = {status: b"HTTP/1.1 %d %b\r\n" % (status, text.encode()) for status, text in STATUS_TEXT.items()}
_BODILESS = frozenset((204, 304))


class ExchangeListener(Protocol):
    """What an application hears of a client while it answers. Called synchronously, also from within ``write``."""

    def on_disconnect(self) -> None:
        """The client left before the answer was complete; the exchange has ended."""

    def on_pause(self) -> None:
        """More than ``write_buffer_high_bytes`` wait for the client: stop writing."""

    def on_resume(self) -> None:
        """The client's buffer is low again."""


class Application(Protocol):
    """The user of the server. All three are plain callbacks on the loop and must not block."""

    def on_head(self, request: Request) -> Refusal | int | BodySink:
        """Decide on a head alone: a refusal, or the largest body in bytes that will be read (a larger one gets 413).

        Or who takes the body as it comes.

        May be called without a later ``on_request``: the body may never come.
        """

    def on_request(self, exchange: Exchange) -> None:
        """Answer a complete request, now or later."""

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        """Render an error that the server found itself (400, 408, 413, 414, 415, 417, 431, 501, 503, 505, 500).

        ``target`` is empty where it was not read; ``reason`` is a constant text of ours, free of the client's bytes.
        """


def render_head(status: int, headers: Headers | HeaderLines, framing: bytes) -> bytes:
    """The bytes of a response's head. ``framing`` are the server's own header lines, each with its CRLF."""
    lines = headers if isinstance(headers, HeaderLines) else header_lines(headers)
    return b"%b%b%b\r\n" % (_STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status, lines, framing)


class Exchange(msgspec.Struct, eq=False):
    """One request of one client, to be answered once: ``respond``, or ``start``, ``write``..., ``finish``."""

    _connection: Connection
    request: Request
    _minor: int
    """HTTP/1.x."""
    _bodiless: bool
    """The method was HEAD, or the status allows no body."""
    _chunked: bool = False
    listener: ExchangeListener | None = None
    started: bool = False
    """The head of the answer has been written."""
    finished: bool = False
    """Completely answered, or aborted by us."""
    disconnected: bool = False
    """The client left before the end."""
    extra: bytes = b""
    """Header lines that whatever is answered carries, each with its CRLF; set before the answer begins."""

    @property
    def paused(self) -> bool:
        """Whether the client's buffer is above its mark: write no more until ``on_resume``."""
        return self._connection.write_paused

    def respond(self, status: int, headers: Headers | HeaderLines, body: bytes) -> None:
        """Answer completely, with a content-length. ``headers`` must not frame: that is done here."""
        if self.finished or self.disconnected:
            return
        assert not self.started, "respond after start"
        self.started = True
        if status in _BODILESS:
            framing, body = self._connection_header(), b""
        else:
            framing = b"content-length: %d\r\n%b" % (len(body), self._connection_header())
        head = render_head(status, headers, framing)
        self._connection.write(head if self._bodiless else head + body)
        self._end()

    def start(self, status: int, headers: Headers | HeaderLines) -> None:
        """Begin an answer of unknown length: chunked, or ended by the connection for an HTTP/1.0 client."""
        if self.finished or self.disconnected:
            return
        assert not self.started, "start twice"
        self.started = True
        self._bodiless = self._bodiless or status in _BODILESS
        framing = b""
        if self._minor and status not in _BODILESS:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        elif not self._bodiless:
            self._connection.keep_alive = False
        self._connection.write(render_head(status, headers, framing + self._connection_header()))

    def write(self, data: bytes) -> None:
        """Send ``data`` as one chunk in one write. Empty data is ignored: it would end the answer."""
        if self.finished or self.disconnected or not data or self._bodiless:
            return
        assert self.started, "write before start"
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    @property
    def chunked(self) -> bool:
        """A started answer goes out in chunks, so that one of another server's may be passed on as it is."""
        return self._chunked and not self._bodiless

    def passer(self) -> Callable[[bytes], None]:
        """What sends a whole chunk with its framing; only while ``chunked``, and not after the end."""
        return self._connection.write

    def finish(self) -> None:
        """End a started answer."""
        if self.finished or self.disconnected:
            return
        assert self.started, "finish before start"
        if self._chunked and not self._bodiless:
            self._connection.write(b"0\r\n\r\n")
        self._end()

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the answer is not complete. No callback follows."""
        if self.finished or self.disconnected:
            return
        self.finished = True
        self.listener = None
        self._connection.cut()

    def lose(self) -> None:
        """The connection's word that the client left."""
        if self.finished or self.disconnected:
            return
        self.disconnected = True
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_disconnect()

    def _connection_header(self) -> bytes:
        connection = self._connection
        stays_open, date_line = connection.stays_open(), connection.server.date_line
        if self.extra:
            date_line += self.extra
        if stays_open and self._minor:
            return date_line
        return date_line + (b"connection: keep-alive\r\n" if stays_open else b"connection: close\r\n")

    def _end(self) -> None:
        # A write may have found the client gone; then the exchange has ended as disconnected already.
        if not self.disconnected:
            self.finished = True
            self.listener = None
            self._connection.exchange_ended()
