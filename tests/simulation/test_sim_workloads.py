"""Generators have the statistics of policy.md 2; importers read what they claim to read and say why not."""

import gzip
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.workload import SIZES_GB, START_US, Workload, build, first
from bellmare.sim.workloads import columns
from bellmare.sim.workloads.generated import Sessions, chains, clients, functions, sessions
from bellmare.sim.workloads.traces import TraceError, load_trace

SECOND = 1_000_000


def share(workload: Workload, models: int) -> float:
    counts = Counter(arrival.model for arrival in workload.arrivals)
    return sum(count for _, count in counts.most_common(models)) / len(workload.arrivals)


def stack_hits(workload: Workload, depth: int) -> float:
    stack: list[int] = []
    hits = 0
    for arrival in workload.arrivals:
        if arrival.model in stack:
            hits += stack.index(arrival.model) < depth
            stack.remove(arrival.model)
        stack.insert(0, arrival.model)
    return hits / len(workload.arrivals)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_sessions_have_the_shape_of_the_trace(seed: int) -> None:
    made = sessions(seed, Sessions())
    for models, seen in ((1, 0.31), (5, 0.70), (10, 0.87), (20, 0.94)):
        assert share(made, models) == pytest.approx(seen, abs=0.09)
    for depth, seen in ((1, 0.25), (3, 0.56), (5, 0.73), (10, 0.89), (20, 0.96), (40, 0.99)):
        assert stack_hits(made, depth) == pytest.approx(seen, abs=0.08)
    last: dict[int, tuple[int, int]] = {}
    stayed, went_on, gaps = 0, 0, []
    for arrival in made.arrivals:
        at_us, model = last.get(arrival.user, (-1, -1))
        if model >= 0 and arrival.at_us - at_us < 1800 * SECOND:
            went_on += 1
            stayed += model == arrival.model
            gaps.append(arrival.at_us - at_us)
        last[arrival.user] = (arrival.at_us, arrival.model)
    assert stayed / went_on == pytest.approx(0.73, abs=0.03)
    assert sorted(gaps)[len(gaps) // 2] / SECOND == pytest.approx(67, abs=8)
    assert len(last) / len(made.arrivals) == pytest.approx(0.16, abs=0.03)
    mean_s = sum(arrival.service_us for arrival in made.arrivals) / len(made.arrivals) / SECOND
    assert mean_s == pytest.approx(8.2, abs=0.6)
    hours = Counter(arrival.at_us // (3600 * SECOND) for arrival in made.arrivals)
    assert max(hours.values()) > 2.5 * len(made.arrivals) / (made.arrivals[-1].at_us / (3600 * SECOND))


def test_a_seed_is_all_that_a_workload_depends_on() -> None:
    for name in ("S1", "S5", "S6", "S7"):
        scenario = SCENARIOS[name]
        assert scenario.build(4, 300) == scenario.build(4, 300) != scenario.build(5, 300)


def test_more_load_is_more_of_the_same_in_less_time() -> None:
    usual, tenfold = (sessions(1, Sessions(load=load, requests=2000)).arrivals[-1].at_us for load in (1, 10))
    assert usual / 20 < tenfold < usual / 3


def test_long_requests_differ_only_in_their_length() -> None:
    short, long = (sessions(1, Sessions(service_percent=percent, requests=300)) for percent in (30, 100))
    assert short.models == long.models
    for one, other in zip(short.arrivals, long.arrivals, strict=True):
        assert (one.at_us, one.model) == (other.at_us, other.model) and one.service_us == other.service_us * 30 // 100


def test_functions_are_called_six_to_four_hundred_times_for_one_to_eight_seconds() -> None:
    made = functions(1, 10_000)
    counts = Counter(arrival.model for arrival in made.arrivals)
    assert len(made.models) == 40 and max(counts.values()) <= 400
    assert all(SECOND <= arrival.service_us <= 8 * SECOND for arrival in made.arrivals)


def test_clients_have_eight_slots_and_chains_go_from_one_model_to_the_next() -> None:
    assert clients(1, 500).slots == 8
    made = chains(1, 500)
    assert len(made.models) == 18
    last: dict[int, int] = {}
    for arrival in made.arrivals:
        assert last.get(arrival.user) != arrival.model
        last[arrival.user] = arrival.model


def test_sizes_are_drawn_by_seed_from_the_list() -> None:
    arrivals = sessions(1, Sessions(requests=200)).arrivals
    one, same, other = (build("x", seed=seed, arrivals=arrivals) for seed in (1, 1, 2))
    assert one.models == same.models != other.models
    assert {model.weights_bytes for model in one.models} <= {int(size * 10**9) for size in SIZES_GB}
    assert len(SIZES_GB) == 25 and one.arrivals[0].at_us == START_US
    assert len(first(one, 10).arrivals) == 10 and first(one, 10).models == one.models


# ---- importers ------------------------------------------------------------------------------------------------------

GENTD = "t,user,model,task,status,exec_s\n30,U1,M7,X,SUCCEED,10.0\n10,U2,M9,X,FAILED,20\n30,U1,M9,X,SUCCEED,0\n"


def test_gentd26_is_read_with_its_models_users_and_spans(tmp_path: Path) -> None:
    path = tmp_path / "gentd26_requests.csv.gz"
    path.write_bytes(gzip.compress(GENTD.encode()))
    made = load_trace(path, seed=1)
    assert [(a.at_us, a.service_us) for a in made.arrivals] == [
        (SECOND, 6 * SECOND),
        (21 * SECOND, 3 * SECOND),
        (21 * SECOND, 1),
    ]
    assert [(a.model, a.user) for a in made.arrivals] == [(1, 1), (0, 0), (1, 0)]
    assert next(a.service_us for a in load_trace(path, seed=1, service_percent=100).arrivals) == 20 * SECOND
    plain = tmp_path / "gentd26_requests.csv"
    plain.write_text(GENTD)
    assert load_trace(plain, seed=1).arrivals == made.arrivals


def test_azure_functions_are_read_from_both_files(tmp_path: Path) -> None:
    (tmp_path / "azfn2019_functions.csv").write_text(
        "func,avg_ms,invocations\n1,500,7\n2,90000,400\n3,2000,5\n4,2000,401\n5,2000,6\n"
    )
    (tmp_path / "azfn2019_minutes.csv").write_text("func,minute,count\n1,0,2\n2,3,1\n3,0,9\n4,0,9\n5,10,1\n")
    made = load_trace(tmp_path / "azfn2019_minutes.csv", seed=1)
    assert made == load_trace(tmp_path / "azfn2019_functions.csv", seed=1).__class__(
        made.name, made.seed, made.models, made.arrivals, made.slots
    )
    assert len(made.arrivals) == 4 and len(made.models) == 3
    assert sorted(arrival.service_us for arrival in made.arrivals) == [SECOND, SECOND, 2 * SECOND, 8 * SECOND]
    assert 5 * 60 * SECOND < made.arrivals[-1].at_us < 12 * 60 * SECOND


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gentd26_requests.csv", "a,b\n1,2\n", "no column t, model"),
        ("gentd26_requests.csv", "t,user,model,exec_s\n", "no requests"),
        ("gentd26_requests.csv", "t,user,model,exec_s\n1,u,m,soon\n", ":2: 'soon' is no number"),
        ("gentd26_requests.csv", "t,user,model,exec_s\n1,u,m,2\n-5,u,m,2\n", ":3: -5 is out of range"),
        ("gentd26_requests.csv", "t,user,model,exec_s\nnan,u,m,2\n", "out of range"),
        ("gentd26_requests.csv", "t,user,model,exec_s\n1,u,m\n", "is no number"),
        ("gentd26_requests.csv.gz", "not gzip", "gzip"),
        ("azfn2019_minutes.csv", "func,minute,count\n1,0,401\n", "no function with 1 to 400 calls"),
        ("azfn2019_functions.csv", "func,avg_ms\n1,200\n", "no calls per minute beside it"),
        ("weather.csv", "t\n1\n", "not a trace that is known by name"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_reason(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TraceError, match=said):
        load_trace(path, seed=1)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        load_trace(tmp_path / "gentd26_requests.csv", seed=1)


def test_a_trace_longer_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ROWS_MAX", 3)
    path = tmp_path / "gentd26_requests.csv"
    path.write_text(GENTD)
    with pytest.raises(TraceError, match="more than 3"):
        load_trace(path, seed=1)


def test_parquet_without_pyarrow_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "servegen_clients.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(TraceError, match="needs the package pyarrow"):
        load_trace(path, seed=1)


def test_servegen_windows_become_arrivals_at_a_hundredth_of_their_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow is no dependency: a table with its one method stands in for it."""
    rows = [("m", client, 600 * window, 2.0, 1.0) for client in (1, 2) for window in range(20)]
    rows.append(("m", 1, 600 * 20, 0.0, 1.0))
    rows += [("m", 3, 0, 0.1, 1.0), ("m", 4, 0, 5000.0, 1.0)]  # too rare, and too many: left out
    columns = dict(zip(("model", "client", "t", "rate", "cv"), zip(*rows, strict=True), strict=True))
    parquet = types.ModuleType("pyarrow.parquet")
    parquet.read_table = lambda path, columns: types.SimpleNamespace(to_pydict=lambda: table)  # type: ignore[attr-defined]
    parquet.read_schema = lambda path: types.SimpleNamespace(names=list(table))  # type: ignore[attr-defined]
    table = {name: list(values) for name, values in columns.items()}
    package = types.ModuleType("pyarrow")
    package.parquet = parquet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    path = tmp_path / "servegen_clients.parquet"
    path.write_bytes(b"PAR1")
    made = load_trace(path, seed=1)
    assert made.slots == 8 and len(made.models) == 2 and made == load_trace(path, seed=1)
    assert len(made.arrivals) == pytest.approx(2 * 20 * 600 * 0.02, rel=0.2)
    assert made.arrivals[-1].at_us < 20 * 600 * SECOND
