"""The demo as a whole, called as the command line calls it; its words, and its table as text."""

import asyncio
import io
import json
import re
import signal
import socket
from pathlib import Path

import pytest
from rich.console import Console

from bellmare.admin.views import RunnerRow, WorkerRow
from bellmare.bench.load import Latency, TrafficReport
from bellmare.cli.demo import Demo, run_demo
from bellmare.cli.demo_story import TOLD_MAX, Chronicle, Told, Waiting
from bellmare.cli.demo_table import DemoTable, Frame, OwnDoings, percent
from bellmare.core.config import CoreConfig
from bellmare.core.decisions import HealthChange, Refusal, Reject
from bellmare.core.events import RequestArrived, TimePassed
from bellmare.core.fleet import Fleet
from bellmare.core.state import State
from bellmare.core.units import InstantUs, RequestId, SpanUs, WorkerId
from bellmare.runtime.replay import replay
from bellmare.workers.sim.world import DEFAULT_MODELS

GB = 1_000_000_000
LATENCY = Latency(count=3, p50_ms=43.2, p95_ms=1_234.5, p99_ms=2_000.0, max_ms=2_000.0)


@pytest.mark.slow
def test_the_demo_fails_nothing_and_no_ollama_evicts_or_queues_by_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status = run_demo(seconds=4.0, clients=24, speed=60.0, json_output=True, port=0, admin_port=0, keep_log=True)
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert (status, summary["ok"], summary["problems"]) == (0, True, [])
    assert summary["failed"] == summary["loads_failed"] == 0
    assert summary["own"] == {"evictions": 0, "reloads": 0, "queued": 0, "rejected": 0, "overcommits": 0}
    # Without these it would have shown nothing.
    assert summary["completed"] > 50
    assert sum(summary["served"].values()) == summary["completed"]
    assert all(summary["served"][state] for state in ("hit", "cold"))
    assert summary["loads"] > summary["evictions"] > 0
    assert "curl 127.0.0.1:" in said.err
    folder = Path(summary["event_log"])
    assert folder.parent.parent == tmp_path
    *_, report = replay(folder)
    assert report.steps > 100
    assert report.difference is None


