"""What happens next: waiting requests to free slots, missing models to workers, intents through drain, unload and load.

A step's work is bounded; what is left over is done at the next instant. Misses never block hits: a placement holds
its worker's loader, never the slots of runners that stay.
"""

from typing import Any

from bellmare.core import forecast, prewarm, queueing
from bellmare.core.costs import load_estimate_us, slots_of, unload_estimate_us
from bellmare.core.decisions import Drain, Load, LoadCause, Undrain, Unload, UnloadCause
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.placement import Plan, choose, evictable, is_spare, plan_on, room_at_most, why_gone
from bellmare.core.replicas import worth_a_copy
from bellmare.core.residency import Cue, Residency
from bellmare.core.retries import refuse_hopeless
from bellmare.core.starvation import lasts_too_long, watch_drain
from bellmare.core.state import Model, Operation, OperationKind, Placement, Request, Runner, Want, Worker
from bellmare.core.units import SECOND_US, Bytes, InstantUs, ModelId, OperationId, SpanUs
from bellmare.core.victims import Claim, fits

FORESEEN_PER_STEP_MAX = 4
"""Loads for hints that one step begins."""
AGEING = 0.3
"""Mean waits hardly differ from 0.1 to 1; without ageing a large model could be overtaken for ever."""
AHEAD = (LoadCause.prewarm, LoadCause.hint)
"""Loads that nobody waits for: they give way to any that somebody waits for."""
PLACED_PER_STEP_MAX = 1
"""Missing models that one step looks for a place for; the rest follow at once in further steps."""
TRIED_PER_WORKER_MAX = 8
"""Blocked models weighed when a worker becomes free."""
UNLOAD_TRIES_MAX = 3
"""Unloads of one victim before the placement that wants it is given up."""
ADOPT_TIMEOUT_US = SpanUs(60 * SECOND_US)
"""Pinning what is loaded already is answered at once; a busy worker may take its time."""


def run(fleet: Fleet, policy: EvictionPolicy) -> None:
    """Do all that follows from the marks that the event left, up to the step's bounds."""
    _settle(fleet, policy)
    if fleet.state.standby:
        return
    if fleet.state.look_ahead:
        fleet.state.look_ahead = False
        scarce = fleet.pending or len(fleet.blocked) >= len(fleet.room)
        if fleet.state.foreseen and policy.prices and not scarce:
            _foresee(fleet, policy)
    for _ in range(PLACED_PER_STEP_MAX):
        if not fleet.pending:
            return
        place(fleet, policy, fleet.state.models[fleet.pending[0][1]])
        _settle(fleet, policy)
    if fleet.pending:
        fleet.set_timer(fleet.now_us, Timer.continue_work, "")


def _foresee(fleet: Fleet, policy: EvictionPolicy) -> None:
    """Load what hints speak of, as long as loaders are free and it pays."""
    for _ in range(FORESEEN_PER_STEP_MAX):
        found = prewarm.best_foreseen(fleet, policy)
        if found is None:
            return
        start(fleet, policy, found.model, plan=found.plan, cause=found.cause)
        _settle(fleet, policy)


def _settle(fleet: Fleet, policy: EvictionPolicy) -> None:
    while fleet.dirty_models or fleet.dirty_workers:
        while fleet.dirty_models:
            model = fleet.state.models.get(_take(fleet.dirty_models))
            if model is not None:
                queueing.serve(fleet, model)
                if model.context or model.classes:
                    queueing.lend(fleet, model)
                _reassess(fleet, policy, model)
                if not model.holders:
                    fleet.forget_unused(model)
        if fleet.dirty_workers:
            worker = fleet.state.workers.get(_take(fleet.dirty_workers))
            if worker is not None:
                advance(fleet, policy, worker)


def _take(marks: dict[Any, None]) -> Any:
    key = next(iter(marks))
    del marks[key]
    return key


