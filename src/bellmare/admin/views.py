"""The core's state in an operator's words: plain rows for the admin API, the command line and the demo's table."""

from typing import Any

import msgspec

from bellmare.core.costs import canonical_num_ctx
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.state import Worker
from bellmare.core.units import WorkerId


class RunnerRow(msgspec.Struct, frozen=True):
    """One loaded, loading or leaving model on one worker."""

    model: str
    worker: str
    residency: str
    bytes: int
    num_ctx: int
    slots: int
    busy: int
    zombies: int
    idle_s: float
    pinned: bool
    wanted_by: str


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker with the four parts of its memory."""

    worker: str
    kind: str
    address: str
    healthy: bool
    reason: str
    version: str
    capacity_bytes: int
    capacity_known: bool
    resident_bytes: int
    reserved_bytes: int
    foreign_bytes: int
    headroom_bytes: int
    free_bytes: int
    models: int
    stored: int
    busy: int
    slots: int
    operation: str


class ModelRow(msgspec.Struct, frozen=True):
    """One name that the fleet serves."""

    model: str
    blob: str
    weights_bytes: int
    num_ctx: int
    """The canonical context."""
    contexts: list[int]
    """All in which it is served, ascending."""
    workers: int
    resident: list[str]
    """Workers that hold it ready, in whichever context."""
    waiting: int
    load_s: float
    drift: int
    """Workers that bind the name to another blob."""


def runner_rows(fleet: Fleet) -> list[RunnerRow]:
    """Every runner, by worker, the longest idle last."""
    rows = []
    for worker in fleet.state.workers.values():
        wanted_by = _wanted_by(fleet, worker)
        for runner in worker.runners.values():
            model = fleet.state.models[runner.model]
            rows.append(
                RunnerRow(
                    model=model.stored.name,
                    worker=worker.worker,
                    residency=str(runner.residency),
                    bytes=runner.bytes,
                    num_ctx=runner.num_ctx,
                    slots=runner.slots,
                    busy=len(runner.in_flight),
                    zombies=len(runner.zombies),
                    idle_s=0.0 if runner.used else max(0, fleet.now_us - runner.used_us) / 1e6,
                    pinned=fleet.model_config(model).pinned,
                    wanted_by=wanted_by if runner.residency is Residency.draining else "",
                )
            )
    return rows


def _wanted_by(fleet: Fleet, worker: Worker) -> str:
    return fleet.state.models[worker.placement.model].label if worker.placement is not None else ""


def worker_rows(fleet: Fleet, *, addresses: dict[WorkerId, str], joining: dict[WorkerId, str]) -> list[WorkerRow]:
    """Every worker, those that have not answered yet last."""
    rows = [_worker_row(fleet, worker, addresses.get(worker.worker, "")) for worker in fleet.state.workers.values()]
    for name, reason in joining.items():
        blank: dict[str, Any] = dict.fromkeys(WorkerRow.__struct_fields__, 0)
        blank |= {"worker": name, "kind": "", "address": addresses.get(name, ""), "healthy": False, "reason": reason}
        blank |= {"version": "", "operation": "joining", "capacity_known": False}
        rows.append(WorkerRow(**blank))
    return rows


def _worker_row(fleet: Fleet, worker: Worker, address: str) -> WorkerRow:
    runners = list(worker.runners.values())
    reserved = sum(runner.bytes for runner in runners if runner.residency is Residency.loading)
    operation = fleet.state.operations.get(worker.operation) if worker.operation is not None else None
    doing = ""
    if operation is not None:
        doing = f"{operation.kind} {fleet.state.models[operation.model].label}"
    elif worker.placement is not None:
        doing = f"draining for {_wanted_by(fleet, worker)}"
    return WorkerRow(
        worker=worker.worker,
        kind=str(worker.kind),
        address=address,
        healthy=worker.healthy,
        reason=worker.reason,
        version=worker.version,
        capacity_bytes=worker.capacity_bytes,
        capacity_known=worker.capacity_known,
        resident_bytes=worker.used_bytes - reserved,
        reserved_bytes=reserved,
        foreign_bytes=worker.foreign_bytes,
        headroom_bytes=worker.headroom_bytes,
        free_bytes=max(0, worker.free_bytes),
        models=len(runners),
        stored=len(worker.stored),
        busy=sum(len(runner.in_flight) for runner in runners),
        slots=sum(runner.slots for runner in runners),
        operation=doing,
    )


def model_rows(fleet: Fleet) -> list[ModelRow]:
    """Every name, alphabetically."""
    rows = []
    for name in sorted(fleet.state.votes):
        model = fleet.resolve(name)
        assert model is not None, "every name in the votes has a blob"
        family = list(fleet.family(model))
        copies = [copy for one in family for copy in fleet.copies(one)]
        resident = [w.worker for w, r in copies if r.residency is Residency.resident and w.healthy]
        votes = fleet.state.votes[name]
        rows.append(
            ModelRow(
                model=name,
                blob=model.model,
                weights_bytes=model.stored.weights_bytes,
                num_ctx=canonical_num_ctx(fleet, model),
                contexts=list(fleet.contexts(name)),
                workers=len(model.holders),
                resident=list(resident),
                waiting=sum(one.waiting for one in family),
                load_s=model.load_us / 1e6,
                drift=sum(votes.values()) - votes[model.model],
            )
        )
    return rows
