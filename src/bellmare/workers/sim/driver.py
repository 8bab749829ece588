"""The only caller of the twin: gives it inputs in order, wakes it at its next deadline, hands each effect to whoever
waits for it.
"""

import asyncio
from collections import deque
from typing import Protocol

from bellmare.twin.messages import (
    Cancel,
    Failed,
    Finished,
    FirstToken,
    Granted,
    Input,
    LoadReplied,
    Stalled,
    Tick,
    UnloadReplied,
)
from bellmare.twin.server import Twin
from bellmare.workers.sim.clock import Clock

RequestEffect = Granted | FirstToken | Finished | Failed | LoadReplied | UnloadReplied | Stalled
_ENDS = (Finished, Failed, LoadReplied, UnloadReplied)


class Waiter(Protocol):
    """Whoever answers one request."""

    def on_effect(self, effect: RequestEffect) -> None:
        """Something happened to the request. Must only take note: more of the same step may follow."""

    def flush(self) -> None:
        """All is told. May write, which may find the client gone, which may call the driver again."""


class Driver:
    """Runs a twin in wall time on one loop, with one timer."""

    def __init__(self, twin: Twin, clock: Clock) -> None:
        self.twin = twin
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.now_us = clock.now_us()
        """Up to where the twin's doings are known; whoever writes tokens goes by this, not by a clock read later."""
        self._waiters: dict[str, Waiter] = {}
        """By request id, until the request's end. Bounded by the server's connections."""
        self._inputs: deque[Input] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._ids = 0

    def new_id(self) -> str:
        """A request id for the twin."""
        self._ids += 1
        return str(self._ids)

    def ask(self, given: Input, request: str, *, waiter: Waiter) -> None:
        """Give the twin a request; ``waiter`` hears its effects, perhaps before this returns."""
        self._waiters[request] = waiter
        self.give(given)

    def leave(self, request: str) -> None:
        """The client of ``request`` is gone."""
        if self._waiters.pop(request, None) is not None:
            self.give(Cancel(request))

    def give(self, given: Input) -> None:
        """Let the twin take ``given``, and tell everyone what came of it. Calls from within callbacks are queued."""
        self._inputs.append(given)
        if self._running:
            return
        self._running = True
        try:
            while self._inputs:
                self._step(self._inputs.popleft())
        finally:
            self._running = False
            self._arm()

    def catch_up(self) -> None:
        """Let the twin pass deadlines that are due, if its timer is late: nobody may run ahead of it."""
        self.now_us = self.clock.now_us()
        due_us = self.twin.next_deadline_us()
        if due_us is not None and due_us <= self.now_us:
            self.give(Tick())

    def _step(self, given: Input) -> None:
        told: dict[Waiter, None] = {}
        self.now_us = self.clock.now_us()
        for effect in self.twin.step(self.now_us, given):
            if isinstance(effect, RequestEffect):
                find = self._waiters.pop if isinstance(effect, _ENDS) else self._waiters.get
                waiter = find(effect.request, None)
                if waiter is not None:
                    waiter.on_effect(effect)
                    told[waiter] = None
        for waiter in told:
            waiter.flush()

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self.close()
        due_us = self.twin.next_deadline_us()
        if due_us is not None:
            self._timer = self.loop.call_at(self.clock.loop_time(due_us), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.give(Tick())
