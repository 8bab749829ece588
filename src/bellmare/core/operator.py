"""What operators ask for by hand, and what clients give back: carried out like any other decision."""

from bellmare.core.decisions import Answer, LoadCause, UnloadCause
from bellmare.core.events import LoadRequested, ModelReleased, UnloadRequested
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet
from bellmare.core.placement import Plan, choose, plan_on
from bellmare.core.residency import Residency
from bellmare.core.scheduler import ask_to_leave, start
from bellmare.core.state import Model
from bellmare.core.units import WorkerId

HANDED_OVER = "another process is taking over: ask again in a moment"
PRESENT = (Residency.loading, Residency.resident)


def load_requested(fleet: Fleet, policy: EvictionPolicy, event: LoadRequested) -> None:
    """Start a load now, or say why that cannot be."""
    if fleet.state.standby:
        _answer(fleet, event.ticket, False, text=HANDED_OVER)
        return
    model = fleet.resolve(event.name)
    if model is None:
        _answer(fleet, event.ticket, False, text=f"model '{event.name}' not found on any worker")
        return
    if event.worker is not None and event.worker not in fleet.state.workers:
        _answer(fleet, event.ticket, False, text=f"no worker named '{event.worker}'")
        return
    there = [
        worker.worker
        for worker, runner in fleet.copies(model)
        if runner.residency in PRESENT and event.worker in (None, worker.worker)
    ]
    there += [worker for worker in model.placements if event.worker in (None, worker)]
    if there:
        _answer(fleet, event.ticket, True, text="already there or on its way", workers=there)
        return
    plan = _plan(fleet, policy, model, worker_id=event.worker)
    if plan is None:
        _answer(fleet, event.ticket, False, text=_why_not(fleet, model, event.worker))
        return
    start(fleet, policy, model, plan=plan, cause=LoadCause.operator)
    leaving = ", ".join(fleet.state.models[victim.model].label for victim in plan.victims)
    _answer(
        fleet,
        event.ticket,
        True,
        text=f"loading; {leaving} must leave first" if leaving else "loading",
        workers=[plan.worker.worker],
    )


def _plan(fleet: Fleet, policy: EvictionPolicy, model: Model, *, worker_id: WorkerId | None) -> Plan | None:
    for drain in (False, True):
        if worker_id is None:
            plan = choose(fleet, policy, model, drain=drain)
        else:
            worker = fleet.state.workers[worker_id]
            usable = worker_id in model.holders and fleet.available(worker)
            plan = plan_on(fleet, policy, worker, model=model, drain=drain) if usable else None
        if plan is not None:
            return plan
    return None


def _why_not(fleet: Fleet, model: Model, worker_id: WorkerId | None) -> str:
    workers = [fleet.state.workers[w] for w in ([worker_id] if worker_id is not None else list(model.holders))]
    if worker_id is not None and worker_id not in model.holders:
        return f"'{worker_id}' does not store '{model.stored.name}'"
    if not any(worker.healthy for worker in workers):
        return "no healthy worker stores it"
    if all(worker.operation is not None or worker.placement is not None for worker in workers if worker.healthy):
        return "every worker that stores it is loading or unloading something: try again in a moment"
    return "no worker that stores it can make room: what is resident is pinned, busy or too recent"


def unload_requested(fleet: Fleet, event: UnloadRequested) -> None:
    """Let a model leave, without a class said in all its contexts: requests under way finish, then it goes."""
    if fleet.state.standby:
        _answer(fleet, event.ticket, False, text=HANDED_OVER)
        return
    model = fleet.resolve(event.name)
    if model is None:
        _answer(fleet, event.ticket, False, text=f"model '{event.name}' not found on any worker")
        return
    leaving = []
    for worker, runner in [copy for one in fleet.meant(model) for copy in fleet.copies(one)]:
        if event.worker not in (None, worker.worker):
            continue
        if runner.residency in (Residency.resident, Residency.draining):
            ask_to_leave(fleet, worker, runner, cause=UnloadCause.operator)
            leaving.append(worker.worker)
    text = "leaving once its requests are done" if leaving else "not resident there"
    _answer(fleet, event.ticket, bool(leaving), text=text, workers=leaving)


def released(fleet: Fleet, event: ModelReleased) -> None:
    """A client needs a model no more: it goes first when room is needed, and at once if it was that client's alone."""
    model = fleet.resolve(event.name)
    if model is None:
        return
    for one in fleet.meant(model):
        one.released_us = fleet.now_us
        if not event.alone or fleet.state.standby or one.waiting or fleet.model_config(one).pinned:
            continue
        for worker, runner in list(fleet.copies(one)):
            if runner.residency is Residency.resident and not runner.used:
                ask_to_leave(fleet, worker, runner, cause=UnloadCause.released)


def _answer(fleet: Fleet, ticket: str, accepted: bool, *, text: str, workers: list[WorkerId] | None = None) -> None:
    fleet.decide(Answer(ticket=ticket, accepted=accepted, text=text, workers=tuple(workers or ())))
