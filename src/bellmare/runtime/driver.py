"""The single writer: every event goes through here into the core, every decision comes out here, in order, recorded.

A handler that raises is our bug, and costs what its one decision began, never the other decisions of its step.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from bellmare.core.decisions import Answer, Decision, Dispatch, Load, Reject, Unload
from bellmare.core.engine import Engine
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FaultKind,
    LoadRequested,
    OperationEnded,
    OperationOutcome,
    Outcome,
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
PAUSE_AFTER_BUG_S = 0.1
"""After a step that raised, time is handed in no sooner: a deadline that cannot be handled must not take the loop."""
DETAIL_CHARS_MAX = 500

Complaint = Callable[[str, BaseException], None]
"""Told what failed, in words, and how."""


class Recording(Protocol):
    """Takes every step down; see ``recorder``."""

    def append(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None: ...

    def break_off(self) -> None:
        """A step is missing: what is appended next begins a new log from a new snapshot."""


class RequestSink(Protocol):
    """The data plane's side of one request. Called inside ``feed``: must not block and may feed in turn.

    If ``on_dispatch`` raises and has fed no end, the driver ends the request with ``RequestFinished(failed)``.
    """

    def on_dispatch(self, decision: Dispatch) -> None: ...

    def on_reject(self, decision: Reject) -> None: ...


class Driver:
    """Feeds the engine on the event loop's own thread and hands its decisions to whoever carries them out."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        recording: Recording | None = None,
        *,
        on_error: Complaint | None = None,
    ) -> None:
        """``on_error`` hears of handlers and watchers that raised; without it the loop's exception handler does."""
        self.engine = engine
        self.clock = clock
        self._now_us = clock.now_us
        self._recording = recording
        self._on_error = on_error if on_error is not None else _tell_loop
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
        self._pause_s = 0.0
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
        """Let ``recording`` take down every step from the next one on; it must begin with the state as it is."""
        self._recording = recording

    def watch(self, watcher: Callable[[InstantUs, Event, list[Decision]], None]) -> None:
        """Let ``watcher`` see every step after it was taken: metrics, tests."""
        self._watchers.append(watcher)

    def submit(self, event: RequestArrived, sink: RequestSink) -> None:
        """Let a request arrive; ``sink`` hears what becomes of it until its end has been fed."""
        self._sinks[event.request] = sink
        try:
            self.feed(event)
        except BaseException:
            self._sinks.pop(event.request, None)  # the caller knows already
            raise

    async def ask(self, event: LoadRequested | UnloadRequested) -> Answer:
        """Feed an operator's wish; the core answers in the same step."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tickets[event.ticket] = future
        try:
            self.feed(event)
            return await future
        finally:
            self._tickets.pop(event.ticket, None)

    def feed(self, event: Event) -> None:
        """Take one event in. Events fed by handlers in turn wait until the step in progress is done.

        Raises what the core itself raised, after all that waited has been taken in too.
        """
        if self._busy or self._closed:
            self._inbox.append(event)
            return
        self._busy = True
        bug: Exception | None = None
        try:
            try:
                self._step(event)
            except Exception as error:  # noqa: BLE001  raised below, once the inbox is empty
                bug = error
            while self._inbox:
                try:
                    self._step(self._inbox.popleft())
                except Exception as error:  # noqa: BLE001  as above
                    bug = bug if bug is not None else error
        finally:
            self._busy = False
            self._pause_s = PAUSE_AFTER_BUG_S if bug is not None else 0.0
            deadline_us = self.engine.next_deadline_us()
            if deadline_us != self._timer_us:
                self._arm(deadline_us)
        if bug is not None:
            raise bug

    def _step(self, event: Event) -> None:
        """One step and all that follows from it. Whoever raises costs nobody else what he has to do."""
        now_us = self._now_us()
        recording = self._recording
        try:
            decisions = self.engine.step(now_us, event)
        except BaseException:
            if recording is not None:
                recording.break_off()  # the state may be half changed: no replay could show that
            raise
        if recording is not None:
            try:
                recording.append(now_us, event, decisions)
            except Exception as error:  # noqa: BLE001
                self._complain("recording", event, error)
                recording.break_off()
        kind = type(event)
        if kind is RequestFinished or kind is RequestCancelled:
            self._sinks.pop(event.request, None)  # type: ignore[attr-defined]
        for watcher in self._watchers:
            try:
                watcher(now_us, event, decisions)
            except Exception as error:  # noqa: BLE001
                self._complain("watching", event, error)
        for decision in decisions:
            handler = self._handlers.get(type(decision))
            if handler is not None:
                try:
                    handler(decision)
                except Exception as error:  # noqa: BLE001
                    self._complain("carrying out", decision, error)
                    self._end(decision, error)

    def _end(self, decision: Decision, error: Exception) -> None:
        """End what ``decision`` began in the core: nobody else will. A refused sink or a ticket is gone already."""
        detail = f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]
        if isinstance(decision, Dispatch) and not self._ends(decision):
            self.feed(RequestFinished(request=decision.request, outcome=Outcome.failed))
        elif isinstance(decision, Load | Unload):
            self.feed(
                OperationEnded(
                    operation=decision.operation,
                    outcome=OperationOutcome.failed,
                    fault=FaultKind.failed,
                    detail=detail,
                )
            )

    def _ends(self, decision: Dispatch) -> bool:
        """Whether its sink has fed, before it raised, what ends this attempt."""
        ends = (RequestFinished, RequestCancelled, DispatchFailed)
        return any(isinstance(event, ends) and event.request == decision.request for event in self._inbox)

    def _complain(self, doing: str, subject: Event | Decision, error: BaseException) -> None:
        what = f"{doing} {type(subject).__name__}"
        try:
            self._on_error(what, error)
        except Exception as second:  # noqa: BLE001  as above
            _tell_loop(f"telling of an error while {what}", second)

    def _dispatch(self, decision: Dispatch) -> None:
        self._sinks[decision.request].on_dispatch(decision)

    def _reject(self, decision: Reject) -> None:
        self._sinks.pop(decision.request).on_reject(decision)

    def _answer(self, decision: Answer) -> None:
        future = self._tickets.pop(decision.ticket, None)
        if future is not None and not future.done():
            future.set_result(decision)

    def _arm(self, deadline_us: InstantUs | None) -> None:
        """Have the loop wake us at the core's next deadline."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_us = deadline_us
        if deadline_us is not None:
            wait_s = max(0.0, (deadline_us - self.clock.now_us()) / 1e6)
            wait_s = wait_s if wait_s == 0.0 else max(TIMER_RESOLUTION_S, wait_s)
            wait_s = max(wait_s, self._pause_s)
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


def _tell_loop(what: str, error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": f"error while {what}", "exception": error})
