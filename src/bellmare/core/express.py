"""The express lane: what follows from most events of a busy fleet at once, without a look at anything else.

A request for a model that has just been asked for, has a free slot and lets nobody wait can only be dispatched; a whole
answer that leaves nobody waiting can only free its slot. Both change here what the general path would change, and leave
for later what decides nothing yet: the statistics of such arrivals are gathered in bursts and taken in together before
anything is decided that could depend on them (any step of the general path, and the next arrival after ``BURST_US`` is
one). What a burst takes for granted is only what its name means; all else is looked at each time. Inside a burst the
order of models is not kept: whoever changes between them faster than that follows no chain.
"""

from bellmare.core import demand, hints
from bellmare.core.costs import note_service, service_estimate_us
from bellmare.core.decisions import CacheState, Decision, Dispatch
from bellmare.core.events import Outcome, RequestArrived, RequestFinished
from bellmare.core.fleet import CLASS_MARK, Fleet, Timer
from bellmare.core.residency import Residency
from bellmare.core.shadows import Shadowing
from bellmare.core.state import Burst, Model, Request, RequestPhase, Runner, Want, Worker
from bellmare.core.units import SECOND_US, InstantUs, SpanUs

BURST_US = SECOND_US // 5
"""Statistics are no older than that. Their shortest time constant is half a minute, a session's gap a minute."""

# Module-level names: before Python 3.12 each look at an enum's member costs 0.1 us.
_RUNNING = RequestPhase.running
_RESIDENT = Residency.resident
_COMPLETED = Outcome.completed
_NO_WANT = Want.nothing
_HIT = CacheState.hit
_UNSETTLED = SpanUs(-1)
_UNSEEN = InstantUs(-1)


