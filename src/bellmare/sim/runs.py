"""One run of one policy on one fleet, measured. What a policy's name means is decided here."""

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from bellmare.sim.belady import Belady
from bellmare.sim.drive import Drive, Progress, Watcher, engine
from bellmare.sim.fleet import SimFleet
from bellmare.sim.stock import Stock
from bellmare.sim.tally import Tally
from bellmare.sim.twin_world import TwinWorld
from bellmare.sim.workload import Workload
from bellmare.sim.world import LightWorld


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
    """Processor time inside the engine, from a sample of its steps (``drive``); zero for stock."""


def run(
    workload: Workload,
    fleet: SimFleet,
    policy: Policy,
    *,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run to the end. ``watcher`` sees every step of the engine; a stock run has none."""
    tally = Tally(workload)
    if policy in STOCK:
        stock = Stock(tally, fleet, pinned=policy is Policy.stock_pinned)
        return Run(tally, _wall_s(lambda: stock.run(progress)), 0.0)
    core = engine(Belady(workload) if policy in KNOWING else None)
    world = (TwinWorld if policy in TWIN else LightWorld)(workload, fleet, tally)
    drive = Drive(core, world, tally, watcher=watcher)
    wall_s = _wall_s(lambda: drive.run(progress))
    return Run(tally, wall_s, drive.step_cpu_ns / 1000 / len(workload.arrivals))


def _wall_s(work: Callable[[], None]) -> float:
    """Seconds that ``work`` took."""
    wall_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - wall_ns) / 1e9