@pytest.mark.slow
def test_the_log_is_deleted_unless_it_is_to_be_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_demo(seconds=0.3, clients=4, speed=100.0, port=0, admin_port=0) == 0
    said = capsys.readouterr().out
    assert "0 failed" in said
    assert "--keep-log" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_ends_it_with_the_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(demo: Demo) -> None:
        while not demo.traffic.report().completed:
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("bellmare.cli.demo.show_lines", interrupt)
    assert run_demo(seconds=None, clients=4, speed=100.0, json_output=True, port=0, admin_port=0) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["ok"]
    assert summary["completed"] > 0
    assert summary["event_log"] is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_port_that_is_taken_is_said(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", unused_port))
        other.listen()
        assert run_demo(seconds=1.0, clients=1, speed=1.0, port=unused_port, admin_port=0) == 2
    assert f"127.0.0.1:{unused_port}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"speed": 0.0}, {"seconds": -1.0}])
def test_what_is_out_of_bounds_is_said_and_not_begun(
    wrong: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"seconds": 1.0, "clients": 1, "speed": 1.0} | wrong
    assert run_demo(**options, port=0, admin_port=0) == 2  # type: ignore[arg-type]
    assert "bellmare demo:" in capsys.readouterr().err


# ---------------------------------------------------------------------- the words


def refuse(chronicle: Chronicle, name: str, *, at_s: int) -> None:
    request = RequestId(str(at_s))
    event = RequestArrived(request=request, name=name, deadline_us=InstantUs(0))
    decision = Reject(request=request, refusal=Refusal.queue_full, retry_after_us=SpanUs(2_400_000))
    chronicle.step(InstantUs(at_s * 1_000_000), event, [decision])


def test_equal_refusals_in_a_row_are_told_once() -> None:
    chronicle = Chronicle(Fleet(CoreConfig(), State()), began_us=InstantUs(0))
    for at_s, name in enumerate(("a", "a", "a", "b", "a")):
        refuse(chronicle, name, at_s=at_s)
    assert [(told.model, told.reason, told.ending) for told in chronicle.told] == [
        ("a", "its queue is full", "3 times, again in 2 s"),
        ("b", "its queue is full", "again in 2 s"),
        ("a", "its queue is full", "again in 2 s"),
    ]


def test_what_is_told_is_bounded() -> None:
    chronicle = Chronicle(Fleet(CoreConfig(), State()), began_us=InstantUs(0))
    for at_s in range(3 * TOLD_MAX):
        change = HealthChange(worker=WorkerId("gpu-0"), healthy=at_s % 2 == 1, reason="refused")
        chronicle.step(InstantUs(at_s * 1_000_000), TimePassed(), [change])
    assert len(chronicle.told) == TOLD_MAX
    assert [told.verb for told in chronicle.told][-2:] == ["lost", "back"]


# ---------------------------------------------------------------------- the table


def worker(name: str, *, used_gb: float, reserved_gb: float = 0.0, healthy: bool = True) -> WorkerRow:
    return WorkerRow(
        worker=name,
        kind="sim",
        address="",
        healthy=healthy,
        reason="" if healthy else "2 observations in a row without an answer",
        version="0.33.0",
        capacity_bytes=24 * GB,
        capacity_known=True,
        resident_bytes=int(used_gb * GB),
        reserved_bytes=int(reserved_gb * GB),
        foreign_bytes=0,
        headroom_bytes=GB,
        free_bytes=max(0, int((23 - used_gb - reserved_gb) * GB)),
        models=0,
        stored=9,
        busy=0,
        slots=0,
        operation="",
    )


def runner(name: str, model: str, *, gb: float, residency: str = "resident", busy: int = 0) -> RunnerRow:
    return RunnerRow(
        model=model,
        worker=name,
        residency=residency,
        bytes=int(gb * GB),
        num_ctx=8192,
        slots=4,
        busy=busy,
        zombies=0,
        idle_s=0.0,
        pinned=False,
        wanted_by="",
    )


def frame(**changes: object) -> Frame:
    """A busy instant."""
    fields = {
        "elapsed_s": 83.0,
        "speed": 10.0,
        "gateway": "127.0.0.1:11435",
        "admin": "127.0.0.1:11436",
        "model": "llama3.2:3b",
        "workers": [
            worker("gpu-0", used_gb=13.0, reserved_gb=8.0),
            worker("gpu-1", used_gb=16.5),
            worker("gpu-2", used_gb=0.0, healthy=False),
        ],
        "doing": {"gpu-0": "loading deepseek-r1:8b, 0.4 of ~0.5 s", "gpu-1": "draining phi4:14b for qwen2.5:14b"},
        "runners": [
            runner("gpu-0", "llama3.1:8b", gb=9.0, busy=4),
            runner("gpu-0", "qwen2.5:7b", gb=4.0),
            runner("gpu-0", "deepseek-r1:8b", gb=8.0, residency="loading"),
            runner("gpu-1", "nomic-embed-text:latest", gb=0.5),
            runner("gpu-1", "phi4:14b", gb=16.0, residency="draining", busy=1),
        ],
        "waiting": [
            Waiting(model=model.name, count=20 - index, reason="all 4 slots are busy")
            for index, model in enumerate(DEFAULT_MODELS)
        ],
        "told": [Told(float(index), "gpu-1", "load", "mistral:7b", f"{index} wait for it") for index in range(64)],
        "traffic": TrafficReport(
            seconds=83.0,
            completed=123_456,
            refused=3,
            failed=0,
            cut=0,
            in_flight=21,
            skipped=0,
            retried=3,
            by_status={"200": 123_456},
            by_cache={"hit": 90_000, "queued": 13_456, "cold": 20_000},
            prompt_tokens=1,
            output_tokens=1,
            first_token=LATENCY,
            total=LATENCY,
            first_token_by_cache={"hit": LATENCY, "queued": LATENCY, "cold": LATENCY},
            problems=[],
        ),
        "loads": 162,
        "evictions": 157,
        "refused": 3,
        "own": OwnDoings(),
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]


def render(shown: Frame, *, width: int, height: int) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(DemoTable(shown, height=height))
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_the_table_fits_and_names_everything(width: int, height: int) -> None:
    lines = render(frame(), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in ("llama3.1:8b 4/4", "qwen2.5:7b", "deepseek-r1:8b", "nomic-embed-text", "phi4:14b", "gpu-2"):
        assert name in text, name
    assert "curl 127.0.0.1:11435/api/generate" in text
    assert "simulated" in lines[0]
    assert "Ctrl-C" in lines[0]
    assert "without an answer" in text
    assert "123,456 answered" in text
    assert "0 evictions, 0 queued" in text
    assert "63 wait for it" in text  # the newest
    assert re.search(r"\d+ more models", text) or all(model.name.split(":")[0] in text for model in DEFAULT_MODELS)


@pytest.mark.parametrize("width", [40, 79, 80, 81, 140, 400])
def test_bars_are_to_scale(width: int) -> None:
    bar = next(line for line in render(frame(), width=width, height=30) if line.startswith("▏"))
    assert len(bar) == width
    if "deepseek" in bar:
        hatched = bar.count("╱") + len("▏deepseek-r1:8b ")  # noqa: RUF001 - a hatch, not a slash
        assert abs(hatched - width * 8 / 24) <= 1
    assert abs(bar.count("░") - width / 24) <= 1


def test_a_table_without_anything_is_drawn() -> None:
    empty = frame(workers=[], runners=[], doing={}, waiting=[], told=[])
    assert "nobody waits" in "\n".join(render(empty, width=80, height=24))


def test_a_terminal_without_unicode_gets_plain_letters() -> None:
    written = io.BytesIO()
    console = Console(width=80, height=24, file=io.TextIOWrapper(written, encoding="ascii"), force_terminal=True)
    console.print(DemoTable(frame(), height=24))
    console.file.flush()
    text = written.getvalue().decode("ascii")
    assert "?" not in text
    assert "|llama3.1:8b 4/4" in text


def test_shares_never_claim_all_or_nothing_falsely() -> None:
    assert [percent(part, 1000) for part in (0, 1, 500, 999, 1000)] == ["0 %", "1 %", "50 %", "99 %", "100 %"]
    assert percent(0, 0) == "0 %"
