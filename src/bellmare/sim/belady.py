"""Demand eviction by one who knows the future (Belady): the bound for every policy in the same world.

Plugs in where every policy does, ``core.eviction.EvictionPolicy``; it knows what comes because it was given the list.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.eviction.policy import R, Resident
from bellmare.core.fleet import Fleet
from bellmare.core.prewarm import Ahead
from bellmare.core.state import Model, Worker
from bellmare.core.units import SECOND_US, ModelId
from bellmare.sim.workload import Workload

NEVER_US = 1 << 62


class Belady:
    """The runner whose model is asked for last leaves first; never again before all others, larger ones before smaller.

    Not optimal where sizes differ (that is NP-hard): within about a quarter of the linear program's bound (policy.md
    4.4).
    """

    name: ClassVar[str] = "belady"
    prices: ClassVar[bool] = False

    def __init__(self, workload: Workload) -> None:
        self._arrivals: dict[ModelId, list[int]] = {ModelId(model.blob): [] for model in workload.models}
        by_number = list(self._arrivals.values())
        for arrival in workload.arrivals:
            by_number[arrival.model].append(arrival.at_us)

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None: ...

    def left(self, fleet: Fleet, resident: Resident) -> None: ...

    def ahead(self, fleet: Fleet, worker: Worker) -> Ahead | None:
        return None

    def soon(self, fleet: Fleet, model: ModelId, tau_s: float) -> float:
        return 0.0

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        now_us = fleet.now_us
        return sorted(candidates, key=lambda r: (-self.next_us(r.model, now_us), -r.bytes, r.model))

    def loss(self, fleet: Fleet, victims: Sequence[Resident]) -> float:
        """Load spans over the spans until they are due: nothing for a model that is not asked for again."""
        total = 0.0
        for runner in victims:
            next_us = self.next_us(runner.model, fleet.now_us)
            if next_us != NEVER_US:
                total += runner.load_us / (next_us - fleet.now_us + SECOND_US)
        return total

    def next_us(self, model: ModelId, now_us: int) -> int:
        """When the model is asked for next, from this very instant on."""
        arrivals = self._arrivals[model]
        place = bisect_left(arrivals, now_us)
        return arrivals[place] if place < len(arrivals) else NEVER_US
