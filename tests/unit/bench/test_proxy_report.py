"""From outcomes to figures: ratios within a round, goals that only what was measured can meet, plans within limits."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from bellmare.bench.proxy import command, processes, report, subjects, table
from bellmare.bench.proxy.jobs import Outcome
from bellmare.bench.proxy.measures import RATES, Measured, Plan
from bellmare.bench.proxy.subjects import Place, Subject

PLAN = Plan(rounds=3)


def subject(name: str) -> Subject:
    return Subject(name, name, "1.0", lambda _subject, _place: [])


def requests(cpu_us: float, *, connections: int = 10, p50_us: float = 0.0) -> Outcome:
    return Outcome(
        requests=100, cpu_us=100 * cpu_us, window_s=1.0, served=100, upstream_connections=connections, p50_us=p50_us
    )


def measured(**rounds: list[Outcome]) -> Measured:
    made = Measured()
    for name, outcomes in rounds.items():
        for outcome in outcomes:
            made.keep("request", name, outcome)
    return made


def test_a_ratio_is_taken_within_its_round_and_then_the_median() -> None:
    # The machine is twice as slow in the second round: no round says other than 3.
    seen = measured(
        bellmare=[requests(30), requests(60), requests(33)], nginx=[requests(10), requests(20), requests(11)]
    )
    made = report.document(seen, PLAN, [subject("bellmare"), subject("nginx")])
    assert made["ratios"]["request_vs_nginx"] == 3.0
    assert made["rows"][0]["cpu_us_per_request"] == 33.0
    assert made["rows"][0]["requests_per_s"] == 100.0
    assert made["rows"][0]["requests_per_s_per_core"] == 30303.0


def test_what_is_absent_is_none_and_neither_met_nor_missed() -> None:
    made = report.document(measured(bellmare=[requests(30)]), PLAN, [subject("bellmare")])
    assert made["ratios"]["request_vs_nginx"] is None
    assert made["ratios"]["request_vs_caddy"] is None
    by_name = {goal["name"]: goal for goal in made["goals"]}
    assert by_name["CPU per request, by nginx's"]["met"] is None
    assert by_name["requests/s per core"]["met"] is True
    assert by_name["bytes per open stream"]["met"] is None
    assert by_name["errors"]["met"] is True


def test_without_bellmare_there_is_no_goal_to_meet() -> None:
    made = report.document(measured(nginx=[requests(10)]), PLAN, [subject("nginx")])
    assert all(goal["met"] is None for goal in made["goals"])


@pytest.mark.parametrize(("cpu_us", "met"), [(24.9, True), (25.1, False)])
def test_a_goal_is_judged_at_its_bound(cpu_us: float, met: bool) -> None:
    made = report.document(
        measured(bellmare=[requests(cpu_us)], nginx=[requests(10)]), PLAN, [subject("bellmare"), subject("nginx")]
    )
    assert made["goals"][0]["met"] is met


def test_an_error_anywhere_misses_a_goal_and_names_itself() -> None:
    seen = measured(bellmare=[requests(10)])
    bad = Outcome()
    bad.fail("chunk 3 came in place of 2")
    bad.fail("another")
    seen.keep("chunk 25k", "bellmare", bad)
    made = report.document(seen, PLAN, [subject("bellmare")])
    assert (made["rows"][0]["errors"], made["rows"][0]["error"]) == (2, "chunk 3 came in place of 2")
    assert made["goals"][-1] == {"name": "errors", "wanted": "at most 0", "value": 2, "met": False}


def test_added_delay_is_between_the_quietest_rounds() -> None:
    seen = Measured()
    for name, values in {"bellmare": (900.0, 300.0), "direct": (100.0, 500.0)}.items():
        for value in values:
            seen.keep("latency", name, requests(1, p50_us=value))
    made = report.document(seen, PLAN, [subject("bellmare"), subject("direct")])
    assert [row["added_p50_us"] for row in made["rows"]] == [200.0, 0.0]


@pytest.mark.parametrize(("reads", "per_core"), [(1000, 50_000.0), (500, 1000.0)])
def test_a_proxy_that_joins_chunks_by_being_late_is_judged_by_what_it_delivers(reads: int, per_core: float) -> None:
    seen = Measured()
    seen.keep("chunk 25k", "bellmare", Outcome(chunks=1000, reads=reads, cpu_us=20_000.0, window_s=1.0))
    made = report.document(seen, PLAN, [subject("bellmare")])
    assert made["rows"][0]["cpu_us_per_chunk"] == 20.0
    assert made["rows"][0]["chunks_per_s_per_core"] == per_core


def test_the_worst_rate_decides_about_chunks() -> None:
    seen = Measured()
    for rate, ours in zip(RATES, (10.0, 11.0, 13.0), strict=True):
        for name, cpu_us in (("bellmare", ours), ("nginx", 10.0)):
            seen.keep(f"chunk {rate.name}", name, Outcome(chunks=100, reads=100, cpu_us=100 * cpu_us, window_s=1.0))
    made = report.document(seen, PLAN, [subject("bellmare"), subject("nginx")])
    assert made["ratios"]["chunk_vs_nginx"] == 1.1
    assert {goal["name"]: goal["value"] for goal in made["goals"]}["CPU per chunk, by nginx's (worst rate)"] == 1.3


def test_freed_upstreams_are_a_share_of_all_who_left() -> None:
    seen = Measured()
    seen.keep("disconnect", "bellmare", Outcome(held=4, left_ms=[1.0, 99.0, 101.0]))
    row = report.document(seen, PLAN, [subject("bellmare")])["rows"][0]
    assert (row["freed_within_100_ms"], row["freed_max_ms"]) == (0.5, 101.0)


def test_the_tables_show_every_proxy_and_every_goal() -> None:
    seen = measured(bellmare=[requests(30)], nginx=[requests(10)])
    made = report.document(seen, PLAN, [subject("bellmare"), subject("nginx")])
    console = Console(width=160, file=io.StringIO(), record=True)
    table.show(made, PLAN, console)
    text = console.export_text()
    assert "bellmare 1.0" in text and "nginx 1.0" in text
    assert all(goal["name"] in text for goal in made["goals"])


def test_a_plan_stays_within_the_limit_of_open_files() -> None:
    assert Plan().within(1_000_000) == Plan()
    small = Plan().within(3000)
    assert small.idle_connections == 1000
    assert small.held_streams == 500
    assert Plan().within(64).idle_connections == 100


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere everything is refused")
def test_only_known_names_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (command.Asked(only="memroy"), command.Asked(proxies="apache"), command.Asked(profile="all")):
        assert command.run_bench_proxy(asked) == command.EXIT_CANNOT
        assert "takes" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_is_that_of_all_threads_and_children() -> None:
    before = processes.used(os.getpid())
    thread = threading.Thread(target=lambda: sum(range(300_000)))
    thread.start()
    thread_id = thread.native_id
    thread.join()
    assert thread_id is not None
    sum(range(300_000))
    assert processes.used(os.getpid()).cpu_us > before.cpu_us
    assert processes.used(0) == processes.Used()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert set(processes.tree(os.getpid())) >= {os.getpid(), child.pid}
        child.communicate(b"\n")
    assert processes.memory_bytes(os.getpid()) > 1 << 20


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy", "bellmare"])
def test_a_configuration_names_its_ports_and_keeps_to_its_folder(name: str, tmp_path: Path) -> None:
    prepare = subjects.prepare_of(name)
    place = Place(tmp_path, port=4001, second_port=4002, upstream_port=4003)
    proxy = Subject(name, f"/bin/{name}", "1", prepare)
    words = proxy.prepare(proxy, place)
    assert words[0] == f"/bin/{name}"
    (config,) = tmp_path.iterdir()
    assert str(config) in words
    text = config.read_text()
    assert ":4001" in text and ":4003" in text


def test_a_proxy_that_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects.shutil, "which", lambda *_, **__: None)
    assert subjects.find("nginx") is None
    assert subjects.find("bellmare") is not None
    assert subjects.find("direct") is not None
