"""What goes wrong with the machines of a simulated fleet: workers that are lost and come back, loads that fail or drag.

Drawn per seed and the same for every policy where it can be: outages are fixed beforehand, the n-th load of a worker
fares alike whoever asked for it. Decides nothing about requests: a request that is cut off is reported as the live
gateway reports it.
"""

from collections.abc import Callable
from typing import Any

from bellmare.core.decisions import Decision, Dispatch, Drain, Load, Observe, Undrain, Unload
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FaultKind,
    FirstTokenReceived,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestFinished,
    WorkerUnreachable,
)
from bellmare.core.units import SECOND_US, InstantUs, OperationId, RequestId, WorkerId
from bellmare.sim.fleet import SimFaults, SimFleet
from bellmare.sim.tally import Tally
from bellmare.sim.workload import SimModel, Workload, randomness
from bellmare.sim.world import FIRST_TOKEN_DIVISOR, OBSERVE_US, Gpu, Held, LightWorld, request_index

REFUSED_US = 1_000
"""A connection to a machine where nothing listens is refused within a millisecond on a local network."""
POLL_US = 2 * SECOND_US
"""The live observer asks every worker so often: a silent loss or return is known by then."""
OUTAGES_MAX = 10_000
"""Per worker: a rate that no workload needs."""


