"""Loads ahead of demand are useful if their runner serves a request before it leaves; and what a decision costs."""

import time

import msgspec
import pytest
from test_sim_world import load, settle, small, unload

from bellmare.core.decisions import CacheState, Decision, Dispatch, LoadCause
from bellmare.core.engine import Engine
from bellmare.core.events import Event
from bellmare.core.units import InstantUs, ModelId
from bellmare.sim.drive import SAMPLE_EVERY, Drive, core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.tally import Tally
from bellmare.sim.twin_world import TwinWorld
from bellmare.sim.workload import Arrival, Workload
from bellmare.sim.world import FOREVER_US, LightWorld, request_id

SECOND = 1_000_000
WORLDS = [LightWorld, TwinWorld]


def built(kind: type[LightWorld] | type[TwinWorld]) -> LightWorld:
    """Either, under the name that the helpers know."""
    workload = small(4.0, arrivals=tuple(Arrival(SECOND, 0, SECOND, 0) for _ in range(2)))
    world = kind(workload, read_fleet("1x24GB"), Tally(workload))
    if isinstance(world, TwinWorld):
        world.gpus = world.servers  # type: ignore[attr-defined]
    return world  # type: ignore[return-value]


def ahead(world: LightWorld, cause: LoadCause, operation: int = 1) -> int:
    """Load model 0 for ``cause``; when it is ready."""
    world.act(0, msgspec.structs.replace(load(world, 0, operation), cause=cause))
    return drained(world)


def drained(world: LightWorld) -> int:
    at_us = 0
    while world.due_us() < FOREVER_US:
        at_us = world.due_us()
        world.take(at_us)
    return at_us


def serve(world: LightWorld, number: int, at_us: int) -> int:
    world.tally.arrived(number, cold=False)
    worker = next(iter(world.gpus))
    order = Dispatch(
        request=request_id(number), worker=worker, model=ModelId(f"{0:064x}"), num_ctx=0, cache=CacheState.hit
    )
    world.act(at_us, order)
    return drained(world)


@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("cause", [LoadCause.prewarm, LoadCause.hint])
def test_a_load_ahead_that_serves_is_useful_once(kind: type[LightWorld], cause: LoadCause) -> None:
    world = built(kind)
    at_us = ahead(world, cause)
    assert (world.tally.prefetches, world.tally.prefetches_used) == (1, 0)
    serve(world, 0, at_us)
    serve(world, 1, at_us + 9 * SECOND)
    assert (world.tally.prefetches, world.tally.prefetches_used) == (1, 1)


@pytest.mark.parametrize("kind", WORLDS)
def test_a_load_ahead_that_leaves_unused_is_not_useful_and_its_successor_counts_anew(kind: type[LightWorld]) -> None:
    world = built(kind)
    at_us = ahead(world, LoadCause.hint)
    world.act(at_us, unload(world, 0))
    at_us = drained(world)
    world.act(at_us, load(world, 0, 3))
    serve(world, 0, drained(world))
    assert (world.tally.prefetches, world.tally.prefetches_used) == (1, 0)


@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("cause", [cause for cause in LoadCause if cause not in (LoadCause.prewarm, LoadCause.hint)])
def test_a_load_for_another_cause_is_none_ahead(kind: type[LightWorld], cause: LoadCause) -> None:
    world = built(kind)
    serve(world, 0, ahead(world, cause))
    assert (world.tally.prefetches, world.tally.prefetches_used) == (0, 0)


def test_a_load_ahead_that_does_not_fit_was_none() -> None:
    workload = small(14.0, 14.0)
    world = LightWorld(workload, read_fleet("1x24GB"), Tally(workload))
    world.act(0, load(world, 0))
    at_us, _ = settle(world)
    world.act(at_us, msgspec.structs.replace(load(world, 1, 2), cause=LoadCause.hint))
    settle(world)
    assert world.loads_failed == 1 and world.tally.prefetches == 0


class Slow(Engine):
    """A core that computes for a known time at each step."""

    steps = 0

    def step(self, now_us: InstantUs, event: Event) -> list[Decision]:
        self.steps += 1
        until_ns = time.process_time_ns() + 100_000
        while time.process_time_ns() < until_ns:
            pass
        return super().step(now_us, event)


@pytest.mark.slow
def test_the_cost_of_decisions_is_the_processors_time_of_all_steps() -> None:
    """Timed is one step in so many: three times the spin leaves room for the core's own work on a busy machine."""
    workload: Workload = small(1.0, arrivals=tuple(Arrival(SECOND * i, 0, SECOND, 0) for i in range(1, 101)))
    tally = Tally(workload)
    core = Slow(core_config())
    drive = Drive(core, LightWorld(workload, read_fleet("1x24GB"), tally), tally)
    drive.run()
    assert core.steps > 20 * SAMPLE_EVERY
    assert 90_000 < drive.step_cpu_ns / core.steps < 300_000
