"""Carries out operations: one call on a worker's port, with a timeout, and exactly one completion event."""

import asyncio
from collections.abc import Callable, Mapping

from bellmare.core.decisions import Load, Unload
from bellmare.core.events import FaultKind, LoadedModel, OperationEnded, OperationOutcome
from bellmare.core.units import OperationId, SpanUs, WorkerId
from bellmare.runtime.driver import Driver
from bellmare.runtime.tasks import Tasks
from bellmare.workers.port import WorkerFault, WorkerPort

OperationReport = Callable[[Load | Unload, OperationEnded, int], None]


class Effects:
    """The hands of the core. ``report`` gets each operation with its end and the microseconds it took."""

    def __init__(
        self, driver: Driver, ports: Mapping[WorkerId, WorkerPort], *, tasks: Tasks, report: OperationReport
    ) -> None:
        self._driver = driver
        self._ports = ports
        self._tasks = tasks
        self._report = report
        driver.on(Load, self._start_load)
        driver.on(Unload, self._start_unload)

    def _start_load(self, decision: Load) -> None:
        self._tasks.spawn(self._run(decision), name=f"load {decision.name} on {decision.worker}")

    def _start_unload(self, decision: Unload) -> None:
        self._tasks.spawn(self._run(decision), name=f"unload {decision.name} on {decision.worker}")

    async def _run(self, decision: Load | Unload) -> None:
        began_us = self._driver.clock.now_us()
        try:
            event = await self._attempt(decision)
        except Exception as error:
            # Our bug, told by ``Tasks``. Without an end the worker's loader would stay taken until the timeout.
            detail = f"{type(error).__name__}: {error}"
            self._end(decision, _failed(decision.operation, FaultKind.failed, detail), began_us=began_us)
            raise
        self._end(decision, event, began_us=began_us)

    def _end(self, decision: Load | Unload, event: OperationEnded, *, began_us: int) -> None:
        self._report(decision, event, self._driver.clock.now_us() - began_us)
        self._driver.feed(event)

    async def _attempt(self, decision: Load | Unload) -> OperationEnded:
        port = self._ports.get(decision.worker)
        if port is None:
            return _failed(decision.operation, FaultKind.failed, "the worker has left the fleet")
        timeout_s = decision.timeout_us / 1e6
        try:
            async with asyncio.timeout(timeout_s):
                loaded = await self._call(port, decision, timeout_s=timeout_s)
        except WorkerFault as fault:
            if fault.fault is FaultKind.timeout:
                return _timed_out(decision.operation, decision.timeout_us)
            return _failed(decision.operation, fault.fault, fault.detail)
        except TimeoutError:
            return _timed_out(decision.operation, decision.timeout_us)
        return OperationEnded(operation=decision.operation, outcome=OperationOutcome.done, loaded=loaded)

    @staticmethod
    async def _call(port: WorkerPort, decision: Load | Unload, *, timeout_s: float) -> LoadedModel | None:
        if isinstance(decision, Unload):
            await port.unload(decision.name, timeout_s=timeout_s)
            return None
        return await port.load(
            decision.name, num_ctx=decision.num_ctx, embedding=decision.embedding, timeout_s=timeout_s
        )


def _failed(operation: OperationId, fault: FaultKind, detail: str) -> OperationEnded:
    return OperationEnded(operation=operation, outcome=OperationOutcome.failed, fault=fault, detail=detail[:500])


def _timed_out(operation: OperationId, timeout_us: SpanUs) -> OperationEnded:
    detail = f"no end within {timeout_us // 1_000_000} s"
    return OperationEnded(
        operation=operation, outcome=OperationOutcome.timed_out, fault=FaultKind.timeout, detail=detail
    )
