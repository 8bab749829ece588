"""`bellmare bench proxy`: checks what is asked, runs it, prints it."""

import os
import platform
import pstats
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
from bellmare.bench.proxy.jobs import Job, Mode
from bellmare.bench.proxy.measures import CHUNKS_PER_STREAM, PHASES, RATES, Bench, Plan
from bellmare.bench.proxy.processes import measurable
from bellmare.bench.proxy.running import (
    CannotRun,
    cores,
    raise_descriptor_limit,
    run_job,
    started,
    started_upstream,
)
from bellmare.bench.proxy.subjects import NAMES, Subject, find

EXIT_GOAL_MISSED = 1
EXIT_CANNOT = 2
PROFILE_LINES = 45
PROFILE_S = 6.0


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
    if asked.profile not in ("", "request", "chunk"):
        return _refuse("--profile takes request or chunk")
    descriptors = raise_descriptor_limit()
    try:
        with _signals_unwind():
            if asked.profile:
                return _profile(asked.profile)
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
    if asked.as_json:
        whole = {"version": __version__, "machine": _machine(), "plan": plan, "notices": notices, **made}
        sys.stdout.write(msgspec.json.encode(whole).decode() + "\n")
    else:
        table.show(made, plan, Console())
    missed = any(goal["met"] is False for goal in made["goals"])
    return EXIT_GOAL_MISSED if asked.check and missed else 0


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _profile(kind: str) -> int:
    """bellmare alone under cProfile while the load runs; its functions by own time."""
    subject = find("bellmare")
    assert subject is not None
    proxy_core, load_core = cores()
    with started_upstream(load_core) as upstream_port:
        with started(subject, upstream_port, core=proxy_core, profile=True) as running:
            job = Job(
                mode=Mode.saturate if kind == "request" else Mode.stream,
                port=running.port,
                upstream_port=upstream_port,
                pid=running.pid,
                window_s=PROFILE_S,
            )
            if kind == "chunk":
                rate = RATES[0]
                job = msgspec.structs.replace(
                    job, connections=rate.streams, interval_us=rate.interval_us, chunks=CHUNKS_PER_STREAM
                )
            outcome = run_job(job, core=load_core)
            folder = running.folder
            running.stop()
            done = f"{outcome.served} requests, {outcome.chunks} chunks in the window, {outcome.errors} errors"
            sys.stdout.write(f"{done}; cProfile makes small functions look dearer than they are\n")
            pstats.Stats(str(folder / "profile")).sort_stats("tottime").print_stats(PROFILE_LINES)
    return 0


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
