"""Traces are known by what is in them, whatever they are called, and read as far as they say anything."""

import gzip
import sys
from pathlib import Path

import pytest

from bellmare.sim.workload import GB, SIZES_GB, Workload
from bellmare.sim.workloads import azure, columns, traces
from bellmare.sim.workloads.azure import DECODE_TOKENS_PER_S, PREFILL_TOKENS_PER_S
from bellmare.sim.workloads.columns import BAD_ROWS_PERCENT_MAX, TraceError
from bellmare.sim.workloads.gentd26 import load_times
from bellmare.sim.workloads.traces import load_trace, recognise, trace_name, traces_in

SECOND = 1_000_000
MINUTE = 60 * SECOND


def written(path: Path, *lines: str) -> Path:
    text = "".join(line + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def spans_s(made: Workload) -> list[float]:
    return [arrival.service_us / SECOND for arrival in made.arrivals]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("t,user,model,task,status,exec_s", "requests"),
        ("model,t", "requests"),
        ("Timestamp,Model_ID", "requests"),
        ("count,minute,func", "functions"),
        ("func,avg_ms,min_ms", "durations"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "tokens"),
        ("kind,t,ms,worker", "load times"),
        ("model,client,t,rate,cv", "clients"),
    ],
)
@pytest.mark.parametrize("name", ["part-2.csv", "b.csv.gz", "x"])
def test_a_trace_is_known_by_its_columns(tmp_path: Path, name: str, head: str, kind: str) -> None:
    assert recognise(written(tmp_path / name, head, "1,1,1,1,1,1")).name == kind


def test_a_zipped_file_is_known_without_the_ending_and_a_mark_of_byte_order_is_no_part_of_a_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "requests"
    path.write_bytes(gzip.compress("\ufefft,model\r\n5,a\r\n".encode()))
    assert recognise(path).name == "requests" and len(load_trace(path, seed=1).arrivals) == 1


def test_a_file_that_cannot_be_read_is_known_by_its_name_if_at_all(tmp_path: Path) -> None:
    path = tmp_path / "servegen_b.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    assert recognise(path).name == "clients"
    with pytest.raises(TraceError, match=r"servegen_b.parquet"):
        load_trace(path, seed=1)
    with pytest.raises(TraceError, match="known by name or by its columns"):
        recognise(written(tmp_path / "weather.csv", "rain", "1"))


@pytest.mark.parametrize(
    ("name", "short"), [("a.csv.gz", "a"), ("b.parquet", "b"), ("c", "c"), ("d.e.csv", "d.e"), (".csv", ".csv")]
)
def test_a_trace_is_named_after_its_file(name: str, short: str) -> None:
    assert trace_name(Path("folder") / name) == short


def test_a_folder_of_more_files_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FILES_MAX", 1)
    written(tmp_path / "a.csv", "t,model", "1,m")
    assert len(list(traces_in(tmp_path))) == 1
    written(tmp_path / "b.csv", "t,model", "1,m")
    with pytest.raises(TraceError, match="more than 1 files"):
        list(traces_in(tmp_path))


# ---- requests -------------------------------------------------------------------------------------------------------


def test_rows_come_in_any_order_with_any_status(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.csv", "status,exec_s,model,t,user", "SUCCEED,10,m,50,u", "?,20,n,20,v", "FAILED,,m,30,u"
    )
    made = load_trace(path, seed=1)
    assert [arrival.at_us for arrival in made.arrivals] == [SECOND, 11 * SECOND, 31 * SECOND]
    assert spans_s(made) == [6.0, 3.0, 3.0], "where nothing is known, the lower median"
    assert [arrival.model for arrival in made.arrivals] == [1, 0, 0]


def test_without_users_everybody_is_another_and_without_spans_they_are_drawn(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "t,model", *(f"{i},m{i % 3}" for i in range(200)))
    made, other = load_trace(path, seed=1), load_trace(path, seed=2)
    assert len({arrival.user for arrival in made.arrivals}) == 200 and len(made.models) == 3
    assert sum(spans_s(made)) / 200 == pytest.approx(4.2, rel=0.25)
    assert spans_s(made) == spans_s(load_trace(path, seed=1)) != spans_s(other)


