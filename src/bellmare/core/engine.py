"""The decision core: ``step(now_us, event)`` returns decisions, ``next_deadline_us()`` says when time itself is due.

One writer calls it; the same calls in the same order give the same decisions, on any machine and under any hash seed.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec

from bellmare.core import (
    admission,
    attempts,
    breaker,
    demand,
    forecast,
    health,
    hints,
    learned,
    operations,
    operator,
    poison,
    queueing,
    reconcile,
    reconfigure,
    scheduler,
)
from bellmare.core.check import check
from bellmare.core.classes import derive_all, stand_in
from bellmare.core.config import CoreConfig
from bellmare.core.costs import average, lower_least, note_service, predicted_wait_us, service_estimate_us
from bellmare.core.decisions import (
    CacheState,
    Decision,
    HealthChange,
    Load,
    LoadCause,
    Refusal,
    Unload,
    UnloadCause,
)
from bellmare.core.events import (
    ConfigChanged,
    DispatchFailed,
    Event,
    FaultKind,
    FirstTokenReceived,
    HintGiven,
    LoadRequested,
    ModelReleased,
    OperationEnded,
    Outcome,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    StandbyChanged,
    TimePassed,
    UnloadRequested,
    WorkerAdded,
    WorkerObserved,
    WorkerRemoved,
    WorkerUnreachable,
)
from bellmare.core.eviction.registry import policy
from bellmare.core.explain import Story
from bellmare.core.express import Express
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.knowledge import Experience
from bellmare.core.residency import Cue
from bellmare.core.shadows import Shadowing, ShadowReport
from bellmare.core.state import Request, RequestPhase, State, Worker
from bellmare.core.tallies import book_load
from bellmare.core.units import SECOND_US, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId

TIMERS_PER_STEP_MAX = 16
"""Due timers that one step handles; the rest follows at once in further steps."""
BUSY_US = SECOND_US
"""A worker that called itself busy is believed for so long: one slot less."""
RENAMING = frozenset({WorkerAdded, WorkerObserved, WorkerRemoved, ConfigChanged})
"""Events after which a name may mean another blob; an observation only if it brings what is stored."""
VICTIM = (UnloadCause.room, UnloadCause.context, UnloadCause.ahead, UnloadCause.replica)
"""Causes of unloads for another's sake or ahead of demand: only these say something about the eviction policy."""


