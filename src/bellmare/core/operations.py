"""How loads and unloads end. Each ends exactly once: by its own event, or by its deadline if that event was lost."""

from bellmare.core.costs import learn_bytes, learn_load, learn_unload
from bellmare.core.decisions import LoadCause, Observe, Refusal, UnloadCause
from bellmare.core.events import FaultKind, OperationEnded, OperationOutcome
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.health import LOST_AT_ONCE, suspect
from bellmare.core.placement import barred, could_hold
from bellmare.core.queueing import reject_waiting
from bellmare.core.residency import Cue, Residency
from bellmare.core.scheduler import ask_to_leave
from bellmare.core.starvation import begin_batch
from bellmare.core.state import Model, Operation, OperationKind, Runner, Worker
from bellmare.core.units import InstantUs, OperationId, SpanUs


def ended(fleet: Fleet, event: OperationEnded) -> None:
    """Take in the end of an operation; one that ended before is ignored."""
    operation = fleet.state.operations.pop(event.operation, None)
    if operation is None:
        return
    worker = fleet.state.workers.get(operation.worker)
    if worker is None:
        return
    assert worker.operation == operation.operation
    worker.operation = None
    fleet.refresh_room(worker)
    fleet.touch_worker(worker.worker)
    fleet.touch(operation.model)
    model = fleet.state.models[operation.model]
    runner = worker.runners.get(operation.model)
    if operation.kind is OperationKind.unload:
        if event.outcome is OperationOutcome.done:
            learn_unload(worker, fleet.now_us - operation.started_us)
        _unload_ended(fleet, worker, runner, event=event)
    elif runner is None:
        _ask_again(fleet, worker)
    elif event.outcome is OperationOutcome.done and _as_asked(model, event):
        _load_done(fleet, worker, runner, end=(operation, event))
    elif operation.load_cause is LoadCause.adopt:
        _ask_again(fleet, worker)
    else:
        _load_broke(fleet, worker, runner, end=(model, event))


def _as_asked(model: Model, event: OperationEnded) -> bool:
    """Whether the blob that was asked for was loaded: its name may have moved to another one meanwhile."""
    return event.loaded is None or event.loaded.model in (None, model.blob)


def given_up(fleet: Fleet, operation_id: OperationId) -> None:
    """Its end is overdue beyond all grace: the event was lost. Ask the worker what became of it."""
    operation = fleet.state.operations.get(operation_id)
    if operation is not None and operation.deadline_us <= fleet.now_us:
        fleet.count("operation_lost")
        ended(
            fleet,
            OperationEnded(
                operation=operation_id,
                outcome=OperationOutcome.timed_out,
                fault=FaultKind.timeout,
                detail="no end was reported",
            ),
        )


def _ask_again(fleet: Fleet, worker: Worker) -> None:
    worker.distrust_us = fleet.now_us
    fleet.refresh_room(worker)
    fleet.decide(Observe(worker=worker.worker))


def _load_done(fleet: Fleet, worker: Worker, runner: Runner, *, end: tuple[Operation, OperationEnded]) -> None:
    operation, event = end
    model = fleet.state.models[runner.model]
    took_us = fleet.now_us - operation.started_us
    if event.loaded is not None:
        if event.loaded.num_ctx:
            runner.num_ctx = event.loaded.num_ctx
        fleet.set_bytes(worker, runner, learn_bytes(worker, model, runner, measured=event.loaded.bytes))
        runner.pinned = event.loaded.pinned
        runner.spilled = event.loaded.spilled_bytes > 0
        fleet.refresh_open(worker, runner)
    if operation.load_cause is LoadCause.adopt:
        runner.pinned = True
        runner.since_us = fleet.now_us  # an observation begun before cannot know that it is there, or pinned
        return
    runner.granted_num_ctx = runner.num_ctx
    learn_load(worker, model, took_us)
    runner.load_us = SpanUs(took_us)
    runner.ready_us = fleet.now_us
    runner.used_us = fleet.now_us
    model.failures = 0
    worker.backoff.pop(model.model, None)
    fleet.count(f"load_{operation.load_cause}")
    begin_batch(fleet, worker, runner)
    fleet.move(worker, runner, Cue.loaded)
    fleet.set_timer(fleet.evictable_us(runner), Timer.look_again, worker.worker)


def _load_broke(fleet: Fleet, worker: Worker, runner: Runner, *, end: tuple[Model, OperationEnded]) -> None:
    """What really happened is unknown: the runner stays in the ledger until an observation says."""
    model, event = end
    if runner.residency is Residency.loading:
        fleet.move(worker, runner, Cue.load_broke)
    if event.fault is not None and event.fault in (*LOST_AT_ONCE, FaultKind.unreachable):
        suspect(fleet, worker, event.fault)
        if event.fault is not FaultKind.reset:
            return  # nobody heard of the load: that says nothing about the model
    else:
        _ask_again(fleet, worker)
    fleet.count("load_failed")
    tries = worker.backoff.get(model.model, (0, InstantUs(0)))[0] + 1
    span_us = min(fleet.config.load_backoff_us << min(tries - 1, 20), fleet.config.load_backoff_max_us)
    worker.backoff[model.model] = (tries, InstantUs(fleet.now_us + span_us))
    model.backoff_us = max(model.backoff_us, InstantUs(fleet.now_us + span_us))
    fleet.set_timer(fleet.now_us + span_us, Timer.look_again, worker.worker)
    model.failures += 1
    if fleet.ready_slots[model.model]:
        return  # one copy more has failed: those who wait are served by the others
    if model.failures >= fleet.config.load_failures_max or not _another_place(fleet, model):
        reject_waiting(fleet, model, Refusal.load_failed, detail=event.detail)
        model.failures = 0


def _another_place(fleet: Fleet, model: Model) -> bool:
    """Whether some healthy holder that could hold this model is not in back-off for it."""
    for worker_id in model.holders:
        worker = fleet.state.workers[worker_id]
        if worker.healthy and not barred(fleet, worker, model) and could_hold(fleet, worker, model):
            return True
    return False


def _unload_ended(fleet: Fleet, worker: Worker, runner: Runner | None, *, event: OperationEnded) -> None:
    if runner is None or runner.residency is not Residency.unloading:
        return
    if event.outcome is OperationOutcome.done:
        fleet.move(worker, runner, Cue.gone)
        return
    fleet.count("unload_failed")
    fleet.move(worker, runner, Cue.unload_broke)
    fleet.set_timer(fleet.now_us + fleet.config.load_backoff_us, Timer.look_again, worker.worker)
    if event.fault is not None and event.fault in LOST_AT_ONCE:
        suspect(fleet, worker, event.fault)
    else:
        _ask_again(fleet, worker)


def runner_broke(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """A runner died or hangs: nothing more is sent to it, and it is unloaded, since Ollama may go on listing it."""
    if runner.residency in (Residency.resident, Residency.draining):
        ask_to_leave(fleet, worker, runner, cause=UnloadCause.crashed)
    fleet.decide(Observe(worker=worker.worker))