def test_instants_may_be_dates(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.csv", "time,model,exec_s", "2023-11-16 18:15:46.5,m,1", "2023-11-16T18:16:00+00:00,m,1"
    )
    assert [arrival.at_us for arrival in load_trace(path, seed=1).arrivals] == [SECOND, 14_500_000]


def test_some_damaged_rows_are_left_out_and_too_many_are_not(tmp_path: Path) -> None:
    good = [f"{i},m,1" for i in range(100 - BAD_ROWS_PERCENT_MAX)]
    bad = ["soon,m,1"] * BAD_ROWS_PERCENT_MAX
    path = written(tmp_path / "x.csv", "t,model,exec_s", *bad, *good)
    assert len(load_trace(path, seed=1).arrivals) == len(good)
    with pytest.raises(TraceError, match=r"x\.csv:2: 'soon' is no number"):
        load_trace(written(path, "t,model,exec_s", *bad, "later,m,1", *good), seed=1)


def test_a_row_without_a_model_is_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"x\.csv:2: no model"):
        load_trace(written(tmp_path / "x.csv", "t,model", "1,"), seed=1)


# ---- functions ------------------------------------------------------------------------------------------------------

CALLS = ("func,minute,count", *(f"{f},{m},{c}" for f, m, c in (("a", 1400, 4), ("b", 0, 9), ("a", 1, 3), ("c", 2, 2))))


def test_calls_without_durations_have_drawn_ones_and_are_counted_themselves(tmp_path: Path) -> None:
    made = load_trace(written(tmp_path / "calls.csv", *CALLS), seed=1)
    assert len(made.arrivals) == 16 and len(made.models) == 2, "c is called twice: too rarely"
    assert all(1.0 <= span <= 8.0 for span in spans_s(made)) and len(set(spans_s(made))) == 2
    assert made == load_trace(tmp_path / "calls.csv", seed=1) != load_trace(tmp_path / "calls.csv", seed=2)


def test_a_short_file_takes_whoever_is_called_at_all(tmp_path: Path) -> None:
    made = load_trace(written(tmp_path / "calls.csv", "func,minute,count", "a,3,2", "b,0,1", "c,0,401"), seed=1)
    assert len(made.arrivals) == 3 and len(made.models) == 2


def test_durations_beside_them_are_found_whatever_their_name(tmp_path: Path) -> None:
    calls = written(tmp_path / "calls.csv", *CALLS)
    spans = written(tmp_path / "spans.csv.gz", "avg_ms,func", "2000,a", "3000,b", "nan,c")
    made = load_trace(calls, seed=1)
    assert sorted(set(spans_s(made))) == [2.0, 3.0] and load_trace(spans, seed=1).arrivals == made.arrivals
    written(tmp_path / "more.csv", "avg_ms,func", "5000,a")
    assert sorted(set(spans_s(load_trace(calls, seed=1)))) != [2.0, 3.0], "which of two is meant is not guessed"


def test_only_so_many_files_are_looked_at_for_the_durations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = written(tmp_path / "calls.csv", *CALLS)
    written(tmp_path / "spans.csv", "avg_ms,func", "2000,a", "3000,b")
    assert sorted(set(spans_s(load_trace(calls, seed=1)))) == [2.0, 3.0]
    monkeypatch.setattr(azure, "FOLDER_MAX", 1)
    assert sorted(set(spans_s(load_trace(calls, seed=1)))) != [2.0, 3.0]


def test_calls_in_only_a_part_of_the_day_leave_no_model_without_requests(tmp_path: Path) -> None:
    written(tmp_path / "day_functions.csv", "func,avg_ms,invocations", "a,2000,90", "b,2000,90", "z,2000,50")
    made = load_trace(written(tmp_path / "day_minutes.csv", *CALLS), seed=1)
    assert len(made.models) == 2 == len({arrival.model for arrival in made.arrivals})


# ---- clients --------------------------------------------------------------------------------------------------------


