"""The single writer: order, delivery, and time."""

import asyncio

import pytest

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision, Dispatch, Load, Observe, Reject
from bellmare.core.engine import Engine
from bellmare.core.events import (
    Event,
    LoadedModel,
    LoadRequested,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestArrived,
    RequestFinished,
    StoredModel,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import SECOND_US, Bytes, InstantUs, ModelId, RequestId, WorkerId
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver

WORKER = WorkerId("w")


class Sink:
    """Remembers what became of a request; may do something at each word, as a conversation does."""

    def __init__(self, driver: Driver, request: str, *, finish_at_once: bool = False) -> None:
        self.heard: list[Decision] = []
        self._driver, self._request, self._finish = driver, RequestId(request), finish_at_once

    def on_dispatch(self, decision: Dispatch) -> None:
        self.heard.append(decision)
        if self._finish:
            self._driver.feed(RequestFinished(request=self._request, outcome=Outcome.completed))

    def on_reject(self, decision: Reject) -> None:
        self.heard.append(decision)


def ready(driver: Driver, *, slots: int = 1) -> None:
    """One worker with model ``m`` resident."""
    driver.feed(WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10), parallel=slots))
    stored = StoredModel(name="m:latest", model=ModelId("sha256:m"), digest="d", weights_bytes=Bytes(10**9))
    loaded = LoadedModel(name="m:latest", model=ModelId("sha256:m"), bytes=Bytes(10**9), num_ctx=8192, pinned=True)
    now = driver.clock.now_us()
    driver.feed(WorkerObserved(worker=WORKER, started_us=now, loaded=(loaded,), stored=(stored,)))


def arrival(request: str, *, name: str = "m:latest", deadline_us: int = 2**60) -> RequestArrived:
    return RequestArrived(request=RequestId(request), name=name, deadline_us=InstantUs(deadline_us))


def new_driver() -> Driver:
    return Driver(Engine(CoreConfig()), Clock())


async def test_a_dispatch_goes_to_the_sink_that_submitted_the_request() -> None:
    driver = new_driver()
    ready(driver)
    sink = Sink(driver, "r1")
    driver.submit(arrival("r1"), sink)
    assert [type(decision) for decision in sink.heard] == [Dispatch]
    driver.close()


async def test_events_fed_from_within_a_step_wait_for_its_end() -> None:
    """The sink finishes its request inside ``on_dispatch``; the step in progress must not be entered again."""
    driver = new_driver()
    ready(driver)
    steps: list[str] = []
    driver.watch(lambda now_us, event, decisions: steps.append(type(event).__name__))
    sink = Sink(driver, "r1", finish_at_once=True)
    driver.submit(arrival("r1"), sink)
    assert steps == ["RequestArrived", "RequestFinished"]
    assert driver.requests == 0
    driver.close()


async def test_a_refused_request_is_forgotten() -> None:
    driver = new_driver()
    ready(driver)
    sink = Sink(driver, "r1")
    driver.submit(arrival("r1", name="other:latest"), sink)
    assert [type(decision) for decision in sink.heard] == [Reject]
    assert driver.requests == 0
    driver.close()


async def test_time_alone_brings_what_is_due() -> None:
    """A queued request is refused at its deadline although nothing else happens."""
    driver = new_driver()
    ready(driver)
    driver.submit(arrival("r1"), Sink(driver, "r1"))
    rejected: asyncio.Future[Reject] = asyncio.get_running_loop().create_future()

    class Waiting(Sink):
        def on_reject(self, decision: Reject) -> None:
            rejected.set_result(decision)

    driver.submit(arrival("r2", deadline_us=driver.clock.now_us() + SECOND_US // 20), Waiting(driver, "r2"))
    async with asyncio.timeout(5):
        decision = await rejected
    assert decision.refusal == "deadline_passed"
    driver.close()


async def test_every_kind_of_operation_reaches_its_handler_in_order() -> None:
    driver = new_driver()
    seen: list[Decision] = []
    driver.on(Load, seen.append)
    driver.on(Observe, seen.append)
    driver.feed(WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10)))
    stored = StoredModel(name="m:latest", model=ModelId("sha256:m"), digest="d", weights_bytes=Bytes(10**9))
    driver.feed(WorkerObserved(worker=WORKER, started_us=driver.clock.now_us(), loaded=(), stored=(stored,)))
    driver.submit(arrival("r1"), Sink(driver, "r1"))
    assert [type(decision) for decision in seen] == [Load]
    load = seen[0]
    assert isinstance(load, Load)
    driver.feed(OperationEnded(operation=load.operation, outcome=OperationOutcome.failed, detail="no"))
    assert Observe in [type(decision) for decision in seen]
    driver.close()


async def test_an_operator_gets_the_answer_of_the_same_step() -> None:
    driver = new_driver()
    ready(driver)
    async with asyncio.timeout(5):
        answer = await driver.ask(LoadRequested(ticket="t", name="m:latest"))
    assert answer.accepted
    assert answer.workers == (WORKER,)
    driver.close()


async def test_a_closed_driver_takes_nothing_in() -> None:
    driver = new_driver()
    steps: list[Event] = []
    driver.watch(lambda now_us, event, decisions: steps.append(event))
    driver.close()
    ready(driver)
    assert steps == []


def test_two_handlers_for_one_decision_are_our_bug() -> None:
    driver = new_driver()
    driver.on(Load, lambda decision: None)
    with pytest.raises(AssertionError):
        driver.on(Load, lambda decision: None)
