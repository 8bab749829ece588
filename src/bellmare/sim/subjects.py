"""What was asked for on the command line, made into subjects, policies and seeds, and those into jobs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bellmare.sim.fleet import SimFleet, read_fleet
from bellmare.sim.jobs import Job
from bellmare.sim.runs import DEFAULT_POLICIES, KNOWING, STOCK, Policy, possible
from bellmare.sim.scenarios import SCENARIOS, Scenario
from bellmare.sim.suites import CLAIMS, SUITES, Suite
from bellmare.sim.workloads.traces import TraceError, fleets_for, load_trace, recognise, trace_name, traces_in

SEEDS_MAX = 100
SEED_MAX = 1_000_000_000
RUNS_MAX = 100_000
"""Runs of one call."""


class UsageError(ValueError):
    """What was asked for cannot be run, with the reason and what can."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command's options. Empty and None: not given."""

    suite: str = ""
    scenario: str = ""
    """One of ``SCENARIOS``, several with commas, or ``all``."""
    trace: Path | None = None
    traces: Path | None = None
    """A folder of traces."""
    fleet: str = ""
    """As ``4x24GB``; empty: those of the scenario or of the trace."""
    policy: str = ""
    """One or several of ``Policy`` with commas, or ``all``."""
    seeds: int | None = None
    first_seed: int = 1
    jobs: int | None = None
    """Processes; None: one for each processor."""
    as_json: bool = False
    html: Path | None = None


class Subject(msgspec.Struct, frozen=True):
    """Something to run on some fleets."""

    name: str
    trace: str
    """Path; empty: a scenario."""
    fleets: tuple[str, ...]
    faults: bool = False


class Plan(msgspec.Struct, frozen=True):
    """All runs in the order of the report, and remarks on what is left out."""

    jobs: list[Job]
    remarks: list[str]


def plan(asked: Asked) -> Plan:
    """Raises ``UsageError``, ``FleetError`` or ``TraceError``."""
    suite = _suite(asked.suite)
    remarks: list[str] = []
    subjects = _subjects(asked, suite, remarks)
    policies = _policies(asked.policy, DEFAULT_POLICIES if suite is None else suite.policies)
    seeds = asked.seeds if asked.seeds is not None else 1 if suite is None else suite.seeds
    if not 1 <= seeds <= SEEDS_MAX:
        raise UsageError(f"--seeds {seeds}: between 1 and {SEEDS_MAX}")
    if not 0 <= asked.first_seed <= SEED_MAX:
        raise UsageError(f"--first-seed {asked.first_seed}: between 0 and {SEED_MAX}")
    charts = asked.html is not None
    jobs = [
        Job(
            name=subject.name, trace=subject.trace, fleet=fleet, policy=policy, seed=seed, charts=charts,
            timeline=charts and seed == asked.first_seed and policy in _shown(policies),
        )
        for subject in subjects
        for fleet in subject.fleets
        for policy in policies
        if possible(policy, faults=subject.faults)
        for seed in range(asked.first_seed, asked.first_seed + seeds)
    ]  # fmt: skip
    if not jobs:
        why = remarks or [
            "faults are a thing of the quick world, which stock Ollama and the twins do not run in: try lru"
        ]
        raise UsageError("nothing to run: " + "; ".join(why))
    if len(jobs) > RUNS_MAX:
        raise UsageError(f"{len(jobs)} runs: at most {RUNS_MAX} at once")
    return Plan(jobs, remarks)


def _suite(name: str) -> Suite | None:
    if name and name not in SUITES:
        raise UsageError(f"no suite '{name}'; there are {', '.join(SUITES)}, {CLAIMS}")
    return SUITES[name] if name else None


def check_subject(asked: Asked) -> None:
    """Raises ``UsageError`` if options contradict each other."""
    if asked.trace is not None and (asked.scenario or asked.traces is not None):
        raise UsageError("a scenario or a trace, not both")


def _subjects(asked: Asked, suite: Suite | None, remarks: list[str]) -> list[Subject]:
    check_subject(asked)
    if asked.trace is not None:
        return [_traced(asked.trace, trace_name(asked.trace), fleet=asked.fleet)]
    names: Sequence[str] = () if asked.traces is not None else ("S1",)
    if asked.scenario:
        names = list(SCENARIOS) if asked.scenario == "all" else list(dict.fromkeys(_listed(asked.scenario)))
    elif suite is not None:
        names = suite.scenarios
    found = [_generated(name, asked.fleet) for name in names]
    if asked.traces is not None:
        found.extend(_folder(asked.traces, asked, remarks))
    return found


def _listed(text: str) -> Iterable[str]:
    return (name.strip() for name in text.split(","))


def _generated(name: str, fleet: str) -> Subject:
    known = SCENARIOS.get(name)
    if known is None:
        raise UsageError(f"no scenario '{name}'; there are {', '.join(SCENARIOS)}, all")
    texts = tuple(machines.text for machines in _on(known, fleet))
    return Subject(known.name, "", texts, faults=known.faults is not None)


def _on(scenario: Scenario, fleet: str) -> tuple[SimFleet, ...]:
    """The scenario's own fleets, or the one asked for, with the scenario's host memory where it names none."""
    if not fleet:
        return scenario.fleets
    cache_bytes = scenario.fleets[0].machines[0].host_cache_bytes
    machines = (
        machine if machine.host_cache_bytes else msgspec.structs.replace(machine, host_cache_bytes=cache_bytes)
        for machine in read_fleet(fleet).machines
    )
    return (SimFleet(tuple(machines)),)


def _traced(path: Path, name: str, *, fleet: str) -> Subject:
    kind = recognise(path)
    if kind.reader is None:
        raise TraceError(f"{path}: {kind.name} are no requests; nothing can be run on them")
    texts = (fleet,) if fleet else fleets_for(path, kind)
    return Subject(name, str(path), tuple(read_fleet(text).text for text in texts))


def _folder(folder: Path, asked: Asked, remarks: list[str]) -> list[Subject]:
    """All traces of a folder that are workloads; by their full names where two would be called alike."""
    paths = []
    for path, kind, why in traces_in(folder):
        if kind is None:
            remarks.append(f"{path.name} is not run: {why}")
            continue
        try:
            load_trace(path, seed=asked.first_seed)  # one that is damaged must not end the runs of all others
        except TraceError as error:
            remarks.append(f"it is not run: {error}")
        else:
            paths.append(path)
    short = [trace_name(path) for path in paths]
    return [
        _traced(path, path.name if short.count(name) > 1 or name in SCENARIOS else name, fleet=asked.fleet)
        for path, name in zip(paths, short, strict=True)
    ]


def _policies(text: str, usual: tuple[Policy, ...]) -> tuple[Policy, ...]:
    if text in ("", "all"):
        return usual
    chosen = []
    for name in _listed(text):
        if name not in list(Policy):
            raise UsageError(f"no policy '{name}'; there are {', '.join(Policy)}, all")
        chosen.append(Policy(name))
    return tuple(dict.fromkeys(chosen))


def _shown(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Whose timeline a page shows: LRU's, and that of the last policy which has to guess; else of whatever there is."""
    core = [policy for policy in policies if policy not in STOCK]
    guessing = [policy for policy in core if policy not in KNOWING]
    return tuple(dict.fromkeys((*(p for p in guessing if p is Policy.lru), *(guessing or core)[-1:])))