def test_windows_may_come_as_text_in_any_order_without_burstiness(tmp_path: Path) -> None:
    lines = [f"{client},{600 * window},2.0" for window in range(20) for client in (1, 2)]
    made = load_trace(written(tmp_path / "w.csv", "client,t,rate", *reversed(lines)), seed=1)
    assert made.slots == 8 and len(made.models) == 2
    assert len(made.arrivals) == pytest.approx(2 * 20 * 600 * 0.02, rel=0.2)


def test_a_short_file_takes_whoever_comes_at_all(tmp_path: Path) -> None:
    made = load_trace(written(tmp_path / "w.csv", "client,t,rate", "1,0,1.5", "2,0,0", "3,0,1.0"), seed=1)
    assert 0 < len(made.arrivals) < 40, "15 are expected: none of them has twenty"


@pytest.mark.parametrize("missing", ["cv", "model", ""])
def test_parquet_is_read_with_the_columns_that_it_has(tmp_path: Path, missing: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"model": ["m"] * 40, "client": [1, 2] * 20, "t": [600 * (i // 2) for i in range(40)],
             "rate": [2.0] * 39 + [None], "cv": [1.0] * 40, "pat": ["G"] * 40}  # fmt: skip
    table.pop(missing, None)
    path = tmp_path / "part"
    parquet.write_table(pyarrow.table(table), path)
    made = load_trace(path, seed=1)
    assert recognise(path).name == "clients" and len(made.models) == 2
    assert len(made.arrivals) == pytest.approx(2 * 20 * 600 * 0.02, rel=0.2)


def test_parquet_of_any_name_says_that_pyarrow_is_missing_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "part"
    path.write_bytes(b"PAR1")
    with pytest.raises(TraceError, match=r"pip install 'bellmare\[traces\]'"):
        recognise(path)


# ---- tokens and load times ------------------------------------------------------------------------------------------


def test_lengths_of_requests_become_spans_of_generated_sessions(tmp_path: Path) -> None:
    made = load_trace(written(tmp_path / "tokens.csv", "ContextTokens,GeneratedTokens", "4000,40", "0,80"), seed=1)
    assert set(spans_s(made)) == {4000 / PREFILL_TOKENS_PER_S + 40 / DECODE_TOKENS_PER_S, 80 / DECODE_TOKENS_PER_S}
    assert len(made.models) == 86 and len(made.arrivals) == 10_000


def test_load_times_are_summed_up_by_kind_with_the_rate_that_fits(tmp_path: Path) -> None:
    path = written(
        tmp_path / "loads.csv", "kind,t,ms", *(f"base,1,{1000 * i}" for i in range(1, 101)), "lora,1,500", "lora,2,700"
    )
    base, lora = load_times(path)
    assert (base.kind, base.loads, base.p50_s, base.p90_s, base.p99_s) == ("base", 100, 50.0, 90.0, 99.0)
    assert base.disk_bytes_per_s == int(sorted(SIZES_GB)[12] * GB / 49)
    assert (lora.loads, lora.p50_s, lora.disk_bytes_per_s) == (2, 0.5, None)
    with pytest.raises(TraceError, match="load times are no requests"):
        load_trace(path, seed=1)


def test_a_table_of_more_rows_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ROWS_MAX", 3)
    with pytest.raises(TraceError, match="more than 3 lines"):
        load_trace(written(tmp_path / "w.csv", "client,t,rate", *["1,0,1.5"] * 4), seed=1)


def test_bounds_of_calls_and_requests_are_those_of_the_part_that_a_file_holds(tmp_path: Path) -> None:
    """An hour of functions with a day's calls would overrun every machine, and so would a day of clients."""
    calls = [f"{func},{minute},{count}" for func, count in (("busy", 3), ("fit", 1)) for minute in range(0, 60, 5)]
    made = load_trace(written(tmp_path / "calls.csv", "func,minute,count", *calls), seed=1)
    assert len(made.models) == 1 and len(made.arrivals) == 12, "36 calls an hour are 864 a day"
    windows = [f"{client},{600 * i},{rate}" for client, rate in ((1, 2.0), (2, 4.0), (3, 0.002)) for i in range(100)]
    made = load_trace(written(tmp_path / "w.csv", "client,t,rate", *windows), seed=1)
    assert len(made.models) == 1 and len(made.arrivals) == pytest.approx(1200, rel=0.2), "2,400 a day are too many"
