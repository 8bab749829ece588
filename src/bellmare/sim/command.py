"""`bellmare simulate`: scenarios or a trace, policies, seeds; progress on stderr, figures on stdout."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bellmare.sim.fleet import FleetError, SimFleet, read_fleet
from bellmare.sim.report import Row, json_lines, row, table
from bellmare.sim.runs import DEFAULT_POLICIES, Policy, possible, run
from bellmare.sim.scenarios import REQUESTS, SCENARIOS, Scenario
from bellmare.sim.workload import Workload
from bellmare.sim.workloads.traces import TraceError, load_trace

EXIT_OK = 0
EXIT_USAGE = 2
SEEDS_MAX = 100
TRACE_FLEET = "1x24GB"
TABLE_WIDTH_MIN = 170
"""Columns of a table that goes into a file."""


class UsageError(ValueError):
    """What was asked for cannot be run, with the reason and what can."""


class _Subject(NamedTuple):
    """Something to run on some fleets."""

    name: str
    build: Callable[[int], Workload]
    fleets: tuple[SimFleet, ...]


def run_simulate(
    *, scenario: str | None, trace: Path | None, fleet: str, policy: str, seeds: int, as_json: bool
) -> int:  # tidy: the command line's own options
    """Exit status: 0 done, 2 nothing was run.

    ``scenario``: one of ``SCENARIOS``, several with commas, or ``all``; without it and without ``trace``: S1.
    ``fleet``: as ``4x24GB``; empty: the scenario's own. ``policy``: one or several of ``Policy`` with commas; empty or
    ``all``: the four that scores are made of.
    """
    try:
        subjects = _subjects(scenario, trace, fleet=fleet)
        policies = _policies(policy)
        for subject in subjects:
            if not any(possible(policy, machines) for policy in policies for machines in subject.fleets):
                raise UsageError(f"{subject.name} has faults, which stock Ollama and the twins do not know: try lru")
        if not 1 <= seeds <= SEEDS_MAX:
            raise UsageError(f"--seeds {seeds}: between 1 and {SEEDS_MAX}")
        rows = _run(subjects, policies, seeds=seeds)
    except (UsageError, FleetError, TraceError) as error:
        sys.stderr.write(f"bellmare: {error}\n")
        return EXIT_USAGE
    if as_json:
        sys.stdout.write(json_lines(rows) + "\n")
    else:
        out = Console(file=sys.stdout)
        if not out.is_terminal:
            out.width = max(out.width, TABLE_WIDTH_MIN)
        out.print(table(rows))
    return EXIT_OK


def _subjects(scenario: str | None, trace: Path | None, *, fleet: str) -> list[_Subject]:
    if trace is not None:
        if scenario:
            raise UsageError("a scenario or a trace, not both")
        return [_Subject(trace.name, partial(_traced, trace), (read_fleet(fleet or TRACE_FLEET),))]
    names = list(SCENARIOS) if scenario == "all" else dict.fromkeys((scenario or "S1").split(","))
    found = []
    for name in names:
        known = SCENARIOS.get(name.strip())
        if known is None:
            raise UsageError(f"no scenario '{name}'; there are {', '.join(SCENARIOS)}, all")
        found.append(_Subject(known.name, partial(_generated, known), _on(known, fleet)))
    return found


def _traced(path: Path, seed: int) -> Workload:
    return load_trace(path, seed=seed)


def _generated(scenario: Scenario, seed: int) -> Workload:
    return scenario.build(seed, REQUESTS)


def _on(scenario: Scenario, fleet: str) -> tuple[SimFleet, ...]:
    """The scenario's own fleets, or the one asked for with the scenario's host memory and faults."""
    if not fleet:
        return scenario.fleets
    first = scenario.fleets[0]
    chosen = read_fleet(fleet)
    return (msgspec.structs.replace(chosen, host_cache_bytes=first.host_cache_bytes, faults=first.faults),)


def _policies(text: str) -> list[Policy]:
    if text in ("", "all"):
        return list(DEFAULT_POLICIES)
    chosen = []
    for name in text.split(","):
        if name.strip() not in list(Policy):
            raise UsageError(f"no policy '{name}'; there are {', '.join(Policy)}, all")
        chosen.append(Policy(name.strip()))
    return list(dict.fromkeys(chosen))


def _run(subjects: list[_Subject], policies: list[Policy], *, seeds: int) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for name, workload, machines in _workloads(subjects, seeds):
            for policy in [policy for policy in policies if possible(policy, machines)]:
                title = f"{name} {machines.text} {policy} seed {workload.seed}"
                task = progress.add_task(title, total=len(workload.arrivals))
                done = run(workload, machines, policy, progress=partial(_tell, progress, task))
                rows.append(row(name, machines, policy, run=done))
                progress.remove_task(task)
    return sorted(rows, key=lambda line: _place(line, subjects, policies))


def _tell(progress: Progress, task: TaskID, count: int) -> None:
    progress.update(task, completed=count)


def _workloads(subjects: list[_Subject], seeds: int) -> Iterator[tuple[str, Workload, SimFleet]]:
    """Each workload is built once for all fleets and policies."""
    for subject in subjects:
        for seed in range(1, seeds + 1):
            workload = subject.build(seed)
            for machines in subject.fleets:
                yield subject.name, workload, machines


def _place(line: Row, subjects: list[_Subject], policies: list[Policy]) -> tuple[int, int, int, int]:
    names = [subject.name for subject in subjects]
    subject = subjects[names.index(line.scenario)]
    fleets = [machines.text for machines in subject.fleets]
    order = [str(policy) for policy in policies]
    return names.index(line.scenario), fleets.index(line.fleet), order.index(line.policy), line.seed
