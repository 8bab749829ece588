"""Least hit density (LHD, NSDI'18): who brings the fewest hits for the memory-time that he will still take.

Hits and ends of life are counted by age (octaves) and by how often the model was used before; the expected hits over
the expected remaining life, per byte, is the density. Statistics are shared between models of one class, because a few
thousand events a day are not enough for each model by itself.
"""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.demand import SPANS_S
from bellmare.core.eviction.policy import ByRecency, R, Resident, used_us
from bellmare.core.fleet import Fleet
from bellmare.core.knowledge import Experience
from bellmare.core.state import Model
from bellmare.core.units import SECOND_US, ModelId

AGES = 24
"""Octaves of seconds: the last holds everything above 97 days."""
CLASSES = 5
"""By decayed uses of the last three hours: below 1.5, 3, 6, 12, and more."""
CLASS_SPAN = SPANS_S.index(10_800.0)
RECOUNT_EVERY = 64
FADE = 0.98
"""Counts fade at each recount: some 3,000 events are remembered."""
BELIEF = 0.5
"""Each age begins with so many hits and ends: an empty class is nobody's favourite."""


class LeastHitDensity(ByRecency):
    """LHD with classes of frequency."""

    name: ClassVar[str] = "lhd"

    def __init__(self, experience: Experience) -> None:
        super().__init__(experience)
        self._experience = experience
        if not experience.hits:
            experience.hits = [[BELIEF / (1 + age) for age in range(AGES)] for _ in range(CLASSES)]
            experience.ends = [[BELIEF for _ in range(AGES)] for _ in range(CLASSES)]
            self._recount()

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None:
        demand = model.demand
        if demand.before_us >= 0 and held:
            gap_us = demand.last_us - demand.before_us
            self._experience.hits[_class_of(demand.counters[CLASS_SPAN] - 1.0)][_octave(gap_us)] += 1.0
            self._tick()

    def left(self, fleet: Fleet, resident: Resident) -> None:
        demand = fleet.state.models[resident.model].demand
        if demand.last_us >= 0:
            self._experience.ends[self._class(fleet, resident.model)][_octave(fleet.now_us - demand.last_us)] += 1.0
            self._tick()

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        return sorted(
            candidates,
            key=lambda resident: (
                self._density(fleet, resident) if used_us(fleet, resident) else 0.0,
                resident.used_us,
                resident.model,
            ),
        )

    def _density(self, fleet: Fleet, resident: Resident) -> float:
        """Hits per second of memory, times what a hit saves, per byte."""
        demand = fleet.state.models[resident.model].demand
        age = _octave(fleet.now_us - demand.last_us) if demand.last_us >= 0 else AGES - 1
        hits = self._experience.density[self._class(fleet, resident.model)][age]
        return hits * resident.load_us / max(1, resident.bytes)

    def _class(self, fleet: Fleet, model: ModelId) -> int:
        demand = fleet.state.models[model].demand
        return _class_of(demand.counters[CLASS_SPAN] if demand.counters else 0.0)

    def _tick(self) -> None:
        self._experience.events += 1
        if self._experience.events % RECOUNT_EVERY == 0:
            self._recount()

    def _recount(self) -> None:
        """Density by class and age: from the far end, hits still to come over the time until hit or end."""
        experience = self._experience
        experience.density = []
        for hits, ends in zip(experience.hits, experience.ends, strict=True):
            density = [0.0] * AGES
            hits_left, lives_left, time_left = 0.0, 0.0, 0.0
            for age in range(AGES - 1, -1, -1):
                width_s = float(1 << max(0, age - 1))
                lives = hits[age] + ends[age]
                time_left += lives_left * width_s + lives * width_s / 2
                hits_left += hits[age]
                lives_left += lives
                density[age] = hits_left / max(1e-9, time_left)
            experience.density.append(density)
            for age in range(AGES):
                hits[age] *= FADE
                ends[age] *= FADE


def _octave(span_us: int) -> int:
    return min(AGES - 1, (span_us // SECOND_US).bit_length())


def _class_of(uses: float) -> int:
    for number, bound in enumerate((1.5, 3.0, 6.0, 12.0)):
        if uses < bound:
            return number
    return CLASSES - 1
