"""How long one model may keep another from its memory: batches of who waited, drains that do not end.

A model that was loaded for waiting requests serves those first, within a bound. A drain that lasts longer than usual
answers is given up, so that its worker's loader is free for others; the victim is spared for as long, and the next
drain for the same model is given twice the time. So it ends at last, and two busy models do not throw each other out.
"""

from bellmare.core.decisions import LoadCause
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.state import Model, Placement, Runner, Worker
from bellmare.core.units import InstantUs, SpanUs

DRAIN_DOUBLINGS_MAX = 7
"""30 s become 64 minutes: longer than the gateway lets an answer take."""


def begin_batch(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """A load is done: who waits for it now is served before it may be drained."""
    model = fleet.state.models[runner.model]
    model.drain_tries = 0
    if model.waiting:
        runner.batch_seq = fleet.state.next_seq
        fleet.set_timer(fleet.now_us + fleet.config.batch_max_us, Timer.look_again, worker.worker)


def batch_goes_on(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """A request of the model got a slot: once the batch is served the worker may be needed for another model."""
    head = fleet.head(fleet.state.models[runner.model])
    if runner.batch_seq and (head is None or head.seq >= runner.batch_seq):
        runner.batch_seq = 0
        fleet.touch_worker(worker.worker)


def may_be_drained(fleet: Fleet, runner: Runner) -> bool:
    """Whether a busy runner, old enough to leave, is neither spared nor in the middle of its batch."""
    if fleet.now_us < runner.spared_us:
        return False
    if not runner.batch_seq or fleet.now_us >= runner.ready_us + fleet.config.batch_max_us:
        return True
    head = fleet.head(fleet.state.models[runner.model])
    return head is None or head.seq >= runner.batch_seq


def patience_us(fleet: Fleet, model: Model) -> SpanUs:
    """How long a drain for ``model`` may last."""
    return SpanUs(fleet.config.drain_max_us << min(model.drain_tries, DRAIN_DOUBLINGS_MAX))


def watch_drain(fleet: Fleet, worker: Worker, placement: Placement) -> None:
    """Look again when the patience with busy victims ends."""
    model = fleet.state.models[placement.model]
    if any(worker.runners[victim].used for victim in placement.victims):
        fleet.set_timer(placement.started_us + patience_us(fleet, model), Timer.look_again, worker.worker)


def lasts_too_long(fleet: Fleet, worker: Worker, placement: Placement) -> bool:
    """Whether the drain is to be given up: all that is left of it is busy, and has been for too long."""
    model = fleet.state.models[placement.model]
    patience = patience_us(fleet, model)
    if fleet.now_us < placement.started_us + patience:
        return False
    if not placement.victims or not all(worker.runners[victim].used for victim in placement.victims):
        return False
    for victim in placement.victims:
        worker.runners[victim].spared_us = InstantUs(fleet.now_us + patience)
    fleet.set_timer(fleet.now_us + patience, Timer.look_again, worker.worker)
    model.drain_tries += 1
    waited = placement.cause is not LoadCause.operator  # who waits now may have come long after an operator asked
    if waited and fleet.now_us >= placement.started_us + fleet.config.drain_after_us:
        model.may_drain = True  # it has waited long enough: the next place may be a busy one as well
    fleet.count("drain_given_up")
    return True
