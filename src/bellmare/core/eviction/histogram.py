"""The hybrid histogram of "Serverless in the Wild" (ATC'20), as an order of eviction.

Each model has a histogram of its idle times. One that has been idle longer than its 99th percentile is not expected any
more and leaves first; before its 5th percentile it is not expected yet, and leaves next. Otherwise by recency.
"""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.eviction.policy import ByRecency, R, used_us
from bellmare.core.fleet import Fleet
from bellmare.core.knowledge import Experience
from bellmare.core.state import Model
from bellmare.core.units import SECOND_US, ModelId

BIN_US = 60 * SECOND_US
BINS = 240
"""Four hours in minutes, as in the paper; longer idle times fall into the last bin."""
SEEN_MIN = 10
"""Idle times before a histogram is believed."""
EARLY_PERCENT, LATE_PERCENT = 5, 99


class HybridHistogram(ByRecency):
    """Expected models stay; among the expected, as LRU."""

    name: ClassVar[str] = "histogram"

    def __init__(self, experience: Experience) -> None:
        super().__init__(experience)
        self._histograms = experience.histogram

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None:
        demand = model.demand
        if demand.before_us < 0:
            return
        histogram = self._histograms.setdefault(model.model, [0] * BINS)
        histogram[min(BINS - 1, (demand.last_us - demand.before_us) // BIN_US)] += 1

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        return sorted(
            candidates,
            key=lambda resident: (
                self._expected(fleet, resident.model) if used_us(fleet, resident) else 0,
                used_us(fleet, resident),
                resident.model,
            ),
        )

    def _expected(self, fleet: Fleet, model: ModelId) -> int:
        """0: no more; 1: not yet; 2: now, or nobody knows."""
        histogram = self._histograms.get(model)
        if histogram is None:
            return 2
        seen = sum(histogram)
        if seen < SEEN_MIN:
            return 2
        now_bin = (fleet.now_us - fleet.state.models[model].demand.last_us) // BIN_US
        before = 100 * sum(histogram[: min(BINS, now_bin)])
        if before >= LATE_PERCENT * seen:
            return 0
        through = 100 * sum(histogram[: min(BINS, now_bin + 1)])
        return 1 if through < EARLY_PERCENT * seen and now_bin > 0 else 2
