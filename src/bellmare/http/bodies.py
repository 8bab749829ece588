"""How a request's body comes in: collected until it is complete, or handed on piece by piece to a sink."""

from __future__ import annotations

from typing import Protocol

from bellmare.http.framing import CHUNKED, ChunkedBody
from bellmare.http.messages import Limits


class BodySink(Protocol):
    """Takes a body that is too large to be kept: given by ``on_head`` in place of a limit.

    The request is handed to ``on_request`` as others are, once its body has ended, and then has no body of its own.
    """

    bytes_max: int
    """A longer body gets 413."""

    def begin(self, flow: BodyFlow) -> None:
        """The body comes now."""

    def take(self, data: bytes) -> None:
        """The next piece, never empty."""

    def lost(self) -> None:
        """The body will not be complete: the client left, or was refused, maybe before ``begin``. Nothing follows."""


class BodyFlow(Protocol):
    """What a sink may ask of its connection."""

    def pause_body(self) -> None:
        """Read no more; the client is not held to its pace meanwhile."""

    def resume_body(self) -> None:
        """Go on reading."""


class LengthBody:
    """A body of a length that is known. ``feed`` as that of :class:`ChunkedBody`."""

    __slots__ = ("_left", "parts", "size")

    def __init__(self, length: int) -> None:
        self._left = length
        self.parts: list[bytes] = []
        self.size = length

    def take(self) -> list[bytes]:
        """The content since the last time, in the parts in which it came."""
        parts, self.parts = self.parts, []
        return parts

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; those behind the end of the body, or None while it goes on."""
        if len(data) <= self._left:
            self.parts.append(data)
            self._left -= len(data)
            return None if self._left else b""
        end = self._left
        self._left = 0
        self.parts.append(data[:end])
        return data[end:]


Body = LengthBody | ChunkedBody


def body_of(length: int, bytes_max: int, limits: Limits) -> Body:
    """The reader for a head's ``length``, which may be ``CHUNKED``."""
    return ChunkedBody(bytes_max, limits) if length == CHUNKED else LengthBody(length)
