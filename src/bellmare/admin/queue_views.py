"""Who waits: rows for the admin API and ``bellmare queue``."""

import msgspec

from bellmare.core.engine import Engine
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.state import Model, RequestPhase

ROWS_MAX = 1000
"""Rows of one answer; those that came first. A queue may be twenty times as long."""


class QueueRow(msgspec.Struct, frozen=True):
    """One waiting request."""

    request: str
    model: str
    position: int
    """1: the next for its model."""
    eta_s: float
    age_s: float
    left_s: float
    """Until its deadline."""
    tenant: str
    """A pseudonym."""
    priority: str
    kind: str
    attempts: int
    """How often a worker has failed it."""
    waits_for: str


class QueueAnswer(msgspec.Struct, frozen=True):
    """``waiting`` counts all, also those beyond ``ROWS_MAX``."""

    waiting: int
    rows: list[QueueRow]


def queue_answer(engine: Engine, now_us: int) -> QueueAnswer:
    """All that wait, in the order in which they came."""
    fleet = engine.fleet
    rows: list[QueueRow] = []
    for request_id, request in fleet.state.requests.items():
        if request.phase is not RequestPhase.waiting:
            continue
        if len(rows) == ROWS_MAX:
            break
        place = engine.position(request_id)
        assert place is not None, "it waits"
        model = fleet.state.models[request.model]
        rows.append(
            QueueRow(
                request=request_id,
                model=model.label,
                position=place[0],
                eta_s=place[1] / 1e6,
                age_s=max(0, now_us - request.arrived_us) / 1e6,
                left_s=max(0, request.deadline_us - now_us) / 1e6,
                tenant=request.tenant,
                priority=str(request.priority),
                kind=str(request.kind),
                attempts=request.attempts,
                waits_for=_waits_for(fleet, model),
            )
        )
    return QueueAnswer(waiting=fleet.state.waiting, rows=rows)


def _waits_for(fleet: Fleet, model: Model) -> str:
    ready, loading = 0, []
    for worker, runner in fleet.copies(model):
        if runner.residency is Residency.resident and worker.healthy:
            ready += 1
        elif runner.residency is Residency.loading:
            loading.append(worker.worker)
    if ready:
        return "a free slot" + (f" (also loading on {', '.join(loading)})" if loading else "")
    if loading:
        return f"its load on {', '.join(loading)}"
    if not any(fleet.state.workers[holder].healthy for holder in model.holders):
        return "a worker that stores it"
    return "room in memory" if model.placements else "a worker that may load it"