def _reassess(fleet: Fleet, policy: EvictionPolicy, model: Model) -> None:
    """Whether the model wants a copy, after anything about its queue or its copies has changed."""
    for worker_id in list(model.placements):
        worker = fleet.state.workers[worker_id]
        if worker.placement is not None and not _still_wanted(fleet, model, worker.placement):
            cancel_placement(fleet, worker)
    if model.waiting and model.backoff_us > fleet.now_us:
        refuse_hopeless(fleet, model)
    wanted = model.waiting > 0 or fleet.model_config(model).pinned
    if not wanted or not model.healthy_holders:
        fleet.set_want(model, Want.nothing)
    elif _has_supply(fleet, model):
        fleet.set_want(model, Want.nothing)
        if model.waiting and not fleet.state.standby:
            _consider_replica(fleet, policy, model)
    elif model.want is Want.nothing:
        fleet.set_want(model, Want.pending)
    else:
        head = fleet.wanting(model)
        again = model.want is Want.blocked and head is not None and _terms(head) != model.tried_for
        if again and not fleet.state.standby:
            place(fleet, policy, model)
        else:
            fleet.set_want(model, model.want)


def _has_supply(fleet: Fleet, model: Model) -> bool:
    """Whether some copy serves, or will without further decisions, those who wait."""
    if model.placements:
        return True
    head = fleet.wanting(model)
    for worker, runner in fleet.copies(model):
        usable = worker.healthy and runner.residency in (Residency.loading, Residency.resident)
        if usable and (head is None or fleet.acceptable(worker, head)):
            return True
    return False


def _consider_replica(fleet: Fleet, policy: EvictionPolicy, model: Model) -> None:
    """One more copy where it saves more waiting than it costs anybody."""
    plan = worth_a_copy(fleet, policy, model)
    if plan is not None:
        start(fleet, policy, model, plan=plan, cause=LoadCause.replica)


def place(fleet: Fleet, policy: EvictionPolicy, model: Model) -> None:
    """Look for a place for a missing model; without one it is blocked until something changes."""
    head = fleet.wanting(model)
    model.tried_for = _terms(head) if head is not None else ""
    plan = choose(fleet, policy, model, drain=model.may_drain)
    if plan is not None:
        start(fleet, policy, model, plan=plan, cause=_cause(model))
        return
    if model.want is not Want.blocked and not model.may_drain:
        model.blocked_us = fleet.now_us
        fleet.set_timer(fleet.now_us + fleet.config.drain_after_us, Timer.may_drain, model.model)
    fleet.set_want(model, Want.blocked)


def _terms(request: Request) -> str:
    """On which workers a request may run follows from this."""
    return " ".join((request.name, *request.excluded)) if request.excluded else request.name


def _cause(model: Model) -> LoadCause:
    return LoadCause.demand if model.waiting else LoadCause.pinned


def allow_drain(fleet: Fleet, model: Model) -> None:
    """It has waited long enough for an idle victim: busy ones may be drained from now on."""
    if model.want is not Want.blocked or fleet.now_us < model.blocked_us + fleet.config.drain_after_us:
        return
    model.may_drain = True
    fleet.set_want(model, Want.pending)


def start(fleet: Fleet, policy: EvictionPolicy, model: Model, *, plan: Plan, cause: LoadCause) -> None:
    """Commit to a plan: its victims take no more requests from this instant."""
    worker = plan.worker
    head = fleet.wanting(model)
    prefer = head.name if head is not None else model.stored.name
    name = fleet.name_on(worker, model.model, prefer=prefer)
    assert name is not None, "a plan is made for holders only"
    fleet.set_want(model, Want.nothing)
    placement = Placement(
        model=model.model,
        name=name,
        cause=cause,
        num_ctx=plan.num_ctx,
        need_bytes=plan.claim.need_bytes,
        predicted_bytes=plan.claim.predicted_bytes,
        victims=[victim.model for victim in plan.victims],
        started_us=fleet.now_us,
        spares=[victim.model for victim in plan.victims if is_spare(fleet, victim)],
    )
    fleet.set_placement(worker, placement)
    watch_drain(fleet, worker, placement)
    if cause is LoadCause.demand:
        forecast.note_miss(fleet, plan.claim.need_bytes)
    for victim in plan.victims:
        why = why_gone(fleet, placement, victim)
        if why is not UnloadCause.context:  # that one had no choice, so it says nothing about the price of room
            loss = policy.loss(fleet, [victim]) if policy.prices else 0.0
            forecast.note_victim(fleet, fleet.now_us - victim.used_us, loss=loss, size=victim.bytes)
        _drain(fleet, worker, victim, cause=why, wanted_by=model.model)
    advance(fleet, policy, worker)


def _drain(fleet: Fleet, worker: Worker, runner: Runner, *, cause: UnloadCause, wanted_by: ModelId | None) -> None:
    fleet.move(worker, runner, Cue.drain)
    fleet.decide(Drain(worker=worker.worker, model=runner.model, cause=cause, wanted_by=wanted_by))


