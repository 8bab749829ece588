"""One request to an upstream server: what its user gives, holds and hears."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from bellmare.http.client import Upstream
    from bellmare.http.upstream_connection import UpstreamConnection


class UpstreamFailureKind(StrEnum):
    """How a call went wrong; a closed set, fit for metric labels."""

    refused = "refused"
    """No connection: refused, unreachable, or the name does not resolve."""
    connect_timeout = "connect_timeout"
    reset = "reset"
    """The connection broke, or we closed the client under the call."""
    closed_early = "closed_early"
    """The server closed in order, but before the end of its answer."""
    bad_response = "bad_response"
    """Not an HTTP answer that we accept."""
    too_large = "too_large"
    timeout = "timeout"
    """No complete response head in time."""
    stalled = "stalled"
    """Head received, then nothing for the idle timeout."""


class UpstreamFailure(msgspec.Struct, frozen=True):
    """Why a call failed. ``detail`` is for logs, never for a client."""

    kind: UpstreamFailureKind
    detail: str
    received: bool
    """Any byte of a response came: the server certainly saw the request."""


class UpstreamError(Exception):
    """``Upstream.fetch`` failed."""

    def __init__(self, failure: UpstreamFailure) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure = failure


class Receiver(Protocol):
    """Hears a call's answer. Never called from within ``send``; on_end or on_failure comes exactly once and last."""

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The final response's head; interim ones are swallowed. Header names are lower-case."""

    def on_data(self, data: bytes) -> None:
        """Body bytes without chunk framing; what one read brought is joined. May still come once after ``pause``."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_failure(self, failure: UpstreamFailure) -> None:
        """The answer will not be completed."""


class _Nobody:
    """Receiver of an ended call, so that call and receiver are no reference cycle for the collector to find."""

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        raise AssertionError("a callback after the end")

    def on_data(self, data: bytes) -> None:
        raise AssertionError("a callback after the end")

    def on_end(self) -> None:
        raise AssertionError("a callback after the end")

    def on_failure(self, failure: UpstreamFailure) -> None:
        raise AssertionError("a callback after the end")


_NOBODY = _Nobody()


class Call(msgspec.Struct, eq=False):
    """A request under way. Made by ``Upstream.send``."""

    _upstream: Upstream
    message: bytes | list[bytes]
    """The whole request, kept for the one retry until the first response byte."""
    receiver: Receiver
    head_only: bool
    """The method was HEAD: whatever the head says, no body comes."""
    _idle_timeout_s: float
    deadline: float = inf
    """Loop time at which the sweep gives the call up."""
    connection: UpstreamConnection | None = None
    relay: Callable[[bytes], bool] | None = None
    """Asked first about each chunk of the answer that came whole and alone, as it came, framing and all: True if it has
    been passed on so. ``on_data`` does not hear of it then."""
    active: bool = False
    """Something came since the sweep last looked; so no clock is read per chunk."""
    paused: bool = False
    retried: bool = False
    ended: bool = False

    @property
    def connected(self) -> bool:
        """Whether it has a connection now."""
        return self.connection is not None

    def retire(self) -> Receiver:
        """The call has ended: forget the request and the receiver, who is returned for the last word."""
        assert not self.ended, "a call ends once"
        self.ended = True
        self.message = b""
        self.relay = None
        receiver, self.receiver = self.receiver, _NOBODY
        return receiver

    def abort(self) -> None:
        """Give up: the connection is closed at once and no callback follows. Does nothing after the end."""
        if not self.ended:
            self._upstream.abandon(self)

    def pause(self) -> None:
        """Stop reading the answer; the server will feel it. What was read already may still be delivered once."""
        self.paused = True
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """Read again."""
        self.paused = False
        self.active = True
        if self.connection is not None:
            self.connection.resume()

    def check(self, now: float) -> bool:
        """For the sweep: whether the call is overdue. Its idle clock stands still while the user has paused it."""
        connection = self.connection
        if connection is not None and connection.head_received and (self.active or self.paused):
            self.active = False
            self.deadline = now + self._idle_timeout_s
        return now >= self.deadline
