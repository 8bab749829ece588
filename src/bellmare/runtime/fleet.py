"""The workers of one gateway as live ports: joining, observing, leaving."""

import asyncio
from collections.abc import Collection, Iterable

from bellmare.core.events import WorkerRemoved
from bellmare.core.units import WorkerId
from bellmare.runtime.driver import Driver
from bellmare.runtime.observer import Observer
from bellmare.runtime.tasks import Tasks
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.port import WorkerFault

PROFILE_TIMEOUT_S = 5.0
JOIN_RETRY_S = 1.0
LEAVE_TIMEOUT_S = 3_700.0
"""Longer than the gateway lets any answer take."""
LEAVE_LOOK_S = 0.1
NOT_ASKED = "not asked yet"


class WorkerFleet:
    """Ports by worker id. A worker joins the core once it has said what it is; one that is away delays nobody."""

    def __init__(self, driver: Driver, observer: Observer, tasks: Tasks) -> None:
        self.ports: dict[WorkerId, OllamaWorker] = {}
        self.joining: dict[WorkerId, str] = {}
        """Workers that have not answered yet, with the latest reason."""
        self.leaving: dict[OllamaWorker, None] = {}
        """Ports out of the fleet on which something still runs."""
        self.tasks = tasks
        self._driver = driver
        self._observer = observer
        self._joins: dict[WorkerId, asyncio.Task[None]] = {}

    def add(self, port: OllamaWorker) -> None:
        """Begin to join ``port``; returns at once."""
        assert port.worker not in self.ports, "worker ids are unique"
        self.ports[port.worker] = port
        self.joining[port.worker] = NOT_ASKED
        self._joins[port.worker] = self.tasks.spawn(self._join(port), name=f"join {port.worker}")

    def remove(self, worker: WorkerId) -> None:
        """Send it nothing any more; what runs there may end. Nothing is unloaded."""
        port = self.ports.pop(worker)
        self._joins.pop(worker).cancel()
        self._observer.forget(worker)
        if self.joining.pop(worker, None) is None:
            self._driver.feed(WorkerRemoved(worker=worker))
        self.leaving[port] = None
        self.tasks.spawn(self._leave(port), name=f"leave {worker}")

    async def _leave(self, port: OllamaWorker) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                while port.upstream.in_flight:  # noqa: ASYNC110 - once per removed worker; a call has its own timeouts
                    await asyncio.sleep(LEAVE_LOOK_S)
        except TimeoutError:
            pass  # no answer may last so long
        await port.close()
        self.leaving.pop(port, None)

    async def _join(self, port: OllamaWorker) -> None:
        while True:
            try:
                joined = await port.profile(timeout_s=PROFILE_TIMEOUT_S)
                break
            except WorkerFault as fault:
                self.joining[port.worker] = f"{fault.fault}: {fault.detail}"
            await asyncio.sleep(JOIN_RETRY_S)
        self._driver.feed(joined)
        del self.joining[port.worker]
        self._observer.watch(port)

    async def look(self, ports: Iterable[OllamaWorker]) -> None:
        """Have the core see these as they are now."""
        await asyncio.gather(*(self._observer.observe(port) for port in ports if port.worker not in self.joining))

    async def settled(self, timeout_s: float, *, names: Collection[WorkerId] | None = None) -> bool:
        """Wait until every worker has been observed once or has failed to answer, at most ``timeout_s``; whether so.

        Or only those of ``names``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                # Used once, at start; an event would be one more state.
                while not all(self._tried(name) for name in (self.ports if names is None else names)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _tried(self, name: WorkerId) -> bool:
        worker = self._driver.engine.fleet.state.workers.get(name)
        if worker is None:
            return self.joining.get(name) != NOT_ASKED
        return worker.observed_us >= 0 or worker.unreachable > 0

    async def close(self) -> None:
        """Close every port's connections; nothing is unloaded."""
        await asyncio.gather(*(port.close() for port in (*self.ports.values(), *self.leaving)))
