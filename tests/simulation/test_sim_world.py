"""The rules of the worlds: memory, loader, spans, host memory; and the bound that knows the future."""

import msgspec
import pytest

from bellmare.core.decisions import CacheState, Dispatch, Drain, Load, LoadCause, Observe, Undrain, Unload, UnloadCause
from bellmare.core.events import OperationEnded, OperationOutcome, RequestFinished, WorkerObserved
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.residency import Residency
from bellmare.core.state import Runner
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, SpanUs
from bellmare.sim.belady import NEVER_US, Belady
from bellmare.sim.drive import core_config, engine
from bellmare.sim.fleet import FleetError, SimFleet, footprint_bytes, load_us, read_fleet
from bellmare.sim.tally import BrokenRunError, Tally
from bellmare.sim.twins import CONTEXT, PREFILL_BYTE_TOKENS_PER_S, generate
from bellmare.sim.workload import Arrival, SimModel, Workload
from bellmare.sim.world import FOREVER_US, LightWorld, request_id

SECOND = 1_000_000
GB = 1_000_000_000


def small(*weights_gb: float, arrivals: tuple[Arrival, ...] = (Arrival(SECOND, 0, SECOND, 0),)) -> Workload:
    models = tuple(SimModel(f"m{i}:latest", f"{i:064x}", int(gb * GB)) for i, gb in enumerate(weights_gb))
    return Workload("small", 1, models, arrivals, slots=2)


def load(world: LightWorld, number: int, operation: int = 1) -> Load:
    worker = next(iter(world.gpus))
    blob = f"{number:064x}"
    return Load(
        operation=OperationId(operation), worker=worker, model=ModelId(blob), name=f"m{number}:latest", num_ctx=0,
        cause=LoadCause.demand, reserved_bytes=Bytes(0), expected_us=SpanUs(0), timeout_us=SpanUs(0),
    )  # fmt: skip


def unload(world: LightWorld, number: int, operation: int = 2) -> Unload:
    worker = next(iter(world.gpus))
    return Unload(
        operation=OperationId(operation), worker=worker, model=ModelId(f"{number:064x}"), name=f"m{number}:latest",
        cause=UnloadCause.room, timeout_us=SpanUs(0),
    )  # fmt: skip


def built(workload: Workload, machines: SimFleet) -> LightWorld:
    return LightWorld(workload, machines, Tally(workload))


def settle(world: LightWorld) -> tuple[int, object]:
    due_us = world.due_us()
    (event,) = world.take(due_us)
    return due_us, event


def test_a_load_takes_a_spawn_and_the_reading_and_an_unload_gives_memory_back_at_its_end() -> None:
    world = built(small(4.0), read_fleet("1x24GB"))
    (gpu,) = world.gpus.values()
    world.act(0, load(world, 0))
    assert gpu.used_bytes == 4_320_000_000 + (1 << 29) and not world.ready(0)
    at_us, event = settle(world)
    assert at_us == 3 * SECOND and isinstance(event, OperationEnded) and event.outcome is OperationOutcome.done
    assert event.loaded is not None and event.loaded.bytes == gpu.used_bytes and event.loaded.pinned
    assert world.ready(0)
    world.act(at_us, unload(world, 0))
    assert not world.ready(0) and gpu.used_bytes
    at_us, event = settle(world)
    assert at_us == 3_750_000 and not gpu.used_bytes and world.due_us() == FOREVER_US


def test_a_load_that_does_not_fit_fails_and_takes_nothing() -> None:
    world = built(small(14.0, 14.0), read_fleet("1x24GB"))
    (gpu,) = world.gpus.values()
    world.act(0, load(world, 0))
    at_us, _ = settle(world)
    before = gpu.used_bytes
    world.act(at_us, load(world, 1, 2))
    _, event = settle(world)
    assert isinstance(event, OperationEnded) and event.outcome is OperationOutcome.failed
    assert world.loads_failed == 1 and gpu.used_bytes == before and gpu.operation is None