class Engine:
    """The whole core behind two methods. Not thread-safe: it has one writer."""

    def __init__(self, config: CoreConfig, state: State | None = None) -> None:
        self.config = config
        self.fleet = Fleet(config, state if state is not None else State())
        state = self.fleet.state
        state.policy = state.policy or config.eviction
        self.policy = policy(state.policy, state.experience)
        self._shadowing = Shadowing(self.fleet)
        self._express = Express(self.fleet, self._shadowing)
        self.story = Story()
        self._lanes: dict[type[Event], Callable[[Any], list[Decision] | None]] = {
            RequestArrived: self._express.arrived,
            RequestFinished: self._express.finished,
            FirstTokenReceived: self._first_token_alone,
        }
        """Tried first, for the events of which most are simple."""
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            WorkerAdded: self._worker_added,
            WorkerRemoved: self._worker_removed,
            WorkerObserved: lambda event: reconcile.observed(self.fleet, event),
            WorkerUnreachable: lambda event: health.unreachable(self.fleet, event),
            RequestArrived: self._request_arrived,
            RequestCancelled: self._request_cancelled,
            FirstTokenReceived: self._first_token_received,
            RequestFinished: self._request_finished,
            DispatchFailed: self._dispatch_failed,
            OperationEnded: lambda event: operations.ended(self.fleet, event),
            LoadRequested: lambda event: operator.load_requested(self.fleet, self.policy, event),
            UnloadRequested: lambda event: operator.unload_requested(self.fleet, event),
            ModelReleased: self._model_released,
            HintGiven: lambda event: hints.given(self.fleet, event),
            ConfigChanged: self._config_changed,
            StandbyChanged: lambda event: reconfigure.stand_by(self.fleet, event.standby),
            TimePassed: lambda event: None,
        }
        self._heeded: dict[type[Decision], Callable[[Any], None]] = {
            Unload: self._heed_unload,
            Load: self._heed_load,
            HealthChange: lambda decision: self._shadowing.routing_changed(decision.worker),
        }
        """Decisions from which the core itself learns, at the end of their step."""
        self._timers: dict[int, Callable[[str, str], None]] = {
            Timer.operation: lambda key, _: operations.given_up(self.fleet, OperationId(int(key))),
            Timer.zombie: self._zombie_due,
            Timer.request: self._request_due,
            Timer.look_again: lambda key, _: self.fleet.touch_worker(WorkerId(key)),
            Timer.may_drain: self._may_drain_due,
            Timer.stranded: self._stranded_due,
            Timer.forgive: self._forgive_due,
            Timer.hint: lambda key, key2: hints.expired(self.fleet, key, key2),
            Timer.breaker: lambda key, _: breaker.due(self.fleet, WorkerId(key)),
            Timer.foreseen: lambda key, _: hints.foreseen_due(self.fleet, key),
            Timer.continue_work: lambda key, key2: None,
        }

    # ------------------------------------------------------------------ the interface

    def step(self, now_us: InstantUs, event: Event) -> list[Decision]:
        """Take in one event at ``now_us`` (never earlier than the last) and return what follows, in order."""
        fleet = self.fleet
        assert now_us >= fleet.now_us, "time does not go back"
        fleet.now_us = now_us
        kind = type(event)
        lane = self._lanes.get(kind)
        if lane is not None:
            decided = lane(event)
            if decided is not None:
                self.story.record(now_us, event, decided)
                return decided
        fleet.out = []
        state = fleet.state
        if state.bursts or state.rested:
            self._express.take_in(close=kind in RENAMING and getattr(event, "stored", ()) is not None)
        self._handlers[kind](event)
        for _ in range(TIMERS_PER_STEP_MAX):
            due = fleet.timers.pop_due(now_us)
            if due is None:
                break
            self._timers[due[1]](due[2], due[3])
        scheduler.run(fleet, self.policy)
        for decision in fleet.out:
            heed = self._heeded.get(type(decision))
            if heed is not None:
                heed(decision)
        fleet.timers.clear()
        out = fleet.out
        if len(out) == 1 and isinstance(event, RequestArrived):
            self._express.begin(event.name, out[0])
        self.story.record(now_us, event, out)
        return out

    def next_deadline_us(self) -> InstantUs | None:
        """The instant at which ``TimePassed`` is due if nothing else happens; None if never. May be in the past."""
        timers = self.fleet.state.timers
        return timers[0][0] if timers else None

    def check(self) -> list[str]:
        """Every invariant of the state that does not hold; empty if all is well. For tests and ``doctor``."""
        return check(self.fleet)

    def explain(self, subject: str) -> list[str]:
        """What was decided about a request, a model (by name or blob) or a worker, oldest first, in plain words."""
        model = self.fleet.resolve(subject)
        of = tuple(one.model for one in self.fleet.meant(model)) if model is not None else ()
        return self.story.about(subject, of, now_us=self.fleet.now_us)

    def position(self, request_id: RequestId) -> tuple[int, SpanUs] | None:
        """Whose turn a waiting request is (1: the next) and in about what time it will run; None if it does not wait.

        An estimate, at equal cost of all; it may rise when others come that go first. Changes nothing.
        """
        request = self.fleet.state.requests.get(request_id)
        if request is None or request.phase is not RequestPhase.waiting:
            return None
        model = self.fleet.state.models[request.model]
        service_us = service_estimate_us(self.fleet, model)
        ahead = self.fleet.turns[model.model].before(request, service_us=service_us)
        turns = ahead + (self.fleet.ready_slots[model.model] > 0)  # a slot that is ready is not free yet
        return ahead + 1, predicted_wait_us(self.fleet, model, ahead=turns)

    def shadows(self) -> ShadowReport:
        """What other policies and stock Ollama would have done, beside what was done. Changes nothing."""
        return self._shadowing.report()

    def snapshot(self) -> bytes:
        """The whole state, from which :meth:`restore` goes on with the same decisions."""
        return msgspec.json.encode(self.fleet.state)

    @classmethod
    def restore(cls, config: CoreConfig, snapshot: bytes) -> "Engine":
        """An engine that decides from here on as the one that wrote ``snapshot``."""
        engine = cls(config, msgspec.json.decode(snapshot, type=State))
        derive_all(engine.fleet, *list(engine.fleet.state.models))  # the configuration may have changed meanwhile
        for model in engine.fleet.state.models.values():
            lower_least(engine.fleet, model)
        return engine

    def learned(self) -> bytes:
        """What a restart should not forget; :meth:`remember` takes it in."""
        return msgspec.json.encode(learned.learned(self.fleet))

    def remember(self, known: bytes, *, away_us: int, now_us: InstantUs) -> bool:
        """Take in what an earlier life has learned, before the first step; ``away_us`` after it was written.

        False, and nothing changed, if it is damaged or of another version.
        """
        try:
            earlier = msgspec.json.decode(known, type=learned.Learned)
        except msgspec.DecodeError:
            return False
        shift_us = now_us - away_us - earlier.saved_us
        taken = learned.remember(self.fleet.state, earlier, eviction=self.config.eviction, shift_us=shift_us)
        if taken:
            self.policy = policy(self.config.eviction, self.fleet.state.experience)
        return taken

    # ------------------------------------------------------------------ its own decisions

    def _heed_unload(self, decision: Unload) -> None:
        """Tell the policy of a victim: once, although an unload that broke is tried again, unless it served between."""
        runner = self.fleet.state.workers[decision.worker].runners[decision.model]
        if decision.cause in VICTIM and (runner.sent_us < 0 or runner.sent_us < runner.used_us):
            runner.sent_us = self.fleet.now_us
            self.policy.left(self.fleet, runner)

    def _heed_load(self, decision: Load) -> None:
        if decision.cause is LoadCause.demand:
            book_load(self.fleet.state.shadows.fleet, self.fleet.now_us, decision.expected_us)

    def _consider_switch(self) -> None:
        """Let another policy decide from here on, with what its ghost has learned, if its ghost was clearly better."""
        switch = self._shadowing.better()
        if switch is None:
            return
        state = self.fleet.state
        state.experience = deepcopy(state.shadows.ghosts[switch.policy].experience)
        state.policy = switch.policy
        self.policy = policy(state.policy, state.experience)
        self.fleet.count("policy_switch")
        self.fleet.decide(switch)

    # ------------------------------------------------------------------ workers

    def _worker_added(self, event: WorkerAdded) -> None:
        state = self.fleet.state
        assert event.worker not in state.workers, "worker ids are unique"
        state.workers[event.worker] = Worker(
            worker=event.worker,
            index=len(state.roster),
            kind=event.kind,
            capacity_bytes=event.capacity_bytes,
            capacity_known=event.capacity_known,
            headroom_bytes=event.headroom_bytes,
            overhead_bytes=event.overhead_bytes,
            overhead_shown=event.overhead_shown,
            parallel=event.parallel,
            runners_max=event.runners_max,
            fit_percent=event.fit_percent,
            distrust_us=InstantUs(self.fleet.now_us - 1),
        )
        state.roster.append(event.worker)

    def _worker_removed(self, event: WorkerRemoved) -> None:
        """It leaves the fleet: its requests are reported by the data plane, its operation is of no more interest."""
        fleet = self.fleet
        worker = fleet.state.workers.get(event.worker)
        if worker is None:
            return
        health.take_out(fleet, worker, "removed")
        reconcile.forget_stored(fleet, worker)
        for runner in list(worker.runners.values()):
            fleet.move(worker, runner, Cue.gone)
        if worker.operation is not None:
            fleet.doubt(fleet.state.operations.pop(worker.operation).model)
        for model_id in worker.left:
            fleet.doubt(model_id)
        del fleet.state.workers[event.worker]
        self._shadowing.routing_changed(event.worker)
        worker.operation = None
        fleet.refresh_room(worker)
        fleet.dirty_workers.pop(event.worker, None)

    # ------------------------------------------------------------------ requests

    def _request_arrived(self, event: RequestArrived) -> None:
        asked = model = self.fleet.resolve(event.name)
        if asked is not None:
            model = stand_in(self.fleet, asked, event.name)
            if model is not asked:
                hints.came_true(self.fleet, asked)
                self.fleet.count("stood_in")
            forecast.learn(self.fleet, model)
            hints.came_true(self.fleet, model)
            demand.note_arrival(self.fleet, model, event.tenant)
            hints.note_arrival(self.fleet, model, event.tenant)
            self.policy.asked(self.fleet, model, held=bool(model.copies))
        admission.admit(self.fleet, event, model)
        request = self.fleet.state.requests.get(event.request)
        if model is not None and request is not None:  # who is refused is in nobody's books
            self._shadowing.arrived(model, cold=request.cache is CacheState.cold)
            self._consider_switch()

    def _request_cancelled(self, event: RequestCancelled) -> None:
        request = self.fleet.drop_request(event.request)
        if request is None:
            return
        if request.phase is RequestPhase.waiting:
            queueing.leave_queue(self.fleet, request)
            self.fleet.touch(request.model)
        else:
            queueing.free_slot(self.fleet, request, aborted=True)
        self.fleet.count("cancelled")

    def _first_token_received(self, event: FirstTokenReceived) -> None:
        request = self.fleet.state.requests.get(event.request)
        if request is None or request.phase is not RequestPhase.running:
            return
        request.first_token_us = self.fleet.now_us
        worker = self.fleet.state.workers.get(request.worker) if request.worker is not None else None
        took_us = self.fleet.now_us - request.dispatched_us
        if worker is not None:
            self._went_well(worker)
        if worker is not None and request.prompt_tokens and took_us > 0:
            rate = request.prompt_tokens * SECOND_US // took_us
            worker.prefill_tokens_per_s = max(1, average(worker.prefill_tokens_per_s, rate))

    def _first_token_alone(self, event: FirstTokenReceived) -> list[Decision] | None:
        """Nothing is decided by it, so no burst ends, unless something else is due at this instant."""
        timers = self.fleet.state.timers
        if timers and timers[0][0] <= self.fleet.now_us:
            return None
        request = self.fleet.state.requests.get(event.request)
        worker = self.fleet.state.workers.get(request.worker) if request is not None and request.worker else None
        if worker is not None and worker.cap:
            return None
        self._first_token_received(event)
        return []

    def _request_finished(self, event: RequestFinished) -> None:
        fleet = self.fleet
        request = fleet.drop_request(event.request)
        if request is None:
            return
        assert request.phase is RequestPhase.running, "only a dispatched request can finish"
        fleet.count(str(event.outcome))
        place = fleet.runner_of(request)
        queueing.free_slot(fleet, request, aborted=False)
        if event.outcome is Outcome.completed:
            note_service(fleet, fleet.state.models[request.model], fleet.now_us - request.dispatched_us)
            if place is not None and request.first_token_us < 0:
                self._went_well(place[0])
            if fleet.state.suspects and request.fingerprint:
                poison.cleared(fleet, request.fingerprint)
            return
        if place is not None and event.fault is not None:
            self._blame(place[0], request, event.fault)
        if event.fault is FaultKind.crashed:
            attempts.note_crash(fleet, request, event.fingerprint)

    def _dispatch_failed(self, event: DispatchFailed) -> None:
        """Nothing was sent to the client yet: try elsewhere, within bounds."""
        fleet = self.fleet
        request = fleet.state.requests.get(event.request)
        if request is None or request.phase is not RequestPhase.running or request.worker != event.worker:
            return
        place = fleet.runner_of(request)
        queueing.free_slot(fleet, request, aborted=event.fault is FaultKind.timeout)
        if place is not None:
            self._blame(place[0], request, event.fault)
        if event.worker not in request.excluded:
            request.excluded.append(event.worker)
        request.excluded_us = fleet.now_us
        fleet.set_timer(fleet.now_us + self.config.exclusion_us, Timer.forgive, request.request)
        fleet.count("retry")
        refusal = attempts.refusal_after(fleet, request, event)
        if refusal is None:
            queueing.enqueue(fleet, request)
        else:
            queueing.reject(fleet, request, refusal[0], detail=event.detail, retry_us=refusal[1])

    def _went_well(self, worker: Worker) -> None:
        worker.breaker.good += 1
        if worker.cap:
            breaker.proved(self.fleet, worker)

    def _blame(self, worker: Worker, request: Request, fault: FaultKind) -> None:
        """What a request's failure says about the worker or the runner."""
        runner = worker.runners.get(request.model)
        counts = breaker.counts(worker, request, fault)
        if fault in health.LOST_AT_ONCE or fault in (FaultKind.not_found, FaultKind.unreachable):
            health.suspect(self.fleet, worker, fault)
        elif fault in (FaultKind.crashed, FaultKind.timeout) and runner is not None:
            operations.runner_broke(self.fleet, worker, runner)
        elif fault is FaultKind.busy and runner is not None:
            queueing.leave_zombie(self.fleet, worker, runner, span_us=BUSY_US)
            self.fleet.refresh_open(worker, runner)
        if counts:
            breaker.failed(self.fleet, worker, fault)

    def _model_released(self, event: ModelReleased) -> None:
        operator.released(self.fleet, event)

    # ------------------------------------------------------------------ what operators set

    def _config_changed(self, event: ConfigChanged) -> None:
        before, state = self.config, self.fleet.state
        # Ghosts that begin in mid-stream would be compared with a fleet that has been at it for hours.
        self.config = msgspec.structs.replace(event.config, shadows=before.shadows)
        reconfigure.heed(self.fleet, self.config)
        if self.config.eviction not in (before.eviction, state.policy):
            ghost = state.shadows.ghosts.get(self.config.eviction)
            state.experience = deepcopy(ghost.experience) if ghost is not None else Experience()
            state.policy = self.config.eviction
            state.shadows.switched_us = self.fleet.now_us
            self.policy = policy(state.policy, state.experience)
            self._shadowing = Shadowing(self.fleet)

    # ------------------------------------------------------------------ time

    def _zombie_due(self, worker_id: str, model_id: str) -> None:
        worker = self.fleet.state.workers.get(WorkerId(worker_id))
        runner = worker.runners.get(ModelId(model_id)) if worker is not None else None
        if worker is not None and runner is not None:
            queueing.bury_zombies(self.fleet, worker, runner)

    def _request_due(self, request_id: str, _: str) -> None:
        request = self.fleet.state.requests.get(RequestId(request_id))
        if request is not None and request.phase is RequestPhase.waiting and request.deadline_us <= self.fleet.now_us:
            queueing.reject(self.fleet, request, Refusal.deadline_passed)

    def _may_drain_due(self, model_id: str, _: str) -> None:
        model = self.fleet.state.models.get(ModelId(model_id))
        if model is not None:
            scheduler.allow_drain(self.fleet, model)

    def _forgive_due(self, request_id: str, _: str) -> None:
        """The others had their chance: a worker that is back, or the only one that has room, may have it again."""
        request = self.fleet.state.requests.get(RequestId(request_id))
        if request is not None and request.excluded_us + self.config.exclusion_us <= self.fleet.now_us:
            request.excluded.clear()
            if request.phase is RequestPhase.waiting:
                self.fleet.touch(request.model)

    def _stranded_due(self, model_id: str, _: str) -> None:
        model = self.fleet.state.models.get(ModelId(model_id))
        grace_us = self.config.worker_lost_grace_us
        if model is not None and 0 <= model.stranded_us <= self.fleet.now_us - grace_us:
            retry_us = admission.NO_WORKER_RETRY_US
            queueing.reject_waiting(self.fleet, model, Refusal.no_healthy_worker, retry_us=retry_us)