class Express:
    """Takes an event if nothing else follows from it; else leaves everything as it was."""

    __slots__ = ("_fleet", "_shadowing")

    def __init__(self, fleet: Fleet, shadowing: Shadowing) -> None:
        self._fleet = fleet
        self._shadowing = shadowing

    # ------------------------------------------------------------------ the lane

    def arrived(self, event: RequestArrived) -> list[Decision] | None:
        """Dispatch, if the name's burst goes on; None: the general path decides."""
        fleet = self._fleet
        state, now_us = fleet.state, fleet.now_us
        burst = state.bursts.get(event.name)
        if burst is None or now_us - burst.began_us > BURST_US or state.suspects or state.poison:
            return None
        model = state.models[burst.model]
        entries = fleet.open[burst.model]
        if not entries or model.waiting or (state.timers and state.timers[0][0] <= now_us):
            return None
        worker = state.workers[state.roster[entries[0][1]]]
        runner = worker.runners[burst.model]
        stored = worker.stored.get(burst.name)
        if stored is None or stored.model != burst.blob or runner.untried or runner.batch_seq:
            return None
        if worker.cap or runner.spilled:
            return None
        assert event.request not in state.requests, "request ids are used once"
        tenants, tenant = burst.tenants, event.tenant
        tenants[tenant] = tenants.get(tenant, 0) + 1
        burst.last_us = now_us
        burst.count += 1
        state.requests[event.request] = request = (
            Request(  # in the order of its fields: by name it takes thrice as long
                event.request,
                burst.name,
                burst.model,
                event.kind,
                tenant,
                event.prompt_tokens,
                event.deadline_us,
                now_us,
                state.next_seq,
                _HIT,
                event.priority,
                _UNSETTLED,
                _RUNNING,
                worker.worker,
                now_us,
                _UNSEEN,
                1,
            )
        )
        state.next_seq += 1
        state.retries.first += 1
        fleet.live[burst.model] += 1
        turns = fleet.turns[burst.model]
        turns.began(request)
        turns.charge(request, service_estimate_us(fleet, model))
        runner.in_flight[event.request] = None
        runner.used_us = now_us
        fleet.shift_open(worker, runner)
        return [Dispatch(event.request, worker.worker, burst.model, runner.num_ctx, _HIT)]

    def finished(self, event: RequestFinished) -> list[Decision] | None:
        """Free the slot of a whole answer for which nobody waits; None: the general path decides."""
        fleet = self._fleet
        state, now_us = fleet.state, fleet.now_us
        if event.outcome is not _COMPLETED or fleet.pending or fleet.blocked or state.suspects:
            return None
        request = state.requests.get(event.request)
        if request is None or request.worker is None or (state.timers and state.timers[0][0] <= now_us):
            return None
        model = state.models[request.model]
        worker = state.workers.get(request.worker)
        runner = worker.runners.get(request.model) if worker is not None else None
        if worker is None or runner is None or not self._plain(model, worker, runner, request=request):
            return None
        in_flight = runner.in_flight
        if len(in_flight) == 1 and not runner.zombies:
            # What an idle runner makes possible is looked at when its burst ends, or now if none goes on.
            burst = state.bursts.get(request.name)
            if burst is None or now_us - burst.began_us > BURST_US:
                return None
            if not state.rested:
                fleet.set_timer(burst.began_us + BURST_US, Timer.continue_work, "")
            state.rested[worker.worker] = None
        spent_us = now_us - request.dispatched_us
        del state.requests[event.request], in_flight[event.request]
        fleet.live[request.model] -= 1
        fleet.turns[request.model].ended(request, spent_us)
        runner.used_us = now_us
        fleet.shift_open(worker, runner)
        fleet.count(_COMPLETED.value)
        if request.first_token_us < 0:
            worker.breaker.good += 1
        note_service(fleet, model, spent_us)
        return []

    @staticmethod
    def _plain(model: Model, worker: Worker, runner: Runner, *, request: Request) -> bool:
        """Whether the request's end is of no concern but to its own slot."""
        return (
            request.phase is _RUNNING
            and not model.waiting
            and model.want is _NO_WANT
            and not model.placements
            and bool(model.holders)
            and worker.healthy
            and not worker.cap
            and not runner.spilled
            and worker.placement is None
            and not worker.leaving
            and runner.residency is _RESIDENT
            and request.request in runner.in_flight
        )

    # ------------------------------------------------------------------ bursts

    def begin(self, name: str, decision: Decision) -> None:
        """An arrival for ``name`` led to nothing but ``decision``: if that was its dispatch at once, more of its kind
        are simple."""
        if type(decision) is Dispatch and decision.cache is _HIT and decision.attempt == 1:
            state, now_us = self._fleet.state, self._fleet.now_us
            request = state.requests[decision.request]
            if request.arrived_us == now_us:
                model = state.models[request.model]
                asked = f"{request.name}{CLASS_MARK}{model.context}" if model.context else request.name
                if asked == name:  # else a larger context stands in: each time that is looked at anew
                    state.bursts[name] = Burst(
                        model=model.model, blob=model.blob, name=request.name, began_us=now_us, last_us=now_us
                    )

    def take_in(self, *, close: bool) -> None:
        """Put what bursts gathered into the statistics, and look at idle runners. ``close``: end the bursts too."""
        fleet = self._fleet
        state, now_us = fleet.state, fleet.now_us
        bursts = [burst for burst in state.bursts.values() if burst.count]
        if len(bursts) > 1:
            bursts.sort(key=_last)  # stable: of equals the one that began first
        for burst in bursts:
            fleet.now_us = burst.last_us
            model = state.models[burst.model]
            hints.came_true(fleet, model)
            demand.note_burst(fleet, model, burst)
            self._shadowing.arrived(model, cold=False, times=burst.count)
            burst.count, burst.tenants = 0, {}
        fleet.now_us = now_us
        if close:
            state.bursts = {}
        if state.rested:
            for worker_id in state.rested:
                fleet.touch_worker(worker_id)
            state.rested = {}


def _last(burst: Burst) -> InstantUs:
    return burst.last_us
