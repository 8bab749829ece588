"""The single writer: every event goes through here into the core, every decision comes out here, in order, recorded."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from bellmare.core.decisions import Answer, Decision, Dispatch, Reject
from bellmare.core.engine import Engine
from bellmare.core.events import (
    Event,
    LoadRequested,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimePassed,
    UnloadRequested,
)
from bellmare.core.units import InstantUs, RequestId
from bellmare.runtime.clock import Clock

TIMER_RESOLUTION_S = 0.001
"""The loop's timers are no finer; a shorter wait would only spin."""


class Recording(Protocol):
    """Takes every step down; see ``recorder``."""

    def append(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None: ...


class RequestSink(Protocol):
    """The data plane's side of one request. Called inside ``feed``: must not block and may feed in turn."""

    def on_dispatch(self, decision: Dispatch) -> None: ...

    def on_reject(self, decision: Reject) -> None: ...


class Driver:
    """Feeds the engine on the event loop's own thread and hands its decisions to whoever carries them out."""

    def __init__(self, engine: Engine, clock: Clock, recording: Recording | None = None) -> None:
        self.engine = engine
        self.clock = clock
        self._recording = recording
        self._handlers: dict[type[Decision], Callable[[Any], None]] = {
            Dispatch: self._dispatch,
            Reject: self._reject,
            Answer: self._answer,
        }
        self._watchers: list[Callable[[InstantUs, Event, list[Decision]], None]] = []
        self._sinks: dict[RequestId, RequestSink] = {}
        self._tickets: dict[str, asyncio.Future[Answer]] = {}
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us: InstantUs | None = None
        self._closed = False

    @property
    def requests(self) -> int:
        """Requests whose end has not been reported; a leak shows here."""
        return len(self._sinks)

    def on(self, decision: type[Decision], handler: Callable[[Any], None]) -> None:
        """Let ``handler`` carry out every decision of that kind. One handler per kind."""
        assert decision not in self._handlers, f"{decision.__name__} has its handler"
        self._handlers[decision] = handler

    def record_with(self, recording: Recording) -> None:
        """Let ``recording`` take down every step from the next one on."""
        self._recording = recording

    def watch(self, watcher: Callable[[InstantUs, Event, list[Decision]], None]) -> None:
        """Let ``watcher`` see every step after it was taken: metrics, tests."""
        self._watchers.append(watcher)

    def submit(self, event: RequestArrived, sink: RequestSink) -> None:
        """Let a request arrive; ``sink`` hears what becomes of it until its end has been fed."""
        self._sinks[event.request] = sink
        self.feed(event)

    async def ask(self, event: LoadRequested | UnloadRequested) -> Answer:
        """Feed an operator's wish; the core answers in the same step."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tickets[event.ticket] = future
        self.feed(event)
        return await future

    def feed(self, event: Event) -> None:
        """Take one event in. Events fed by handlers in turn wait until the step in progress is done."""
        self._inbox.append(event)
        if self._busy or self._closed:
            return
        self._busy = True
        try:
            while self._inbox:
                self._step(self._inbox.popleft())
        finally:
            self._busy = False
        self._arm()

    def _step(self, event: Event) -> None:
        now_us = self.clock.now_us()
        decisions = self.engine.step(now_us, event)
        if self._recording is not None:
            self._recording.append(now_us, event, decisions)
        if isinstance(event, RequestFinished | RequestCancelled):
            self._sinks.pop(event.request, None)
        for watcher in self._watchers:
            watcher(now_us, event, decisions)
        for decision in decisions:
            handler = self._handlers.get(type(decision))
            if handler is not None:
                handler(decision)

    def _dispatch(self, decision: Dispatch) -> None:
        self._sinks[decision.request].on_dispatch(decision)

    def _reject(self, decision: Reject) -> None:
        self._sinks.pop(decision.request).on_reject(decision)

    def _answer(self, decision: Answer) -> None:
        future = self._tickets.pop(decision.ticket, None)
        if future is not None and not future.done():
            future.set_result(decision)

    def _arm(self) -> None:
        """Have the loop wake us at the core's next deadline."""
        deadline_us = self.engine.next_deadline_us()
        if deadline_us == self._timer_us or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_us = deadline_us
        if deadline_us is not None:
            wait_s = max(0.0, (deadline_us - self.clock.now_us()) / 1e6)
            wait_s = wait_s if wait_s == 0.0 else max(TIMER_RESOLUTION_S, wait_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._timer_us = None
        self.feed(TimePassed())

    def close(self) -> None:
        """Take no more events."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
