"""Watches one run and notes which model was where and when: the timeline of residency. Changes nothing."""

from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.core.decisions import CacheState, Decision, Dispatch, Load, Unload
from bellmare.core.events import (
    DispatchFailed,
    Event,
    OperationEnded,
    OperationOutcome,
    RequestCancelled,
    RequestFinished,
    WorkerAdded,
)
from bellmare.core.units import InstantUs, ModelId, OperationId, RequestId, WorkerId
from bellmare.sim.workload import Workload
from bellmare.sim.world import AHEAD

BARS_MAX = 6_000
"""Runners that are noted; then the timeline ends, so that a page of it stays light."""
SPANS_MAX = 40_000
"""Spans of service that are noted, likewise: a hot model has one for nearly every request."""
OPEN = -1


class Bar(msgspec.Struct):
    """One runner from the start of its load to its end. Instants in microseconds; ``OPEN``: not yet."""

    worker: int
    model: int
    load_us: int
    ready_us: int = OPEN
    unload_us: int = OPEN
    gone_us: int = OPEN
    ahead: bool = False
    """Nobody waited for it when it was loaded."""
    cold_us: list[int] = []
    """Arrivals that found no runner and waited for this one."""
    busy_us: list[int] = []
    """Begin and end of each span in which it served anybody, in turn."""


class Timeline(msgspec.Struct):
    """All bars of one run by the start of their load, over workers and models by number."""

    workers: list[str]
    models: list[str]
    bars: list[Bar]
    end_us: int
    cut: bool = False
    """The run went on, but a bound was reached."""


class TimelineRecorder:
    """A ``Watcher``."""

    def __init__(self, workload: Workload, *, bars_max: int = BARS_MAX, spans_max: int = SPANS_MAX) -> None:
        self.timeline = Timeline([], [model.name for model in workload.models], [], 0)
        self._bars_max = bars_max
        self._spans_max = spans_max
        self._spans = 0
        self._workers: dict[WorkerId, int] = {}
        self._models = {ModelId(model.blob): number for number, model in enumerate(workload.models)}
        self._here: dict[tuple[WorkerId, ModelId], Bar] = {}
        self._operations: dict[OperationId, tuple[bool, WorkerId, ModelId]] = {}
        """Loads (True) and unloads under way."""
        self._running: dict[RequestId, Bar] = {}
        self._taken: dict[int, int] = {}
        """Requests under way by the bar's identity."""
        self._handlers: dict[type[msgspec.Struct], Callable[[int, Any], None]] = {
            WorkerAdded: self._added,
            OperationEnded: self._operation_ended,
            RequestFinished: lambda now_us, event: self._left(now_us, event.request),
            RequestCancelled: lambda now_us, event: self._left(now_us, event.request),
            DispatchFailed: lambda now_us, event: self._left(now_us, event.request),
            Load: self._load,
            Unload: self._unload,
            Dispatch: self._dispatch,
        }

    def __call__(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        if self.timeline.cut:
            return
        self.timeline.end_us = now_us
        for happened in (event, *decisions):
            handler = self._handlers.get(type(happened))
            if handler is not None:
                handler(now_us, happened)

    def _added(self, now_us: int, event: WorkerAdded) -> None:
        if event.worker not in self._workers:
            self._workers[event.worker] = len(self._workers)
            self.timeline.workers.append(f"{event.worker} {event.capacity_bytes / 1e9:g} GB")

    def _load(self, now_us: int, decision: Load) -> None:
        place = (decision.worker, decision.model)
        self._gone(now_us, place)  # a crash that nobody told: the same model is loaded there once more
        if len(self.timeline.bars) >= self._bars_max:
            self.timeline.cut = True
            return
        bar = Bar(self._workers[decision.worker], self._models[decision.model], now_us, ahead=decision.cause in AHEAD)
        self.timeline.bars.append(bar)
        self._here[place] = bar
        self._operations[decision.operation] = (True, *place)

    def _unload(self, now_us: int, decision: Unload) -> None:
        place = (decision.worker, decision.model)
        bar = self._here.get(place)
        if bar is not None:
            bar.unload_us = now_us
            self._operations[decision.operation] = (False, *place)

    def _operation_ended(self, now_us: int, event: OperationEnded) -> None:
        load, worker, model = self._operations.pop(event.operation, (False, WorkerId(""), ModelId("")))
        bar = self._here.get((worker, model))
        if bar is None:
            return
        done = event.outcome is OperationOutcome.done
        if load and done:
            bar.ready_us = now_us
        elif load or done:
            self._gone(now_us, (worker, model))
        else:
            bar.unload_us = OPEN  # it stays

    def _gone(self, now_us: int, place: tuple[WorkerId, ModelId]) -> None:
        bar = self._here.pop(place, None)
        if bar is not None:
            bar.gone_us = now_us

    def _dispatch(self, now_us: int, decision: Dispatch) -> None:
        bar = self._here.get((decision.worker, decision.model))
        if bar is None:
            return
        self._running[decision.request] = bar
        taken = self._taken.get(id(bar), 0)
        self._taken[id(bar)] = taken + 1
        if not taken:
            self._spans += 1
            self.timeline.cut = self._spans >= self._spans_max
            bar.busy_us.append(now_us)
        if decision.cache is CacheState.cold:
            bar.cold_us.append(now_us - decision.queued_us)

    def _left(self, now_us: int, request: RequestId) -> None:
        bar = self._running.pop(request, None)
        if bar is not None:
            self._taken[id(bar)] -= 1
            if not self._taken[id(bar)]:
                bar.busy_us.append(now_us)
