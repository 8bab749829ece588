"""Whether a request may come in: run at once, wait within bounds, or be refused at once with the reason."""

from bellmare.core import poison
from bellmare.core.costs import predicted_wait_us
from bellmare.core.decisions import CacheState, Refusal, Reject
from bellmare.core.events import RequestArrived
from bellmare.core.fleet import CLASS_MARK, Fleet
from bellmare.core.placement import could_hold
from bellmare.core.queueing import dispatch, enqueue, reject
from bellmare.core.retries import earliest_retry_us
from bellmare.core.state import Model, Request
from bellmare.core.units import SECOND_US, SpanUs

NO_WORKER_RETRY_US = 5 * SECOND_US
"""When a worker will be back is not known; this is about two observations."""
FOREIGN_RETRY_US = 30 * SECOND_US
"""When somebody else's memory will be free is not known either; mostly it is another program's work, not a blink."""


def admit(fleet: Fleet, event: RequestArrived, model: Model | None) -> None:
    """Decide on one arrival that ``model`` is to serve; afterwards it runs, waits, or has been refused."""
    state = fleet.state
    assert event.request not in state.requests, "request ids are used once"
    if model is None:
        _refuse_unknown(fleet, event)
        return
    if event.fingerprint and poison.quarantined(fleet, event.fingerprint):
        fleet.count(f"refused_{Refusal.poison_suspected}")
        fleet.decide(Reject(request=event.request, refusal=Refusal.poison_suspected))
        return
    request = Request(
        request=event.request,
        name=event.name.partition(CLASS_MARK)[0],
        model=model.model,
        kind=event.kind,
        tenant=event.tenant,
        prompt_tokens=event.prompt_tokens,
        deadline_us=event.deadline_us,
        arrived_us=fleet.now_us,
        seq=state.next_seq,
        priority=event.priority,
        cache=CacheState.hit,
        fingerprint=event.fingerprint,
    )
    state.next_seq += 1
    if _run_at_once(fleet, model, request):
        return
    request.cache = CacheState.queued if _ready_somewhere(fleet, model) else CacheState.cold
    refusal = _refusal(fleet, model, request)
    if refusal is not None:
        why, retry_us = refusal
        reject(fleet, request, why, retry_us=retry_us)
        return
    fleet.add_request(request)
    enqueue(fleet, request)


def _refuse_unknown(fleet: Fleet, event: RequestArrived) -> None:
    """No worker stores the name; before any has been seen that is not known."""
    known = any(worker.observed_us >= 0 for worker in fleet.state.workers.values())
    refusal = Refusal.unknown_model if known else Refusal.no_healthy_worker
    retry_us = SpanUs(0) if known else SpanUs(NO_WORKER_RETRY_US)
    fleet.count(f"refused_{refusal}")
    fleet.decide(Reject(request=event.request, refusal=refusal, retry_after_us=retry_us))


def _run_at_once(fleet: Fleet, model: Model, request: Request) -> bool:
    """Whether a free slot took it. It overtakes nobody: those who wait can use none of the slots that are free."""
    for _, index in fleet.open[model.model]:
        worker = fleet.at(index)
        if fleet.holds(worker, request):
            fleet.add_request(request)
            dispatch(fleet, request, worker, runner=worker.runners[model.model])
            return True
    return False


def _ready_somewhere(fleet: Fleet, model: Model) -> bool:
    return fleet.ready_slots[model.model] > 0


def _refusal(fleet: Fleet, model: Model, request: Request) -> tuple[Refusal, int] | None:
    """The first bound that the request would pass, and how long to stay away; None if it may wait."""
    since_us = fleet.now_us - model.stranded_us
    lost_just_now = model.stranded_us >= 0 and since_us < fleet.config.suspicion_us
    if not lost_just_now and not fleet.servable(model, request):
        return Refusal.no_healthy_worker, NO_WORKER_RETRY_US
    if request.deadline_us <= fleet.now_us:
        return Refusal.deadline_passed, 0
    if request.cache is CacheState.cold:
        refusal = _cannot_load(fleet, model, request)
        if refusal is not None:
            return refusal
    turns = fleet.turns[model.model]
    ahead = turns.before_newcomer(request.tenant, request.priority) if model.waiting else 0
    predicted_us = max(1, predicted_wait_us(fleet, model, ahead=ahead))  # zero would say that retrying is pointless
    if fleet.state.waiting >= fleet.config.queue_total_max or model.waiting >= fleet.config.queue_per_model_max:
        return Refusal.queue_full, predicted_us
    if model.waiting and predicted_us > fleet.config.queue_wait_max_us:
        return Refusal.wait_too_long, predicted_us
    if model.waiting and fleet.now_us + predicted_us > request.deadline_us:
        return Refusal.wait_too_long, predicted_us
    return None


def _cannot_load(fleet: Fleet, model: Model, request: Request) -> tuple[Refusal, int] | None:
    """Why a copy cannot come in time: no memory is large enough, or every worker's last load of it failed."""
    if not model.copies and not _fits_somewhere(fleet, model, foreign_gone=False):
        later = _fits_somewhere(fleet, model, foreign_gone=True)
        return Refusal.model_does_not_fit, FOREIGN_RETRY_US if later else 0
    retry_us = earliest_retry_us(fleet, model) if model.backoff_us > fleet.now_us else None
    if retry_us is not None and retry_us >= request.deadline_us:
        return Refusal.load_failed, retry_us - fleet.now_us
    return None


def _fits_somewhere(fleet: Fleet, model: Model, *, foreign_gone: bool) -> bool:
    workers = fleet.state.workers
    return any(could_hold(fleet, workers[name], model, foreign_gone=foreign_gone) for name in model.holders)
