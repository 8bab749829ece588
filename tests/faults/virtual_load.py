"""A fleet in virtual time for questions of load: fixed spans, a heap of what happens next, and the core itself.

Simpler than the simulator on purpose: what a test asserts must follow from numbers that one can check by hand.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from core_script import S, loaded, stored

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine

LOOK_US = 2 * S


class Load:
    """Workers ``w0`` ... that store ``models``; those of ``resident`` are loaded on all of them at the start."""

    def __init__(
        self,
        *,
        workers: int = 2,
        parallel: int = 4,
        models: Iterable[str] = ("a",),
        resident: Iterable[str] = ("a",),
        service_s: float = 1.0,
        load_s: float = 2.0,
        gib: int = 24,
        size_gib: int = 1,
        **limits: Any,
    ) -> None:  # tidy: a fleet in numbers
        self.engine = Engine(CoreConfig(**limits))
        self.now = 1000 * S
        self.began = self.now
        self.service_us, self.load_us = int(service_s * S), int(load_s * S)
        self.fails: Callable[[d.Dispatch], e.FaultKind | None] = lambda _: None
        """What becomes of an attempt; None: it is answered."""
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.number = 0
        self.arrived: dict[str, int] = {}
        self.dispatched: list[d.Dispatch] = []
        self.done: dict[str, int] = {}
        """When each request was answered."""
        self.refused: dict[str, tuple[int, d.Reject]] = {}
        self.loads: list[d.Load] = []
        self.unloads: list[d.Unload] = []
        self.held: dict[str, dict[str, e.LoadedModel]] = {}
        self.on_refusal: Callable[[str, d.Reject], None] = lambda *_: None
        names = tuple(stored(name, size_gib) for name in models)
        self.stored = names
        for index in range(workers):
            worker = f"w{index}"
            self.feed(
                e.WorkerAdded(worker=worker, kind=e.WorkerKind.ollama, capacity_bytes=gib << 30, parallel=parallel)
            )  # type: ignore[arg-type]
            self.held[worker] = {name: loaded(name, size_gib * 1.08 + 0.5) for name in resident}
            self._look(worker)

    # ------------------------------------------------------------------ time

    def later(self, span_us: int, act: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.heap, (self.now + max(0, span_us), self.number, act))

    def run(self, seconds: float) -> None:
        """Let time pass, with whatever happens in it."""
        until = self.now + int(seconds * S)
        while True:
            due = self.engine.next_deadline_us()
            at = self.heap[0][0] if self.heap else until + 1
            if due is not None and due <= min(at, until):
                self.now = max(self.now, due)
                self.feed(e.TimePassed())
            elif at <= until:
                self.now, _, act = heapq.heappop(self.heap)
                act()
            else:
                self.now = until
                return

    def feed(self, event: e.Event) -> None:
        for decision in self.engine.step(self.now, event):  # type: ignore[arg-type]
            self._carry_out(decision)

    def _carry_out(self, decision: d.Decision) -> None:
        match decision:
            case d.Dispatch():
                self.dispatched.append(decision)
                self.later(self._span(decision), lambda: self._end(decision))
            case d.Reject():
                self.refused[decision.request] = (self.now, decision)
                self.on_refusal(decision.request, decision)
            case d.Observe():
                self.later(S // 20, lambda: self._observe(decision.worker))
            case d.Load() | d.Unload():
                (self.loads if isinstance(decision, d.Load) else self.unloads).append(decision)
                self.later(self.load_us if isinstance(decision, d.Load) else S // 2, lambda: self._operated(decision))

    def _span(self, decision: d.Dispatch) -> int:
        return 1000 if self.fails(decision) is not None else self.service_us

    def _end(self, decision: d.Dispatch) -> None:
        fault = self.fails(decision)
        if fault is not None:
            self.feed(e.DispatchFailed(request=decision.request, worker=decision.worker, fault=fault))
            return
        self.done[decision.request] = self.now
        self.feed(e.RequestFinished(request=decision.request, outcome=e.Outcome.completed, output_tokens=1))

    def _operated(self, decision: d.Load | d.Unload) -> None:
        held, line = self.held[decision.worker], None
        if isinstance(decision, d.Load):
            line = held[decision.name] = e.LoadedModel(
                name=decision.name, model=decision.model, bytes=decision.reserved_bytes, num_ctx=decision.num_ctx,
                pinned=True,
            )  # fmt: skip
        else:
            held.pop(decision.name, None)
        done = e.OperationOutcome.done
        self.feed(e.OperationEnded(operation=decision.operation, outcome=done, loaded=line))

    def _look(self, worker: str) -> None:
        self._observe(worker)
        self.later(LOOK_US, lambda: self._look(worker))

    def _observe(self, worker: str) -> None:
        loaded_now = tuple(self.held[worker].values())
        self.feed(
            e.WorkerObserved(worker=worker, started_us=self.now, loaded=loaded_now, stored=self.stored)  # type: ignore[arg-type]
        )

    # ------------------------------------------------------------------ clients

    def ask(self, name: str = "a", *, within_s: float = 60, **more: Any) -> str:
        """One request, now; its id."""
        request = f"r{len(self.arrived)}"
        self.arrived[request] = self.now
        deadline = self.now + int(within_s * S)
        self.feed(e.RequestArrived(request=request, name=name, deadline_us=deadline, **more))  # type: ignore[arg-type]
        return request

    def stream(self, per_second: float, seconds: float, name: str = "a", **more: Any) -> None:
        """Requests at equal intervals from now on."""
        for number in range(int(per_second * seconds)):
            self.later(int(number * S / per_second), lambda: self.ask(name, **more) and None)

    # ------------------------------------------------------------------ what came of it

    @property
    def firsts(self) -> int:
        """Requests that were dispatched at all."""
        return sum(one.attempt == 1 for one in self.dispatched)

    def finished(self, since_s: float, until_s: float) -> int:
        """Answers within a span, in seconds since the start."""
        begin, end = self.began + since_s * S, self.began + until_s * S
        return sum(begin <= at < end for at in self.done.values())

    def waits(self, requests: Iterable[str]) -> list[float]:
        """From arrival to answer, in seconds, of those that were answered."""
        return [(self.done[one] - self.arrived[one]) / S for one in requests if one in self.done]

    def refusals(self) -> Counter[str]:
        return Counter(str(decision.refusal) for _, decision in self.refused.values())
