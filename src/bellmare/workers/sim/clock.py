"""The one place of the simulated worker that looks at the time: the twin's instants, and how Ollama writes them."""

import time
from asyncio import AbstractEventLoop
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Instants are µs since this object was made, on the loop's monotonic clock."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._start_s = loop.time()
        self._start_wall_us = time.time_ns() // 1000
        self._second = -1
        self._second_text = b""

    def now_us(self) -> int:
        """Now."""
        return int((self._loop.time() - self._start_s) * 1_000_000)

    def loop_time(self, instant_us: int) -> float:
        """The same instant for ``loop.call_at``."""
        return self._start_s + instant_us / 1_000_000

    def stamp(self) -> bytes:
        """Now as ``created_at``: RFC 3339 in UTC with nanoseconds (ollama.md 1.4)."""
        wall_us = self._start_wall_us + self.now_us()
        second, micros = divmod(wall_us, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.").encode()
        return self._second_text + b"%06d000Z" % micros

    def expiry(self, instant_us: int) -> str:
        """``expires_at``; the year is about 2318 for a runner that never expires (ollama.md 2.2)."""
        return (_EPOCH + timedelta(microseconds=self._start_wall_us + instant_us)).isoformat()
