"""All eviction policies by name."""

from collections.abc import Callable

from bellmare.core.eviction.frequency import GreedyDualSize, LeastFrequentlyUsed
from bellmare.core.eviction.hazard import HazardValue
from bellmare.core.eviction.histogram import HybridHistogram
from bellmare.core.eviction.lhd import LeastHitDensity
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.eviction.recency import LeastRecentlyUsed, LeastRecentlyUsedTwice
from bellmare.core.knowledge import Experience

POLICIES: dict[str, Callable[[Experience], EvictionPolicy]] = {
    made.name: made
    for made in (
        HazardValue,
        LeastRecentlyUsed,
        LeastRecentlyUsedTwice,
        LeastFrequentlyUsed,
        GreedyDualSize,
        LeastHitDensity,
        HybridHistogram,
    )
}


def policy(name: str, experience: Experience) -> EvictionPolicy:
    """The policy of that name, going on from ``experience``; an unknown name is refused by the settings, so here it is
    our bug."""
    assert name in POLICIES, f"no eviction policy named {name}"
    return POLICIES[name](experience)
