"""What deadlines are for. The heap itself is part of the state; ``fleet`` keeps it."""

from enum import IntEnum
from heapq import heapify, heappop, heappush

from bellmare.core.state import RequestPhase, State
from bellmare.core.units import InstantUs, OperationId, RequestId

OUTLIVED_MAX = 1000
"""Timers of requests and operations that are over, beside two for each that is not: then the heap is cleared of them.

Mostly they would be skipped when due, but 2000 arrivals a second that leave at once, each with a deadline ten minutes
away, are 1.2 million. Clearing costs about a third of a microsecond for each that was outlived.
"""


class Timer(IntEnum):
    """What a deadline is for. Ties in time are broken by this order, then by key."""

    operation = 0
    zombie = 1
    request = 2
    look_again = 3
    """A worker may have a victim or a load that it had not before."""
    may_drain = 4
    stranded = 5
    forgive = 7
    """A retried request has avoided the workers that failed it for long enough."""
    hint = 8
    """A hint's time is over."""
    foreseen = 9
    """It is time to load what a hint spoke of."""
    breaker = 10
    """An ejection is over, or a worker on probation may take more."""
    continue_work = 6
    """Work left over by a step that reached its bound."""


MORTAL = (Timer.operation, Timer.request)
"""Timers that are mostly outlived by far: their subject ends long before."""


class Timers:
    """The heap of deadlines, which is part of ``state``."""

    __slots__ = ("_mortal", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._mortal = sum(1 for timer in state.timers if timer[1] in MORTAL)

    def set(self, at_us: int, timer: Timer, key: str, *, key2: str = "") -> None:
        heappush(self._state.timers, (InstantUs(at_us), timer, key, key2))
        self._mortal += timer in MORTAL

    def pop_due(self, now_us: InstantUs) -> tuple[InstantUs, int, str, str] | None:
        timers = self._state.timers
        if timers and timers[0][0] <= now_us:
            due = heappop(timers)
            self._mortal -= due[1] in MORTAL
            return due
        return None

    def clear(self) -> None:
        """Once too many are outlived, keep those whose subject is still there. A pure function of the state."""
        state = self._state
        operations = len(state.operations)
        outlived = self._mortal - state.waiting - operations
        if outlived <= 2 * (len(state.requests) + operations) + OUTLIVED_MAX:
            return
        kept = dict.fromkeys(timer for timer in state.timers if self._awaited(timer))  # a retried request has several
        state.timers = list(kept)
        heapify(state.timers)
        self._mortal = sum(1 for timer in state.timers if timer[1] in MORTAL)

    def _awaited(self, timer: tuple[InstantUs, int, str, str]) -> bool:
        if timer[1] == Timer.request:
            request = self._state.requests.get(RequestId(timer[2]))
            return request is not None and request.phase is RequestPhase.waiting
        return timer[1] != Timer.operation or OperationId(int(timer[2])) in self._state.operations
