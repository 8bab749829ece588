"""The queue of each model: in, out, and back in at its old place. Whose turn it is, ``fairness`` says."""

from bisect import bisect_left, insort
from zlib import crc32

from bellmare.core.costs import prefill_left_us, service_estimate_us
from bellmare.core.decisions import Dispatch, Refusal, Reject
from bellmare.core.events import RequestKind
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.starvation import batch_goes_on
from bellmare.core.state import Model, Request, RequestPhase, Runner, Worker
from bellmare.core.units import SECOND_US, InstantUs, SpanUs

RETRY_AFTER_MIN_US = SECOND_US
JITTER_PERCENT = 20
GAPS_TO_A_TURN = 2
"""A request whose deadline comes before so many slots are expected to be free is lost if it is passed over now."""


def enqueue(fleet: Fleet, request: Request) -> None:
    """Let a request wait at the place that its arrival gives it; a retried one does not go to the end."""
    model = fleet.state.models[request.model]
    request.phase = RequestPhase.waiting
    request.worker = None
    entry = (request.seq, request)
    insort(fleet.queues[request.model], entry)
    fleet.turns[request.model].joined(request, entry)
    fleet.set_timer(request.deadline_us, Timer.request, request.request)
    if not model.healthy_holders:
        grace_us = fleet.config.worker_lost_grace_us
        fleet.set_timer(max(fleet.now_us, model.stranded_us + grace_us), Timer.stranded, model.model)
    model.waiting += 1
    fleet.state.waiting += 1
    fleet.touch(request.model)


def leave_queue(fleet: Fleet, request: Request) -> None:
    """It waits no longer."""
    queue = fleet.queues[request.model]
    del queue[bisect_left(queue, (request.seq,))]  # sequence numbers are unique: no request is ever compared
    fleet.state.models[request.model].waiting -= 1
    fleet.state.waiting -= 1


def dispatch(fleet: Fleet, request: Request, worker: Worker, *, runner: Runner) -> None:
    """Give ``request`` a slot of ``runner``."""
    assert runner.used < runner.slots, "dispatch needs a free slot"
    now_us = fleet.now_us
    request.phase = RequestPhase.running
    request.worker = worker.worker
    request.dispatched_us = now_us
    request.first_token_us = InstantUs(-1)
    request.attempts += 1
    if request.attempts == 1:
        fleet.state.retries.first += 1
    fleet.turns[request.model].charge(request, service_estimate_us(fleet, fleet.state.models[request.model]))
    runner.in_flight[request.request] = None
    runner.used_us = now_us
    if runner.untried:
        runner.untried = False
        fleet.state.forecast.useful += 1.0
        fleet.count("ahead_useful")
    if runner.batch_seq:
        batch_goes_on(fleet, worker, runner)
    fleet.refresh_open(worker, runner)
    fleet.decide(
        Dispatch(
            request=request.request,
            worker=worker.worker,
            model=request.model,
            num_ctx=runner.num_ctx,
            cache=request.cache,
            queued_us=SpanUs(now_us - request.arrived_us),
            load_us=SpanUs(max(0, min(runner.ready_us, now_us) - request.arrived_us)),
            attempt=request.attempts,
        )
    )


def serve(fleet: Fleet, model: Model) -> None:
    """Hand waiting requests to free slots, each to the least loaded runner."""
    turns = fleet.turns[model.model]
    while model.waiting and fleet.open[model.model]:
        first = turns.alone()
        if first is None:
            service_us = service_estimate_us(fleet, model)
            gap_us = GAPS_TO_A_TURN * service_us // max(1, fleet.ready_slots[model.model])
            first = turns.first(fleet.now_us, gap_us=gap_us, service_us=service_us)
        if first is None or not (_serve_one(fleet, first) or _serve_other(fleet, model)):
            return


def _serve_one(fleet: Fleet, request: Request) -> bool:
    for _, index in fleet.open[request.model]:
        worker = fleet.at(index)
        if fleet.acceptable(worker, request):
            leave_queue(fleet, request)
            fleet.turns[request.model].left(request)
            dispatch(fleet, request, worker, runner=worker.runners[request.model])
            return True
    return False


def _serve_other(fleet: Fleet, model: Model) -> bool:
    """Whose turn it is may not run where slots are free (another name, or it failed there): the next ones may."""
    refused: dict[str, None] = {}
    for request in fleet.turns[model.model].in_turn():
        if request.name in refused and not request.excluded:
            continue
        if _serve_one(fleet, request):
            return True
        if not request.excluded:
            refused[request.name] = None
    return False