def ask_to_leave(fleet: Fleet, worker: Worker, runner: Runner, *, cause: UnloadCause) -> None:
    """Let a runner go for its own sake: no more requests, unloaded once idle."""
    worker.leaving[runner.model] = cause
    if runner.residency is Residency.resident:
        _drain(fleet, worker, runner, cause=cause, wanted_by=None)
    fleet.touch_worker(worker.worker)


def advance(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> None:
    """Do the next thing that this worker's loader should do, if it is free. One operation at a time."""
    if not worker.healthy or worker.operation is not None or worker.distrust_us >= worker.observed_us:
        return
    if fleet.state.standby:
        return
    if worker.placement is not None and _carry_on(fleet, worker, worker.placement):
        return
    if _let_leave(fleet, worker) or _adopt(fleet, worker) or _shrink(fleet, policy, worker):
        return
    if worker.placement is None and fleet.blocked and fleet.available(worker):
        _try_blocked(fleet, policy, worker)
    if worker.placement is None and worker.operation is None:
        _work_ahead(fleet, policy, worker)


def _work_ahead(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> None:
    """Nothing has to be done here: what would spare the next ones a wait?"""
    if not fleet.config.ahead or fleet.pending or len(fleet.blocked) >= max(1, len(fleet.room)):
        return  # those who wait need the loaders
    if fleet.available(worker):
        found = policy.ahead(fleet, worker)
        if found is not None:
            start(fleet, policy, found.model, plan=found.plan, cause=found.cause)
            return
    runner = prewarm.room_ahead(fleet, policy, worker)
    if runner is not None:
        worker.room_us = fleet.now_us
        _drain(fleet, worker, runner, cause=UnloadCause.ahead, wanted_by=None)
        worker.leaving[runner.model] = UnloadCause.ahead
        _let_leave(fleet, worker)


def _carry_on(fleet: Fleet, worker: Worker, placement: Placement) -> bool:
    """Take the next step of a placement; False once it has been given up."""
    model = fleet.state.models[placement.model]
    name = fleet.name_on(worker, model.model, prefer=placement.name)
    held = fleet.held_on(worker, model)
    there = held is not None and held.model not in placement.victims  # somebody else has loaded the blob meanwhile
    if name is None or there or not _still_wanted(fleet, model, placement):
        cancel_placement(fleet, worker)
        return False
    if placement.cause in AHEAD and not model.waiting and (fleet.pending or len(fleet.blocked) > len(fleet.room)):
        cancel_placement(fleet, worker)
        return False
    placement.name = name  # it may have moved to another blob since
    placement.victims = [victim for victim in placement.victims if victim in worker.runners]
    if placement.victims:
        return _unload_victim(fleet, worker, placement)
    if not fits(worker, Claim(placement.need_bytes, placement.predicted_bytes)):
        cancel_placement(fleet, worker)
        return False
    _load(fleet, worker, placement, model=model)
    return True


def _still_wanted(fleet: Fleet, model: Model, placement: Placement) -> bool:
    if not model.holders:
        return False
    if placement.cause in AHEAD:
        return True
    if placement.cause is LoadCause.demand:
        return model.waiting > 0 or fleet.model_config(model).pinned
    return placement.cause is not LoadCause.replica or model.waiting > 0


def _unload_victim(fleet: Fleet, worker: Worker, placement: Placement) -> bool:
    """Unload the first victim that is idle; True while it is worth waiting for the others."""
    for victim in placement.victims:
        runner = worker.runners[victim]
        if runner.unload_tries >= UNLOAD_TRIES_MAX:
            runner.unload_tries = 0  # it may be tried again after the back-off
            worker.backoff[placement.model] = (1, InstantUs(fleet.now_us + fleet.config.load_backoff_us))
            fleet.set_timer(fleet.now_us + fleet.config.load_backoff_us, Timer.look_again, worker.worker)
            cancel_placement(fleet, worker)
            return False
        if runner.residency is Residency.resident:  # an unload that broke, or a runner seen again
            _drain(fleet, worker, runner, cause=why_gone(fleet, placement, runner), wanted_by=placement.model)
        pinned = fleet.model_config(fleet.state.models[victim]).pinned  # a pinned name may have moved to it since
        if pinned or fleet.name_on(worker, victim, prefer=runner.name) is None:
            cancel_placement(fleet, worker)
            return False
        if not runner.used:  # draining, or an unload that broke and is not over yet
            unload(fleet, worker, runner, cause=why_gone(fleet, placement, runner), wanted_by=placement.model)
            return True
    if lasts_too_long(fleet, worker, placement):
        cancel_placement(fleet, worker)
        return False
    return True


def cancel_placement(fleet: Fleet, worker: Worker) -> None:
    """Give up the intent; victims that were not unloaded yet serve again."""
    placement = worker.placement
    if placement is None:
        return
    fleet.set_placement(worker, None)
    for victim in placement.victims:
        runner = worker.runners.get(victim)
        if runner is not None and runner.residency is Residency.draining and victim not in worker.leaving:
            fleet.move(worker, runner, Cue.undrain)
            fleet.decide(Undrain(worker=worker.worker, model=victim))
    fleet.touch(placement.model)
    fleet.touch_worker(worker.worker)


def _load(fleet: Fleet, worker: Worker, placement: Placement, *, model: Model) -> None:
    expected_us = load_estimate_us(worker, model)
    runner = Runner(
        worker=worker.worker,
        model=model.model,
        name=placement.name,
        residency=Residency.absent,
        num_ctx=placement.num_ctx,
        slots=slots_of(worker, model),
        bytes=placement.need_bytes,
        since_us=fleet.now_us,
        load_us=expected_us,
    )
    runner.residency = Residency.loading
    operation = _begin(fleet, worker, runner, expected_us=expected_us, timeout_us=fleet.config.load_timeout_us)
    operation.load_cause = placement.cause
    if placement.cause in AHEAD:
        runner.untried = True
        prewarm.note_load(fleet, expected_us)
    fleet.add_runner(worker, runner)
    fleet.set_placement(worker, None)
    fleet.decide(_load_decision(fleet, operation, runner, bytes_reserved=placement.need_bytes))


def _load_decision(fleet: Fleet, operation: Operation, runner: Runner, *, bytes_reserved: Bytes) -> Load:
    assert operation.load_cause is not None
    return Load(
        operation=operation.operation,
        worker=runner.worker,
        model=runner.model,
        name=runner.name,
        num_ctx=runner.num_ctx,
        cause=operation.load_cause,
        reserved_bytes=bytes_reserved,
        expected_us=operation.expected_us,
        timeout_us=SpanUs(operation.deadline_us - operation.started_us - fleet.config.operation_grace_us),
        embedding=fleet.state.models[runner.model].stored.embedding,
    )


def unload(
    fleet: Fleet, worker: Worker, runner: Runner, *, cause: UnloadCause, wanted_by: ModelId | None = None
) -> None:
    """Send one runner away. It must be idle: a busy runner is never unloaded."""
    assert not runner.used, "a busy runner is never unloaded"
    name = fleet.name_on(worker, runner.model, prefer=runner.name)
    assert name is not None, "victims are chosen among runners that a name reaches"
    timeout_us = fleet.config.unload_timeout_us
    operation = _begin(fleet, worker, runner, expected_us=SpanUs(SECOND_US), timeout_us=timeout_us)
    operation.kind = OperationKind.unload
    operation.unload_cause = cause
    runner.unload_tries += 1
    fleet.move(worker, runner, Cue.unload)
    fleet.count(f"unload_{cause}")
    fleet.decide(
        Unload(
            operation=operation.operation,
            worker=worker.worker,
            model=runner.model,
            name=name,
            cause=cause,
            timeout_us=timeout_us,
            wanted_by=wanted_by,
        )
    )


def _begin(fleet: Fleet, worker: Worker, runner: Runner, *, expected_us: SpanUs, timeout_us: SpanUs) -> Operation:
    assert worker.operation is None, "one operation at a time on a worker"
    state = fleet.state
    operation = Operation(
        operation=OperationId(state.next_operation),
        kind=OperationKind.load,
        worker=worker.worker,
        model=runner.model,
        started_us=fleet.now_us,
        expected_us=expected_us,
        deadline_us=InstantUs(fleet.now_us + timeout_us + fleet.config.operation_grace_us),
    )
    state.next_operation += 1
    state.operations[operation.operation] = operation
    worker.operation = operation.operation
    fleet.set_timer(operation.deadline_us, Timer.operation, str(operation.operation))
    fleet.refresh_room(worker)
    return operation


def _let_leave(fleet: Fleet, worker: Worker) -> bool:
    """Unload a runner that was asked to leave and is idle."""
    for model, cause in list(worker.leaving.items()):
        runner = worker.runners[model]
        if fleet.name_on(worker, model, prefer=runner.name) is None or _wanted_again(fleet, runner, cause):
            let_stay(fleet, worker, runner)
            continue
        if runner.residency is Residency.resident:
            _drain(fleet, worker, runner, cause=cause, wanted_by=None)
        patience_us = fleet.config.load_backoff_us if runner.unload_tries >= UNLOAD_TRIES_MAX else 0
        if not runner.used and runner.since_us + patience_us <= fleet.now_us:
            unload(fleet, worker, runner, cause=cause)
            return True
    return False


def _wanted_again(fleet: Fleet, runner: Runner, cause: UnloadCause) -> bool:
    """It was to leave ahead of demand, its unload did not come off, and now it is there or asked for: no hurry."""
    if cause is not UnloadCause.ahead:
        return False
    return runner.residency is Residency.resident or fleet.state.models[runner.model].waiting > 0


def let_stay(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """No name reaches it any more, so that it cannot be unloaded, or nobody has a reason left; it serves again."""
    del worker.leaving[runner.model]
    if runner.residency is Residency.draining:
        fleet.move(worker, runner, Cue.undrain)
        fleet.decide(Undrain(worker=worker.worker, model=runner.model))


def _adopt(fleet: Fleet, worker: Worker) -> bool:
    """Take Ollama's own timer away from a resident that still has one."""
    for runner in worker.runners.values():
        due = not runner.pinned and runner.residency is Residency.resident and runner.adopt_after_us <= fleet.now_us
        name = fleet.name_on(worker, runner.model, prefer=runner.name) if due else None
        if name is None:
            continue
        runner.name = name
        runner.adopt_after_us = InstantUs(fleet.now_us + fleet.config.adopt_every_us)
        fleet.set_timer(runner.adopt_after_us, Timer.look_again, worker.worker)
        operation = _begin(fleet, worker, runner, expected_us=SpanUs(SECOND_US // 10), timeout_us=ADOPT_TIMEOUT_US)
        operation.load_cause = LoadCause.adopt
        fleet.decide(_load_decision(fleet, operation, runner, bytes_reserved=runner.bytes))
        return True
    return False


def _shrink(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> bool:
    """Measured memory passed the real capacity: the least valuable idle runner goes."""
    going = (Residency.draining, Residency.unloading)
    leaving_bytes = sum(runner.bytes for runner in worker.runners.values() if runner.residency in going)
    if not worker.capacity_known or worker.free_bytes + worker.headroom_bytes + leaving_bytes >= 0:
        return False
    idle = [
        runner
        for runner in worker.runners.values()
        if runner.residency is Residency.resident and not runner.used and evictable(fleet, worker, runner)
    ]
    if not idle or len(worker.runners) < 2:
        return False
    ask_to_leave(fleet, worker, policy.rank(fleet, idle)[0], cause=UnloadCause.over_budget)
    return _let_leave(fleet, worker)


def _try_blocked(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> None:
    """The worker's loader is free: start the load that relieves most waiting per second of loading.

    Smith's rule: by (load and unloads) / number of those who wait, which minimises the sum of waits; each second that
    the longest has waited counts ``AGEING`` seconds less, so that a large model is overtaken for a bounded time only.
    """
    tried = 0
    models = fleet.state.models
    most = {drain: room_at_most(fleet, worker, drain=drain) for drain in (False, True)}
    best: tuple[float, Model, Plan] | None = None
    for _, model_id in fleet.blocked:
        model = models[model_id]
        if model.least_bytes > most[model.may_drain] or worker.worker not in model.holders:
            continue
        head = fleet.wanting(model)
        if head is not None and not fleet.acceptable(worker, head):
            continue
        plan = plan_on(fleet, policy, worker, model=model, drain=model.may_drain)
        if plan is not None:
            span_us = plan.load_us + len(plan.victims) * unload_estimate_us(worker)
            waited_us = fleet.now_us - head.arrived_us if head is not None else 0
            order = span_us / max(1, model.waiting) - AGEING * waited_us
            if best is None or order < best[0]:
                best = (order, model, plan)
        tried += 1
        if tried == TRIED_PER_WORKER_MAX:
            break
    if best is not None:
        _, model, plan = best
        start(fleet, policy, model, plan=plan, cause=_cause(model))
