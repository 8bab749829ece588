"""The workers of one gateway as live ports: joining, observing, leaving."""

import asyncio

from bellmare.core.units import WorkerId
from bellmare.runtime.driver import Driver
from bellmare.runtime.observer import Observer
from bellmare.runtime.tasks import Tasks
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.port import WorkerFault

PROFILE_TIMEOUT_S = 5.0
JOIN_RETRY_S = 1.0
NOT_ASKED = "not asked yet"


class WorkerFleet:
    """Ports by worker id. A worker joins the core once it has said what it is; one that is away delays nobody."""

    def __init__(self, driver: Driver, observer: Observer, tasks: Tasks) -> None:
        self.ports: dict[WorkerId, OllamaWorker] = {}
        self.joining: dict[WorkerId, str] = {}
        """Workers that have not answered yet, with the latest reason."""
        self.tasks = tasks
        self._driver = driver
        self._observer = observer

    def add(self, port: OllamaWorker) -> None:
        """Begin to join ``port``; returns at once."""
        assert port.worker not in self.ports, "worker ids are unique"
        self.ports[port.worker] = port
        self.joining[port.worker] = NOT_ASKED
        self.tasks.spawn(self._join(port), name=f"join {port.worker}")

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

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every worker has been observed once or has failed to answer, at most ``timeout_s``; whether so."""
        try:
            async with asyncio.timeout(timeout_s):
                # Used once, at start; an event would be one more state.
                while not all(self._tried(name) for name in self.ports):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _tried(self, name: WorkerId) -> bool:
        worker = self._driver.engine.fleet.state.workers.get(name)
        if worker is None:
            return self.joining[name] != NOT_ASKED
        return worker.observed_us >= 0 or worker.unreachable > 0

    async def close(self) -> None:
        """Close every port's connections; nothing is unloaded."""
        await asyncio.gather(*(port.close() for port in self.ports.values()))