def test_a_file_in_host_memory_loads_at_the_rate_of_memory_until_others_push_it_out() -> None:
    machines = read_fleet("1x24GB,ram=7GB")
    world = built(small(6.0, 3.0), machines)
    spans, now_us = [], 0
    for operation, number in enumerate((0, 0, 1, 0)):
        world.act(now_us, load(world, number, 10 + operation))
        done_us, _ = settle(world)
        spans.append(done_us - now_us)
        world.act(done_us, unload(world, number, 20 + operation))
        now_us, _ = settle(world)
    assert spans == [4 * SECOND, 2 * SECOND, 2_500_000, 4 * SECOND]
    assert load_us(machines.machines[0], world.tally.workload.models[0], cached=True) == 2 * SECOND


def test_a_draining_runner_is_not_ready_and_serves_again_when_the_reason_is_gone() -> None:
    world = built(small(4.0), read_fleet("1x24GB"))
    world.act(0, load(world, 0))
    at_us, _ = settle(world)
    place = {"worker": next(iter(world.gpus)), "model": ModelId(f"{0:064x}")}
    world.act(at_us, Drain(**place, cause=UnloadCause.room))
    assert not world.ready(0)
    world.act(at_us, Undrain(**place))
    assert world.ready(0)
    world.act(at_us, Drain(**place, cause=UnloadCause.room))
    world.act(at_us, unload(world, 0))
    assert not world.ready(0)


def test_a_worker_that_gets_more_than_its_slots_is_our_bug() -> None:
    workload = small(4.0, arrivals=tuple(Arrival(SECOND, 0, SECOND, 0) for _ in range(3)))
    world = built(workload, read_fleet("1x24GB"))
    world.act(0, load(world, 0))
    settle(world)
    for number in range(3):
        world.tally.arrived(number, cold=False)
        order = Dispatch(
            request=request_id(number), worker=next(iter(world.gpus)), model=ModelId(f"{0:064x}"), num_ctx=0,
            cache=CacheState.hit,
        )  # fmt: skip
        if number < 2:
            world.act(4 * SECOND, order)
        else:
            with pytest.raises(AssertionError):
                world.act(4 * SECOND, order)
    ends = [settle(world) for _ in range(4)]
    assert [at_us for at_us, event in ends if isinstance(event, RequestFinished)] == [5 * SECOND] * 2


def test_an_observation_is_answered_with_what_is_ready() -> None:
    world = built(small(4.0), read_fleet("1x24GB"))
    world.act(0, load(world, 0))
    world.act(0, Observe(worker=next(iter(world.gpus))))
    _, event = settle(world)
    assert isinstance(event, WorkerObserved) and event.loaded == () and event.stored is not None
    settle(world)
    world.act(4 * SECOND, Observe(worker=next(iter(world.gpus))))
    _, event = settle(world)
    assert isinstance(event, WorkerObserved) and len(event.loaded) == 1


@pytest.mark.parametrize("text", ["", "24GB", "0x24GB", "4x", "4x0GB", "4 x 24GB", "9999x24GB", "1x24TB", "-1x24GB"])
def test_a_fleet_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(FleetError):
        read_fleet(text)


def test_a_fleet_reads_back_as_it_was_written() -> None:
    assert read_fleet("4x24GB").text == "4x24GB" and read_fleet("1x7.5gb").text == "1x7.5GB"
    assert read_fleet("2x1GiB").machines[1].vram_bytes == 1 << 30


def test_the_cores_first_estimate_is_never_below_what_a_runner_takes() -> None:
    from bellmare.core.costs import estimate_bytes
    from bellmare.core.state import Model
    from bellmare.sim.world import stored_models

    for size_gb in (0.27, 4.92, 19.85):
        workload = small(size_gb)
        model = Model(model=ModelId(workload.models[0].blob), stored=stored_models(workload.models)[0])
        assert estimate_bytes(model, 8192, 4) >= footprint_bytes(workload.models[0])


