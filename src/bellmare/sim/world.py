"""The quick world: GPUs with one serial loader each, by the rules of policy.md 3. Obeys decisions, never makes one.

A load is not abortable; an unload gives memory back when it ends; a load that does not fit fails, as a real one would.
"""

import heapq
from collections.abc import Callable
from typing import Any, Protocol

from bellmare.core.decisions import Decision, Dispatch, Drain, Load, LoadCause, Observe, Reject, Undrain, Unload
from bellmare.core.events import (
    Event,
    FaultKind,
    FirstTokenReceived,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestFinished,
    StoredModel,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, RequestId, WorkerId
from bellmare.sim.fleet import SimFleet, SimMachine, footprint_bytes, load_us
from bellmare.sim.tally import Tally
from bellmare.sim.workload import SimModel, Workload
from bellmare.twin.loading import HostCache

FOREVER_US = 1 << 62
"""Later than anything: nothing is due."""
OBSERVE_US = 5_000
"""From question to answer of an observation."""
FIRST_TOKEN_DIVISOR = 10
"""The first token comes after a tenth of the service span. Only the core's estimate of prefill rests on it."""


AHEAD = frozenset({LoadCause.prewarm, LoadCause.hint})
"""Causes of loads that nobody waits for yet: useful if the runner serves a request before it leaves."""


class World(Protocol):
    """What the engine decides about. Its events come back in order of time, ties in order of cause."""

    def added(self) -> list[WorkerAdded]:
        """One for each worker; each must be observed before anything else."""

    def observed(self, worker: WorkerId, now_us: int) -> WorkerObserved:
        """The first look at a worker."""

    def ready(self, model: int) -> bool:
        """Whether some runner of the model takes requests at this instant."""

    def due_us(self) -> int:
        """When its next event is due; ``FOREVER_US`` for never."""

    def take(self, now_us: int) -> list[Event]:
        """What happened at ``now_us``, which is its due instant."""

    def act(self, now_us: int, decision: Decision) -> None:
        """Carry out one decision."""


class Held:
    """One runner on one GPU, from the start of its load to the end of its unload."""

    __slots__ = ("ahead", "draining", "model", "ready", "size_bytes", "taken")

    def __init__(self, model: int, size_bytes: int) -> None:
        self.model = model
        self.size_bytes = size_bytes
        self.ready = False
        self.draining = False
        self.taken = 0
        """Slots in use."""
        self.ahead = False
        """Loaded ahead of demand and not asked for yet."""


class Gpu:
    """One worker. ``operation`` is what its loader does now."""

    __slots__ = ("cache", "capacity_bytes", "held", "machine", "operation", "used_bytes", "used_max_bytes")

    def __init__(self, machine: SimMachine) -> None:
        self.machine = machine
        self.capacity_bytes = machine.vram_bytes
        self.used_bytes = 0
        self.used_max_bytes = 0
        self.held: dict[ModelId, Held] = {}
        self.operation: OperationId | None = None
        self.cache = HostCache(machine.host_cache_bytes)

    def take(self, size_bytes: int) -> bool:
        """Take memory; False if it is not there."""
        if self.used_bytes + size_bytes > self.capacity_bytes:
            return False
        self.used_bytes += size_bytes
        self.used_max_bytes = max(self.used_max_bytes, self.used_bytes)
        return True


class LightWorld:
    """All GPUs, and a heap of what happens when."""

    def __init__(self, workload: Workload, fleet: SimFleet, tally: Tally) -> None:
        self.tally = tally
        self.slots = workload.slots
        self.gpus = {worker: Gpu(machine) for worker, machine in fleet.by_name().items()}
        self.loads_failed = 0
        """Loads that did not fit: the core's books were wrong."""
        self._models = workload.models
        self._arrivals = workload.arrivals
        self._index = {ModelId(model.blob): number for number, model in enumerate(workload.models)}
        self._open_runners = [0] * len(workload.models)
        self._running: dict[RequestId, Held] = {}
        self._heap: list[tuple[int, int, Event | Callable[[int], Event | None]]] = []
        self._sequence = 0
        self._stored = stored_models(workload.models)
        self._handlers: dict[type[Decision], Callable[[int, Any], None]] = {
            Dispatch: self._dispatch,
            Reject: self._reject,
            Load: self._load,
            Unload: self._unload,
            Drain: lambda _, decision: self._set_draining(decision, draining=True),
            Undrain: lambda _, decision: self._set_draining(decision, draining=False),
            Observe: self._observe,
        }

    # ------------------------------------------------------------------ the interface

    def added(self) -> list[WorkerAdded]:
        """Sizes in observations contain the process's own memory, so nothing is added to them."""
        return [
            WorkerAdded(
                worker=worker, kind=WorkerKind.sim, capacity_bytes=Bytes(gpu.capacity_bytes), parallel=self.slots
            )
            for worker, gpu in self.gpus.items()
        ]

    def observed(self, worker: WorkerId, now_us: int) -> WorkerObserved:
        """What /api/tags and /api/ps show at this instant."""
        loaded = tuple(self._shown(model, held) for model, held in self.gpus[worker].held.items() if held.ready)
        return WorkerObserved(worker=worker, started_us=InstantUs(now_us), loaded=loaded, stored=self._stored)

    def ready(self, model: int) -> bool:
        return self._open_runners[model] > 0

    def due_us(self) -> int:
        return self._heap[0][0] if self._heap else FOREVER_US

    def take(self, now_us: int) -> list[Event]:
        """One event; another that is due at the same instant stays due."""
        at_us, _, what = heapq.heappop(self._heap)
        assert at_us == now_us, "events are taken when they are due"
        event = what if isinstance(what, Event) else what(now_us)
        if event is None:
            return []  # overtaken by something that happened since
        if type(event) is RequestFinished and event.outcome is Outcome.completed:
            self._running.pop(event.request).taken -= 1
            self.tally.ended(request_index(event.request), now_us)
        return [event]

    def act(self, now_us: int, decision: Decision) -> None:
        handler = self._handlers.get(type(decision))
        if handler is not None:  # HealthChange and Answer are news, not orders
            handler(now_us, decision)

    # ------------------------------------------------------------------ decisions

    def _dispatch(self, now_us: int, decision: Dispatch) -> None:
        held = self.gpus[decision.worker].held[decision.model]
        assert held.ready and not held.draining and held.taken < self.slots, "a worker never gets more than it can run"
        held.taken += 1
        if held.ahead:
            held.ahead = False
            self.tally.prefetch_used()
        request = decision.request
        number = request_index(request)
        self._running[request] = held
        self.tally.started(number, now_us)
        service_us = self._arrivals[number].service_us
        self._later(now_us + service_us // FIRST_TOKEN_DIVISOR, FirstTokenReceived(request=request))
        self._later(now_us + service_us, RequestFinished(request=request, outcome=Outcome.completed))

    def _reject(self, now_us: int, decision: Reject) -> None:
        self.tally.refuse(request_index(decision.request), now_us, reason=str(decision.refusal))

    def _load(self, now_us: int, decision: Load) -> None:
        gpu, number = self.gpus[decision.worker], self._index[decision.model]
        assert gpu.operation is None and decision.model not in gpu.held, "one operation at a time on a worker"
        model = self._models[number]
        gpu.operation = decision.operation
        held = Held(number, footprint_bytes(model))
        if not gpu.take(held.size_bytes):
            self.loads_failed += 1
            self._later(now_us + gpu.machine.spawn_us, lambda _: self._load_failed(gpu, decision))
            return
        gpu.held[decision.model] = held
        span_us = self._load_span_us(gpu, model)
        self.tally.load_began(model.blob, now_us)
        if decision.cause in AHEAD:
            held.ahead = True
            self.tally.prefetch_began()
        self.tally.load_took(span_us)
        self._later(now_us + span_us, lambda _: self._load_done(gpu, decision, held))

    def _load_span_us(self, gpu: Gpu, model: SimModel) -> int:
        return load_us(gpu.machine, model, cached=model.blob in gpu.cache)

    def _load_failed(self, gpu: Gpu, decision: Load) -> Event | None:
        gpu.operation = None
        return OperationEnded(
            operation=decision.operation,
            outcome=OperationOutcome.failed,
            fault=FaultKind.failed,
            detail="out of memory",
        )

    def _load_done(self, gpu: Gpu, decision: Load, held: Held) -> Event | None:
        model = self._models[held.model]
        gpu.operation = None
        gpu.cache.touch(model.blob, model.weights_bytes)
        held.ready = True
        self._open_runners[held.model] += 1
        shown = self._shown(decision.model, held)
        return OperationEnded(operation=decision.operation, outcome=OperationOutcome.done, loaded=shown)

    def _unload(self, now_us: int, decision: Unload) -> None:
        gpu = self.gpus[decision.worker]
        held = gpu.held[decision.model]
        assert gpu.operation is None and held.ready and not held.taken, "a busy runner is never unloaded"
        gpu.operation = decision.operation
        held.ready = False
        self._open_runners[held.model] -= not held.draining
        self.tally.evicted(self._models[held.model].blob, now_us)
        self._later(now_us + gpu.machine.unload_us, lambda _: self._unload_done(gpu, decision, held))

    def _unload_done(self, gpu: Gpu, decision: Unload, held: Held) -> Event | None:
        gpu.operation = None
        del gpu.held[decision.model]
        gpu.used_bytes -= held.size_bytes
        return OperationEnded(operation=decision.operation, outcome=OperationOutcome.done)

    def _set_draining(self, decision: Drain | Undrain, *, draining: bool) -> None:
        held = self.gpus[decision.worker].held[decision.model]
        if held.ready and held.draining is not draining:
            self._open_runners[held.model] += -1 if draining else 1
        held.draining = draining

    def _observe(self, now_us: int, decision: Observe) -> None:
        self._later(now_us + OBSERVE_US, lambda at_us: self.observed(decision.worker, at_us))

    # ------------------------------------------------------------------ small things

    def _later(self, at_us: int, what: Event | Callable[[int], Event | None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_us, self._sequence, what))

    def _shown(self, model: ModelId, held: Held) -> LoadedModel:
        name = self._models[held.model].name
        return LoadedModel(name=name, model=model, bytes=Bytes(held.size_bytes), num_ctx=0, pinned=True)


def stored_models(models: tuple[SimModel, ...]) -> tuple[StoredModel, ...]:
    """What every worker has on disk. Of the shape nothing is known: the core's own estimate is for that case."""
    return tuple(
        StoredModel(
            name=model.name,
            model=ModelId(model.blob),
            digest=model.blob,
            weights_bytes=Bytes(model.weights_bytes),
        )
        for model in models
    )


def request_id(number: int) -> RequestId:
    """The request's name towards the core; :func:`request_index` reads it back."""
    return RequestId(f"r{number}")


def request_index(request: str) -> int:
    return int(request[1:])
