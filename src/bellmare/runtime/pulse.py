"""How late the event loop is: one timer, four times a second. What it sees late, every request saw late."""

import asyncio

EVERY_S = 0.25
WINDOW_S = 15.0
"""The worst of this window and the one before is shown, so that a scrape every 15 s misses no stall."""


class Pulse:
    """One loop's lateness. Made inside a running loop; ``close`` ends its timer."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self.stalled_s = 0.0
        """Sum of all lateness so far."""
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._worst_s = self._worst_before_s = 0.0
        self._window_ends = self._loop.time() + WINDOW_S
        self._due = self._loop.time() + every_s
        self._timer = self._loop.call_at(self._due, self._beat)

    @property
    def worst_s(self) -> float:
        """The latest beat of the last 15 to 30 seconds."""
        return max(self._worst_s, self._worst_before_s)

    def _beat(self) -> None:
        now = self._loop.time()
        late = max(0.0, now - self._due)
        self.stalled_s += late
        if now >= self._window_ends:
            self._worst_before_s = self._worst_s if now < self._window_ends + WINDOW_S else 0.0
            self._worst_s, self._window_ends = 0.0, now + WINDOW_S
        self._worst_s = max(self._worst_s, late)
        self._due = now + self._every_s
        self._timer = self._loop.call_at(self._due, self._beat)

    def close(self) -> None:
        self._timer.cancel()
