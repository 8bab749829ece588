"""When a request may be refused or let in: only for the reason given, and never with a false word about the wait."""

from bellmare.core import decisions as d
from bellmare.core.units import ModelId
from bellmare.sim.swarm.books import MIB, SECOND, UNLOAD_TRIES, RequestBook
from bellmare.sim.swarm.ledger import Ledger

RETRYABLE = (
    d.Refusal.queue_full,
    d.Refusal.wait_too_long,
    d.Refusal.no_healthy_worker,
    d.Refusal.retries_spent,
)
CRASHES_MAX = 2
DOUBT = 2
"""Predictions of the core and of these books may differ by so much either way: the order of the queue is its own."""


def judge_refusal(books: Ledger, request: RequestBook, decision: d.Reject) -> None:
    """Whether the reason given is the truth at this instant."""
    config, must, why = books.config, books.must, decision.refusal
    new = request.phase == "new"
    others = len(books.waiting.get(request.blob, {})) - (request.event.request in books.waiting.get(request.blob, {}))
    in_all = sum(len(waiting) for waiting in books.waiting.values()) - 1
    if why is d.Refusal.unknown_model:
        must(not books.votes.get(request.event.name), "unknown only if nobody stores it", decision)
        seen = any(worker.observed >= 0 for worker in books.workers.values())
        must(seen, "unknown only once a worker was seen", decision)
    elif why is d.Refusal.queue_full:
        full = others >= config.queue_per_model_max or in_all >= config.queue_total_max
        must(full and new, "queue_full only at a bound", decision, others, in_all)
    elif why is d.Refusal.wait_too_long:
        must(others > 0 and new, "too long only behind others", decision)
        wait = ready_wait(books, request.blob, others)
        bound = min(config.queue_wait_max_us, request.event.deadline_us - books.now)
        must(wait is None or wait * DOUBT >= bound, "too long only if the wait passes a bound", decision, wait, bound)
    elif why is d.Refusal.deadline_passed:
        must(books.now >= request.event.deadline_us, "deadline_passed only at the deadline", decision)
    elif why is d.Refusal.no_healthy_worker:
        routable = [worker for worker in books.workers.values() if worker.routable]
        away = not any(books.binds(w, request) and books.stores(w, request.blob) for w in routable)
        stored_nowhere = not any(books.stores(worker, request.blob) for worker in routable)
        must(away and (new or stored_nowhere), "no_healthy_worker only if so", decision)
    elif why is d.Refusal.model_does_not_fit:
        must(not _surely_fits(books, request), "does_not_fit only if so", decision)
    elif why is d.Refusal.load_failed:
        failed = request.blob in books.failed_now or _rests_somewhere(books, request)
        must(failed, "load_failed only when a load failed", decision)
    elif why in (d.Refusal.worker_failed, d.Refusal.worker_timed_out):
        spent = request.attempts >= config.attempts_max or request.crashes >= CRASHES_MAX
        must(spent, "worker_failed only when the attempts are spent", decision, request)
        slow = why is d.Refusal.worker_timed_out
        must(request.timed_out == slow, "a timeout is told as one", decision, request)
    elif why is d.Refusal.retries_spent:
        must(not request.may_retry, "retries_spent only when their budget is", decision, request)
    elif why is d.Refusal.poison_suspected:
        must(books.is_poison(request.fingerprint), "poison only after two workers", decision, request)
    _judge_retry_after(books, request, decision)


def _judge_retry_after(books: Ledger, request: RequestBook, decision: d.Reject) -> None:
    wait = decision.retry_after_us
    if decision.refusal not in RETRYABLE and not wait:
        return
    later = decision.refusal in RETRYABLE
    if decision.refusal is d.Refusal.load_failed:
        later = _rests_somewhere(books, request)
    elif decision.refusal is d.Refusal.model_does_not_fit:
        later = any(worker.foreign for worker in books.workers.values())
    books.must(later, "retrying soon is pointless", decision)
    most = books.config.retry_after_max_us
    books.must(min(8 * SECOND // 10, most) <= wait <= most, "Retry-After within bounds", decision)
    if decision.refusal not in (d.Refusal.queue_full, d.Refusal.wait_too_long):
        return
    predicted = ready_wait(books, request.blob, request.ahead)
    if predicted is not None:
        books.must(wait >= min(predicted, most) // 2, "Retry-After is honest", decision, predicted)


def ready_wait(books: Ledger, blob: ModelId, waiting: int) -> int | None:
    """How long ``waiting`` requests keep the ready slots busy; None if none is ready or nothing is known of spans."""
    ready = [w.runners[blob] for w in books.workers.values() if w.routable and blob in w.runners]
    slots = sum(runner.slots for runner in ready if runner.state == "ready")
    service = books.service.get(blob) or books.service_of_all
    return waiting * service // slots if slots and service else None


def judge_admission(books: Ledger, request: RequestBook) -> None:
    """It was let in to wait: no bound was reached, and it is not certain to wait for nothing."""
    config = books.config
    others = len(books.waiting[request.blob]) - 1
    in_all = sum(len(waiting) for waiting in books.waiting.values()) - 1
    books.must(others < config.queue_per_model_max, "nobody waits beyond the model's bound", request, others)
    books.must(in_all < config.queue_total_max, "nobody waits beyond the bound of all", request, in_all)
    books.must(request.event.deadline_us > books.now, "nobody waits past the deadline", request)
    if not any(request.blob in worker.runners for worker in books.workers.values()):
        holders = [worker for worker in books.workers.values() if books.stores(worker, request.blob)]
        siblings = [books.sibling(worker, request.blob) for worker in holders]
        shut_out = bool(holders) and all(one is not None and books.pinned(one) for one in siblings)
        books.must(not shut_out, "nobody waits for what a pin shuts out", request)
    certain = ready_wait(books, request.blob, request.ahead)
    if certain is not None and request.ahead:
        bound = min(config.queue_wait_max_us, request.event.deadline_us - books.now)
        books.must(certain <= bound * DOUBT, "nobody is let in to time out", request, certain, bound)


def _rests_somewhere(books: Ledger, request: RequestBook) -> bool:
    """Whether a failed load of its model may not be tried again yet, on some worker."""
    return any(
        worker.resting_until.get(request.blob, 0) > books.now or worker.unloads_broken >= UNLOAD_TRIES
        for worker in books.workers.values()
    )


def _surely_fits(books: Ledger, request: RequestBook) -> bool:
    """Some holder, emptied, could take it by the formula; what was measured is booked by shape and may be larger."""
    if request.blob in books.largest:
        return False
    for worker in books.workers.values():
        sibling = books.sibling(worker, request.blob)
        if not books.stores(worker, request.blob) or (sibling is not None and books.pinned(sibling)):
            continue
        need = books.need(worker, request.blob, books.canonical(request.blob)) + MIB
        room = worker.capacity - worker.spec.headroom_bytes - worker.foreign
        if not worker.spec.capacity_known or need <= room:
            return True
    return False
