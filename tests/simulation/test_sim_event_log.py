"""bellmare's own log is a trace: what was asked, by whom, for how long, of models of which size."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from bellmare.core.engine import Engine
from bellmare.core.events import RequestArrived
from bellmare.core.units import InstantUs, RequestId
from bellmare.runtime.recorder import encode_step, header_line
from bellmare.sim.drive import core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.runs import Policy, run
from bellmare.sim.subjects import Asked, plan
from bellmare.sim.workload import START_US, Arrival, SimModel, Workload
from bellmare.sim.workloads import event_log as module
from bellmare.sim.workloads.columns import TraceError
from bellmare.sim.workloads.event_log import event_log, recorded_fleet
from bellmare.sim.workloads.traces import load_trace

SECOND = 1_000_000
FLEET = "1x24GB+1x48GB"
MODELS = tuple(SimModel(f"m{i}:latest", f"{i:064x}", (4 + 3 * i) * 10**9) for i in range(6))
ASKED = Workload(
    "asked",
    3,
    MODELS,
    tuple(Arrival(START_US + 7 * SECOND * i, i * i % 6, (1 + i % 4) * SECOND, i % 5) for i in range(80)),
)


def header(engine: Engine | None = None) -> bytes:
    return header_line("9.9", core_config(), (engine or Engine(core_config())).snapshot())


def recorded(folder: Path, *, at: int = 0) -> Path:
    """A run written as the gateway writes it, in two files if ``at`` says after which line the second begins."""
    folder.mkdir(exist_ok=True)
    lines: list[bytes] = []
    run(
        ASKED, read_fleet(FLEET), Policy.lru, watcher=lambda now, event, out: lines.append(encode_step(now, event, out))
    )
    (folder / "events-000001.jsonl").write_bytes(header() + b"".join(lines[: at or len(lines)]))
    if at:
        (folder / "events-000002.jsonl").write_bytes(header() + b"".join(lines[at:]))
    return folder


def test_a_log_gives_back_what_was_asked(tmp_path: Path) -> None:
    made = load_trace(recorded(tmp_path), seed=1)
    sizes = {model.name: (model.blob, model.weights_bytes) for model in made.models}
    assert sizes == {m.name: (m.blob, m.weights_bytes) for m in MODELS if m.name in sizes} and len(sizes) == 4
    assert [(a.at_us, a.service_us, made.models[a.model].name, a.user) for a in made.arrivals] == [
        (a.at_us, a.service_us, MODELS[a.model].name, a.user) for a in ASKED.arrivals
    ]
    assert made.slots == ASKED.slots and made.arrivals[0].at_us == START_US
    assert load_trace(tmp_path, seed=2).arrivals == made.arrivals, "there is nothing to draw"


def test_contexts_of_a_blob_are_one_model(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    file = path / "events-000001.jsonl"
    asked = load_trace(path, seed=1)
    text = file.read_bytes()
    blob = MODELS[0].blob.encode()
    text = text.replace(b'"name":"m0:latest","deadline', b'"name":"m0:latest#32768","deadline')
    text = text.replace(b'"model":"%b","num_ctx"' % blob, b'"model":"%b#32768","num_ctx"' % blob)
    assert text.count(b"#32768") > 20
    file.write_bytes(text)
    assert load_trace(path, seed=1) == asked


def test_the_recorded_fleet_is_the_one_to_run_it_on(tmp_path: Path) -> None:
    path = recorded(tmp_path / "events")
    assert read_fleet(recorded_fleet(path)).text == FLEET
    (job,) = plan(Asked(trace=path, policy="lru")).jobs
    assert (job.name, job.fleet) == ("events", FLEET)
    (moved,) = plan(Asked(trace=path, policy="lru", fleet="4x24GB")).jobs
    assert moved.fleet == "4x24GB"


def test_the_same_log_run_on_its_own_fleet_is_the_same_run(tmp_path: Path) -> None:
    made = load_trace(recorded(tmp_path), seed=3)
    used = msgspec.structs.replace(ASKED, models=tuple(MODELS))
    first, again = (run(workload, read_fleet(FLEET), Policy.lru).tally for workload in (used, made))
    assert (first.start_us, first.end_us, first.loads) == (again.start_us, again.end_us, again.loads)


def test_files_of_a_log_go_on_where_the_last_ended(tmp_path: Path) -> None:
    whole, parts = event_log(recorded(tmp_path / "a"), 1), event_log(recorded(tmp_path / "b", at=100), 1)
    assert [a[:3] for a in whole.arrivals] == [a[:3] for a in parts.arrivals]


def test_a_clock_that_began_anew_goes_on_rising(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    (folder / "events-000002.jsonl").write_bytes((folder / "events-000001.jsonl").read_bytes())
    made = event_log(folder, 1)
    times = [arrival.at_us for arrival in made.arrivals]
    assert times == sorted(times) and len(times) == 2 * len(ASKED.arrivals)
    assert [b - a for a, b in pairwise(times[80:])] == [7 * SECOND] * 79


def test_models_are_known_from_the_snapshot_too(tmp_path: Path) -> None:
    """The log of a gateway that has run for long begins with everything in its state."""
    engine = Engine(core_config())
    run(ASKED, read_fleet(FLEET), Policy.lru, watcher=lambda now, event, _: engine.step(now, event) and None)
    arrived = RequestArrived(
        request=RequestId("r1000"), name="m5:latest", deadline_us=InstantUs(10**12), tenant="somebody"
    )
    path = tmp_path / "events-000007.jsonl"
    path.write_bytes(header(engine) + encode_step(InstantUs(10**10), arrived, []))
    made = event_log(path, 1)
    assert [(m.name, m.weights_bytes) for m in made.models] == [("m5:latest", MODELS[5].weights_bytes)]
    assert [a.service_us for a in made.arrivals] == [module.SERVICE_US], "it was never served: our guess"
    assert read_fleet(recorded_fleet(path)).text == FLEET


def test_who_was_not_served_to_the_end_gets_the_median_of_his_model(tmp_path: Path) -> None:
    path = recorded(tmp_path) / "events-000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"RequestFinished","request":"r6"' not in line))
    spans = sorted(a.service_us for i, a in enumerate(ASKED.arrivals) if a.model == ASKED.arrivals[6].model and i != 6)
    assert event_log(path, 1).arrivals[6].service_us == spans[(len(spans) - 1) // 2]


def test_kinds_that_are_not_known_and_a_last_line_that_was_cut_off_are_passed_over(tmp_path: Path) -> None:
    path = recorded(tmp_path) / "events-000001.jsonl"
    whole = event_log(path, 1)
    strange = b'{"t":1000,"e":{"type":"MoonRose","phase":3},"d":[{"type":"Howl","loud":true}]}\n'
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + strange + rest + b'{"t":99,"e":{"ty')
    assert event_log(path, 1).arrivals == whole.arrivals


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no event log of bellmare"),
        (b"hello\n", "no event log of bellmare"),
        (b'{"version":"1"}\n', "no event log of bellmare"),
        (header(), "no requests for models that are known"),
        (header() + b"nonsense\n", "jsonl:2: "),
        (header() + b'{"t":"late","e":{"type":"TimePassed"}}\n', "jsonl:2: "),
    ],
)
def test_what_is_no_log_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "events-000001.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        load_trace(path, seed=1)


def test_an_empty_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no event log there"):
        load_trace(tmp_path, seed=1)


@pytest.mark.parametrize("bound", ["FILES_MAX", "LINES_MAX", "REQUESTS_MAX"])
def test_a_log_beyond_a_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(module, bound, 1)
    with pytest.raises(TraceError, match="more than"):
        event_log(recorded(tmp_path, at=100), 1)
