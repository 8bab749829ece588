"""The Markdown of docs/performance.md can be made from any report, whatever was left out of the run."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import performance_table  # noqa: E402 - tools are scripts, not a package
from bellmare.bench.proxy import report  # noqa: E402
from bellmare.bench.proxy.jobs import Outcome  # noqa: E402
from bellmare.bench.proxy.measures import Measured, Plan  # noqa: E402
from bellmare.bench.proxy.subjects import Subject  # noqa: E402


def test_every_proxy_rate_and_goal_has_its_line() -> None:
    measured = Measured()
    measured.keep("request", "bellmare", Outcome(requests=100, cpu_us=2500.0, window_s=1.0))
    plan = Plan()
    made = report.document(measured, plan, [Subject("bellmare", "x", "9.9", lambda _subject, _place: [])])
    machine = {"cores": 2, "kernel": "6", "machine": "x86_64", "python": "3.11"}
    text = performance_table.figures({**made, "machine": machine, "plan": {"rounds": 3}, "notices": ["a notice"]})
    lines = text.splitlines()
    assert any(line.startswith("| bellmare 9.9 | 25 | 100 | 40,000 | - |") for line in lines)
    assert sum(line.startswith("| 25k | bellmare |") for line in lines) == 1
    assert all(any(line.startswith(f"| {goal['name']} |") for line in lines) for goal in made["goals"])
    assert "Notice: a notice." in lines
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith(" |") for line in tables)
