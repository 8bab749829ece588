"""The report for people: one small table per scenario and fleet, the scores at the end."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bellmare.sim.report.document import Document
from bellmare.sim.report.rows import PolicyRow
from bellmare.sim.report.scores import Comparison, Score

NARROW = 130
"""Below so many columns the figures that matter less are left out, so that no line breaks."""


def _maybe(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


_COLUMNS: tuple[tuple[str, bool, Callable[[PolicyRow], str]], ...] = (
    ("cold\n%", True, lambda r: f"{r.cold_percent:.1f}"),
    ("wait\ns", True, lambda r: f"{r.added_wait_mean_s:.2f}"),
    ("p95\ns", True, lambda r: f"{r.added_wait_p95_s:.1f}"),
    ("p99\ns", True, lambda r: f"{r.added_wait_p99_s:.1f}"),
    ("p99.9\ns", False, lambda r: f"{r.added_wait_p999_s:.1f}"),
    ("tenant\np99 s", False, lambda r: _maybe(r.worst_tenant_p99_s, 1)),
    ("> 200\nms %", True, lambda r: f"{r.over_200ms_percent:.1f}"),
    ("loads\n/1000", True, lambda r: f"{r.loads_per_1000:.0f}"),
    ("load s\n/1000", True, lambda r: f"{r.load_seconds_per_1000:.0f}"),
    ("again\n/1000", False, lambda r: f"{r.reloads_within_60s_per_1000:.0f}"),
    ("ahead\nused %", False, lambda r: _maybe(r.prefetch_useful_percent)),
    ("CPU\nus", False, lambda r: _maybe(r.decision_cpu_us_per_request or None)),
)
"""Title, whether it is shown in a narrow table too, and the figure."""
_GAP_TITLES = {"stock_to_belady": "stock to\nBelady %", "lru_to_belady": "LRU to\nBelady %",
               "stock_to_clairvoyant": "stock to\nclairv. %"}  # fmt: skip


def tables(found: Document, width: int) -> Group:
    """All tables, for a console of ``width`` columns. Scores that no policy has are left out."""
    gaps = [name for name, scores in found.scores.items() if any(s.average is not None for s in scores.values())]
    parts: list[Table | Text] = []
    for comparison in found.by_scenario.values():
        lines = [r for r in found.rows if (r.scenario, r.fleet) == (comparison.scenario, comparison.fleet)]
        seeds = max(line.seeds for line in lines)
        parts += [_title(f"{comparison.title}: {lines[0].requests} requests in {seeds} seed(s)")]
        parts += [_scenario(comparison, lines, gaps=gaps if width >= NARROW else gaps[:1], width=width)]
        parts += [
            Text(f"* {line.policy}: {lost} not served") for line in lines if (lost := line.requests - line.served)
        ]
        parts += [Text()]
    comparisons = list(found.by_scenario.values())
    parts += [_title(f"Scores over {len(comparisons)} scenario(s) and fleet(s): average / worst")]
    parts += [_scores(found.scores, gaps if width >= NARROW else gaps[:2], comparisons=comparisons)]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(text, style="bold", no_wrap=True)


def _scenario(comparison: Comparison, lines: Sequence[PolicyRow], *, gaps: Sequence[str], width: int) -> Table:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("policy", no_wrap=True, vertical="bottom")
    columns = [(head, text) for head, always, text in _COLUMNS if always or width >= NARROW]
    for head in (*(head for head, _ in columns), *(_GAP_TITLES[gap] for gap in gaps)):
        shown.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(
            line.policy + ("" if line.served == line.requests else " *"),
            *(text(line) for _, text in columns),
            *(_maybe(getattr(comparison, f"{gap}_percent")[line.policy]) for gap in gaps),
        )
    return shown


def _scores(scores: dict[str, dict[str, Score]], gaps: Sequence[str], *, comparisons: Sequence[Comparison]) -> Table:
    """Average and worst over scenarios and fleets; cold starts against stock and the worst wait against LRU beside."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("policy", no_wrap=True, vertical="bottom")
    for head in (*(_GAP_TITLES[gap] for gap in gaps), "cold starts\nvs stock %", "wait vs LRU %\n(avg / worst)"):
        shown.add_column(head, justify="right", no_wrap=True)
    for policy in next(iter(scores.values())):
        cold = _values(comparison.cold_starts_against_stock_percent.get(policy) for comparison in comparisons)
        wait = _values(comparison.added_wait_against_lru_percent.get(policy) for comparison in comparisons)
        shown.add_row(
            policy,
            *(_pair(scores[gap][policy].average, scores[gap][policy].worst) for gap in gaps),
            f"{sum(cold) / len(cold):+.0f}" if cold else "-",
            f"{sum(wait) / len(wait):+.1f} / {max(wait):+.1f}" if wait else "-",
        )
    return shown


def _values(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _pair(average: float | None, worst: float | None) -> str:
    return "-" if average is None or worst is None else f"{average:.1f} / {worst:.1f}"
