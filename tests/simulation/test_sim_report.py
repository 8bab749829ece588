"""Figures of runs, means over seeds, scores between policies, and the three ways in which they are shown."""

import ast
import io
import json
import re
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bellmare import sim
from bellmare.sim.fleet import read_fleet
from bellmare.sim.jobs import Job, Outcome, do
from bellmare.sim.report.document import Document, document
from bellmare.sim.report.page import page
from bellmare.sim.report.rows import TENANT_REQUESTS_MIN, RunRow, averaged, percentile_s, row
from bellmare.sim.report.scores import GAPS, compare, summed
from bellmare.sim.report.series import BUCKETS, THRESHOLDS_S, pooled, series
from bellmare.sim.report.tables import NARROW, tables
from bellmare.sim.runs import Policy, Run
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Arrival, SimModel, Workload

SECOND = 1_000_000


def tally_of(waits_s: list[float], users: list[int] | None = None) -> Tally:
    """Requests that waited so long; every second was cold; one with a negative wait was refused."""
    arrivals = tuple(Arrival(SECOND, 0, SECOND, users[i] if users else 0) for i in range(len(waits_s)))
    tally = Tally(Workload("w", 7, (SimModel("a", "0" * 64, 1),), arrivals))
    for number, wait_s in enumerate(waits_s):
        tally.arrived(number, cold=number % 2 == 0)
        if wait_s < 0:
            tally.refuse(number, SECOND, reason="queue_full")
            continue
        tally.started(number, int((1 + wait_s) * SECOND))
        tally.ended(number, int((2 + wait_s) * SECOND))
    return tally


def figures(waits_s: list[float], policy: str = "lru", scenario: str = "S") -> RunRow:
    found = row(scenario, read_fleet("1x24GB"), Policy.lru, run=Run(tally_of(waits_s), 2.0, 12.34))
    return msgspec.structs.replace(found, policy=policy)


def shown(found: Document, width: int = 150) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    out.print(tables(found, width))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_figures_are_of_served_requests_and_shares_of_all() -> None:
    found = figures([0.0, 0.2, 0.201, 4.0, -1])
    assert (found.requests, found.served, found.refused, found.unfinished) == (5, 4, 1, 0)
    assert found.cold_percent == 60.0 and found.over_200ms_percent == 50.0
    assert found.added_wait_mean_s == pytest.approx(1.1, abs=0.001) and found.added_wait_p99_s == 4.0
    assert found.requests_per_wall_s == 2.5 and found.decision_cpu_us_per_request == 12.3


def test_percentiles_are_nearest_ranks() -> None:
    waits_us = [number * SECOND for number in range(1, 1001)]
    assert [percentile_s(waits_us, share) for share in (950, 990, 999, 1000)] == [950, 990, 999, 1000]
    assert percentile_s([SECOND], 950) == 1.0 and percentile_s([], 999) == 0.0


def test_the_worst_tenant_is_one_with_enough_requests() -> None:
    few = TENANT_REQUESTS_MIN - 1
    tally = tally_of([90.0] * few + [3.0] * 30 + [5.0] * 25, users=[1] * few + [2] * 30 + [3] * 25)
    found = row("S", read_fleet("1x24GB"), Policy.lru, run=Run(tally, 1.0, 0.0))
    assert found.worst_tenant_p99_s == 5.0
    assert figures([1.0]).worst_tenant_p99_s is None


def test_usefulness_is_of_what_was_loaded_ahead_and_nothing_where_nothing_was() -> None:
    tally = tally_of([0.0])
    for _ in range(4):
        tally.prefetch_began()
    tally.prefetch_used()
    found = row("S", read_fleet("1x24GB"), Policy.lru, run=Run(tally, 1.0, 0.0))
    assert found.prefetch_useful_percent == 25.0 and found.prefetches_per_1000 == 4000.0
    assert figures([0.0]).prefetch_useful_percent is None
    mean = averaged([found, figures([0.0])])[0]
    assert mean.prefetch_useful_percent == 25.0, "a seed without any says nothing"


