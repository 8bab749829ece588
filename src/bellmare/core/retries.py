"""Models whose loads failed everywhere: until when nobody tries again, and who cannot wait for that."""

from bellmare.core.decisions import Refusal
from bellmare.core.fleet import Fleet
from bellmare.core.placement import barred, could_hold
from bellmare.core.queueing import reject
from bellmare.core.residency import Residency
from bellmare.core.state import Model
from bellmare.core.units import InstantUs

SERVING = (Residency.loading, Residency.resident, Residency.draining)


def earliest_retry_us(fleet: Fleet, model: Model) -> InstantUs | None:
    """When the first load back-off ends, if all workers that could hold the model are in one; else None.

    None too while a copy is there or on its way: then no load has to be tried.
    """
    if model.backoff_us <= fleet.now_us or model.placements:
        return None
    earliest: InstantUs | None = None
    for worker_id in model.holders:
        worker = fleet.state.workers[worker_id]
        if not worker.healthy:
            continue
        runner = worker.runners.get(model.model)
        if runner is not None and runner.residency in SERVING:
            return None
        if not barred(fleet, worker, model):
            if could_hold(fleet, worker, model, foreign_gone=True):
                return None
            continue
        until_us = worker.backoff[model.model][1]
        earliest = until_us if earliest is None else min(earliest, until_us)
    return earliest


def refuse_hopeless(fleet: Fleet, model: Model) -> None:
    """Tell those at once whose deadline comes before anybody will try to load their model again.

    Bounded by the queue's own bound; only while every worker that could load it is in back-off.
    """
    retry_us = earliest_retry_us(fleet, model)
    if retry_us is None:
        return
    late = [request for _, request in fleet.queues[model.model] if request.deadline_us <= retry_us]
    for request in late:
        reject(fleet, request, Refusal.load_failed, retry_us=retry_us - fleet.now_us)
