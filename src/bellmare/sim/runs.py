"""One run of one policy on one fleet, measured. What a policy's name means is decided here."""

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from bellmare.core.engine import Engine
from bellmare.sim.belady import Belady
from bellmare.sim.clairvoyant import Clairvoyant
from bellmare.sim.drive import Drive, Progress, Watcher, core_config
from bellmare.sim.faults import quick_world
from bellmare.sim.fleet import SimFleet
from bellmare.sim.hints import HintPlan, hints_for
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
    """bellmare's core with its own LRU, as with all that follow: they differ in what they know and when they act."""
    lru2 = "lru2"
    lfu = "lfu"
    gdsf = "gdsf"
    lhd = "lhd"
    histogram = "histogram"
    hv_evict = "hv-evict"
    """The hazard-value policy on demand only: nothing is done ahead."""
    hv = "hv"
    """What bellmare does by default: it loads and makes room ahead of demand, without being told anything."""
    hv_auto = "hv-auto"
    """The same with shadows: another policy takes over when its ghost is clearly better."""
    hv_hints50 = "hv-hints50"
    """Half of the requests are announced 15 s before they come."""
    hv_hints50_wrong30 = "hv-hints50-wrong30"
    """The same, and three of ten announcements name another model."""
    hv_hints90 = "hv-hints90"
    belady = "belady"
    """Evicting with knowledge of the future, on demand."""
    clairvoyant = "clairvoyant"
    """Loading ahead with knowledge of the future, too."""
    lru_twin = "lru-twin"
    """LRU driving twins of Ollama instead of the quick world."""
    hv_twin = "hv-twin"
    belady_twin = "belady-twin"


DEFAULT_POLICIES = (Policy.stock, Policy.stock_pinned, Policy.lru, Policy.hv, Policy.belady)
STOCK = frozenset({Policy.stock, Policy.stock_pinned})
TWIN = frozenset({Policy.lru_twin, Policy.hv_twin, Policy.belady_twin})
KNOWING = frozenset({Policy.belady, Policy.belady_twin, Policy.clairvoyant})
HINTED = {
    Policy.hv_hints50: HintPlan(50),
    Policy.hv_hints50_wrong30: HintPlan(50, 30),
    Policy.hv_hints90: HintPlan(90),
}
CORE = {
    Policy.lru_twin: "lru",
    Policy.hv_twin: "hv",
    Policy.hv_evict: "hv",
    Policy.hv_auto: "hv",
    Policy.hv_hints50: "hv",
    Policy.hv_hints50_wrong30: "hv",
    Policy.hv_hints90: "hv",
}
"""The core's own name of an eviction policy where it is not the same."""


class Run(msgspec.Struct, frozen=True):
    """A finished run: its books and what it cost to compute."""

    tally: Tally
    wall_s: float
    decision_cpu_us_per_request: float
    """Processor time inside the engine, from a sample of its steps (``drive``); zero for stock."""


def possible(policy: Policy, *, faults: bool) -> bool:
    """Faults are a thing of the quick world: neither stock Ollama nor its twins are told of them."""
    return not faults or policy not in STOCK | TWIN


def engine_for(policy: Policy, workload: Workload) -> Engine:
    """The gateway's own core as ``policy`` has it."""
    if policy in KNOWING:
        made = Engine(core_config(ahead=policy is Policy.clairvoyant))
        made.policy = Clairvoyant(workload) if policy is Policy.clairvoyant else Belady(workload)
        return made
    name = CORE.get(policy, str(policy))
    return Engine(core_config(name, ahead=policy is not Policy.hv_evict, shadows=policy is Policy.hv_auto))


def run(
    workload: Workload,
    fleet: SimFleet,
    policy: Policy,
    *,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run to the end. ``watcher`` sees every step of the engine; a stock run has none."""
    assert possible(policy, faults=fleet.faults is not None), "this policy's world has no faults"
    tally = Tally(workload)
    if policy in STOCK:
        stock = Stock(tally, fleet, pinned=policy is Policy.stock_pinned)
        return Run(tally, _wall_s(lambda: stock.run(progress)), 0.0)
    world = (TwinWorld if policy in TWIN else quick_world)(workload, fleet, tally)
    hints = hints_for(workload, HINTED[policy]) if policy in HINTED else ()
    drive = Drive(engine_for(policy, workload), world, tally, watcher=watcher, hints=hints)
    wall_s = _wall_s(lambda: drive.run(progress))
    return Run(tally, wall_s, drive.step_cpu_ns / 1000 / len(workload.arrivals))


def _wall_s(work: Callable[[], None]) -> float:
    """Seconds that ``work`` took."""
    wall_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - wall_ns) / 1e9
