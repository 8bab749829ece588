"""The timeline of a run is that of the world: same loads, same leavings, same cold starts, nothing over capacity."""

import pytest

from bellmare.core.decisions import CacheState, Dispatch, Load, LoadCause, Unload, UnloadCause
from bellmare.core.events import (
    DispatchFailed,
    FaultKind,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestFinished,
    TimePassed,
    WorkerAdded,
    WorkerKind,
)
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId
from bellmare.sim.fleet import read_fleet
from bellmare.sim.report.timeline import OPEN, Timeline, TimelineRecorder
from bellmare.sim.runs import Policy, run
from bellmare.sim.workload import Arrival, SimModel, Workload

WORKER, MODEL = WorkerId("w"), ModelId("0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Policy.lru, Policy.lru_twin])
def test_a_timeline_agrees_with_the_books_of_the_run(day: Workload, policy: Policy) -> None:
    recorder = TimelineRecorder(day)
    tally = run(day, read_fleet("2x24GB"), policy, watcher=recorder).tally
    found = recorder.timeline
    assert not found.cut and len(found.workers) == 2 and len(found.bars) == tally.loads
    assert sum(bar.gone_us != OPEN for bar in found.bars) == tally.evictions
    assert sum(len(bar.cold_us) for bar in found.bars) >= sum(tally.cold) * 0.99, "who waited for a drain is cold too"
    for bar in found.bars:
        at_us = [bar.load_us, bar.ready_us, *(at for at in (bar.unload_us, bar.gone_us) if at != OPEN)]
        assert at_us == sorted(at_us) and bar.ready_us != OPEN
        assert bar.busy_us == sorted(bar.busy_us) and len(bar.busy_us) % 2 == 0
        assert all(
            bar.ready_us <= at <= (bar.unload_us if bar.unload_us != OPEN else found.end_us) for at in bar.busy_us
        )
    busy_us = sum(sum(bar.busy_us[1::2]) - sum(bar.busy_us[::2]) for bar in found.bars)
    assert 0 < busy_us <= sum(arrival.service_us for arrival in day.arrivals)


@pytest.mark.parametrize(("bars_max", "spans_max"), [(3, 1_000), (1_000, 5)])
def test_a_timeline_ends_at_its_bounds(day: Workload, bars_max: int, spans_max: int) -> None:
    recorder = TimelineRecorder(day, bars_max=bars_max, spans_max=spans_max)
    done = run(day, read_fleet("1x24GB"), Policy.lru, watcher=recorder)
    found = recorder.timeline
    assert found.cut and len(found.bars) <= bars_max
    assert sum(len(bar.busy_us[::2]) for bar in found.bars) <= spans_max
    assert found.end_us < max(done.tally.end_us)


class Script:
    """One worker, one model, told by hand."""

    def __init__(self) -> None:
        arrivals = (Arrival(1, 0, 1, 0),)
        self.recorder = TimelineRecorder(Workload("w", 1, (SimModel("m", MODEL, 1),), arrivals))
        added = WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(24_000_000_000))
        self.recorder(InstantUs(0), added, [])

    @property
    def timeline(self) -> Timeline:
        return self.recorder.timeline

    def load(self, at_us: int, operation: int, cause: LoadCause = LoadCause.demand) -> None:
        order = Load(
            operation=OperationId(operation), worker=WORKER, model=MODEL, name="m", num_ctx=0, cause=cause,
            reserved_bytes=Bytes(0), expected_us=SpanUs(0), timeout_us=SpanUs(0),
        )  # fmt: skip
        self.recorder(InstantUs(at_us), TimePassed(), [order])

    def unload(self, at_us: int, operation: int) -> None:
        order = Unload(
            operation=OperationId(operation), worker=WORKER, model=MODEL, name="m", cause=UnloadCause.room,
            timeout_us=SpanUs(0),
        )  # fmt: skip
        self.recorder(InstantUs(at_us), TimePassed(), [order])

    def ended(self, at_us: int, operation: int, outcome: OperationOutcome = OperationOutcome.done) -> None:
        self.recorder(InstantUs(at_us), OperationEnded(operation=OperationId(operation), outcome=outcome), [])

    def dispatch(self, at_us: int, request: str, *, cold_for_us: int | None = None) -> None:
        order = Dispatch(
            request=RequestId(request), worker=WORKER, model=MODEL, num_ctx=0,
            cache=CacheState.hit if cold_for_us is None else CacheState.cold, queued_us=SpanUs(cold_for_us or 0),
        )  # fmt: skip
        self.recorder(InstantUs(at_us), TimePassed(), [order])


def test_phases_cold_starts_and_spans_of_service_are_noted() -> None:
    script = Script()
    script.load(10, 1, LoadCause.hint)
    script.ended(20, 1)
    script.dispatch(21, "a", cold_for_us=8)
    script.dispatch(22, "b")
    script.recorder(InstantUs(30), RequestFinished(request=RequestId("a"), outcome=Outcome.completed), [])
    failed = DispatchFailed(request=RequestId("b"), worker=WORKER, fault=FaultKind.reset)
    script.recorder(InstantUs(40), failed, [])
    script.unload(50, 2)
    script.ended(60, 2)
    (bar,) = script.timeline.bars
    assert (bar.load_us, bar.ready_us, bar.unload_us, bar.gone_us, bar.ahead) == (10, 20, 50, 60, True)
    assert bar.cold_us == [13] and bar.busy_us == [21, 40], "one span while anybody is served"
    assert script.timeline.workers == ["w 24 GB"]


def test_a_load_that_fails_ends_its_bar_and_an_unload_that_fails_does_not() -> None:
    script = Script()
    script.load(10, 1)
    script.ended(15, 1, OperationOutcome.failed)
    script.load(20, 2)
    script.ended(25, 2)
    script.unload(30, 3)
    script.ended(35, 3, OperationOutcome.timed_out)
    first, second = script.timeline.bars
    assert (first.ready_us, first.gone_us) == (OPEN, 15)
    assert (second.ready_us, second.unload_us, second.gone_us) == (25, OPEN, OPEN)


def test_a_runner_that_was_lost_ends_where_it_is_loaded_again() -> None:
    script = Script()
    script.load(10, 1)
    script.ended(20, 1)
    script.load(70, 2)
    first, second = script.timeline.bars
    assert first.gone_us == 70 == second.load_us and second.gone_us == OPEN
