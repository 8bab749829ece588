"""How long one step of the decision core takes, at 300 workers, 300 models and 10,000 queued requests.

Three situations: ``spread`` (each model resident on about four workers), ``saturated`` (a pinned model holds four
fifths of the workers, so that most models are blocked and memory changes hands all the time) and ``hot`` (one model on
every worker). The last line printed is one JSON object; its headline is the worse of the first two.
"""

import argparse
import gc
import heapq
import random
import sys
import time
from collections import Counter

import msgspec

from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.decisions import Decision, Dispatch, Load, Reject, Unload
from bellmare.core.engine import Engine
from bellmare.core.events import (
    Event,
    FirstTokenReceived,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    StoredModel,
    TimePassed,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import GIB, SECOND_US, Bytes, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId

EVENT_SPACING_US = 500
"""Two thousand events a second, beside observations and deadlines."""
OBSERVE_EVERY_US = 2 * SECOND_US
OPERATION_US = 3 * SECOND_US
DEADLINE_US = 600 * SECOND_US
CANCELLED_PERCENT = 4
SETTLE_STEPS = 5_000


class Situation(msgspec.Struct, frozen=True):
    """One fleet and its traffic. Sizes in GiB."""

    name: str
    workers: int
    models: int
    queued: int
    room: int
    """Runners of the common size that one worker holds."""
    copies: int
    """Workers on which each of the first ``resident`` models starts."""
    resident: int
    parallel: int = 4
    asked: int = 0
    """Only the first so many models are asked for; zero: all."""
    pinned: int = 0
    """Workers that hold the first model, which is pinned, and nothing else."""


def situations(workers: int, models: int, queued: int) -> list[Situation]:
    """The three situations at the given size."""
    return [
        Situation("spread", workers, models, queued, room=4, copies=4, resident=models),
        Situation("saturated", workers, models, queued, room=1, copies=1, resident=1, pinned=workers * 4 // 5),
        Situation("hot", workers, models, queued, room=2, copies=workers, resident=1, asked=1),
    ]


class Traffic:
    """The world outside: what runs, what loads, and what each worker holds."""

    def __init__(self, situation: Situation, seed: int) -> None:
        self.situation = situation
        self.random = random.Random(seed)  # noqa: S311 a benchmark's traffic, not a secret
        config = CoreConfig(
            queue_per_model_max=situation.queued * 2,
            queue_total_max=situation.queued * 2,
            queue_wait_max_us=SpanUs(DEADLINE_US),
            models={self._name(0): ModelConfig(pinned=True)} if situation.pinned else {},
        )
        self.engine = Engine(config)
        self.now_us = SECOND_US
        self.running: list[RequestId] = []
        self.started: list[RequestId] = []
        """Running, with a first token."""
        self.waiting: list[RequestId] = []
        self.where: dict[RequestId, str] = {}
        self.operations: list[tuple[int, int, Load | Unload]] = []
        self.held: list[dict[ModelId, LoadedModel]] = [{} for _ in range(situation.workers)]
        self.next_request = 0
        self.next_look = 0
        self.next_look_us = self.now_us
        self.spent: dict[str, list[int]] = {}
        self.decided: Counter[str] = Counter()
        self.stored = tuple(self._stored(number) for number in range(situation.models))
        self._build()

    # ------------------------------------------------------------------ building

    @staticmethod
    def _stored(number: int) -> StoredModel:
        weights = Bytes((8 + number % 3) * GIB)
        model = ModelId(f"{number:064x}")
        return StoredModel(name=Traffic._name(number), model=model, digest=f"{number:064x}", weights_bytes=weights)

    @staticmethod
    def _name(number: int) -> str:
        return f"model-{number}:latest"

    def _build(self) -> None:
        situation = self.situation
        for number in range(situation.workers):
            self._step(
                WorkerAdded(
                    worker=self._worker(number),
                    kind=WorkerKind.sim,
                    capacity_bytes=Bytes((situation.room * 12 + 2) * GIB),
                    headroom_bytes=Bytes(GIB),
                    parallel=situation.parallel,
                )
            )
        for place in range(situation.resident * situation.copies):
            entry = self.stored[place % situation.resident]
            held = self.held[(place * 7 + place // situation.workers) % situation.workers]
            if len(held) < situation.room:
                held[entry.model] = self._loaded(entry)
        for number in range(situation.pinned):
            self.held[number] = {self.stored[0].model: self._loaded(self.stored[0])}
        for number in range(situation.workers):
            self._step(self._sight(number, first=True))
        for _ in range(situation.queued * 3):
            if len(self.waiting) >= situation.queued:
                break
            self._step(self._arrival())

    @staticmethod
    def _worker(number: int) -> WorkerId:
        return WorkerId(f"worker-{number:03}")

    @staticmethod
    def _loaded(entry: StoredModel) -> LoadedModel:
        return LoadedModel(
            name=entry.name, model=entry.model, bytes=Bytes(entry.weights_bytes + GIB), num_ctx=8192, pinned=True
        )

    # ------------------------------------------------------------------ events

    def _sight(self, number: int, *, first: bool = False) -> WorkerObserved:
        return WorkerObserved(
            worker=self._worker(number),
            started_us=InstantUs(self.now_us),
            loaded=tuple(self.held[number].values()),
            stored=self.stored if first else None,
        )

    def _arrival(self) -> RequestArrived:
        self.next_request += 1
        entry = self.stored[self.random.randrange(self.situation.asked or self.situation.models)]
        return RequestArrived(
            request=RequestId(f"request-{self.next_request}"),
            name=entry.name,
            deadline_us=InstantUs(self.now_us + DEADLINE_US * self.random.randrange(50, 100) // 100),
            prompt_tokens=self.random.randrange(2000),
        )

    def _take(self, requests: list[RequestId], state: str) -> RequestId | None:
        """A random one that is still in ``state``; lists may hold entries that have moved on."""
        while requests:
            place = self.random.randrange(len(requests))
            requests[place], requests[-1] = requests[-1], requests[place]
            request = requests.pop()
            if self.where.get(request) == state:
                return request
        return None

    def _next(self) -> Event:
        """What happens next, in the order of time: ends of operations, observations, deadlines, then traffic."""
        if self.operations and self.operations[0][0] <= self.now_us:
            return self._operation_end(heapq.heappop(self.operations)[2])
        if self.next_look_us <= self.now_us:
            self.next_look_us += OBSERVE_EVERY_US // self.situation.workers
            self.next_look = (self.next_look + 1) % self.situation.workers
            return self._sight(self.next_look)
        deadline_us = self.engine.next_deadline_us()
        if deadline_us is not None and deadline_us <= self.now_us:
            return TimePassed()
        self.now_us += EVENT_SPACING_US
        return self._traffic()

    def _traffic(self) -> Event:
        if self.random.randrange(100) < CANCELLED_PERCENT:
            return self._cancellation()
        if self.engine.fleet.state.waiting < self.situation.queued or self.random.randrange(4) == 0:
            return self._arrival()
        if self.random.randrange(2):
            request = self._take(self.running, "running")
            if request is not None:
                self.where[request] = "started"
                self.started.append(request)
                return FirstTokenReceived(request=request)
        request = self._take(self.started, "started")
        if request is None:
            return self._cancellation()
        del self.where[request]
        return RequestFinished(request=request, outcome=Outcome.completed, output_tokens=100)

    def _cancellation(self) -> Event:
        lists = [(self.waiting, "waiting"), (self.running, "running"), (self.started, "started")]
        self.random.shuffle(lists)
        for requests, state in lists:
            request = self._take(requests, state)
            if request is not None:
                break
        else:
            return self._arrival()
        del self.where[request]
        return RequestCancelled(request=request)

    def _operation_end(self, decision: Load | Unload) -> OperationEnded:
        held = self.held[int(decision.worker.removeprefix("worker-"))]
        loaded = None
        if isinstance(decision, Unload):
            held.pop(decision.model, None)
        else:
            loaded = held[decision.model] = self._loaded(self.stored[int(decision.model, 16)])
        return OperationEnded(operation=OperationId(decision.operation), outcome=OperationOutcome.done, loaded=loaded)

    # ------------------------------------------------------------------ running

    def _step(self, event: Event) -> None:
        engine, now_us = self.engine, InstantUs(self.now_us)
        began_ns = time.perf_counter_ns()
        decisions = engine.step(now_us, event)
        took_ns = time.perf_counter_ns() - began_ns
        self.spent.setdefault(type(event).__name__, []).append(took_ns)
        if isinstance(event, RequestArrived):
            self.where[event.request] = "waiting"
            self.waiting.append(event.request)
        for decision in decisions:
            self._follow(decision)

    def _follow(self, decision: Decision) -> None:
        self.decided[type(decision).__name__] += 1
        if isinstance(decision, Dispatch):
            self.where[decision.request] = "running"
            self.running.append(decision.request)
        elif isinstance(decision, Reject):
            self.where.pop(decision.request, None)
        elif isinstance(decision, Load | Unload):
            took_us = OPERATION_US if isinstance(decision, Load) else SECOND_US
            heapq.heappush(self.operations, (self.now_us + took_us, int(decision.operation), decision))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step(self._next())
        self.waiting = [request for request in self.waiting if self.where.get(request) == "waiting"]


class Figures(msgspec.Struct, frozen=True):
    """Of one situation; times in microseconds."""

    steps: int
    workers: int
    models: int
    queued: int
    blocked: int
    step_p50_us: float
    step_p99_us: float
    step_p999_us: float
    step_max_us: float
    decisions: dict[str, int]


def percentile(sorted_ns: list[int], share: float) -> float:
    return round(sorted_ns[min(len(sorted_ns) - 1, int(len(sorted_ns) * share))] / 1000, 1)


def measure(situation: Situation, *, steps: int, seed: int = 1) -> tuple[Figures, dict[str, list[int]]]:
    """Run one situation; the times by event kind come with it."""
    traffic = Traffic(situation, seed)
    traffic.run(SETTLE_STEPS if steps > SETTLE_STEPS else steps)
    gc.collect()
    gc.freeze()
    gc.disable()  # a gateway freezes its start-up state and collects between steps
    try:
        traffic.spent = {}
        traffic.decided.clear()
        for _ in range(10):
            traffic.run(steps // 10)
    finally:
        gc.enable()
        gc.unfreeze()
    assert traffic.engine.check() == []
    all_ns = sorted(ns for spent in traffic.spent.values() for ns in spent)
    fleet = traffic.engine.fleet
    figures = Figures(
        steps=len(all_ns),
        workers=situation.workers,
        models=situation.models,
        queued=fleet.state.waiting,
        blocked=len(fleet.blocked),
        step_p50_us=percentile(all_ns, 0.5),
        step_p99_us=percentile(all_ns, 0.99),
        step_p999_us=percentile(all_ns, 0.999),
        step_max_us=percentile(all_ns, 1.0),
        decisions=dict(traffic.decided),
    )
    return figures, traffic.spent


def table(name: str, figures: Figures, spent: dict[str, list[int]]) -> str:
    """Times by event kind, for people."""
    lines = [f"{name}: {figures.queued} queued, {figures.blocked} models blocked, decided {figures.decisions}"]
    lines.append(f"  {'event':<20}{'steps':>8}{'p50 us':>9}{'p99 us':>9}{'max us':>9}")
    for kind, times in sorted(spent.items()):
        ordered = sorted(times)
        cells = "".join(f"{percentile(ordered, share):>9.1f}" for share in (0.5, 0.99, 1.0))
        lines.append(f"  {kind:<20}{len(times):>8}{cells}")
    cells = f"{figures.step_p50_us:>9.1f}{figures.step_p99_us:>9.1f}{figures.step_max_us:>9.1f}"
    lines.append(f"  {'all':<20}{figures.steps:>8}{cells}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bellmare.bench.core", description=__doc__)
    parser.add_argument("--workers", type=int, default=300)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=60_000)
    chosen = parser.parse_args(arguments)
    found: dict[str, Figures] = {}
    for situation in situations(chosen.workers, chosen.models, chosen.queued):
        figures, spent = measure(situation, steps=chosen.steps)
        found[situation.name] = figures
        sys.stdout.write(table(situation.name, figures, spent) + "\n\n")
    worst = max((found["spread"], found["saturated"]), key=lambda figures: figures.step_p99_us)
    headline = {
        "step_p50_us": worst.step_p50_us,
        "step_p99_us": worst.step_p99_us,
        "steps": worst.steps,
        "workers": worst.workers,
        "models": worst.models,
        "queued": worst.queued,
        "situations": {name: msgspec.to_builtins(figures) for name, figures in found.items()},
    }
    sys.stdout.write(msgspec.json.encode(headline).decode() + "\n")


if __name__ == "__main__":
    main()
