"""Policies that look at when a model was used: LRU and LRU-2."""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core.eviction.policy import ByRecency, R, used_us
from bellmare.core.fleet import Fleet

NEVER = -1
"""The last but one use of what was used once, or released since."""


class LeastRecentlyUsed(ByRecency):
    """The classic: the runner used longest ago leaves first. Released models count as never used."""

    name: ClassVar[str] = "lru"

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        return sorted(candidates, key=lambda resident: (used_us(fleet, resident), resident.model))


class LeastRecentlyUsedTwice(ByRecency):
    """LRU-2 (O'Neil, SIGMOD'93): whose last but one use is longest ago leaves first; used only once, before all."""

    name: ClassVar[str] = "lru2"

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        def key(resident: R) -> tuple[int, int, str]:
            used = used_us(fleet, resident)
            before_us = fleet.state.models[resident.model].demand.before_us
            return (min(before_us, used) if used else NEVER, used, resident.model)

        return sorted(candidates, key=key)
