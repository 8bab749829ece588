"""What may stand in a line of the log: times, and values that can neither forge a line nor steer a terminal."""

import re
import time
from datetime import UTC, datetime

VALUE_MAX = 500
"""Characters of one value; an error text of a worker can be a whole page."""
NS_PER_S = 1_000_000_000

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\\u2028\\u2029\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\ud800-\udfff]")
"""Control characters, line breaks of Unicode, marks that reverse the direction of a line, lone surrogates."""


def escape(text: str, *, length_max: int = VALUE_MAX) -> str:
    """``text`` without characters that could forge a line or steer a terminal, cut to ``length_max``."""
    if len(text) > length_max:
        text = text[:length_max] + "..."
    return _UNSAFE.sub(_escaped, text) if _UNSAFE.search(text) else text


def _escaped(match: re.Match[str]) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0]) or f"\\u{ord(match[0]):04x}"


class Stamps:
    """The time of day in UTC; all but its microseconds is rendered once a second."""

    def __init__(self) -> None:
        self._second = (0, "", b"")

    def now(self) -> tuple[int, str, bytes]:
        """Microseconds of the second; before them ``2026-11-22T12:00:01.``, as text and as the head of a JSON line."""
        start_ns, prefix, head = self._second  # read at once: other threads log too
        since_ns = time.time_ns() - start_ns
        if not 0 <= since_ns < NS_PER_S:  # the clock may have been set back
            second, since_ns = divmod(start_ns + since_ns, NS_PER_S)
            prefix = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}."
            head = b'{"time":"' + prefix.encode()
            self._second = (second * NS_PER_S, prefix, head)
        return since_ns // 1000, prefix, head

    def text(self) -> str:
        """``2026-11-22T12:00:01.123456Z``."""
        us, prefix, _ = self.now()
        return f"{prefix}{us:06d}Z"
