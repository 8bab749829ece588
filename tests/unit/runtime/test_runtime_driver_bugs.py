"""Our own bugs: a handler, a watcher or the core raises. It costs what that one decision began, and is told."""

import asyncio
from typing import Any

import pytest

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision, Dispatch, HealthChange, Load, Observe, Reject
from bellmare.core.engine import Engine
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FaultKind,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    StoredModel,
    TimePassed,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import SECOND_US, Bytes, InstantUs, ModelId, RequestId, WorkerId
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver

WORKER = WorkerId("w")


class Recording:
    def __init__(self) -> None:
        self.said: list[str] = []

    def append(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        self.said.append(type(event).__name__)

    def break_off(self) -> None:
        self.said.append("break off")


class Broken:
    """A sink that raises; before that it may feed an event, as a conversation does when a worker is gone."""

    def __init__(self, driver: Driver, first: Event | None = None) -> None:
        self.dispatched = self.rejected = 0
        self._driver, self._first = driver, first

    def on_dispatch(self, decision: Dispatch) -> None:
        self.dispatched += 1
        if self._first is not None and self.dispatched == 1:
            self._driver.feed(self._first)
        raise RuntimeError("sink")

    def on_reject(self, decision: Reject) -> None:
        self.rejected += 1
        raise RuntimeError("sink")


class Place:
    """A driver with one worker of one slot, and all that was told of it."""

    def __init__(self, *, resident: bool = True) -> None:
        self.told: list[str] = []
        self.steps: list[Event] = []
        self.driver = Driver(Engine(CoreConfig()), Clock(), on_error=lambda what, error: self.told.append(what))
        self.driver.watch(lambda now_us, event, decisions: self.steps.append(event))
        self.driver.feed(WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10)))
        self.see(resident=resident)

    def see(self, *, resident: bool) -> None:
        stored = StoredModel(name="m:latest", model=ModelId("sha256:m"), digest="d", weights_bytes=Bytes(10**9))
        line = LoadedModel(name="m:latest", model=ModelId("sha256:m"), bytes=Bytes(10**9), num_ctx=8192, pinned=True)
        loaded = (line,) if resident else ()
        now = self.driver.clock.now_us()
        self.driver.feed(WorkerObserved(worker=WORKER, started_us=now, loaded=loaded, stored=(stored,)))

    def ask(self, request: str, sink: Any, *, within_us: int = 2**50) -> None:
        deadline_us = InstantUs(self.driver.clock.now_us() + within_us)
        self.driver.submit(RequestArrived(request=RequestId(request), name="m:latest", deadline_us=deadline_us), sink)

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.steps]

    @property
    def in_core(self) -> list[str]:
        return list(self.driver.engine.fleet.state.requests)


async def test_a_request_whose_sink_raises_is_ended_and_frees_its_slot() -> None:
    place = Place()
    for number in range(3):
        sink = Broken(place.driver)
        place.ask(f"r{number}", sink)
        assert sink.dispatched == 1
    assert place.in_core == []
    assert place.driver.requests == 0
    assert place.told == ["carrying out Dispatch"] * 3
    place.driver.close()


@pytest.mark.parametrize(
    ("first", "dispatches"),
    [
        (RequestCancelled(request=RequestId("r")), 1),
        (DispatchFailed(request=RequestId("r"), worker=WORKER, fault=FaultKind.failed), 2),
    ],
)
async def test_an_end_that_the_sink_fed_before_it_raised_stands(first: Event, dispatches: int) -> None:
    """A second end would be an event about a request that waits again, which the core takes for a bug."""
    place = Place()
    sink = Broken(place.driver, first)
    place.ask("r", sink)
    assert sink.dispatched == dispatches
    assert place.kinds.count("RequestFinished") == dispatches - 1
    assert place.in_core == []
    assert place.driver.requests == 0
    place.driver.close()


class Calm:
    def __init__(self) -> None:
        self.rejected = asyncio.Event()

    def on_dispatch(self, decision: Dispatch) -> None: ...

    def on_reject(self, decision: Reject) -> None:
        self.rejected.set()


