"""Heads that come again and again, alike but for the digits of their content-length: parsed once, then only compared.

Equal bytes get the verdict that they got before. The digits are the one thing that a client or a worker changes from
message to message, and no other rule looks at them; they must be what the strict parser takes as a length too.
"""

import re
from typing import Generic, TypeVar

HEAD_BYTES_MAX = 2048
"""Longer heads are not kept: one for each connection must not become a burden."""
_DIGITS_MAX = 10
"""Of a length that is taken at once; a body that is there in one read is far smaller."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)

M = TypeVar("M")


class KnownHead(Generic[M]):
    """A head that was accepted, and what it meant."""

    __slots__ = ("_before", "_before_bytes", "_behind", "_behind_bytes", "meaning")

    def __init__(self, before: bytes, behind: bytes, meaning: M) -> None:
        self._before = before
        self._before_bytes = len(before)
        self._behind = behind
        self._behind_bytes = len(behind)
        self.meaning = meaning

    def body(self, data: bytes) -> bytes:
        """The body, if ``data`` is this head again and all of its body and no more; else empty."""
        if not data.startswith(self._before):
            return b""
        end = data.find(b"\r\n\r\n") + 4
        stop = end - self._behind_bytes
        digits = data[self._before_bytes : stop] if stop > 0 else b""
        if not digits.isdigit() or digits[0] == 0x30 or len(digits) > _DIGITS_MAX:
            return b""
        if int(digits) != len(data) - end or not data.startswith(self._behind, stop):
            return b""
        return data[end:]


def know(head: bytes, meaning: M) -> KnownHead[M] | None:
    """Remember ``head``, which has been parsed, has one content-length and keeps its connection; None if it is long."""
    if len(head) > HEAD_BYTES_MAX:
        return None
    found = _LENGTH.search(head)
    if found is None:
        return None
    begin, end = found.span(1)
    return KnownHead(head[:begin], head[end:], meaning)