def lend(fleet: Fleet, model: Model) -> None:
    """Free slots of a context that nobody waits for serve those who wait for a smaller one that has no copy anywhere.

    Else a worker of their own would change contexts with every other request (``classes.stand_in`` does the same for
    who need not wait at all). In the order of the smaller one's turns.
    """
    family = list(fleet.family(model))
    for large in family:
        if not fleet.open[large.model] or large.waiting or not large.holders:
            continue
        most = fleet.context_of(large)
        small = [one for one in family if one.waiting and fleet.context_of(one) < most]
        small = [one for one in small if not one.copies and not one.placements]
        while small and fleet.open[large.model]:
            next_one = min(small, key=lambda one: fleet.queues[one.model][0][0])
            if not _lend_to(fleet, next_one, large) or not next_one.waiting:
                small.remove(next_one)


def _lend_to(fleet: Fleet, small: Model, large: Model) -> bool:
    """Whether the next of ``small`` got a slot of ``large``."""
    need, service_us = fleet.context_of(small), service_estimate_us(fleet, small)
    request = fleet.turns[small.model].first(fleet.now_us, gap_us=service_us, service_us=service_us)
    assert request is not None, "somebody waits"
    for _, index in fleet.open[large.model]:
        worker = fleet.at(index)
        runner = worker.runners[large.model]
        if runner.num_ctx >= need and fleet.acceptable(worker, request):
            leave_queue(fleet, request)
            fleet.move_request(request, large)
            fleet.count("stood_in")
            dispatch(fleet, request, worker, runner=runner)
            return True
    return False


def free_slot(fleet: Fleet, request: Request, *, aborted: bool) -> None:
    """Take back the slot of a running request. Aborted before its first token, it leaves a zombie (ollama.md 2.4)."""
    if request.charged_us >= 0:
        fleet.turns[request.model].settle(request, fleet.now_us - request.dispatched_us)
    place = fleet.runner_of(request)
    if place is None:
        return
    worker, runner = place
    del runner.in_flight[request.request]
    runner.used_us = fleet.now_us
    if aborted and request.first_token_us < 0 and request.kind is not RequestKind.load:
        spent_us = fleet.now_us - request.dispatched_us
        left_us = prefill_left_us(worker, prompt_tokens=request.prompt_tokens, spent_us=spent_us)
        left_us = min(left_us, fleet.config.zombie_max_us)
        if left_us:
            fleet.count("zombie")
            fleet.turns[request.model].add_debt(request, left_us)
            leave_zombie(fleet, worker, runner, span_us=left_us)
    fleet.refresh_open(worker, runner)
    fleet.touch(runner.model)
    if not runner.used:
        fleet.touch_worker(worker.worker)


def leave_zombie(fleet: Fleet, worker: Worker, runner: Runner, *, span_us: int) -> None:
    """A slot stays taken for ``span_us``, although no request holds it."""
    until_us = InstantUs(fleet.now_us + span_us)
    insort(runner.zombies, until_us)
    fleet.set_timer(until_us, Timer.zombie, worker.worker, key2=runner.model)


def bury_zombies(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """Give back the slots whose aborted prefill must be over by now."""
    while runner.zombies and runner.zombies[0] <= fleet.now_us:
        del runner.zombies[0]
    fleet.refresh_open(worker, runner)
    fleet.touch(runner.model)
    if not runner.used:
        fleet.touch_worker(worker.worker)


def reject(fleet: Fleet, request: Request, refusal: Refusal, *, detail: str = "", retry_us: int = 0) -> None:
    """End a request without an answer. It must hold no slot."""
    if fleet.drop_request(request.request) is not None and request.phase is RequestPhase.waiting:
        leave_queue(fleet, request)
        fleet.touch(request.model)
    retry_after = _honest(fleet, request.request, retry_us) if retry_us else SpanUs(0)
    fleet.count(f"refused_{refusal}")
    fleet.decide(Reject(request=request.request, refusal=refusal, retry_after_us=retry_after, detail=detail))


def reject_waiting(fleet: Fleet, model: Model, refusal: Refusal, *, detail: str = "", retry_us: int = 0) -> None:
    """End all that wait for ``model``; bounded by the queue's own bound."""
    for _, request in list(fleet.queues[model.model]):
        reject(fleet, request, refusal, detail=detail, retry_us=retry_us)


def _honest(fleet: Fleet, request: str, wait_us: int) -> SpanUs:
    """Retry-After: the predicted wait, spread by a fifth so that refused clients do not return together."""
    spread = crc32(request.encode()) % (2 * JITTER_PERCENT + 1) - JITTER_PERCENT
    span, most_us = max(RETRY_AFTER_MIN_US, wait_us), fleet.config.retry_after_max_us
    if span * (100 + JITTER_PERCENT) > most_us * 100:
        return SpanUs(most_us * (100 + spread) // (100 + JITTER_PERCENT))  # at the bound they differ as well
    return SpanUs(span * (100 + spread) // 100)
