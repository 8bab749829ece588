"""The books of one run: when each request arrived, began and ended, and what was loaded. Counts, never decides.

Every baseline writes into the same books, so that "cold" and "wait" mean the same for all.
"""

import hashlib

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import Workload

RELOAD_US = 60 * SECOND_US
"""A model loaded again so soon after its eviction should not have left (policy.md 6)."""
NEVER = -1


class BrokenRunError(AssertionError):
    """A request ended twice, began before it arrived, or the like: our bug, or the core's."""


class Tally:
    """Filled by the run, read by ``report``. Requests are named by their place in the workload."""

    def __init__(self, workload: Workload) -> None:
        count = len(workload.arrivals)
        self.workload = workload
        self.arrived_count = 0
        self.open = 0
        """Arrived and not ended."""
        self.cold = bytearray(count)
        """1: no runner was ready for it when it arrived."""
        self.start_us = [NEVER] * count
        self.end_us = [NEVER] * count
        self.refused: dict[str, int] = {}
        """Requests that ended without an answer, by reason."""
        self.loads = 0
        self.load_us = 0
        self.evictions = 0
        """Runners that left, whatever the reason: room, or Ollama's own timer."""
        self.reloads_within_60s = 0
        self.prefetches = 0
        """Loads begun ahead of demand: a hint or the forecast asked for them, no request."""
        self.prefetches_used = 0
        """Of those, how many served a request before they left."""
        self._evicted_us: dict[str, int] = {}

    def arrived(self, request: int, *, cold: bool) -> None:
        """The next request of the workload came in."""
        self._must(request == self.arrived_count, "requests arrive in order", request)
        self.arrived_count += 1
        self.open += 1
        self.cold[request] = cold

    def started(self, request: int, at_us: int) -> None:
        """Its service began. A retry begins again, and counts from there."""
        self._must(request < self.arrived_count and self.end_us[request] == NEVER, "only who waits starts", request)
        self._must(at_us >= self.workload.arrivals[request].at_us, "nobody starts before his arrival", request)
        self.start_us[request] = at_us

    def ended(self, request: int, at_us: int) -> None:
        """It was served."""
        self._must(self.start_us[request] != NEVER, "only who started is served", request)
        self._close(request, at_us)

    def refuse(self, request: int, at_us: int, *, reason: str) -> None:
        """It ended without an answer."""
        self.start_us[request] = NEVER
        self._close(request, at_us)
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def load_began(self, blob: str, at_us: int) -> None:
        """A worker's loader is taken."""
        left_us = self._evicted_us.get(blob)
        self.loads += 1
        self.reloads_within_60s += left_us is not None and at_us - left_us < RELOAD_US

    def load_took(self, span_us: int) -> None:
        """So long was the loader taken."""
        self.load_us += span_us

    def prefetch_began(self) -> None:
        """The load that has just begun is one that nobody waits for."""
        self.prefetches += 1

    def prefetch_used(self) -> None:
        """A runner that was loaded ahead of demand serves its first request."""
        self.prefetches_used += 1

    def evicted(self, blob: str, at_us: int) -> None:
        """A runner began to leave."""
        self.evictions += 1
        self._evicted_us[blob] = at_us

    def waits_us(self) -> list[int]:
        """Start minus arrival of every served request, ascending."""
        arrivals = self.workload.arrivals
        served = (i for i, start_us in enumerate(self.start_us) if start_us != NEVER and self.end_us[i] != NEVER)
        return sorted(self.start_us[i] - arrivals[i].at_us for i in served)

    def waits_by_user_us(self) -> dict[int, list[int]]:
        """The same for each user, in order of their first request served; each list ascending."""
        found: dict[int, list[int]] = {}
        for arrival, start_us, end_us in zip(self.workload.arrivals, self.start_us, self.end_us, strict=True):
            if start_us != NEVER and end_us != NEVER:
                found.setdefault(arrival.user, []).append(start_us - arrival.at_us)
        for waits_us in found.values():
            waits_us.sort()
        return found

    def digest(self) -> str:
        """The same for two runs only if every request began and ended alike and everything was loaded alike."""
        found = hashlib.sha256(bytes(self.cold))
        for numbers in (self.start_us, self.end_us, [self.loads, self.load_us, self.evictions]):
            found.update(",".join(map(str, numbers)).encode())
        return found.hexdigest()[:16]

    def _close(self, request: int, at_us: int) -> None:
        self._must(request < self.arrived_count and self.end_us[request] == NEVER, "a request ends once", request)
        self.end_us[request] = at_us
        self.open -= 1

    @staticmethod
    def _must(holds: bool, rule: str, request: int) -> None:
        if not holds:
            raise BrokenRunError(f"{rule}: request {request}")
