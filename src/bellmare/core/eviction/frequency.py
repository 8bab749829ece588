"""Policies that look at how often a model is used: LFU with decay, and GreedyDual-Size-Frequency."""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.demand import SPANS_S
from bellmare.core.eviction.policy import ByRecency, R, Resident, used_us
from bellmare.core.fleet import Fleet
from bellmare.core.knowledge import Experience
from bellmare.core.numeric import decay
from bellmare.core.state import Model
from bellmare.core.units import GIB, SECOND_US, ModelId

FREQUENCY_SPAN = SPANS_S.index(10_800.0)
"""Three hours: a session's models are in it, yesterday's are not."""


def frequency(fleet: Fleet, model: ModelId) -> float:
    """Decayed number of requests for the model."""
    demand = fleet.state.models[model].demand
    if not demand.counters:
        return 0.0
    age_s = (fleet.now_us - demand.last_us) / SECOND_US
    return demand.counters[FREQUENCY_SPAN] * decay(age_s / SPANS_S[FREQUENCY_SPAN])


class LeastFrequentlyUsed(ByRecency):
    """LFU whose counts halve every two hours; equal counts go by recency."""

    name: ClassVar[str] = "lfu"

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        return sorted(
            candidates,
            key=lambda resident: (
                frequency(fleet, resident.model) if used_us(fleet, resident) else 0.0,
                resident.used_us,
                resident.model,
            ),
        )


class GreedyDualSize(ByRecency):
    """GDSF (Cherkasova'98; FaasCache, ASPLOS'21): priority = inflation + uses x load seconds per GiB, set at each use.

    Inflation is the priority of the last victim, so that what is not used any more sinks below everybody else.
    """

    name: ClassVar[str] = "gdsf"

    def __init__(self, experience: Experience) -> None:
        super().__init__(experience)
        self._experience = experience

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None:
        weights = max(1, model.stored.weights_bytes)
        seconds = (model.load_us or SECOND_US + weights // 2000) / SECOND_US
        value = frequency(fleet, model.model) * seconds / (weights / GIB)
        self._experience.priority[model.model] = self._experience.inflation + value

    def left(self, fleet: Fleet, resident: Resident) -> None:
        priority = self._experience.priority.pop(resident.model, 0.0)
        self._experience.inflation = max(self._experience.inflation, priority)

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        priority = self._experience.priority
        return sorted(
            candidates,
            key=lambda resident: (
                priority.get(resident.model, 0.0) if used_us(fleet, resident) else 0.0,
                resident.used_us,
                resident.model,
            ),
        )
