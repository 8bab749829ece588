"""What the server and the client exchange with their users: requests, responses, refusals, limits. No behaviour.

Header names are lower-case bytes everywhere; values are bytes as they came, without surrounding blanks.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

Headers = Sequence[tuple[bytes, bytes]]

KIB = 1024


class HeaderLines(bytes):
    """Header lines as they are written, each with its CRLF: checked once where they are made."""

    __slots__ = ()


def header_lines(headers: Headers) -> HeaderLines:
    """``headers`` as they are written. None may break its line: what comes from outside is checked before."""
    lines = b"".join([b"%b: %b\r\n" % (name, value) for name, value in headers])
    assert lines.count(b"\n") == lines.count(b"\r") == len(headers), "line break in a header"
    return HeaderLines(lines)


STATUS_TEXT: dict[int, str] = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    499: "Client Closed Request",
}
"""Reason phrases (RFC 9110). 499 is only ever logged."""


def find_header(headers: Headers, name: bytes) -> bytes | None:
    """Value of the first header called ``name`` (lower-case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


class Request:
    """One request of a client. ``body`` is complete once ``on_request`` is called and empty in ``on_head``."""

    __slots__ = ("body_bytes", "body_parts", "headers", "method", "path", "peer", "query", "target", "ticket")

    def __init__(self, method: str, target: str, *, headers: list[tuple[bytes, bytes]], peer: str) -> None:
        self.method = method
        self.target = target
        """As sent, of an absolute form the part behind the host; printable ASCII, begins with ``/`` (or is ``*`` with
        OPTIONS)."""
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body_parts: list[bytes] = []
        """The body as it came. Joining 64 MiB takes 35 ms, which may be spent elsewhere: see ``take_parts``."""
        self.body_bytes = 0
        self.peer = peer
        """The client's address without its port; empty if the socket has none."""
        self.ticket: Any = None
        """What ``on_head`` left for ``on_request``. A later request of the same connection with the same head gets the
        same ticket, and no ``on_head`` if its body is small and came at once."""

    @property
    def body(self) -> bytes:
        """All of it, joined."""
        parts = self.body_parts
        if not parts:
            return b""
        if len(parts) > 1:
            parts[:] = (b"".join(parts),)
        return parts[0]

    def take_parts(self) -> list[bytes]:
        """The body's parts, which the request then has no longer."""
        parts, self.body_parts = self.body_parts, []
        return parts

    def again(self, body: bytes) -> "Request":
        """One with the same head and another body."""
        other = Request.__new__(Request)
        other.method = self.method
        other.target = self.target
        other.path = self.path
        other.query = self.query
        other.headers = self.headers
        other.body_parts = [body] if body else []
        other.body_bytes = len(body)
        other.peer = self.peer
        other.ticket = self.ticket
        return other

    def header(self, name: bytes) -> bytes | None:
        """Value of the first header called ``name`` (lower-case), or None."""
        return find_header(self.headers, name)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target} {self.body_bytes} B from {self.peer}>"


class Response(msgspec.Struct, frozen=True):
    """A complete answer of an upstream server."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Value of the first header called ``name`` (lower-case), or None."""
        return find_header(self.headers, name)


class Refusal(msgspec.Struct, frozen=True):
    """An answer given before the body is read. content-length and connection are the server's own to write."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    close: bool = False
    """Close the connection even if no body follows. With a body to follow it is always closed."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on what one client may do. Reasons: reliability reference 3 and the fault catalogue's part B."""

    head_bytes_max: int = 16 * KIB
    """Request line and headers together; 431."""
    line_bytes_max: int = 8 * KIB
    """Request target (414) or one header line (431)."""
    headers_max: int = 100
    head_timeout_s: float = 10.0
    """From the first byte, or from the connection, to the end of the head; a drip does not extend it. 408."""
    body_first_byte_timeout_s: float = 10.0
    body_timeout_s: float = 120.0
    """From the end of the head to the end of the body, whatever the rate. 408."""
    body_rate_min_bytes_per_s: int = 1 * KIB
    """Averaged over ``body_rate_window_s``; 408 below it."""
    body_rate_window_s: float = 10.0
    keep_alive_timeout_s: float = 20.0
    """Between requests. Documented, because a client's own pool must be shorter than this."""
    write_stall_timeout_s: float = 30.0
    """A client that takes nothing for so long is cut, and its exchange hears on_disconnect."""
    write_buffer_high_bytes: int = 64 * KIB
    """Unsent bytes above which an exchange is told to pause; what a stalled reader costs us."""
    socket_send_bytes: int = 256 * KIB
    """What the kernel keeps for one client, which Linux doubles for its own needs. Left alone it grows to 4 MiB for
    each stalled reader; a stream needs some KiB, and a distant client gets 2.5 MB/s at 0.1 s there and back."""
    linger_timeout_s: float = 4.5
    """After an early answer we discard what the client still sends for so long, else a reset may destroy the answer.
    With the sweep's lateness it stays within the promised 5 s."""
    connections_max: int = 10_000
    """At the limit the connection that is idle longest makes room; without one the newcomer gets 503."""
    pipelined_bytes_max: int = 16 * KIB
    """Bytes of later requests held while one is answered; above it the socket is no longer read."""
    chunks_free: int = 4096
    """A body may have so many chunks of any size, and from there on one for each ``chunk_bytes_average_min`` bytes:
    a million one-byte chunks stall everyone else (measured: 157 ms to 5.8 s, reliability reference, rule 7)."""
    chunk_bytes_average_min: int = 64
    bodies_bytes_max: int = 512 * KIB * KIB
    """Bytes of all requests under way together, from their first byte to the end of their answer: while a request waits
    for a model its body is kept for a second try. Above it the largest body that is still coming gets 503."""
    body_small_bytes: int = 64 * KIB
    """Bodies up to here do not count in that sum: their number is bounded by ``connections_max``."""
    sweep_interval_s: float = 0.5
    """How often deadlines are looked at, so how late a timeout may be. One timer per server, none per request."""


DEFAULT_LIMITS = Limits()
