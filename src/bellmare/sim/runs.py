"""One run of one policy on one fleet, measured. What a policy's name means is decided here."""

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from bellmare.sim.belady import Belady
from bellmare.sim.drive import Drive, Progress, Watcher, engine
from bellmare.sim.faults import quick_world
from bellmare.sim.fleet import SimFleet
from bellmare.sim.stock import Stock
from bellmare.sim.tally import Tally
from bellmare.sim.twin_world import TwinWorld
from bellmare.sim.workload import Workload


class Policy(StrEnum):
    """What can be run, in the order in which tables show it."""

    stock = "stock"
    """Stock Ollama behind least connections: keep_alive 5 m, three models per GPU."""
    stock_pinned = "stock-pinned"
    """The same with keep_alive -1 and no limit of models."""
    lru = "lru"
    """bellmare's core with its own LRU."""
    lru_twin = "lru-twin"
    """The same, driving twins of Ollama instead of the quick world."""
    belady = "belady"
    """bellmare's core, evicting with knowledge of the future."""
    belady_twin = "belady-twin"


DEFAULT_POLICIES = (Policy.stock, Policy.stock_pinned, Policy.lru, Policy.belady)
STOCK = frozenset({Policy.stock, Policy.stock_pinned})
TWIN = frozenset({Policy.lru_twin, Policy.belady_twin})
KNOWING = frozenset({Policy.belady, Policy.belady_twin})


class Run(msgspec.Struct, frozen=True):
    """A finished run: its books and what it cost to compute."""

    tally: Tally
    wall_s: float
    decision_cpu_us_per_request: float
    """The engine's share of the processor time; zero for stock."""


def possible(policy: Policy, fleet: SimFleet) -> bool:
    """Faults are a thing of the quick world: neither stock Ollama nor its twins are told of them."""
    return fleet.faults is None or policy not in STOCK | TWIN


def run(
    workload: Workload,
    fleet: SimFleet,
    policy: Policy,
    *,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run to the end. ``watcher`` sees every step of the engine; a stock run has none."""
    assert possible(policy, fleet), "this policy's world has no faults"
    tally = Tally(workload)
    if policy in STOCK:
        stock = Stock(tally, fleet, pinned=policy is Policy.stock_pinned)
        cpu_s, wall_s = _measured(lambda: stock.run(progress))
        return Run(tally, wall_s, 0.0)
    core = engine(Belady(workload) if policy in KNOWING else None)
    world = (TwinWorld if policy in TWIN else quick_world)(workload, fleet, tally)
    drive = Drive(core, world, tally, watcher=watcher)
    cpu_s, wall_s = _measured(lambda: drive.run(progress))
    share = min(1.0, drive.step_ns / 1e9 / wall_s) if wall_s else 0.0
    return Run(tally, wall_s, cpu_s * share * 1e6 / len(workload.arrivals))


def _measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of processor and of wall that ``work`` took."""
    cpu_ns, wall_ns = time.process_time_ns(), time.perf_counter_ns()
    work()
    return (time.process_time_ns() - cpu_ns) / 1e9, (time.perf_counter_ns() - wall_ns) / 1e9
