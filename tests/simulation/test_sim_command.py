"""`bellmare simulate` itself: what it runs, in how many processes, how it ends, and what it says when it cannot."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bellmare.sim import jobs as jobs_module
from bellmare.sim.command import command_line, run_simulate
from bellmare.sim.jobs import Job, RunFailedError, run_jobs
from bellmare.sim.runs import STOCK, TWIN, Policy, possible
from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.subjects import Asked, UsageError, plan
from bellmare.sim.suites import SUITES
from bellmare.sim.workload import Workload
from bellmare.sim.workloads.generated import Sessions, sessions

GENTD = "t,user,model,exec_s\n" + "".join(f"{60 * i},u{i % 7},m{i % 9},20\n" for i in range(200))
MINUTES = "func,minute,count\n" + "".join(f"{f},{9 * m},1\n" for f in range(9) for m in range(8))


@pytest.fixture
def short_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    short = msgspec.structs.replace(SCENARIOS["S1"], build=lambda seed, _: sessions(seed, Sessions(requests=300)))
    monkeypatch.setitem(SCENARIOS, "S1", short)
    jobs_module._workload.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gentd26_requests.csv").write_text(GENTD)
    (tmp_path / "calls.csv").write_text(MINUTES)
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def asked(**changed: object) -> Asked:
    return msgspec.structs.replace(Asked(policy="lru", jobs=1), **changed)


@pytest.mark.slow
@pytest.mark.usefixtures("short_scenarios")
def test_the_command_prints_rows_runs_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_simulate(asked(policy="", scenario="S1", seeds=2, as_json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    four = ["stock", "stock-pinned", "lru", "hv", "belady"]
    assert [r["policy"] for r in document["rows"]] == four and {r["seeds"] for r in document["rows"]} == {2}
    assert [(r["policy"], r["seed"]) for r in document["runs"]] == [(p, seed) for p in four for seed in (1, 2)]
    assert document["scores"]["stock_to_belady"]["belady"] == {"average": 100.0, "worst": 100.0}
    assert document["command"] == "bellmare simulate --scenario S1 --seeds 2"


@pytest.mark.slow
@pytest.mark.usefixtures("short_scenarios")
def test_the_command_prints_tables_and_writes_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert run_simulate(asked(fleet="1x16GB", policy="lru,belady", html=path)) == 0
    out, err = capsys.readouterr()
    assert "S1 1x16GB: 300 requests" in out and any(line.startswith("lru ") for line in out.splitlines())
    assert "report.html is written" in err and path.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scenario": "S99"}, "no scenario 'S99'; there are S1"),
        ({"suite": "all"}, "no suite 'all'; there are policy"),
        ({"fleet": "many"}, "write the number of workers"),
        ({"policy": "lfu9"}, "no policy 'lfu9'; there are stock"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 101}, "--seeds 101"),
        ({"first_seed": -1}, "--first-seed -1"),
        ({"first_seed": 1_000_000_001}, "--first-seed 1000000001"),
        ({"scenario": "S1", "trace": Path("x.csv")}, "not both"),
        ({"trace": Path("x.csv"), "traces": Path()}, "not both"),
        ({"trace": Path("gentd26_requests_nowhere.csv")}, "no such file"),
        ({"traces": Path("nowhere")}, "no such folder"),
        ({"html": Path("nowhere/report.html")}, "no such folder"),
    ],
)
def test_what_cannot_be_run_ends_with_two_and_the_reason(
    changed: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_simulate(asked(as_json=True, **changed)) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


# ---- what is run ----------------------------------------------------------------------------------------------------


def test_a_suite_is_all_scenarios_and_policies_with_five_seeds() -> None:
    runs = plan(Asked(suite="policy")).jobs
    assert {job.name for job in runs} == set(SCENARIOS) - {"XL"} and {job.seed for job in runs} == {1, 2, 3, 4, 5}
    assert {job.policy for job in runs} == set(Policy) - TWIN == set(SUITES["policy"].policies)
    on_fleets = [scenario for name, scenario in SCENARIOS.items() if name != "XL" for _ in scenario.fleets]
    pairs = [(s, p) for s in on_fleets for p in SUITES["policy"].policies if possible(p, faults=s.faults is not None)]
    assert len(runs) == len(pairs) * 5 == 222 * 5


def test_a_suite_may_be_narrowed_and_moved_to_another_fleet() -> None:
    runs = plan(Asked(suite="policy", policy="lru", seeds=2, scenario="S4,S9", fleet="2x24GB+1x48GB,ram=1GB")).jobs
    assert [(job.name, job.fleet) for job in runs if job.seed == 1] == [
        ("S4", "2x24GB+1x48GB,ram=1GB"),
        ("S9", "2x24GB,ram=64GB+1x48GB,ram=1GB"),
    ], "a scenario's host memory is kept where the fleet names none"


def test_a_folder_is_run_on_the_fleets_that_suit_each_trace(folder: Path) -> None:
    planned = plan(asked(traces=folder))
    assert [(job.name, job.fleet) for job in planned.jobs] == [
        ("calls", "1x24GB"), ("calls", "1x48GB"), ("gentd26_requests", "1x24GB"), ("gentd26_requests", "1x48GB"),
        ("gentd26_requests", "1x96GB"), ("gentd26_requests", "4x24GB"),
    ]  # fmt: skip
    assert planned.remarks == ["notes.txt is not run: no trace that is known"]
    both = plan(asked(suite="policy", traces=folder))
    assert {job.name for job in both.jobs} == {*SCENARIOS, "calls", "gentd26_requests"} - {"XL"}


def test_files_that_would_be_called_alike_keep_their_full_names(folder: Path) -> None:
    (folder / "calls.csv.gz").write_bytes(gzip.compress(MINUTES.encode()))
    (folder / "S1.csv").write_text(GENTD)
    names = {job.name for job in plan(asked(traces=folder, fleet="1x24GB")).jobs}
    assert {"calls.csv", "calls.csv.gz", "S1.csv"} <= names and "calls" not in names and "S1" not in names


def test_a_damaged_trace_in_a_folder_is_left_out_with_the_reason(folder: Path) -> None:
    (folder / "damaged.csv").write_text("t,model\nsoon,m\n")
    planned = plan(asked(traces=folder))
    assert {job.name for job in planned.jobs} == {"calls", "gentd26_requests"}
    assert any("damaged.csv:2: 'soon' is no number" in remark for remark in planned.remarks)


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match=r"nothing to run: notes.txt is not run"):
        plan(asked(traces=tmp_path))


def test_one_trace_may_be_run_with_the_policies_and_seeds_of_a_suite(folder: Path) -> None:
    runs = plan(Asked(suite="policy", trace=folder / "gentd26_requests.csv")).jobs
    assert {job.name for job in runs} == {"gentd26_requests"} and len({job.fleet for job in runs}) == 4
    assert len({job.policy for job in runs}) == len(SUITES["policy"].policies) and {job.seed for job in runs} >= {5}


def test_more_runs_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bellmare.sim import subjects

    monkeypatch.setattr(subjects, "RUNS_MAX", 3)
    assert len(plan(asked(seeds=3)).jobs) == 3
    with pytest.raises(UsageError, match="4 runs: at most 3"):
        plan(asked(seeds=4))


def test_timelines_are_kept_of_lru_and_of_the_last_policy_that_guesses() -> None:
    runs = plan(Asked(policy="stock,lru,lru-twin,belady", seeds=2, html=Path("x.html"))).jobs
    assert [(job.policy, job.seed) for job in runs if job.timeline] == [(Policy.lru, 1), (Policy.lru_twin, 1)]
    alone = plan(Asked(policy="stock,belady", html=Path("x.html"))).jobs
    assert [job.policy for job in alone if job.timeline] == [Policy.belady]
    assert not any(job.timeline or job.charts for job in plan(asked()).jobs)


def test_the_command_line_of_a_report_says_what_decides_its_figures() -> None:
    line = command_line(Asked(suite="policy", traces=Path("a b"), fleet="1x24GB", seeds=7, jobs=3, as_json=True))
    assert line == "bellmare simulate --suite policy --traces 'a b' --fleet 1x24GB --seeds 7"


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_give_the_same_rows_in_the_same_order_as_one(folder: Path) -> None:
    runs = plan(asked(traces=folder, policy="stock,lru", seeds=2)).jobs
    shares: list[float] = []
    alone = run_jobs(runs, 1, shares.append)
    assert sum(shares) == pytest.approx(len(runs)) and len(shares) >= len(runs)
    told: list[float] = []
    together = run_jobs(runs, 2, told.append)
    assert [o.row.digest for o in alone] == [o.row.digest for o in together] and told == [1.0] * len(runs)
    assert [(o.row.scenario, o.row.fleet, o.row.policy, o.row.seed) for o in together] == [
        (job.name, job.fleet, job.policy, job.seed) for job in runs
    ]


def test_no_more_processes_are_begun_than_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "PROCESSES_MAX", 1)
    monkeypatch.setattr(jobs_module, "_together", None)
    assert len(run_jobs(plan(asked(traces=folder, fleet="1x24GB")).jobs, 1_000_000, lambda _: None)) == 2


def broken(seed: int, requests: int) -> Workload:
    raise ZeroDivisionError(f"seed {seed}")


def test_a_run_that_fails_is_named_with_the_line_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SCENARIOS, "S1", msgspec.structs.replace(SCENARIOS["S1"], build=broken))
    jobs_module._workload.cache_clear()
    assert run_simulate(asked(first_seed=41)) == 1
    err = capsys.readouterr().err
    assert "S1 on 1x24GB, policy lru, seed 41: ZeroDivisionError: seed 41" in err
    assert "bellmare simulate --scenario S1 --fleet 1x24GB --policy lru --seeds 1 --first-seed 41" in err
    assert "in broken" in err, "where it happened"


@pytest.mark.slow
def test_a_run_that_fails_in_another_process_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "gentd26_requests.csv"
    path.write_text(GENTD)
    good = Job("gentd26_requests", str(path), "1x24GB", Policy.lru, 1)
    bad = msgspec.structs.replace(good, fleet="nothing", seed=2)
    with pytest.raises(RunFailedError, match=r"(?s)on nothing, policy lru, seed 2: FleetError.*--first-seed 2"):
        run_jobs([good, bad, good], 2, lambda _: None)


INTERRUPTED = """
import multiprocessing, os, signal, sys
from bellmare.sim.jobs import run_jobs
from bellmare.sim.subjects import Asked, plan
runs = plan(Asked(scenario="S7", policy="lru", seeds=60)).jobs
once = iter([signal.SIGINT])
try:
    run_jobs(runs, 2, lambda _: [os.kill(os.getpid(), number) for number in once])
except KeyboardInterrupt:
    print("interrupted", len(multiprocessing.active_children()))
"""


@pytest.mark.slow
def test_an_interrupt_ends_all_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env={**os.environ}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "interrupted 0\n" and "Traceback" not in done.stderr


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bellmare.sim.command.run_jobs", interrupted)
    assert run_simulate(asked()) == 130
    assert "interrupted" in capsys.readouterr().err


def test_stock_policies_are_no_part_of_a_timeline() -> None:
    assert not any(job.timeline for job in plan(Asked(policy="stock,stock-pinned", html=Path("x.html"))).jobs)
    assert set(STOCK) == {Policy.stock, Policy.stock_pinned}