def test_seeds_are_averaged_and_counts_summed() -> None:
    one, two = figures([1.0, 1.0]), msgspec.structs.replace(figures([2.0, 2.0, 2.0]), seed=8)
    (mean,) = averaged([one, two])
    assert mean.added_wait_mean_s == mean.added_wait_p99_s == 1.5
    assert (mean.requests, mean.seeds, mean.digests) == (5, 2, [one.digest, two.digest])


def test_scores_say_how_much_of_a_gap_is_closed() -> None:
    waits = {"stock": 5.0, "lru": 2.0, "clairvoyant": 0.0, "belady": 1.0}
    (found,) = compare(averaged([figures([wait], policy) for policy, wait in waits.items()]))
    assert found.stock_to_belady_percent == {"stock": 0.0, "lru": 75.0, "clairvoyant": 125.0, "belady": 100.0}
    assert found.lru_to_belady_percent["stock"] == -300.0 and found.lru_to_belady_percent["lru"] == 0.0
    assert found.stock_to_clairvoyant_percent["belady"] == 80.0
    assert found.added_wait_against_lru_percent["stock"] == 150.0


def test_a_gap_without_both_ends_has_no_score() -> None:
    (found,) = compare(averaged([figures([2.0], "lru"), figures([2.0], "belady")]))
    assert set(found.stock_to_belady_percent.values()) == {None}
    assert set(found.lru_to_belady_percent.values()) == {None}, "both ends are one"


def test_cold_starts_are_compared_with_those_of_stock() -> None:
    (found,) = compare(averaged([figures([1.0, 1.0, 1.0], "stock"), figures([1.0, 1.0], "lru")]))
    assert found.cold_starts_against_stock_percent == {"stock": 0.0, "lru": -25.0}


def test_an_average_is_over_the_scenarios_that_have_a_score_and_the_worst_is_the_lowest() -> None:
    rows = [
        figures([wait], policy, scenario)
        for scenario, waits in (("A", (3.0, 1.0, 2.0)), ("B", (3.0, 1.0, 1.5)), ("C", (3.0, 3.0, 3.0)))
        for policy, wait in zip(("stock", "belady", "lru"), waits, strict=True)
    ]
    scores = summed(compare(averaged(rows)))
    assert (scores["stock_to_belady"]["lru"].average, scores["stock_to_belady"]["lru"].worst) == (62.5, 50.0)
    assert scores["stock_to_clairvoyant"]["lru"].average is None
    assert set(scores) == set(GAPS)


def test_the_document_has_what_programs_rely_on() -> None:
    rows = [figures([2.0, 0.0], policy) for policy in ("stock", "lru", "belady") for _ in (1, 2)]
    found = json.loads(msgspec.json.encode(document(rows, "bellmare simulate")))
    assert set(found) == {"rows", "runs", "scores", "by_scenario", "command", "versions"}
    assert [line["policy"] for line in found["rows"]] == ["stock", "lru", "belady"] and len(found["runs"]) == 6
    assert set(found["scores"]) == {"stock_to_belady", "lru_to_belady", "stock_to_clairvoyant"}
    assert found["scores"]["stock_to_belady"]["lru"] == {"average": None, "worst": None}
    assert set(found["by_scenario"]) == {"S 1x24GB"}
    promised = (
        "scenario fleet policy seeds requests cold_percent added_wait_mean_s added_wait_p95_s added_wait_p99_s"
        " added_wait_p999_s over_200ms_percent loads_per_1000 load_seconds_per_1000 prefetch_useful_percent"
        " reloads_within_60s_per_1000 evictions_per_1000 decision_cpu_us_per_request worst_tenant_p99_s served refused"
        " unfinished digests"
    )
    assert set(promised.split()) <= set(found["rows"][0])
    units = ("_s", "_percent", "_per_1000", "_us_per_request", "_per_wall_s")
    assert all(name.endswith(units) for name, value in found["rows"][0].items() if isinstance(value, float))


