"""`bellmare simulate`: scenarios or traces, policies, seeds; progress on stderr, figures on stdout."""

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bellmare.sim.claims.command import run_claims
from bellmare.sim.fleet import FleetError
from bellmare.sim.jobs import Job, Outcome, RunFailedError, processors, run_jobs
from bellmare.sim.report.document import Document, document
from bellmare.sim.report.load_times import load_times_table
from bellmare.sim.report.page import page
from bellmare.sim.report.tables import tables
from bellmare.sim.subjects import Asked, UsageError, check_subject, plan
from bellmare.sim.suites import CLAIMS
from bellmare.sim.workloads.gentd26 import load_times
from bellmare.sim.workloads.traces import TraceError, recognise

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""What a shell reports for a program ended by Ctrl-C."""
FILE_WIDTH = 150
"""Columns of tables that go into a file."""


def run_simulate(asked: Asked) -> int:
    """Exit status: 0 done, 1 a run failed, 2 nothing was run, 130 Ctrl-C."""
    try:
        if asked.suite == CLAIMS:
            run_claims(asked, command=command_line(asked))
            return EXIT_OK
        check_subject(asked)
        if asked.trace is not None and recognise(asked.trace).reader is None:
            return _show_load_times(asked.trace, as_json=asked.as_json)
        planned = plan(asked)
        if asked.html is not None and not asked.html.parent.is_dir():
            raise UsageError(f"--html {asked.html}: no such folder")
        for remark in planned.remarks:
            sys.stderr.write(f"bellmare: {remark}\n")
        outcomes = _run(planned.jobs, asked.jobs or processors())
    except (UsageError, FleetError, TraceError) as error:
        sys.stderr.write(f"bellmare: {error}\n")
        return EXIT_USAGE
    except RunFailedError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.stderr.write(f"bellmare: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("bellmare: interrupted\n")
        return EXIT_INTERRUPTED
    return _show(asked, document([outcome.row for outcome in outcomes], command_line(asked)), outcomes)


def _run(jobs: Sequence[Job], processes: int) -> list[Outcome]:
    """In order of workload, so that each process builds as few as can be; outcomes in the order of the report."""
    order = sorted(range(len(jobs)), key=lambda i: (jobs[i].trace, jobs[i].name, jobs[i].seed, i))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{len(jobs)} runs", total=len(jobs))
        done = run_jobs([jobs[i] for i in order], processes, lambda share: progress.advance(task, share))
    placed = dict(zip(order, done, strict=True))
    return [placed[i] for i in range(len(jobs))]


def _show(asked: Asked, found: Document, outcomes: Sequence[Outcome]) -> int:
    if asked.html is not None:
        try:
            asked.html.write_text(page(found, outcomes), encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"bellmare: {asked.html}: {error.strerror}\n")
            return EXIT_FAILED
        sys.stderr.write(f"bellmare: {asked.html} is written\n")
    if asked.as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return EXIT_OK
    out = Console(file=sys.stdout)
    if not out.is_terminal:
        out.width = max(out.width, FILE_WIDTH)
    out.print(tables(found, out.width))
    return EXIT_OK


def _show_load_times(path: Path, *, as_json: bool) -> int:
    found = load_times(path)
    if as_json:
        sys.stdout.write(msgspec.json.encode({"load_times": found}).decode() + "\n")
    else:
        Console(file=sys.stdout).print(load_times_table(found))
    return EXIT_OK


def command_line(asked: Asked) -> str:
    """The line that gives the same figures; how they are shown and in how many processes is left out."""
    words = ["bellmare", "simulate"]
    given = {
        "--suite": asked.suite,
        "--scenario": asked.scenario,
        "--trace": asked.trace,
        "--traces": asked.traces,
        "--fleet": asked.fleet,
        "--policy": asked.policy,
        "--seeds": asked.seeds,
        "--first-seed": asked.first_seed if asked.first_seed != 1 else None,
    }
    for flag, value in given.items():
        if value not in (None, ""):
            words += [flag, str(value)]
    return shlex.join(words)
