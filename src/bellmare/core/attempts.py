"""Whether a request that a worker failed may be tried again: attempts, poison, and a budget for all retries together.

Within each window of ten seconds there are at most as many retries as a tenth of the requests, or ten. So a fleet that
fails as a whole is asked hardly more often than its clients ask. What ran on a worker when that was lost is exempt,
once per window and worker: it is bounded by the worker's slots, and must not depend on how many asked lately.
"""

from bellmare.core.decisions import Refusal
from bellmare.core.events import DispatchFailed, FaultKind
from bellmare.core.fleet import Fleet
from bellmare.core.health import LOST_AT_ONCE
from bellmare.core.poison import crashed, quarantined
from bellmare.core.queueing import reject
from bellmare.core.state import Request

CRASHES_MAX = 2
"""Runners that one request may take down before it is refused: it may be the request."""


def refusal_after(fleet: Fleet, request: Request, event: DispatchFailed) -> tuple[Refusal, int] | None:
    """Why it is not tried again, and when its client may come back; None if it is. Books the retry."""
    if event.fault is FaultKind.crashed:
        request.crashes += 1
        if note_crash(fleet, request, event.fingerprint):
            return Refusal.poison_suspected, 0
    elif request.fingerprint and quarantined(fleet, request.fingerprint):
        return Refusal.poison_suspected, 0  # an equal one took down a second runner while this one ran
    if request.attempts >= fleet.config.attempts_max or request.crashes >= CRASHES_MAX:
        return Refusal.worker_timed_out if event.fault is FaultKind.timeout else Refusal.worker_failed, 0
    if not _budget_allows(fleet, exempt=_lost_with_its_worker(fleet, request, event)):
        left_us = fleet.state.retries.since_us + fleet.config.retry_window_us - fleet.now_us
        return Refusal.retries_spent, left_us
    return None


def note_crash(fleet: Fleet, request: Request, fingerprint: str) -> bool:
    """A runner died under it, before or after its first byte. Whether it is poison now; then equals that wait end."""
    fingerprint = fingerprint or request.fingerprint
    if not fingerprint or request.worker is None:
        return False
    request.fingerprint = fingerprint
    if not crashed(fleet, fingerprint, request.worker):
        return False
    for queue in fleet.queues.values():  # all, since its name may have meant another blob; bounded by their own bound
        for _, other in [entry for entry in queue if entry[1].fingerprint == fingerprint]:
            reject(fleet, other, Refusal.poison_suspected)
    return True


def _lost_with_its_worker(fleet: Fleet, request: Request, event: DispatchFailed) -> bool:
    worker = fleet.state.workers.get(event.worker)
    if worker is None:
        return True  # it left the fleet
    lost_us = worker.breaker.lost_us
    recent = lost_us >= 0 and fleet.now_us - lost_us < fleet.config.retry_window_us
    return event.fault in LOST_AT_ONCE and recent and request.dispatched_us <= lost_us


def _budget_allows(fleet: Fleet, *, exempt: bool) -> bool:
    """Count a retry if there is room for it. The window before counts too: a busy fleet need not begin at nothing."""
    config, retries = fleet.config, fleet.state.retries
    passed_us = fleet.now_us - retries.since_us
    if retries.since_us < 0 or passed_us >= config.retry_window_us:
        retries.before = 0 if retries.since_us < 0 else retries.first * config.retry_window_us // passed_us
        retries.first = retries.again = 0
        retries.since_us = fleet.now_us
    if exempt:
        return True
    asked = max(retries.before, retries.first)
    if retries.again >= max(config.retry_floor, asked * config.retry_percent // 100):
        return False
    retries.again += 1
    return True
