"""Policies that look at when a model was used: LRU and LRU-2."""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.eviction.policy import ByRecency, R, used_us
from bellmare.core.fleet import Fleet


class LeastRecentlyUsed(ByRecency):
    """The classic: the runner used longest ago leaves first. Released models count as never used."""

    name: ClassVar[str] = "lru"

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        return sorted(candidates, key=lambda resident: (used_us(fleet, resident), resident.model))


class LeastRecentlyUsedTwice(ByRecency):
    """LRU-2 (O'Neil, SIGMOD'93): whose last but one use is longest ago leaves first; used only once, before all."""

    name: ClassVar[str] = "lru2"

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        models = fleet.state.models
        return sorted(
            candidates,
            key=lambda resident: (
                min(models[resident.model].demand.before_us, used_us(fleet, resident)),
                used_us(fleet, resident),
                resident.model,
            ),
        )
