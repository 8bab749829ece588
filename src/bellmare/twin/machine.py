"""What the parts of a twin share: the instant, timers, effects of this step, counters, the ledger of video memory."""

import heapq
from collections.abc import Callable

from bellmare.twin.config import TwinConfig
from bellmare.twin.loading import HostCache
from bellmare.twin.messages import Counters, Effect

HEAP_MIN = 64
"""Timers below which the heap is not worth compacting."""


class Timer:
    """One pending action. ``cancel`` is idempotent; the heap drops it when it comes to the top."""

    __slots__ = ("action", "at_us", "live", "sequence")

    def __init__(self, at_us: int, sequence: int, *, action: Callable[[], None]) -> None:
        self.at_us = at_us
        self.sequence = sequence
        self.action = action
        self.live = True

    def __lt__(self, other: "Timer") -> bool:
        return (self.at_us, self.sequence) < (other.at_us, other.sequence)

    def cancel(self) -> None:
        """Never fire."""
        self.live = False


class Machine:
    """Clock, timers and ledger of one twin. ``now_us`` never goes back."""

    def __init__(self, config: TwinConfig) -> None:
        self.config = config
        self.now_us = 0
        self.effects: list[Effect] = []
        self.counters = Counters()
        self.cache = HostCache(config.gpu.host_cache_bytes)
        self.slow_percent = 100
        """Spans of prefill and decode, of generations that begin from now on."""
        self.vram_used_bytes = 0
        """By processes that exist, the loading and the dying ones included: what the driver would show."""
        self.runners_busy = 0
        """Runners with at least one busy slot: they share the GPU's bandwidth."""
        self._waiting = 0
        self._heap: list[Timer] = []
        self._heap_max = HEAP_MIN
        self._sequence = 0

    def emit(self, effect: Effect) -> None:
        """Add to what this step returns."""
        self.effects.append(effect)

    def after(self, span_us: int, action: Callable[[], None]) -> Timer:
        """Call ``action`` in ``span_us``; actions due at one instant run in the order in which they were asked for."""
        assert span_us >= 0, "a timer cannot lie in the past"
        if len(self._heap) > self._heap_max:
            self._compact()
        self._sequence += 1
        timer = Timer(self.now_us + span_us, self._sequence, action=action)
        heapq.heappush(self._heap, timer)
        return timer

    def next_deadline_us(self) -> int | None:
        """When the next live timer is due."""
        while self._heap and not self._heap[0].live:
            heapq.heappop(self._heap)
        return self._heap[0].at_us if self._heap else None

    def _compact(self) -> None:
        """Drop dead timers: every request of a busy runner leaves the idle timer that it stopped, keep_alive ahead of
        now.
        """
        self._heap = [timer for timer in self._heap if timer.live]
        heapq.heapify(self._heap)
        self._heap_max = 2 * len(self._heap) + HEAP_MIN

    def run_until(self, now_us: int) -> None:
        """Fire everything that is due, each at its own instant, then set the clock to ``now_us``."""
        assert now_us >= self.now_us, "time went back"
        while (due_us := self.next_deadline_us()) is not None and due_us <= now_us:
            timer = heapq.heappop(self._heap)
            timer.live = False
            self.now_us = due_us
            timer.action()
        self.now_us = now_us

    def take(self, used_bytes: int) -> None:
        """A process takes video memory."""
        self.vram_used_bytes += used_bytes
        assert self.vram_used_bytes <= self.config.gpu.vram_bytes, "llama-server's fit never takes more than there is"
        self.counters.vram_used_max = max(self.counters.vram_used_max, self.vram_used_bytes)

    def give_back(self, used_bytes: int) -> None:
        """The driver has the memory again."""
        self.vram_used_bytes -= used_bytes
        assert self.vram_used_bytes >= 0, "memory given back twice"

    def waiting(self, change: int) -> None:
        """One request began (+1) or ceased (-1) to wait in the pending queue or on a semaphore."""
        self._waiting += change
        self.counters.own_queue_max = max(self.counters.own_queue_max, self._waiting)
        if change > 0:
            self.counters.queued_total += change
