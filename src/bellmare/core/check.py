"""The invariants of the state (reliability I1-I3, I7, I9, I10), recomputed from scratch: indexes are not believed."""

from collections.abc import Iterator

from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.state import OperationKind, Request, RequestPhase, Runner, Want, Worker


def check(fleet: Fleet) -> list[str]:
    """What does not hold, in words; empty if all is well. Costs a walk over everything."""
    found = [problem for worker in fleet.state.workers.values() for problem in _worker(fleet, worker)]
    found.extend(_requests(fleet))
    found.extend(_models(fleet))
    found.extend(_indexes(fleet))
    return found


def _worker(fleet: Fleet, worker: Worker) -> Iterator[str]:
    used = sum(runner.bytes for runner in worker.runners.values())
    if used != worker.used_bytes:
        yield f"{worker.worker}: ledger says {worker.used_bytes}, runners hold {used}"
    operation = fleet.state.operations.get(worker.operation) if worker.operation is not None else None
    if worker.operation is not None and (operation is None or operation.worker != worker.worker):
        yield f"{worker.worker}: its operation {worker.operation} is not known"
    loading = [r.model for r in worker.runners.values() if r.residency is Residency.loading]
    if len(loading) > 1 or (loading and (operation is None or operation.kind is not OperationKind.load)):
        yield f"{worker.worker}: loading {loading} without its one operation"
    if worker.healthy and worker.breaker.until_us >= 0:
        yield f"{worker.worker}: in routing although it is ejected"
    if worker.breaker.grow_us >= 0 and not worker.cap:
        yield f"{worker.worker}: a cap that is not there is to grow"
    blobs = [fleet.state.models[model].blob for model in worker.runners]
    if len(set(blobs)) < len(blobs):
        yield f"{worker.worker}: runs a blob twice: {blobs}"
    for runner in worker.runners.values():
        yield from _runner(fleet, worker, runner)
    for model in worker.leaving:
        if model not in worker.runners:
            yield f"{worker.worker}: {model} is leaving but not there"


def _runner(fleet: Fleet, worker: Worker, runner: Runner) -> Iterator[str]:
    place = f"{runner.model}@{worker.worker}"
    if runner.residency is Residency.absent:
        yield f"{place}: absent runners are not kept"
    if len(runner.in_flight) > runner.slots:
        yield f"{place}: {len(runner.in_flight)} in flight on {runner.slots} slots"
    if runner.used and runner.residency in (Residency.loading, Residency.unloading):
        yield f"{place}: {runner.residency} with {runner.used} slots taken"
    if worker.worker not in fleet.state.models[runner.model].copies:
        yield f"{place}: not among its model's copies"
    for request_id in runner.in_flight:
        request = fleet.state.requests.get(request_id)
        if request is None or request.worker != worker.worker or request.phase is not RequestPhase.running:
            yield f"{place}: slot held by {request_id}, which does not run there"


def _requests(fleet: Fleet) -> Iterator[str]:
    waiting: dict[str, int] = {}
    for request in fleet.state.requests.values():
        if request.phase is RequestPhase.waiting:
            waiting[request.model] = waiting.get(request.model, 0) + 1
            if request.fingerprint and request.fingerprint in fleet.state.poison:
                yield f"{request.request}: waits although such requests are refused"
            if (request.seq, request) not in fleet.queues[request.model]:
                yield f"{request.request}: waits but is in no queue"
    for model in fleet.state.models.values():
        if model.waiting != waiting.get(model.model, 0):
            yield f"{model.model}: counts {model.waiting} waiting, {waiting.get(model.model, 0)} wait"
    if fleet.state.waiting != sum(waiting.values()):
        yield f"{fleet.state.waiting} waiting in all, {sum(waiting.values())} wait"


def _models(fleet: Fleet) -> Iterator[str]:
    """No request waits while a slot that may serve it is free; nobody is forgotten."""
    live: dict[str, list[Request]] = {model: [] for model in fleet.state.models}
    for request in fleet.state.requests.values():
        live[request.model].append(request)
    for model in fleet.state.models.values():
        head = fleet.head(model)
        healthy = [w for w in model.holders if fleet.state.workers[w].healthy]
        if len(healthy) != model.healthy_holders:
            yield f"{model.model}: counts {model.healthy_holders} healthy holders, has {len(healthy)}"
        if fleet.live[model.model] != len(live[model.model]):
            yield f"{model.model}: counts {fleet.live[model.model]} requests"
        yield from fleet.turns[model.model].problems(live[model.model])
        if fleet.unused(model):
            yield f"{model.model}: is kept although nothing refers to it"
        base = fleet.state.models.get(model.blob)
        if base is None or (model.context and model.model not in base.classes):
            yield f"{model.model}: is no class of {model.blob}"
        elif model.holders and (model.holders, model.healthy_holders) != (base.holders, base.healthy_holders):
            yield f"{model.model}: {list(model.holders)} hold it, and {list(base.holders)} its blob"
        if head is None:
            continue
        supplied = bool(model.placements) or model.want is not Want.nothing or not healthy
        for worker, runner in fleet.copies(model):
            ready = runner.residency is Residency.resident and worker.healthy
            free = runner.used < runner.slots and not worker.at_cap
            if ready and free and fleet.acceptable(worker, head):
                yield f"{head.request} waits although {model.model}@{worker.worker} has a free slot"
            supplied = supplied or ready or (runner.residency is Residency.loading and worker.healthy)
        if not supplied:
            yield f"{model.model}: requests wait, and nothing is done about it"


def _indexes(fleet: Fleet) -> Iterator[str]:
    open_now = {
        (runner.model, worker.index)
        for worker in fleet.state.workers.values()
        for runner in worker.runners.values()
        if runner.residency is Residency.resident
        and worker.healthy
        and runner.used < runner.slots
        and not worker.at_cap
    }
    listed = {(model, index) for model, entries in fleet.open.items() for _, index in entries}
    for index in (fleet.queues, fleet.turns, fleet.open, fleet.ready_slots, fleet.loading, fleet.live):
        if index.keys() != fleet.state.models.keys():
            yield f"models are listed wrongly: {sorted(index.keys() ^ fleet.state.models.keys())[:3]}"
    if open_now != listed:
        yield f"free runners are listed wrongly: {sorted(open_now ^ listed)[:3]}"
    room = {(w.free_bytes, w.index) for w in fleet.state.workers.values() if fleet.available(w)}
    if room != set(fleet.room):
        yield f"room is listed wrongly: {sorted(room ^ set(fleet.room))[:3]}"
