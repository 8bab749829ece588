"""Which workers are kept away although they answer observations: those whose requests fail (reliability A1, A16, I18).

Three failures of transport in a row, or half of ten outcomes within ten seconds, eject a worker for a span that doubles
each time. It returns by an observation, on trial: one request at a time until one succeeds, then twice as many step by
step. Never is more than half of the fleet ejected so: who would be one too many rests for a second and is on trial
then, so that a worker that fails quickly does not swallow what a good one could serve. A client that leaves, an error
of the request itself and a busy worker count for nothing.

A success costs one addition; everything else is looked at when something fails.
"""

from zlib import crc32

from bellmare.core.decisions import Observe
from bellmare.core.events import FaultKind
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.health import LOST_AT_ONCE, take_out
from bellmare.core.state import Request, Worker
from bellmare.core.units import SECOND_US, InstantUs, WorkerId

TRANSPORT = frozenset(
    {FaultKind.refused, FaultKind.reset, FaultKind.unreachable, FaultKind.timeout, FaultKind.bad_answer}
)
"""Faults of the worker or of the way to it, whatever was asked: these count in a row."""
COUNTED = TRANSPORT | {FaultKind.crashed, FaultKind.failed}
"""These count among all outcomes. An error of its own words may be the request's fault, so that only a worker with
hardly anything else is ejected for them."""
JITTER_PERCENT = 20
TRIAL = 1
"""Requests at once on a worker that has to prove itself."""
RESTING = -1
PANIC_REST_US = SECOND_US
"""Between two trials of a worker that is not ejected only because too many are."""
SLOW_START_CAP = 16
"""Once so many requests at once went well, the slots are the only limit again."""
SLOW_START_STEPS = 4
"""From two at once to ``SLOW_START_CAP``."""


def counts(worker: Worker, request: Request, fault: FaultKind) -> bool:
    """Whether the failure says something about the worker as it is now.

    What was sent before it last came into routing belongs to the loss that is known already: thirty streams that break
    when a process dies are one failure.
    """
    return fault in COUNTED and worker.healthy and request.dispatched_us >= worker.breaker.back_us


def failed(fleet: Fleet, worker: Worker, fault: FaultKind) -> None:
    """Book a failure that counts, and eject the worker if it was one too many."""
    config, mind, now_us = fleet.config, worker.breaker, fleet.now_us
    if mind.good != mind.row_good:
        mind.row, mind.row_good = 0, mind.good
    if mind.window_us < 0 or now_us - mind.window_us >= config.breaker_window_us:
        mind.window_us, mind.window_good, mind.window_bad = now_us, mind.good, 0
    mind.row += fault in TRANSPORT
    mind.window_bad += 1
    outcomes = mind.window_bad + mind.good - mind.window_good
    if fault in LOST_AT_ONCE and (mind.lost_us < 0 or now_us - mind.lost_us >= config.retry_window_us):
        mind.lost_us = now_us
    often = outcomes >= config.breaker_outcomes and mind.window_bad * 100 >= config.breaker_percent * outcomes
    if often or mind.row >= config.breaker_failures or (worker.cap and fault in TRANSPORT):
        _open(fleet, worker)


def _open(fleet: Fleet, worker: Worker) -> None:
    config, mind, now_us = fleet.config, worker.breaker, fleet.now_us
    mind.row, mind.window_us = 0, InstantUs(-1)
    workers = fleet.state.workers.values()
    ejected = sum(1 for other in workers if other.breaker.until_us > now_us)
    if (ejected + 1) * 2 > len(workers):
        fleet.count("breaker_panic")
        fleet.set_timer(now_us + PANIC_REST_US, Timer.breaker, worker.worker)
        _set_cap(fleet, worker, RESTING, grow_us=now_us + PANIC_REST_US)
        return
    if now_us - mind.back_us > config.ejection_max_us:
        mind.ejections = 0  # it was good for long: an old sin is forgotten
    mind.ejections += 1
    fleet.count("breaker_open")
    span_us = min(config.ejection_us << min(mind.ejections - 1, 20), config.ejection_max_us)
    spread = crc32(f"{worker.worker}|{mind.ejections}".encode()) % (2 * JITTER_PERCENT + 1) - JITTER_PERCENT
    mind.until_us = InstantUs(now_us + span_us * (100 + spread) // 100)
    fleet.set_timer(mind.until_us, Timer.breaker, worker.worker)
    take_out(fleet, worker, "failing")


def due(fleet: Fleet, worker_id: WorkerId) -> None:
    """An ejection is over: ask whether the worker is there. Or the next step of a slow start."""
    worker = fleet.state.workers.get(worker_id)
    if worker is None:
        return
    mind = worker.breaker
    if 0 <= mind.until_us <= fleet.now_us:
        fleet.decide(Observe(worker=worker_id))
    elif 0 <= mind.grow_us <= fleet.now_us:
        if worker.cap == RESTING:
            _set_cap(fleet, worker, TRIAL, grow_us=-1)
        else:
            _grow(fleet, worker, 0 if worker.cap >= SLOW_START_CAP else 2 * worker.cap)


def proved(fleet: Fleet, worker: Worker) -> None:
    """A request went well on a worker with a cap: a trial has been passed."""
    if worker.breaker.grow_us < 0:
        _grow(fleet, worker, 2 * TRIAL)


def _grow(fleet: Fleet, worker: Worker, cap: int) -> None:
    grow_us = fleet.now_us + fleet.config.slow_start_us // SLOW_START_STEPS if cap else -1
    if cap:
        fleet.set_timer(grow_us, Timer.breaker, worker.worker)
    _set_cap(fleet, worker, cap, grow_us=grow_us)


def _set_cap(fleet: Fleet, worker: Worker, cap: int, *, grow_us: int) -> None:
    worker.cap = cap
    worker.breaker.grow_us = InstantUs(grow_us)
    for runner in worker.runners.values():
        fleet.refresh_open(worker, runner)
        fleet.touch(runner.model)
