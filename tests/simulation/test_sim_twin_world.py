"""What a twin says of loads, unloads and failures, as the core is told it; and a core that would never stop."""

import pytest
from test_sim_world import load, small, unload

from bellmare.core.decisions import CacheState, Decision, Dispatch, Observe
from bellmare.core.engine import Engine
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FirstTokenReceived,
    OperationEnded,
    OperationOutcome,
    RequestFinished,
    TimePassed,
    WorkerObserved,
)
from bellmare.core.units import InstantUs, ModelId
from bellmare.sim.drive import Drive, core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.tally import Tally
from bellmare.sim.twin_world import TwinWorld
from bellmare.sim.world import FOREVER_US, LightWorld, request_id
from bellmare.twin.messages import CrashRunner, FailLoad

SECOND = 1_000_000
BLOB = f"{0:064x}"


def built() -> TwinWorld:
    workload = small(4.0)
    world = TwinWorld(workload, read_fleet("1x24GB"), Tally(workload))
    world.gpus = world.servers  # type: ignore[attr-defined] the helpers ask for the first worker only
    return world


def next_events(world: TwinWorld) -> tuple[int, list[Event]]:
    due_us = world.due_us()
    assert due_us < FOREVER_US
    return due_us, world.take(due_us)


def loaded() -> TwinWorld:
    world = built()
    world.act(0, load(world, 0))  # type: ignore[arg-type]
    at_us, (event,) = next_events(world)
    assert at_us == 3 * SECOND and isinstance(event, OperationEnded) and event.outcome is OperationOutcome.done
    assert event.loaded is not None and event.loaded.pinned and not event.loaded.spilled_bytes
    return world


def dispatch(world: TwinWorld) -> None:
    world.tally.arrived(0, cold=False)
    worker = next(iter(world.servers))
    order = Dispatch(request=request_id(0), worker=worker, model=ModelId(BLOB), num_ctx=0, cache=CacheState.hit)
    world.act(4 * SECOND, order)


def test_an_unload_ends_when_the_memory_is_back() -> None:
    world = loaded()
    world.act(4 * SECOND, unload(world, 0))  # type: ignore[arg-type]
    assert not world.ready(0) and world.tally.evictions == 1
    at_us, (event,) = next_events(world)
    assert at_us == 4_750_000 and isinstance(event, OperationEnded) and event.outcome is OperationOutcome.done
    assert next(iter(world.servers.values())).twin.vram_used_bytes == 0


def test_a_request_takes_its_slot_as_long_as_the_trace_says() -> None:
    world = loaded()
    dispatch(world)
    events = []
    while world.due_us() < FOREVER_US:
        events.extend((at_us, type(event)) for at_us, found in [next_events(world)] for event in found)
    assert [kind for _, kind in events] == [FirstTokenReceived, RequestFinished]
    assert events[-1][0] == 5 * SECOND and world.tally.waits_us() == [3 * SECOND]


def test_a_load_that_fails_is_told_as_the_end_of_the_operation() -> None:
    world = built()
    next(iter(world.servers.values())).twin.step(0, FailLoad(blob=BLOB))
    world.act(0, load(world, 0))  # type: ignore[arg-type]
    _, events = next_events(world)
    (event,) = [event for event in events if isinstance(event, OperationEnded)]
    assert event.outcome is OperationOutcome.failed and "terminated" in event.detail and not world.ready(0)


def test_a_runner_that_dies_gives_the_request_back_to_the_core() -> None:
    world = loaded()
    dispatch(world)
    worker = next(iter(world.servers))
    world._step(worker, 4 * SECOND, given=CrashRunner(blob=BLOB))
    _, (event,) = next_events(world)
    assert isinstance(event, DispatchFailed) and event.worker == worker and world.tally.open == 1


def test_an_observation_shows_the_list_of_loaded_models() -> None:
    world = loaded()
    world.act(3 * SECOND, Observe(worker=next(iter(world.servers))))
    _, (event,) = next_events(world)
    assert isinstance(event, WorkerObserved) and [line.model for line in event.loaded] == [BLOB]


class Restless(Engine):
    """A core that always wants to be woken at once."""

    def next_deadline_us(self) -> InstantUs | None:
        return self.fleet.now_us

    def step(self, now_us: InstantUs, event: Event) -> list[Decision]:
        return super().step(now_us, event) if not isinstance(event, TimePassed) else []


def test_a_core_that_asks_for_one_instant_for_ever_is_stopped() -> None:
    workload = small(4.0)
    tally = Tally(workload)
    drive = Drive(Restless(core_config()), LightWorld(workload, read_fleet("1x24GB"), tally), tally)
    with pytest.raises(AssertionError, match="again and again"):
        drive.run()