def test_tables_fit_their_width_and_leave_figures_out_rather_than_break_lines() -> None:
    rows = [figures([wait], policy) for policy, wait in (("stock", 5.0), ("belady", 1.0), ("clairvoyant", 0.0))]
    rows.append(figures([2.0, -1.0], "lru"))
    found = document(rows, "")
    wide, narrow = shown(found), shown(found, 80)
    assert any("p99.9" in line for line in wide) and not any("p99.9" in line for line in narrow)
    assert max(len(line.rstrip()) for line in wide) <= NARROW and max(len(line.rstrip()) for line in narrow) <= 80
    assert len(wide) == len(narrow), "no line is broken"
    assert "* lru: 1 not served" in [line.rstrip() for line in narrow]


# ---- charts ---------------------------------------------------------------------------------------------------------


def test_a_series_counts_every_arrival_and_every_wait_once() -> None:
    arrivals = tuple(Arrival(SECOND + i * SECOND, 0, SECOND, 0) for i in range(120))
    tally = Tally(Workload("w", 1, (SimModel("a", "0" * 64, 1),), arrivals))
    for number, arrival in enumerate(arrivals):
        tally.arrived(number, cold=number < 2)
        tally.started(number, arrival.at_us + (20 * SECOND if number < 30 else 0))
        tally.ended(number, arrival.at_us + 30 * SECOND)
    found = series(tally)
    assert len(found.requests) == BUCKETS and sum(found.requests) == 120 and set(found.requests) == {2}
    assert found.cold == [2] + [0] * (BUCKETS - 1)
    assert found.within_percent[0] == 75.0 and found.within_percent[-1] == 100.0
    assert found.within_percent == sorted(found.within_percent) and len(found.within_percent) == len(THRESHOLDS_S)
    other = msgspec.structs.replace(found, within_percent=[25.0] * len(THRESHOLDS_S))
    assert pooled([found, other])[0] == 50.0


@pytest.mark.slow
def test_a_page_holds_all_it_needs_and_stays_small() -> None:
    outcomes = [
        do(Job("S7", "", "1x24GB", policy, 1, charts=True, timeline=policy is Policy.lru))
        for policy in (Policy.stock, Policy.lru, Policy.belady)
    ]
    text = page(document([outcome.row for outcome in outcomes], "bellmare </script>"), outcomes)
    assert len(text) < 3_000_000
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("</script>") == 2, "nothing in the data ends the script"
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert data["command"] == "bellmare </script>"
    (scene,) = data["scenes"]
    assert set(scene["within"]) == {"stock", "lru", "belady"} and len(scene["rows"]) == 3
    (timeline,) = data["timelines"]
    assert timeline["bars"] and all(len(bar) == 9 for bar in timeline["bars"])


def test_timelines_beyond_the_pages_bound_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from bellmare.sim.report import page as module
    from bellmare.sim.report.timeline import Bar, Timeline

    line = Timeline(["gpu-000"], ["m"], [Bar(0, 0, SECOND)], 9 * SECOND)
    outcomes = [Outcome(figures([1.0], policy), None, line) for policy in ("lru", "stock", "belady")]
    found = document([outcome.row for outcome in outcomes], "")
    size = len(msgspec.json.encode(module._packed("S 1x24GB, stock, seed 7", line)))
    monkeypatch.setattr(module, "TIMELINES_BYTES_MAX", 2 * size)
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page(found, outcomes), re.DOTALL)[0])
    assert len(data["timelines"]) == 2 and data["timelinesLeftOut"] == 1


def test_the_simulator_knows_nothing_of_the_live_shell() -> None:
    """It imports the core, the twin and itself; of third parties only msgspec, rich and, for one format, pyarrow."""
    found: set[str] = set()
    for path in Path(sim.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found.update(
                ".".join(name.split(".")[:2]) if name.startswith("bellmare") else name.split(".")[0] for name in names
            )
    assert {name for name in found if name.startswith("bellmare")} == {"bellmare.core", "bellmare.sim", "bellmare.twin"}
    assert found - set(sys.stdlib_module_names) - {"bellmare.core", "bellmare.sim", "bellmare.twin"} == {
        "msgspec", "rich", "pyarrow",
    }  # fmt: skip
