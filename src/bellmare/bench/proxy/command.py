"""`bellmare bench proxy`: checks what is asked, runs it, prints it."""

import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
from rich.console import Console

from bellmare import __version__
from bellmare.bench.proxy import report, table
from bellmare.bench.proxy.measures import PHASES, Bench, Plan
from bellmare.bench.proxy.processes import measurable
from bellmare.bench.proxy.profiling import KINDS, run_profile
from bellmare.bench.proxy.running import (
    CannotRun,
    cores,
    raise_descriptor_limit,
    started_upstream,
)
from bellmare.bench.proxy.subjects import NAMES, Subject, find

EXIT_GOAL_MISSED = 1
EXIT_CANNOT = 2
DESCRIPTORS_MIN = 4096
"""1,000 streams take 2,000 of a proxy."""
WAITED_PERCENT_MAX = 10.0
TABLE_WIDTH = 120
"""In a file."""


@dataclass(slots=True, frozen=True)
class Asked:
    """The flags of the command."""

    rounds: int | None = None
    quick: bool = False
    only: str = ""
    proxies: str = ""
    profile: str = ""
    check: bool = False
    as_json: bool = False


def run_bench_proxy(asked: Asked) -> int:
    """Exit status: 0 measured, 1 a goal missed and ``check`` given, 2 it cannot be done."""
    console = Console(stderr=True)
    if not (sys.platform == "linux" and measurable()):
        return _refuse("this benchmark reads /proc/PID/task/*/schedstat and uses epoll: Linux only")
    phases = _chosen(asked.only, PHASES)
    names = _chosen(asked.proxies, NAMES)
    if phases is None:
        return _refuse(f"--only takes {', '.join(PHASES)}")
    if names is None:
        return _refuse(f"--proxies takes {', '.join(NAMES)}")
    if asked.profile not in ("", *KINDS):
        return _refuse(f"--profile takes {' or '.join(KINDS)}")
    descriptors = raise_descriptor_limit()
    if descriptors < DESCRIPTORS_MIN:
        return _refuse(f"{descriptors} open files are too few, {DESCRIPTORS_MIN} are needed: see `ulimit -Hn`")
    try:
        with _signals_unwind():
            if asked.profile:
                return run_profile(asked.profile)
            return _measure(asked, _plan(asked, phases, descriptors), names=names, console=console)
    except CannotRun as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130


def _chosen(text: str, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names with commas in the order of ``known``; all without any, None if one is unknown."""
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    if not wanted:
        return known
    return tuple(name for name in known if name in wanted) if wanted <= set(known) else None


def _plan(asked: Asked, phases: tuple[str, ...], descriptors: int) -> Plan:
    plan = Plan.quick(asked.rounds or 1, phases) if asked.quick else Plan(rounds=asked.rounds or 3, phases=phases)
    return plan.within(descriptors)


def _measure(asked: Asked, plan: Plan, *, names: tuple[str, ...], console: Console) -> int:
    notices: list[str] = []
    found: list[Subject] = []
    for name in names:
        subject = find(name)
        if subject is None:
            notices.append(f"{name} is not installed: skipped")
        else:
            found.append(subject)
    wished = Plan()
    if not asked.quick and plan.idle_connections < wished.idle_connections:
        notices.append(f"the limit of open files allows {plan.idle_connections} idle connections only")
    if cores()[0] is None:
        notices.append("one core only: nothing is pinned, and the load takes its time from the proxies")
    for notice in notices:
        console.print(notice, style="yellow")
    with console.status("starting") as status, started_upstream(cores()[1]) as upstream_port:

        def tell(text: str) -> None:
            if "errors" in text:
                console.print(text, style="red")
                notices.append(text)
            elif console.is_terminal:
                status.update(text)
            else:
                console.print(text)

        measured = Bench(plan, found, upstream_port=upstream_port, tell=tell).run()
    made = report.document(measured, plan, found)
    kept = [row["proxy"] for row in made["rows"] if (row["waited_percent"] or 0) > WAITED_PERCENT_MAX]
    if kept:
        notices.append(f"the machine was busy: {', '.join(kept)} often waited for the core; repeat when it is quiet")
        console.print(notices[-1], style="yellow")
    if asked.as_json:
        whole = {
            "version": __version__,
            "machine": _machine(),
            "plan": plan,
            "notices": notices,
            **made,
            "rounds": measured.outcomes,
        }
        sys.stdout.write(msgspec.json.encode(whole).decode() + "\n")
    else:
        console = Console()
        table.show(made, plan, console if console.is_terminal else Console(width=TABLE_WIDTH))
    missed = any(goal["met"] is False for goal in made["goals"])
    return EXIT_GOAL_MISSED if asked.check and missed else 0


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _refuse(text: str) -> int:
    sys.stderr.write(f"bellmare: {text}\n")
    return EXIT_CANNOT


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does, through every ``finally``: no process of ours may stay behind."""

    def leave(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
