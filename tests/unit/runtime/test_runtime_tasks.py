"""Background tasks end, and what the observer tells the core is never lost for good."""

import asyncio

from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine
from bellmare.core.events import FaultKind, StoredModel, WorkerAdded, WorkerKind, WorkerObserved
from bellmare.core.units import Bytes, ModelId, WorkerId
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver
from bellmare.runtime.observer import Observer
from bellmare.runtime.tasks import Tasks
from bellmare.workers.port import Observation, WorkerFault

WORKER = WorkerId("w")


def none_expected(name: str, error: BaseException) -> None:
    raise AssertionError(name) from error


async def test_an_error_of_a_task_is_heard_and_a_cancel_is_not_an_error() -> None:
    heard: list[str] = []
    tasks = Tasks(lambda name, error: heard.append(f"{name}: {error}"))

    async def breaks() -> None:
        raise ValueError("no")

    tasks.spawn(breaks(), name="breaks")
    tasks.spawn(asyncio.sleep(3600), name="sleeps")
    await asyncio.sleep(0)
    await tasks.close()
    assert heard == ["breaks: no"]
    assert len(tasks) == 0


async def test_a_task_that_swallows_a_cancel_is_cancelled_again() -> None:
    tasks = Tasks(none_expected)
    cancels = 0

    async def stubborn() -> None:
        nonlocal cancels
        while cancels < 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancels += 1

    tasks.spawn(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await tasks.close()
    assert cancels == 2


async def test_a_kick_at_the_very_moment_of_closing_does_not_keep_the_observer_alive() -> None:
    for turns in range(6):
        tasks = Tasks(none_expected)
        driver = Driver(Engine(CoreConfig()), Clock())
        observer = Observer(driver, tasks, interval_s=3600)
        observer.watch(Port([]))  # type: ignore[arg-type]
        await asyncio.sleep(0.06)
        observer._kicks[WORKER].set()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await tasks.close()
        driver.close()


class Port:
    """A worker port that answers what the test has laid out; a fault is raised."""

    worker = WORKER

    def __init__(self, answers: list[Observation | WorkerFault]) -> None:
        self.answers = answers

    async def observe(self, *, timeout_s: float) -> Observation:
        answer = self.answers.pop(0) if self.answers else Observation((), (), "")
        if isinstance(answer, WorkerFault):
            raise answer
        return answer


async def test_a_list_is_told_until_the_core_has_it_and_then_no_more() -> None:
    stored = (StoredModel(name="m:1", model=ModelId("b"), digest="d", weights_bytes=Bytes(1)),)
    seen = Observation((), stored, "1")
    driver = Driver(Engine(CoreConfig()), Clock())
    told: list[object] = []
    driver.watch(lambda now, event, _: told.append(event.stored) if isinstance(event, WorkerObserved) else None)
    tasks = Tasks(none_expected)
    observer = Observer(driver, tasks)
    port = Port([WorkerFault(FaultKind.bad_answer, "no"), seen, seen])
    driver.feed(WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**9)))
    for _ in range(3):
        await asyncio.sleep(0.001)
        await observer.observe(port)  # type: ignore[arg-type]
    assert told == [stored, None]
    assert driver.engine.fleet.resolve("m:1") is not None
    driver.close()
