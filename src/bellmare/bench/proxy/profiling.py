"""bellmare alone under cProfile while the load runs: what each function takes per request or chunk, by own and by whole
time, and by package. The threads of log and event log are not in it."""

import pstats
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import msgspec

from bellmare.bench.proxy.jobs import Job, Mode, Outcome
from bellmare.bench.proxy.measures import CHUNKS_PER_STREAM, RATES
from bellmare.bench.proxy.running import cores, run_job, started, started_upstream
from bellmare.bench.proxy.subjects import find

KINDS = ("request", "chunk")
LINES = 40
WINDOW_S = 6.0
OFTEN = 0.6
"""Calls per request below which a function belongs to the start, which imports and compiles a thousand modules."""
_Function = tuple[str, int, str]


def run_profile(kind: str) -> int:
    """Run and print; exit status 0. Raises CannotRun."""
    subject = find("bellmare")
    assert subject is not None, "this program is there"
    proxy_core, load_core = cores()
    with (
        started_upstream(load_core) as upstream_port,
        started(subject, upstream_port, core=proxy_core, profile=True) as running,
    ):
        outcome = run_job(_job(kind, running.port, upstream_port), core=load_core)
        running.stop()
        _show(kind, outcome, running.folder / "profile")
    return 0


def _job(kind: str, port: int, upstream_port: int) -> Job:
    job = Job(mode=Mode.saturate, port=port, upstream_port=upstream_port, window_s=WINDOW_S)
    if kind == "request":
        return job
    rate = RATES[0]
    return msgspec.structs.replace(
        job, mode=Mode.stream, connections=rate.streams, interval_us=rate.interval_us, chunks=CHUNKS_PER_STREAM
    )


def _show(kind: str, outcome: Outcome, path: Path) -> None:
    units = outcome.served * (1 if kind == "request" else CHUNKS_PER_STREAM)
    say = sys.stdout.write
    say(f"{units} {kind}s, {outcome.errors} errors. cProfile makes small functions look dearer than they are.\n")
    stats: dict[_Function, tuple[int, int, float, float, Any]] = cast(Any, pstats.Stats(str(path))).stats
    often = {
        function: (calls / units, own_s * 1e6 / units, whole_s * 1e6 / units)
        for function, (_, calls, own_s, whole_s, _) in stats.items()
        if calls >= OFTEN * outcome.served
    }
    packages: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, own_us, _) in often.items():
        packages[_package(file)] += own_us
    say(f"\nown us per {kind} by package (sum {sum(packages.values()):.1f})\n")
    for package, own_us in sorted(packages.items(), key=lambda item: -item[1]):
        say(f"{own_us:10.2f}  {package}\n")
    for title, place in (("own", 1), ("whole", 2)):
        say(f"\nby {title} time, us per {kind}\n     calls       own     whole\n")
        for function, figures in sorted(often.items(), key=lambda item: -item[1][place])[:LINES]:
            say(f"{figures[0]:10.2f}{figures[1]:10.2f}{figures[2]:10.2f}  {_named(function)}\n")


def _package(file: str) -> str:
    """The package of ours or of others that a source file belongs to."""
    if file.startswith(("~", "<")):
        return "built in"
    for mark in ("/src/bellmare/", "/site-packages/"):
        _, found, inside = file.rpartition(mark)
        if found:
            return ("bellmare." if "bellmare" in mark else "") + inside.partition("/")[0]
    return "standard library"


def _named(function: _Function) -> str:
    file, line, name = function
    short = file
    for mark in ("/src/", "/site-packages/", "/lib/"):
        short = short.rpartition(mark)[2]
    return name if file == "~" else f"{short}:{line} {name}"
