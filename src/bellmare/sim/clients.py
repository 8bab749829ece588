"""What clients of a simulated fleet do beside asking: they lose patience, break off, come back when they were refused.

A world around the quick world: its own events are the clients'. Open-loop traces go without it.
"""

import heapq
from collections.abc import Callable

import msgspec

from bellmare.core.decisions import Decision, Dispatch, Reject
from bellmare.core.events import Event, RequestArrived, RequestCancelled, WorkerAdded, WorkerObserved
from bellmare.core.units import SECOND_US, InstantUs, RequestId, WorkerId
from bellmare.sim.faults import FaultyWorld
from bellmare.sim.workload import Workload, randomness
from bellmare.sim.world import request_index

DAY_US = 24 * 3600 * SECOND_US


class SimClients(msgspec.Struct, frozen=True):
    """How clients behave. The defaults wait for ever and never come back: an open-loop trace."""

    patience_us: int = 0
    """A client leaves who has not begun to be served so long after he asked; zero: never."""
    break_off_percent: float = 0.0
    """Of those who are served, so many leave half way."""
    tries_max: int = 1
    """How often a client asks who is refused with a Retry-After; he comes back when it says."""
    deadline_us: int = 0
    """Given to the core when a client asks again (the first time: ``Drive.deadline_us``); zero: a day."""


class ClientWorld:
    """A ``sim.world.World``: the fleet with clients before it. Requests keep their number from try to try."""

    def __init__(self, inner: FaultyWorld, workload: Workload, clients: SimClients) -> None:
        self.inner = inner
        self.clients = clients
        self.left_waiting = 0
        self.left_running = 0
        self.came_back = 0
        self._names = [model.name for model in workload.models]
        self._arrivals = workload.arrivals
        self._chance = randomness(workload.seed, "clients")
        self._heap: list[tuple[int, int, Callable[[int], Event | None]]] = []
        self._sequence = 0
        self._tries: dict[RequestId, int] = {}
        self._started: dict[RequestId, int] = {}
        """Attempts of each that is served or was."""
        self._over: dict[RequestId, None] = {}
        """Refused for good, or left."""
        if clients.patience_us:
            for number, arrival in enumerate(workload.arrivals):
                self._later(arrival.at_us + clients.patience_us, lambda at_us, n=number: self._impatient(n, at_us))  # type: ignore[misc]

    # ------------------------------------------------------------------ the interface of a world

    def added(self) -> list[WorkerAdded]:
        return self.inner.added()

    def observed(self, worker: WorkerId, now_us: int) -> WorkerObserved:
        return self.inner.observed(worker, now_us)

    def ready(self, model: int) -> bool:
        return self.inner.ready(model)

    def due_us(self) -> int:
        own_us = self._heap[0][0] if self._heap else self.inner.due_us()
        return min(own_us, self.inner.due_us())

    def take(self, now_us: int) -> list[Event]:
        """The fleet's events come before the clients' at one instant."""
        if self.inner.due_us() <= now_us:
            return self.inner.take(now_us)
        _, _, what = heapq.heappop(self._heap)
        event = what(now_us)
        return [] if event is None else [event]

    def act(self, now_us: int, decision: Decision) -> None:
        if isinstance(decision, Reject):
            if self._comes_back(now_us, decision):
                return
            self._over[decision.request] = None
        self.inner.act(now_us, decision)
        if isinstance(decision, Dispatch):
            self._served(now_us, decision.request)

    # ------------------------------------------------------------------ habits

    def _comes_back(self, now_us: int, decision: Reject) -> bool:
        request = decision.request
        tries = self._tries.get(request, 1)
        if not decision.retry_after_us or tries >= self.clients.tries_max:
            return False
        self._tries[request] = tries + 1
        self._later(now_us + decision.retry_after_us, lambda at_us: self._ask_again(request, at_us))
        return True

    def _ask_again(self, request: RequestId, now_us: int) -> Event | None:
        if request in self._over:
            return None
        self.came_back += 1
        arrival = self._arrivals[request_index(request)]
        deadline_us = InstantUs(now_us + (self.clients.deadline_us or DAY_US))
        return RequestArrived(
            request=request, name=self._names[arrival.model], deadline_us=deadline_us, tenant=f"user-{arrival.user}"
        )

    def _impatient(self, number: int, now_us: int) -> Event | None:
        request = RequestId(f"r{number}")
        if request in self._started or request in self._over:
            return None
        self.left_waiting += 1
        return self._leave(request, now_us)

    def _served(self, now_us: int, request: RequestId) -> None:
        attempt = self._started[request] = self._started.get(request, 0) + 1
        if self._chance.random() * 100 < self.clients.break_off_percent:
            half_us = self._arrivals[request_index(request)].service_us // 2
            self._later(now_us + half_us, lambda at_us: self._break_off(request, attempt, at_us))

    def _break_off(self, request: RequestId, attempt: int, now_us: int) -> Event | None:
        if self._started.get(request) != attempt or not self.inner.leave(request):
            return None  # it was cut off meanwhile, or runs elsewhere
        self.left_running += 1
        return self._leave(request, now_us)

    def _leave(self, request: RequestId, now_us: int) -> Event:
        self._over[request] = None
        self.inner.tally.refuse(request_index(request), now_us, reason="left")
        return RequestCancelled(request=request)

    def _later(self, at_us: int, what: Callable[[int], Event | None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_us, self._sequence, what))