@pytest.mark.parametrize("size_gb", [0.27, 4.92, 19.85])
@pytest.mark.parametrize("service_us", [SECOND, 8_600_123, 600 * SECOND, 4_000 * SECOND])
def test_tokens_for_a_twin_add_up_to_the_service_span(size_gb: float, service_us: int) -> None:
    model = small(size_gb).models[0]
    asked = generate("1", model, service_us=service_us)
    prefill_us = asked.prompt_tokens * model.weights_bytes * SECOND // PREFILL_BYTE_TOKENS_PER_S
    assert prefill_us + asked.output_tokens - 1 == service_us
    assert asked.prompt_tokens <= CONTEXT


# ---- the books ------------------------------------------------------------------------------------------------------


def test_the_books_refuse_what_cannot_be() -> None:
    tally = Tally(small(1.0, arrivals=(Arrival(SECOND, 0, SECOND, 0), Arrival(2 * SECOND, 0, SECOND, 0))))
    with pytest.raises(BrokenRunError):
        tally.arrived(1, cold=False)
    tally.arrived(0, cold=True)
    for wrong in (lambda: tally.started(0, 0), lambda: tally.ended(0, 5), lambda: tally.started(1, 5 * SECOND)):
        with pytest.raises(BrokenRunError):
            wrong()
    tally.started(0, 3 * SECOND)
    tally.ended(0, 4 * SECOND)
    with pytest.raises(BrokenRunError):
        tally.ended(0, 4 * SECOND)
    assert tally.waits_us() == [2 * SECOND] and tally.open == 0


def test_only_a_quick_return_counts_as_loaded_again() -> None:
    tally = Tally(small(1.0))
    for left_us, back_us, expected in ((0, 59_999_999, 1), (0, 60_000_000, 1), (100, 200, 2)):
        tally.evicted("a", left_us)
        tally.load_began("a", back_us)
        assert tally.reloads_within_60s == expected
    tally.load_began("b", 5)
    assert tally.reloads_within_60s == 2 and tally.loads == 4


# ---- Belady ---------------------------------------------------------------------------------------------------------


def runner(number: int, size_gb: int = 4) -> Runner:
    return Runner(
        worker=next(iter(read_fleet("1x24GB").names())), model=ModelId(f"{number:064x}"), name="", num_ctx=0, slots=1,
        residency=Residency.resident, bytes=Bytes(size_gb * GB), since_us=InstantUs(0), load_us=SpanUs(SECOND),
    )  # fmt: skip


def test_who_is_asked_for_last_leaves_first_and_who_never_is_before_all() -> None:
    arrivals = (Arrival(10, 1, 1, 0), Arrival(20, 0, 1, 0), Arrival(30, 1, 1, 0), Arrival(40, 2, 1, 0))
    policy: EvictionPolicy = Belady(small(1, 1, 1, 1, 1, arrivals=arrivals))
    fleet = engine(policy).fleet
    runners = [runner(0), runner(1), runner(2), runner(3), runner(4, 9)]
    assert [int(r.model, 16) for r in policy.rank(fleet, runners)] == [4, 3, 2, 0, 1]
    fleet.now_us = InstantUs(25)
    assert [int(r.model, 16) for r in policy.rank(fleet, runners[:3])] == [0, 2, 1]
    assert policy.loss(fleet, [runner(0), runner(4)]) == 0.0 == policy.loss(fleet, [])
    assert policy.loss(fleet, [runner(1)]) > policy.loss(fleet, [runner(2)]) > 0


def test_an_arrival_of_this_instant_is_still_to_come() -> None:
    policy = Belady(small(1, arrivals=(Arrival(10, 0, 1, 0),)))
    model = ModelId(f"{0:064x}")
    assert policy.next_us(model, 10) == 10 and policy.next_us(model, 11) == NEVER_US


def test_the_core_runs_with_its_own_limits_but_for_the_queues() -> None:
    ours, usual = (msgspec.structs.asdict(config) for config in (core_config(), type(core_config())()))
    differing = {name for name in ours if ours[name] != usual[name]}
    assert differing == {"queue_per_model_max", "queue_total_max", "queue_wait_max_us", "shadows"}
