"""Loading ahead by one who knows the future: the bound for everything that predictions and hints can bring.

Integrated prefetching and caching (Cao et al., SIGMETRICS'95): whenever a loader is idle, fetch the missing model that
is asked for next, in place of those that are asked for last, and never of one that is asked for before it ("do no
harm").
"""

from bisect import bisect_left
from typing import ClassVar

from bellmare.core.decisions import LoadCause
from bellmare.core.fleet import Fleet
from bellmare.core.placement import plan_on
from bellmare.core.prewarm import Ahead
from bellmare.core.state import Worker
from bellmare.core.units import ModelId
from bellmare.sim.belady import Belady
from bellmare.sim.workload import Workload

LOOKED_MAX = 400
"""Arrivals looked at for missing models."""
TRIED_MAX = 4
"""Missing models for which no room can be made, before it waits for the next occasion."""


class Clairvoyant(Belady):
    """Belady that does not wait for the miss."""

    name: ClassVar[str] = "clairvoyant"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._at_us = [arrival.at_us for arrival in workload.arrivals]
        self._models = [ModelId(workload.models[arrival.model].blob) for arrival in workload.arrivals]

    def ahead(self, fleet: Fleet, worker: Worker) -> Ahead | None:
        """The next missing model for which only later ones have to leave."""
        place = bisect_left(self._at_us, fleet.now_us)
        seen: dict[ModelId, None] = {}
        for model_id in self._models[place : place + LOOKED_MAX]:
            if model_id in seen:
                continue
            seen[model_id] = None
            model = fleet.state.models.get(model_id)
            if model is None or model.copies or model.placements or model.waiting:
                continue
            due_us = self.next_us(model_id, fleet.now_us)
            plan = plan_on(fleet, self, worker, model=model, drain=False)
            if plan is not None and all(self.next_us(v.model, fleet.now_us) > due_us for v in plan.victims):
                return Ahead(0.0, model, plan, LoadCause.prewarm)
            if len(seen) > TRIED_MAX + len(worker.runners):
                return None
        return None