class FaultyWorld(LightWorld):
    """The quick world in which machines fail. With no faults it is the quick world, event for event."""

    def __init__(self, workload: Workload, fleet: SimFleet, tally: Tally) -> None:
        super().__init__(workload, fleet, tally)
        self.faults = fleet.faults or SimFaults()
        self.workers_lost = 0
        self.loads_broken = 0
        self.loads_slow = 0
        self._down: dict[WorkerId, None] = {}
        self._told: dict[RequestId, None] = {}
        """Running requests whose first token has been sent: they are not retried."""
        self._chance = {worker: randomness(workload.seed, f"loads of {worker}") for worker in self.gpus}
        self._loading: dict[WorkerId, str] = {}
        over: dict[type[Decision], Callable[[int, Any], None]] = {
            Dispatch: self._dispatch_or_not,
            Load: self._load_or_not,
            Unload: self._unload_or_not,
            Drain: lambda _, decision: self._drain_if_there(decision, draining=True),
            Undrain: lambda _, decision: self._drain_if_there(decision, draining=False),
            Observe: self._observe_or_not,
        }
        self._handlers.update(over)
        for worker in self.gpus:
            self._plan_outages(worker, workload)

    def _plan_outages(self, worker: WorkerId, workload: Workload) -> None:
        """Exponential spans between losses, while requests arrive."""
        faults, at_us = self.faults, 0.0
        if not faults.lost_per_day:
            return
        chance = randomness(workload.seed, f"outages of {worker}")
        end_us = workload.arrivals[-1].at_us
        for _ in range(OUTAGES_MAX):
            at_us += chance.expovariate(faults.lost_per_day / (86_400 * SECOND_US))
            away_us = chance.randint(faults.away_min_us, faults.away_max_us)
            if at_us > end_us:
                return
            self._outage(worker, int(at_us), away_us)
            at_us += away_us

    def _outage(self, worker: WorkerId, at_us: int, away_us: int) -> None:
        for when_us, what in (
            (at_us, lambda now_us: self._lose(worker, now_us)),
            (at_us + POLL_US, lambda now_us: self._poll(worker, now_us)),
            (at_us + away_us, lambda now_us: self._come_back(worker)),
            (at_us + away_us + POLL_US, lambda now_us: self._poll(worker, now_us)),
        ):
            self._later(when_us, what)

    # ------------------------------------------------------------------ losing a machine

    def _lose(self, worker: WorkerId, now_us: int) -> None:
        """All that ran there is gone: memory, runners, the operation under way. Its connections break at once."""
        gpu = self.gpus[worker]
        self.workers_lost += 1
        self._down[worker] = None
        gone = list(gpu.held.values())
        for held in gone:
            self._open_runners[held.model] -= held.ready and not held.draining
        cut = [request for request, held in self._running.items() if any(held is one for one in gone)]
        for request in cut:
            del self._running[request]
            self._later(now_us, lambda at_us, request=request: self._cut_off(request, worker, at_us))  # type: ignore[misc]
        if gpu.operation is not None:
            broken = self._ended(gpu.operation, FaultKind.reset)
            self._later(now_us, broken)
        gpu.held.clear()
        gpu.used_bytes = 0
        gpu.operation = None

    def _cut_off(self, request: RequestId, worker: WorkerId, now_us: int) -> Event:
        """Before its first token it may run elsewhere; after it the client has an error."""
        if self._told.pop(request, "no") == "no":
            return DispatchFailed(request=request, worker=worker, fault=FaultKind.reset)
        self.tally.refuse(request_index(request), now_us, reason="cut_off")
        return RequestFinished(request=request, outcome=Outcome.failed, fault=FaultKind.reset)

    def _come_back(self, worker: WorkerId) -> None:
        del self._down[worker]

    def _poll(self, worker: WorkerId, now_us: int) -> Event:
        if worker in self._down:
            return WorkerUnreachable(worker=worker, started_us=InstantUs(now_us), fault=FaultKind.refused)
        return self.observed(worker, now_us)

    @staticmethod
    def _ended(operation: OperationId, fault: FaultKind) -> OperationEnded:
        return OperationEnded(operation=operation, outcome=OperationOutcome.failed, fault=fault, detail="worker lost")

    # ------------------------------------------------------------------ decisions

    def _dispatch_or_not(self, now_us: int, decision: Dispatch) -> None:
        request, worker = decision.request, decision.worker
        if worker in self._down:
            failed = DispatchFailed(request=request, worker=worker, fault=FaultKind.refused)
            self._later(now_us + REFUSED_US, failed)
            return
        held = self.gpus[worker].held[decision.model]
        assert held.ready and not held.draining and held.taken < self.slots, "a worker never gets more than it can run"
        held.taken += 1
        self._running[request] = held
        self.tally.started(request_index(request), now_us)
        service_us = self._arrivals[request_index(request)].service_us
        self._later(now_us + service_us // FIRST_TOKEN_DIVISOR, lambda _: self._first_token(request, held))
        self._later(now_us + service_us, lambda _: self._finished(request, held))

    def _first_token(self, request: RequestId, held: Held) -> Event | None:
        if self._running.get(request) is not held:
            return None  # cut off meanwhile, and perhaps running elsewhere
        self._told[request] = None
        return FirstTokenReceived(request=request)

    def _finished(self, request: RequestId, held: Held) -> Event | None:
        if self._running.get(request) is not held:
            return None
        self._told.pop(request, None)
        return RequestFinished(request=request, outcome=Outcome.completed)

    def leave(self, request: RequestId) -> bool:
        """A client leaves a request that runs; its slot is free at once. False if it does not run."""
        held = self._running.pop(request, None)
        self._told.pop(request, None)
        if held is None:
            return False
        held.taken -= 1
        return True

    def _load_or_not(self, now_us: int, decision: Load) -> None:
        worker = decision.worker
        if worker in self._down:
            self._later(now_us + REFUSED_US, self._ended(decision.operation, FaultKind.refused))
            return
        chance = self._chance[worker].random() * 100
        faults = self.faults
        self._loading[worker] = "well"
        if chance < faults.load_failed_percent:
            self._break(now_us, decision)
            return
        if chance < faults.load_failed_percent + faults.load_slow_percent:
            self._loading[worker] = "slowly"
            self.loads_slow += 1
        self._load(now_us, decision)

    def _break(self, now_us: int, decision: Load) -> None:
        """It fails half way, as a damaged file or a driver does."""
        gpu, model = self.gpus[decision.worker], self._models[self._index[decision.model]]
        gpu.operation = decision.operation
        self.loads_broken += 1
        span_us = self._load_span_us(gpu, model) // 2
        self.tally.load_began(model.blob, now_us)
        self.tally.load_took(span_us)
        self._later(now_us + span_us, lambda _: self._load_failed(gpu, decision))

    def _load_span_us(self, gpu: Gpu, model: SimModel) -> int:
        span_us = super()._load_span_us(gpu, model)
        worker = next(name for name, one in self.gpus.items() if one is gpu)
        return span_us * self.faults.slow_factor if self._loading.get(worker) == "slowly" else span_us

    def _load_failed(self, gpu: Gpu, decision: Load) -> Event | None:
        return super()._load_failed(gpu, decision) if gpu.operation == decision.operation else None

    def _load_done(self, gpu: Gpu, decision: Load, held: Held) -> Event | None:
        return super()._load_done(gpu, decision, held) if gpu.held.get(decision.model) is held else None

    def _unload_done(self, gpu: Gpu, decision: Unload, held: Held) -> Event | None:
        return super()._unload_done(gpu, decision, held) if gpu.held.get(decision.model) is held else None

    def _unload_or_not(self, now_us: int, decision: Unload) -> None:
        if decision.worker in self._down:
            self._later(now_us + REFUSED_US, self._ended(decision.operation, FaultKind.refused))
            return
        self._unload(now_us, decision)

    def _drain_if_there(self, decision: Drain | Undrain, *, draining: bool) -> None:
        if decision.model in self.gpus[decision.worker].held:
            self._set_draining(decision, draining=draining)

    def _observe_or_not(self, now_us: int, decision: Observe) -> None:
        self._later(now_us + OBSERVE_US, lambda at_us: self._poll(decision.worker, at_us))


def quick_world(workload: Workload, fleet: SimFleet, tally: Tally) -> LightWorld:
    """The quick world, with faults if the fleet has any."""
    return FaultyWorld(workload, fleet, tally) if fleet.faults is not None else LightWorld(workload, fleet, tally)
