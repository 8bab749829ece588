"""Bytes between the disk and the registry, over time. Two pulls of one blob share a download; what came is kept for
the next pull when the last of them leaves (ollama.md 6.3).
"""

import asyncio
from collections.abc import Callable

from bellmare.http.listening import Unpaced
from bellmare.protocols.names import canonical_name
from bellmare.workers.sim.driver import Driver
from bellmare.workers.sim.progress import Lines
from bellmare.workers.sim.world import SimModel

TELL_EVERY_S = 0.06
"""As Ollama."""
TELLS_MAX = 200
"""Progress lines of one layer; a long download tells less often."""
PULL_BROKEN = "max retries exceeded: unexpected EOF"


class Download:
    """One blob on its way, paid for by those who wait for it."""

    def __init__(self, blob: str, size_bytes: int, bytes_per_s: int) -> None:
        self.blob = blob
        self.size_bytes = size_bytes
        self.break_at = -1
        """Fails at so many bytes, once; negative: it does not."""
        self._bytes_per_s = bytes_per_s
        self._had = 0
        self._since_s = 0.0
        self._waiters = 0

    def join(self, now_s: float) -> None:
        if not self._waiters:
            self._since_s = now_s
        self._waiters += 1

    def leave(self, now_s: float) -> None:
        self._waiters -= 1
        if not self._waiters:
            self._had = self._done_now(now_s)

    def done(self, now_s: float) -> int:
        """Bytes so far."""
        return self._done_now(now_s) if self._waiters else self._had

    @property
    def span_s(self) -> float:
        return self.size_bytes / self._bytes_per_s

    def _done_now(self, now_s: float) -> int:
        return min(self.size_bytes, self._had + int((now_s - self._since_s) * self._bytes_per_s))


class Downloads:
    """Those under way and those that were left half done. ``bytes_per_s`` is the network's rate for each."""

    def __init__(self, registry: tuple[SimModel, ...], *, bytes_per_s: int) -> None:
        self.registry = {canonical_name(model.name): model for model in registry}
        self.bytes_per_s = bytes_per_s
        self._open: dict[str, Download] = {}

    def of(self, blob: str, size_bytes: int) -> Download:
        """The one of ``blob``; bounded by the registry's size."""
        return self._open.setdefault(blob, Download(blob, size_bytes, self.bytes_per_s))

    def forget(self, blob: str) -> None:
        self._open.pop(blob, None)


class Transfer(Unpaced):
    """One request that waits for a download and tells of it."""

    def __init__(
        self,
        lines: Lines,
        download: Download,
        *,
        driver: Driver,
        done: Callable[[], None],
        forget: Callable[[str], None],
        verb: str = "pulling",
    ) -> None:  # tidy: what one transfer consists of
        self._lines = lines
        self._download = download
        self._loop = driver.loop
        self._done = done
        self._forget = forget
        self._status = f"{verb} {download.blob[:12]}"
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._lines.exchange.listener = self
        self._download.join(self._loop.time())
        self._tell()

    def on_disconnect(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._download.leave(self._loop.time())

    def _tell(self) -> None:
        now_s, download = self._loop.time(), self._download
        completed = download.done(now_s)
        if 0 <= download.break_at <= completed:
            download.break_at = -1
            download.leave(now_s)
            self._lines.fail(PULL_BROKEN)
            return
        line = {"status": self._status, "digest": f"sha256:{download.blob}", "total": download.size_bytes}
        self._lines.say(line | ({"completed": completed} if completed else {}))
        if self._lines.exchange.disconnected:
            return
        if completed >= download.size_bytes:
            download.leave(now_s)
            self._forget(download.blob)
            self._done()
            return
        left_s = (download.size_bytes - completed) / download.size_bytes * download.span_s
        every_s = min(max(TELL_EVERY_S, download.span_s / TELLS_MAX), left_s + 0.001)
        self._timer = self._loop.call_later(every_s, self._tell)
