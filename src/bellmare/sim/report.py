"""What a run amounts to: one row of figures, scores against the baselines, and how both are shown."""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from rich.table import Table

from bellmare.core.units import SECOND_US
from bellmare.sim.fleet import SimFleet
from bellmare.sim.runs import Policy, Run

SLOW_US = 200_000
"""A wait above 200 ms is one that people notice (policy.md 7)."""


class Row(msgspec.Struct, frozen=True):
    """Figures of one run. Waits are those of served requests: start of service minus arrival."""

    scenario: str
    fleet: str
    policy: str
    seed: int
    requests: int
    served: int
    refused: int
    """Ended without an answer."""
    unfinished: int
    """Waiting for ever: stock Ollama's stall."""
    cold_percent: float
    """Of all requests: no runner was ready on arrival (behind a balancer: on the worker that it chose)."""
    wait_mean_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_p999_s: float
    wait_over_200ms_percent: float
    loads_per_1000: float
    load_seconds_per_1000: float
    reloads_within_60s_per_1000: float
    evictions_per_1000: float
    decision_cpu_us_per_request: float
    requests_per_wall_s: float
    digest: str
    """Equal for two runs only if every request and every load went alike."""


class Score(msgspec.Struct, frozen=True):
    """How much of a gap in mean wait one policy closes, averaged over seeds; None if an end of the gap was not run."""

    scenario: str
    fleet: str
    policy: str
    stock_to_belady_percent: float | None
    lru_to_belady_percent: float | None


def row(scenario: str, fleet: SimFleet, policy: Policy, *, run: Run) -> Row:
    """The figures of one run."""
    tally, count = run.tally, len(run.tally.workload.arrivals)
    waits_us = tally.waits_us()
    refused = sum(tally.refused.values())
    per_1000 = 1000 / count
    return Row(
        scenario=scenario,
        fleet=fleet.text,
        policy=str(policy),
        seed=tally.workload.seed,
        requests=count,
        served=len(waits_us),
        refused=refused,
        unfinished=count - len(waits_us) - refused,
        cold_percent=_rounded(100 * sum(tally.cold) / count),
        wait_mean_s=_rounded(sum(waits_us) / max(1, len(waits_us)) / SECOND_US),
        wait_p95_s=percentile_s(waits_us, 950),
        wait_p99_s=percentile_s(waits_us, 990),
        wait_p999_s=percentile_s(waits_us, 999),
        wait_over_200ms_percent=_rounded(100 * sum(wait > SLOW_US for wait in waits_us) / max(1, len(waits_us))),
        loads_per_1000=_rounded(tally.loads * per_1000),
        load_seconds_per_1000=_rounded(tally.load_us / SECOND_US * per_1000),
        reloads_within_60s_per_1000=_rounded(tally.reloads_within_60s * per_1000),
        evictions_per_1000=_rounded(tally.evictions * per_1000),
        decision_cpu_us_per_request=round(run.decision_cpu_us_per_request, 1),
        requests_per_wall_s=round(count / run.wall_s, 1) if run.wall_s else 0.0,
        digest=tally.digest(),
    )


def percentile_s(sorted_us: Sequence[int], per_mille: int) -> float:
    """The smallest wait that ``per_mille`` of all do not exceed, in seconds; 0 for none (nearest rank)."""
    if not sorted_us:
        return 0.0
    rank = -(-len(sorted_us) * per_mille // 1000)
    return _rounded(sorted_us[max(0, rank - 1)] / SECOND_US)


def _rounded(value: float) -> float:
    return round(value, 3)


def scores(rows: Iterable[Row]) -> list[Score]:
    """One for each policy of each scenario and fleet, in the order of the rows."""
    waits: dict[tuple[str, str], dict[str, list[float]]] = {}
    for line in rows:
        waits.setdefault((line.scenario, line.fleet), {}).setdefault(line.policy, []).append(line.wait_mean_s)
    found = []
    for (scenario, fleet), policies in waits.items():
        means = {policy: sum(values) / len(values) for policy, values in policies.items()}
        for policy, mean in means.items():
            closed = [_closed(means.get(start), mean, means.get(Policy.belady)) for start in (Policy.stock, Policy.lru)]
            found.append(Score(scenario, fleet, policy, closed[0], closed[1]))
    return found


def _closed(start: float | None, mean: float, end: float | None) -> float | None:
    """Percent of the way from ``start`` to ``end``; beyond either end it is below 0 or above 100."""
    if start is None or end is None or start <= end:
        return None
    return round(100 * (start - mean) / (start - end), 1)


def averaged(rows: Iterable[Row]) -> list[Row]:
    """Rows of equal scenario, fleet and policy as one; the seed is 0 and the digest empty where there were several."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for line in rows:
        groups.setdefault((line.scenario, line.fleet, line.policy), []).append(line)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _mean(group: list[Row]) -> Row:
    means = {
        name: round(sum(getattr(line, name) for line in group) / len(group), 3)
        for name, value in msgspec.structs.asdict(group[0]).items()
        if isinstance(value, float)
    }
    totals = {
        name: sum(getattr(line, name) for line in group) for name in ("requests", "served", "refused", "unfinished")
    }
    return msgspec.structs.replace(group[0], seed=0, digest="", **means, **totals)


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("cold %", lambda r: f"{r.cold_percent:.1f}"),
    ("wait s", lambda r: f"{r.wait_mean_s:.2f}"),
    ("p95 s", lambda r: f"{r.wait_p95_s:.1f}"),
    ("p99 s", lambda r: f"{r.wait_p99_s:.1f}"),
    ("p99.9 s", lambda r: f"{r.wait_p999_s:.1f}"),
    ("> 200 ms %", lambda r: f"{r.wait_over_200ms_percent:.1f}"),
    ("loads /1000", lambda r: f"{r.loads_per_1000:.0f}"),
    ("load s /1000", lambda r: f"{r.load_seconds_per_1000:.0f}"),
    ("again < 60 s /1000", lambda r: f"{r.reloads_within_60s_per_1000:.0f}"),
    ("CPU us", lambda r: f"{r.decision_cpu_us_per_request:.0f}" if r.decision_cpu_us_per_request else "-"),
)  # fmt: skip


def table(rows: Sequence[Row]) -> Table:
    """For people: one line per scenario, fleet and policy, means over the seeds, scores at the end."""
    shown = Table(box=None, pad_edge=False)
    for title in ("scenario", "fleet", "policy"):
        shown.add_column(title, no_wrap=True)
    for title, _ in _COLUMNS:
        shown.add_column(title, justify="right")
    shown.add_column("stock>Belady %", justify="right")
    shown.add_column("LRU>Belady %", justify="right")
    closed = {(score.scenario, score.fleet, score.policy): score for score in scores(rows)}
    place = ("", "")
    for line in averaged(rows):
        score = closed[(line.scenario, line.fleet, line.policy)]
        here = (line.scenario, line.fleet)
        shown.add_row(
            *(("", "") if here == place else here),
            line.policy + (f" ({line.refused + line.unfinished} not served)" if line.served < line.requests else ""),
            *(text(line) for _, text in _COLUMNS),
            *("-" if v is None else f"{v:.0f}" for v in (score.stock_to_belady_percent, score.lru_to_belady_percent)),
        )
        place = here
    return shown


def json_lines(rows: Sequence[Row]) -> str:
    """One document: a row per run and a score per policy, units in the names."""
    return msgspec.json.encode({"rows": rows, "scores": scores(rows)}).decode()
