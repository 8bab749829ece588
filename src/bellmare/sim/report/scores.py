"""How much of the way from one policy to another each policy goes, in mean added wait, and what it saves in cold
starts. Compares means over seeds; knows nothing of how they came about.
"""

from collections.abc import Iterable, Mapping

import msgspec

from bellmare.sim.report.rows import PolicyRow

GAPS: Mapping[str, tuple[str, str]] = {
    "stock_to_belady": ("stock", "belady"),
    "lru_to_belady": ("lru", "belady"),
    "stock_to_clairvoyant": ("stock", "clairvoyant"),
}
"""Name of a score, the policy that has 0 % and the one that has 100 % (policy.md 4.2)."""
STOCK, LRU = "stock", "lru"


class Score(msgspec.Struct, frozen=True):
    """One policy over all scenarios and fleets on which both ends were run, in percent; None if there are none."""

    average: float | None
    worst: float | None
    """On the scenario and fleet where it goes the shortest way."""


class Comparison(msgspec.Struct, frozen=True):
    """All policies on one scenario and fleet, by name, in percent; None where an end was not run or there is no gap."""

    scenario: str
    fleet: str
    stock_to_belady_percent: dict[str, float | None]
    lru_to_belady_percent: dict[str, float | None]
    stock_to_clairvoyant_percent: dict[str, float | None]
    cold_starts_against_stock_percent: dict[str, float | None]
    """-42.0: so many fewer cold starts than stock Ollama has."""
    added_wait_against_lru_percent: dict[str, float | None]
    """1.0: waits are a hundredth longer than those of LRU."""

    @property
    def title(self) -> str:
        """One name for both, as in reports."""
        return f"{self.scenario} {self.fleet}"


def compare(rows: Iterable[PolicyRow]) -> list[Comparison]:
    """One for each scenario and fleet, in the order of the rows."""
    groups: dict[tuple[str, str], dict[str, PolicyRow]] = {}
    for line in rows:
        groups.setdefault((line.scenario, line.fleet), {})[line.policy] = line
    return [_compare(scenario, fleet, lines=lines) for (scenario, fleet), lines in groups.items()]


def _compare(scenario: str, fleet: str, *, lines: Mapping[str, PolicyRow]) -> Comparison:
    waits = {policy: line.added_wait_mean_s for policy, line in lines.items()}
    cold = {policy: line.cold_percent for policy, line in lines.items()}
    ways = {
        f"{name}_percent": {policy: _closed(waits.get(start), wait, waits.get(end)) for policy, wait in waits.items()}
        for name, (start, end) in GAPS.items()
    }
    return Comparison(
        scenario=scenario,
        fleet=fleet,
        cold_starts_against_stock_percent=_against(cold, STOCK),
        added_wait_against_lru_percent=_against(waits, LRU),
        **ways,
    )


def summed(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Score]]:
    """Each score of each policy: the mean over scenarios and fleets, all alike, and the lowest."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in GAPS}
    for comparison in comparisons:
        for name, policies in found.items():
            for policy, percent in getattr(comparison, f"{name}_percent").items():
                policies.setdefault(policy, []).extend([] if percent is None else [percent])
    return {
        name: {
            policy: Score(round(sum(v) / len(v), 1), min(v)) if v else Score(None, None)
            for policy, v in policies.items()
        }
        for name, policies in found.items()
    }


def _closed(start: float | None, mean: float, end: float | None) -> float | None:
    """Percent of the way from ``start`` to ``end``; beyond either end it is below 0 or above 100."""
    if start is None or end is None or start <= end:
        return None
    return round(100 * (start - mean) / (start - end), 1)


def _against(values: Mapping[str, float], base: str) -> dict[str, float | None]:
    zero = values.get(base)
    return {policy: round(100 * (value - zero) / zero, 1) if zero else None for policy, value in values.items()}
