"""Figures, scores and the command around them."""

import ast
import json
import sys
from pathlib import Path

import msgspec
import pytest

from bellmare import sim
from bellmare.sim.command import run_simulate
from bellmare.sim.fleet import read_fleet
from bellmare.sim.report.document import document
from bellmare.sim.report.rows import TENANT_REQUESTS_MIN, RunRow, averaged, percentile_s, row
from bellmare.sim.report.scores import compare, summed
from bellmare.sim.report.tables import tables
from bellmare.sim.runs import Policy, Run
from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Arrival, SimModel, Workload
from bellmare.sim.workloads.generated import Sessions, sessions

SECOND = 1_000_000


def figures(waits_s: list[float], policy: Policy = Policy.lru) -> Row:
    """One row of requests that waited so long; every second was cold; a negative one was refused, None is left."""
    arrivals = tuple(Arrival(SECOND, 0, SECOND, 0) for _ in waits_s)
    tally = Tally(Workload("w", 7, (SimModel("a", "0" * 64, 1),), arrivals))
    for number, wait_s in enumerate(waits_s):
        tally.arrived(number, cold=number % 2 == 0)
        if wait_s < 0:
            tally.refuse(number, SECOND, reason="queue_full")
            continue
        tally.started(number, int((1 + wait_s) * SECOND))
        tally.ended(number, int((2 + wait_s) * SECOND))
    return row("S", read_fleet("1x24GB"), policy, run=Run(tally, 2.0, 12.34))


def test_figures_are_of_served_requests_and_shares_of_all() -> None:
    found = figures([0.0, 0.2, 0.201, 4.0, -1])
    assert (found.requests, found.served, found.refused, found.unfinished) == (5, 4, 1, 0)
    assert found.cold_percent == 60.0 and found.wait_over_200ms_percent == 50.0
    assert found.wait_mean_s == pytest.approx(1.1, abs=0.001) and found.wait_p99_s == 4.0
    assert found.requests_per_wall_s == 2.5 and found.decision_cpu_us_per_request == 12.3


def test_percentiles_are_nearest_ranks() -> None:
    waits_us = [number * SECOND for number in range(1, 1001)]
    assert [percentile_s(waits_us, share) for share in (950, 990, 999, 1000)] == [950, 990, 999, 1000]
    assert percentile_s([SECOND], 950) == 1.0 and percentile_s([], 999) == 0.0


def test_scores_say_how_much_of_a_gap_is_closed() -> None:
    rows = [figures([wait], policy) for policy, wait in ((Policy.stock, 5.0), (Policy.lru, 2.0), (Policy.belady, 1.0))]
    stock, lru, belady = scores(rows)
    assert (stock.stock_to_belady_percent, stock.lru_to_belady_percent) == (0.0, -300.0)
    assert (lru.stock_to_belady_percent, lru.lru_to_belady_percent) == (75.0, 0.0)
    assert (belady.stock_to_belady_percent, belady.lru_to_belady_percent) == (100.0, 100.0)
    assert all(score.stock_to_belady_percent is None for score in scores(rows[1:]))


def test_seeds_are_averaged_and_counts_summed() -> None:
    one, two = figures([1.0, 1.0]), figures([2.0, 2.0, 2.0])
    (mean,) = averaged([one, msgspec.structs.replace(two, seed=8)])
    assert mean.wait_mean_s == 1.5 and mean.requests == 5 and mean.seed == 0 and mean.digest == ""
    assert averaged([one]) == [one]


def test_who_was_not_served_is_shown_in_the_table() -> None:
    shown = table([figures([1.0, -1.0])])
    assert shown.row_count == 1 and "(1 not served)" in str(list(shown.columns[2].cells))


@pytest.fixture
def short_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    short = msgspec.structs.replace(SCENARIOS["S1"], build=lambda seed, _: sessions(seed, Sessions(requests=300)))
    monkeypatch.setitem(SCENARIOS, "S1", short)


@pytest.mark.slow
@pytest.mark.usefixtures("short_scenarios")
def test_the_command_prints_rows_with_units_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_simulate(scenario="S1", trace=None, fleet="", policy="", seeds=2, as_json=True) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [(r["policy"], r["seed"]) for r in document["rows"]] == [
        (policy, seed) for policy in ("stock", "stock-pinned", "lru", "belady") for seed in (1, 2)
    ]
    units = ("_s", "_percent", "_per_1000", "_us_per_request", "_per_wall_s")
    numbers = {name for name, value in document["rows"][0].items() if isinstance(value, float)}
    assert numbers and all(name.endswith(units) for name in numbers)
    assert {score["policy"]: score["stock_to_belady_percent"] for score in document["scores"]}["belady"] == 100.0


@pytest.mark.slow
@pytest.mark.usefixtures("short_scenarios")
def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_simulate(scenario=None, trace=None, fleet="1x16GB", policy="lru,belady", seeds=1, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("S1" in line and "1x16GB" in line and "lru" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scenario": "S99"}, "no scenario 'S99'; there are S1"),
        ({"fleet": "many"}, "write the number of workers"),
        ({"policy": "lfu"}, "no policy 'lfu'; there are stock"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 101}, "--seeds 101"),
        ({"scenario": "S1", "trace": Path("x.csv")}, "not both"),
        ({"trace": Path("gentd26_requests_nowhere.csv")}, "no such file"),
    ],
)
def test_what_cannot_be_run_ends_with_two_and_the_reason(
    changed: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {
        "scenario": None, "trace": None, "fleet": "", "policy": "lru", "seeds": 1, "as_json": True,
    }  # fmt: skip
    assert run_simulate(**{**asked, **changed}) == 2  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


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
