"""Many runs: one job for each subject, fleet, policy and seed, in this process or in several, results in order.

A job is plain data and says all that its run depends on, so that one line on the command line repeats it.
"""

import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import msgspec

from bellmare.sim.fleet import read_fleet
from bellmare.sim.report.rows import RunRow, row
from bellmare.sim.report.series import Series, series
from bellmare.sim.report.timeline import Timeline, TimelineRecorder
from bellmare.sim.runs import Policy, run
from bellmare.sim.scenarios import REQUESTS, SCENARIOS
from bellmare.sim.workload import Workload
from bellmare.sim.workloads.traces import TraceError, load_trace

PROCESSES_MAX = 256
WORKLOADS_KEPT = 2
"""Jobs come in order of workload: this one and the next."""

Told = Callable[[float], None]
"""Called with the part of a run, or the run, that has been done since the last call, as a share of one run."""


class Job(msgspec.Struct, frozen=True):
    """One run."""

    name: str
    """Of the scenario, as the report shows it."""
    trace: str
    """Path of the trace; empty: ``name`` is one of ``SCENARIOS``."""
    fleet: str
    policy: Policy
    seed: int
    charts: bool = False
    """Whether the outcome carries its series."""
    timeline: bool = False
    """Whether it carries its timeline."""

    @property
    def command(self) -> str:
        """One line that repeats this run alone."""
        subject = ["--trace", self.trace] if self.trace else ["--scenario", self.name]
        rest = ["--fleet", self.fleet, "--policy", str(self.policy), "--seeds", "1", "--first-seed", str(self.seed)]
        return shlex.join(["bellmare", "simulate", *subject, *rest])


class Outcome(msgspec.Struct, frozen=True):
    """What came of a job."""

    row: RunRow
    series: Series | None = None
    timeline: Timeline | None = None


class RunFailedError(RuntimeError):
    """A run did not end: our bug, with the line that repeats it."""

    def __init__(self, job: Job, reason: str) -> None:
        what = f"{job.name} on {job.fleet}, policy {job.policy}, seed {job.seed}: {reason}"
        super().__init__(f"{what}\nthe same again: {job.command}")


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], processes: int, told: Told) -> list[Outcome]:
    """Run all, in at most so many processes; outcomes are in the order of ``jobs``, however long each took.

    Raises ``RunFailedError`` at the first that fails, ``TraceError`` if its trace cannot be read.
    """
    count = min(processes, len(jobs), PROCESSES_MAX)
    if count <= 1:
        return [_alone(job, told) for job in jobs]
    return _together(jobs, count, told)


def _alone(job: Job, told: Told) -> Outcome:
    share = 0.0

    def progress(count: int, total: int) -> None:
        nonlocal share
        told(count / total - share)
        share = count / total

    try:
        outcome = do(job, progress)
    except TraceError:
        raise
    except Exception as error:
        raise RunFailedError(job, f"{type(error).__name__}: {error}") from error
    told(1.0 - share)
    return outcome


def _together(jobs: Sequence[Job], processes: int, told: Told) -> list[Outcome]:
    """Processes are spawned, not forked: a thread draws the progress bar, and a fork would copy its locks."""
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=begin_child)
    try:
        futures = [pool.submit(do, job) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _: told(1.0))
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((i for i, f in enumerate(futures) if f.done() and f.exception() is not None), None)
        if failed is not None:
            raise _reason(jobs[failed], futures[failed])
        return [future.result() for future in futures]
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()  # Ctrl-C, or a failure: what still runs is of no use
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _reason(job: Job, future: "Future[Outcome]") -> Exception:
    error = future.exception()
    if isinstance(error, TraceError):
        return error
    if isinstance(error, BrokenProcessPool):
        return RunFailedError(job, "a process ended by itself in this run or in one beside it; too little memory?")
    failure = RunFailedError(job, f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def begin_child() -> None:
    """In a process of its own: Ctrl-C is the parent's affair, and without the parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def do(job: Job, progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Run one job here. ``progress`` is told of arrivals: how many so far, and of how many."""
    workload = _workload(job.trace, "" if job.trace else job.name, job.seed)
    faults = None if job.trace else SCENARIOS[job.name].faults
    fleet, count = msgspec.structs.replace(read_fleet(job.fleet), faults=faults), len(workload.arrivals)
    recorder = TimelineRecorder(workload) if job.timeline else None
    done = run(
        workload,
        fleet,
        job.policy,
        progress=None if progress is None else lambda arrived: progress(arrived, count),
        watcher=recorder,
    )
    return Outcome(
        row(job.name, fleet, job.policy, run=done),
        series(done.tally) if job.charts else None,
        None if recorder is None else recorder.timeline,
    )


@lru_cache(maxsize=WORKLOADS_KEPT)
def _workload(trace: str, scenario: str, seed: int) -> Workload:
    """Each is built once for all fleets and policies that come one after another."""
    if trace:
        return load_trace(Path(trace), seed=seed)
    return SCENARIOS[scenario].build(seed, REQUESTS)
