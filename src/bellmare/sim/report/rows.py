"""The figures of one run, and their means over the seeds of one policy on one scenario and fleet."""

from collections.abc import Iterable, Sequence

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.fleet import SimFleet
from bellmare.sim.runs import Policy, Run
from bellmare.sim.tally import Tally

SLOW_US = 200_000
"""A wait above 200 ms is one that people notice (policy.md 7)."""
TENANT_REQUESTS_MIN = 20
"""The worst tenant is looked for among those with so many requests served: of fewer, the 99th percentile is one unlucky
wait, and the worst of all tenants would be the worst request."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Waits are those of served requests: start of service minus arrival. Shares are of all requests."""

    scenario: str
    fleet: str
    policy: str
    requests: int
    cold_percent: float
    """No runner was ready on arrival (behind a balancer: on the worker that it chose)."""
    added_wait_mean_s: float
    added_wait_p95_s: float
    added_wait_p99_s: float
    added_wait_p999_s: float
    over_200ms_percent: float
    """Of served requests."""
    loads_per_1000: float
    load_seconds_per_1000: float
    prefetch_useful_percent: float | None
    """Of the loads begun ahead of demand, those whose runner served a request before it left; None: there were none."""
    reloads_within_60s_per_1000: float
    evictions_per_1000: float
    decision_cpu_us_per_request: float
    worst_tenant_p99_s: float | None
    """None: no tenant has ``TENANT_REQUESTS_MIN`` requests."""
    served: int
    refused: int
    """Ended without an answer."""
    unfinished: int
    """Waiting for ever: stock Ollama's stall."""


class RunRow(Figures, frozen=True, kw_only=True):
    """One run."""

    seed: int
    prefetches_per_1000: float
    requests_per_wall_s: float
    """Speed of the simulation itself, on this machine at this moment."""
    digest: str
    """Equal for two runs only if every request and every load went alike."""


class PolicyRow(Figures, frozen=True, kw_only=True):
    """One policy on one scenario and fleet. Counts are totals over the seeds; all else, percentiles too, is the mean of
    the seeds' figures, each seed alike.
    """

    seeds: int
    prefetches_per_1000: float
    requests_per_wall_s: float
    digests: list[str]


def row(scenario: str, fleet: SimFleet, policy: Policy, *, run: Run) -> RunRow:
    """The figures of one run."""
    tally, count = run.tally, len(run.tally.workload.arrivals)
    waits_us = tally.waits_us()
    refused = sum(tally.refused.values())
    per_1000 = 1000 / count
    return RunRow(
        scenario=scenario,
        fleet=fleet.text,
        policy=str(policy),
        seed=tally.workload.seed,
        requests=count,
        served=len(waits_us),
        refused=refused,
        unfinished=count - len(waits_us) - refused,
        cold_percent=_rounded(100 * sum(tally.cold) / count),
        added_wait_mean_s=_rounded(sum(waits_us) / max(1, len(waits_us)) / SECOND_US),
        added_wait_p95_s=percentile_s(waits_us, 950),
        added_wait_p99_s=percentile_s(waits_us, 990),
        added_wait_p999_s=percentile_s(waits_us, 999),
        over_200ms_percent=_rounded(100 * sum(wait > SLOW_US for wait in waits_us) / max(1, len(waits_us))),
        loads_per_1000=_rounded(tally.loads * per_1000),
        load_seconds_per_1000=_rounded(tally.load_us / SECOND_US * per_1000),
        prefetch_useful_percent=_rounded(100 * tally.prefetches_used / tally.prefetches) if tally.prefetches else None,
        prefetches_per_1000=_rounded(tally.prefetches * per_1000),
        reloads_within_60s_per_1000=_rounded(tally.reloads_within_60s * per_1000),
        evictions_per_1000=_rounded(tally.evictions * per_1000),
        decision_cpu_us_per_request=round(run.decision_cpu_us_per_request, 1),
        worst_tenant_p99_s=_worst_tenant_p99_s(tally),
        requests_per_wall_s=round(count / run.wall_s, 1) if run.wall_s else 0.0,
        digest=tally.digest(),
    )


def percentile_s(sorted_us: Sequence[int], per_mille: int) -> float:
    """The smallest wait that ``per_mille`` of all do not exceed, in seconds; 0 for none (nearest rank)."""
    if not sorted_us:
        return 0.0
    rank = -(-len(sorted_us) * per_mille // 1000)
    return _rounded(sorted_us[max(0, rank - 1)] / SECOND_US)


def _worst_tenant_p99_s(tally: Tally) -> float | None:
    tails = (
        percentile_s(waits_us, 990)
        for waits_us in tally.waits_by_user_us().values()
        if len(waits_us) >= TENANT_REQUESTS_MIN
    )
    return max(tails, default=None)


def _rounded(value: float) -> float:
    return round(value, 4)


_COUNTS = ("requests", "served", "refused", "unfinished")
_MAYBE = ("prefetch_useful_percent", "worst_tenant_p99_s")
_NAMES = ("scenario", "fleet", "policy")
_MEANS = tuple(
    name
    for name in (*Figures.__struct_fields__, "prefetches_per_1000", "requests_per_wall_s")
    if name not in (*_COUNTS, *_MAYBE, *_NAMES)
)


def averaged(rows: Iterable[RunRow]) -> list[PolicyRow]:
    """Runs of equal scenario, fleet and policy as one, in the order of their first. What is None in some seeds is the
    mean of the others.
    """
    groups: dict[tuple[str, str, str], list[RunRow]] = {}
    for line in rows:
        groups.setdefault((line.scenario, line.fleet, line.policy), []).append(line)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[RunRow]) -> PolicyRow:
    found: dict[str, object] = {name: getattr(group[0], name) for name in _NAMES}
    found |= {name: sum(getattr(line, name) for line in group) for name in _COUNTS}
    for name in (*_MEANS, *_MAYBE):
        values = [value for line in group if (value := getattr(line, name)) is not None]
        found[name] = _rounded(sum(values) / len(values)) if values else None
    return PolicyRow(seeds=len(group), digests=[line.digest for line in group], **found)  # type: ignore[arg-type]