async def test_later_decisions_of_the_step_are_carried_out() -> None:
    """A load breaks, and all who waited for it are refused in one step: the first one's sink raises."""
    place = Place(resident=False)
    loads: list[Load] = []
    place.driver.on(Load, loads.append)
    broken, calm = Broken(place.driver), Calm()
    place.ask("first", broken)
    place.ask("second", calm)
    place.driver.feed(OperationEnded(operation=loads[0].operation, outcome=OperationOutcome.failed))
    assert broken.rejected == 1
    assert calm.rejected.is_set()
    assert place.driver.requests == 0
    assert place.told == ["carrying out Reject"]
    place.driver.close()


async def test_a_deadline_that_begins_in_a_step_with_a_bug_is_met() -> None:
    place = Place()

    def broken(now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        raise RuntimeError("watcher")

    place.ask("running", Calm())
    place.driver.watch(broken)
    calm = Calm()
    place.ask("waiting", calm, within_us=SECOND_US // 20)
    async with asyncio.timeout(5):
        await calm.rejected.wait()
    place.driver.close()


async def test_a_load_that_cannot_be_started_ends_as_failed() -> None:
    place = Place(resident=False)

    def broken(decision: Load) -> None:
        raise RuntimeError("no task")

    place.driver.on(Load, broken)
    place.ask("r", Broken(place.driver))
    (end,) = [event for event in place.steps if isinstance(event, OperationEnded)]
    assert end.detail == "RuntimeError: no task"
    assert place.driver.engine.fleet.state.operations == {}
    place.driver.close()


async def test_one_watcher_that_raises_costs_nobody_else() -> None:
    place = Place()

    def broken(now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        raise RuntimeError("watcher")

    later: list[Event] = []
    place.driver.watch(broken)
    place.driver.watch(lambda now_us, event, decisions: later.append(event))
    sink = Broken(place.driver)
    place.ask("r", sink)
    assert sink.dispatched == 1
    assert [type(event) for event in later] == [RequestArrived, RequestFinished]
    assert "watching RequestArrived" in place.told
    place.driver.close()


async def test_without_a_listener_the_loop_is_told() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    driver = Driver(Engine(CoreConfig()), Clock())

    def broken(decision: HealthChange) -> None:
        raise RuntimeError("handler")

    driver.on(HealthChange, broken)
    driver.feed(WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10)))
    driver.feed(WorkerObserved(worker=WORKER, started_us=driver.clock.now_us(), loaded=(), stored=()))
    assert [str(context["exception"]) for context in told] == ["handler"]
    driver.close()


async def test_after_a_step_that_raised_the_log_breaks_off_and_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    recording = Recording()
    place.driver.record_with(recording)
    place.see(resident=True)
    step = place.driver.engine.step

    def broken(now_us: InstantUs, event: Event) -> list[Decision]:
        if isinstance(event, RequestArrived):
            raise AssertionError("our bug")
        return step(now_us, event)

    monkeypatch.setattr(place.driver.engine, "step", broken)
    with pytest.raises(AssertionError, match="our bug"):
        place.ask("r", Broken(place.driver))
    place.driver.feed(TimePassed())
    assert recording.said == ["WorkerObserved", "break off", "TimePassed"]
    assert place.driver.requests == 0
    place.driver.close()


async def test_what_waits_behind_a_step_that_raised_is_still_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    step = place.driver.engine.step

    def broken(now_us: InstantUs, event: Event) -> list[Decision]:
        if isinstance(event, TimePassed):
            raise AssertionError("our bug")
        return step(now_us, event)

    def feeds(decision: Observe) -> None:
        place.driver.feed(TimePassed())
        place.see(resident=True)

    monkeypatch.setattr(place.driver.engine, "step", broken)
    place.driver.on(Observe, feeds)

    class Failing:
        def on_dispatch(self, decision: Dispatch) -> None:
            fault = FaultKind.reset
            place.driver.feed(DispatchFailed(request=decision.request, worker=decision.worker, fault=fault))

        def on_reject(self, decision: Reject) -> None: ...

    with pytest.raises(AssertionError, match="our bug"):
        place.ask("r", Failing())
    assert place.kinds[-1] == "WorkerObserved"
    place.driver.close()
