"""Which workers are in routing. One refused or reset connection takes a worker out; one observation brings it back,
unless ``breaker`` has ejected it.

Being out of routing changes nothing about what we believe is resident: what is really there is for the next
observation to say, so a restarted gateway or a network hiccup costs no model its place.
"""

from bellmare.core.decisions import HealthChange, Observe
from bellmare.core.events import FaultKind, WorkerUnreachable
from bellmare.core.fleet import Fleet
from bellmare.core.scheduler import cancel_placement
from bellmare.core.state import Worker
from bellmare.core.units import InstantUs

LOST_AT_ONCE = frozenset({FaultKind.refused, FaultKind.reset})
"""Faults that say that nothing listens there any more. A timeout alone, of a connection too, may be a busy machine."""


def unreachable(fleet: Fleet, event: WorkerUnreachable) -> None:
    """An observation got no answer."""
    worker = fleet.state.workers.get(event.worker)
    if worker is None or event.started_us <= worker.observed_us:
        return
    worker.unreachable += 1
    if event.fault in LOST_AT_ONCE or worker.unreachable >= fleet.config.unreachable_max:
        worker.distrust_us = max(worker.distrust_us, event.started_us)
        take_out(fleet, worker, str(event.fault))


def suspect(fleet: Fleet, worker: Worker, fault: FaultKind) -> None:
    """A request or an operation met a dead connection: no further request until an observation succeeds."""
    worker.distrust_us = fleet.now_us
    fleet.refresh_room(worker)
    fleet.decide(Observe(worker=worker.worker))
    if fault in LOST_AT_ONCE:
        take_out(fleet, worker, str(fault))


def take_out(fleet: Fleet, worker: Worker, reason: str) -> None:
    """Out of routing: its requests go elsewhere, its placement is given up."""
    worker.reason = reason
    if not worker.healthy:
        return
    worker.healthy = False
    fleet.decide(HealthChange(worker=worker.worker, healthy=False, reason=reason))
    cancel_placement(fleet, worker)
    _count_holders(fleet, worker, -1)


def bring_in(fleet: Fleet, worker: Worker) -> None:
    """Back in routing after an observation."""
    worker.unreachable = 0
    mind = worker.breaker
    if worker.healthy or mind.until_us > fleet.now_us:
        return  # one that is ejected answers observations: that is no news
    mind.back_us = fleet.now_us
    if mind.until_us >= 0:
        mind.until_us = mind.grow_us = InstantUs(-1)
        worker.cap = 1  # on trial
    worker.healthy = True
    worker.reason = ""
    fleet.decide(HealthChange(worker=worker.worker, healthy=True, reason="observed"))
    _count_holders(fleet, worker, 1)


def _count_holders(fleet: Fleet, worker: Worker, change: int) -> None:
    for model_id in {stored.model: None for stored in worker.stored.values()}:
        for model in fleet.family(fleet.state.models[model_id]):
            if worker.worker in model.holders:
                fleet.change_holders(model, change)
    for runner in worker.runners.values():
        fleet.refresh_open(worker, runner)
        if worker.worker not in fleet.state.models[runner.model].holders:
            fleet.touch(runner.model)  # a class that is configured no more: whoever waits still gets its slots
    fleet.refresh_room(worker)
    fleet.touch_worker(worker.worker)
