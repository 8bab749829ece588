"""Asks every worker, again and again, what it stores and what it has loaded. The core heals from these answers."""

import asyncio

from bellmare.core.decisions import Observe
from bellmare.core.events import StoredModel, WorkerObserved, WorkerUnreachable
from bellmare.core.units import WorkerId
from bellmare.runtime.driver import Driver
from bellmare.runtime.tasks import Tasks
from bellmare.workers.port import WorkerFault, WorkerPort

INTERVAL_S = 2.0
TIMEOUT_S = 12.0
"""/api/ps can stall for 10 s behind the health ping of a hung runner (ollama.md 2.5)."""
PAUSE_S = 0.05
"""Between two observations of one worker, however often the core asks."""


class Observer:
    """One loop per worker; a slow worker delays nobody else."""

    def __init__(self, driver: Driver, tasks: Tasks, *, interval_s: float = INTERVAL_S) -> None:
        self._driver = driver
        self._tasks = tasks
        self._interval_s = interval_s
        self._kicks: dict[WorkerId, asyncio.Event] = {}
        self._loops: dict[WorkerId, asyncio.Task[None]] = {}
        driver.on(Observe, self._kick)

    def watch(self, port: WorkerPort) -> None:
        """Observe ``port`` from now on, first at once."""
        self._kicks[port.worker] = asyncio.Event()
        self._loops[port.worker] = self._tasks.spawn(self._loop(port), name=f"observe {port.worker}")

    def forget(self, worker: WorkerId) -> None:
        """Observe it no more, if it was."""
        self._kicks.pop(worker, None)
        loop = self._loops.pop(worker, None)
        if loop is not None:
            loop.cancel()

    def _kick(self, decision: Observe) -> None:
        kick = self._kicks.get(decision.worker)
        if kick is not None:
            kick.set()

    async def _loop(self, port: WorkerPort) -> None:
        kick = self._kicks[port.worker]
        while True:
            kick.clear()
            await self.observe(port)
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(self._interval_s):  # wait_for of Python 3.11 can swallow a cancel
                    await kick.wait()
            except TimeoutError:
                pass  # nobody asked: time for the next round

    async def observe(self, port: WorkerPort) -> None:
        """Look at ``port`` now, and tell the core."""
        started_us = self._driver.clock.now_us()
        try:
            seen = await port.observe(timeout_s=TIMEOUT_S)
        except WorkerFault as fault:
            self._driver.feed(WorkerUnreachable(worker=port.worker, started_us=started_us, fault=fault.fault))
            return
        self._driver.feed(
            WorkerObserved(
                worker=port.worker,
                started_us=started_us,
                loaded=seen.loaded,
                stored=self._news(port, seen.stored),
                version=seen.version,
            )
        )

    def _news(self, port: WorkerPort, stored: tuple[StoredModel, ...]) -> tuple[StoredModel, ...] | None:
        """None if the core has just that already: events stay small, and one that was lost is made up for."""
        worker = self._driver.engine.fleet.state.workers.get(port.worker)
        if worker is not None and {entry.name: entry for entry in stored} == worker.stored and worker.observed_us >= 0:
            return None
        return stored
