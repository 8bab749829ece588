"""Which idle runners should leave first. A policy only ranks: whether anybody leaves is decided elsewhere."""

from collections.abc import Sequence
from typing import Protocol

from bellmare.core.fleet import Fleet
from bellmare.core.state import Runner
from bellmare.core.units import InstantUs


class EvictionPolicy(Protocol):
    """One way to value residents. Pure: the same state gives the same order."""

    name: str

    def rank(self, fleet: Fleet, candidates: Sequence[Runner]) -> list[Runner]:
        """``candidates`` by rising value: the first leaves first. Ties go by model id."""

    def loss(self, fleet: Fleet, victims: Sequence[Runner]) -> float:
        """What losing all of ``victims`` costs, comparable between workers; 0.0 for none."""


class LeastRecentlyUsed:
    """The classic: the runner used longest ago leaves first. Released models count as never used."""

    name = "lru"

    def rank(self, fleet: Fleet, candidates: Sequence[Runner]) -> list[Runner]:
        return sorted(candidates, key=lambda runner: (self._used_us(fleet, runner), runner.model))

    def loss(self, fleet: Fleet, victims: Sequence[Runner]) -> float:
        """Seconds of recency: a victim used a second ago weighs more than one used an hour ago."""
        total = 0.0
        for runner in victims:
            age_us = max(0, fleet.now_us - self._used_us(fleet, runner))
            total += runner.load_us / (age_us + 1_000_000)
        return total

    @staticmethod
    def _used_us(fleet: Fleet, runner: Runner) -> InstantUs:
        released_us = fleet.state.models[runner.model].released_us
        return InstantUs(0) if released_us >= runner.used_us else runner.used_us


POLICIES: dict[str, type[EvictionPolicy]] = {LeastRecentlyUsed.name: LeastRecentlyUsed}


def policy(name: str) -> EvictionPolicy:
    """The policy of that name; an unknown one is refused by the settings, so here it is our bug."""
    assert name in POLICIES, f"no eviction policy named {name}"
    return POLICIES[name]()
