"""The faithful world: every worker is the twin of a stock Ollama, told what the gateway would tell it over HTTP.

Slower than ``world``. What it adds: Ollama's own fit test, spilling, its queue and semaphores, and the memory that
comes back only after a runner has left the list.
"""

import heapq
from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.core.decisions import Decision, Dispatch, Drain, Load, Observe, Reject, Undrain, Unload
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FaultKind,
    FirstTokenReceived,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestFinished,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import GIB, Bytes, InstantUs, ModelId, RequestId, WorkerId
from bellmare.sim.fleet import FOOTPRINT_BYTES, SimFleet
from bellmare.sim.tally import Tally
from bellmare.sim.twins import CONTEXT, generate, load_only, predicted_kv_bytes_per_token, twin_config, twin_models
from bellmare.sim.workload import Workload
from bellmare.sim.world import AHEAD, FOREVER_US, OBSERVE_US, request_index, stored_models
from bellmare.twin.config import FOREVER_US as KEPT_FOREVER_US
from bellmare.twin.messages import (
    Effect,
    Failed,
    Finished,
    FirstToken,
    Input,
    Loaded,
    LoadReplied,
    LoadStarted,
    MemoryFreed,
    RunnerGone,
    RunnerLoaded,
    Tick,
)
from bellmare.twin.messages import Unload as TwinUnload
from bellmare.twin.server import Twin

HEADROOM_BYTES = Bytes(GIB)
"""llama-server moves layers to the CPU below so much free memory (ollama.md 3.3)."""
FIT_PERCENT = 80
"""Ollama's own test for a load beside others (ollama.md 3.3)."""


class Server:
    """One worker: its twin, the operation under way there, and the models that leave."""

    __slots__ = ("ahead", "draining", "loaded", "operation", "twin")

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.operation: Load | Unload | None = None
        self.loaded: dict[str, None] = {}
        self.draining: dict[str, None] = {}
        self.ahead: dict[str, None] = {}
        """Loaded ahead of demand and not asked for yet."""


class TwinWorld:
    """A ``World`` of twins. Effects of a step become events of the same instant."""

    def __init__(self, workload: Workload, fleet: SimFleet, tally: Tally) -> None:
        models = twin_models(workload)
        self.tally = tally
        self.servers = {
            worker: Server(Twin(twin_config(machine, slots=workload.slots, pinned=True, unlimited=True), models))
            for worker, machine in fleet.by_name().items()
        }
        self._machines = fleet.by_name()
        self._workload = workload
        self._stored = tuple(
            msgspec.structs.replace(
                stored,
                num_ctx=CONTEXT,
                context_max=CONTEXT,
                predicted_kv_bytes_per_token=Bytes(predicted_kv_bytes_per_token(model, slots=workload.slots)),
            )
            for stored, model in zip(stored_models(workload.models), workload.models, strict=True)
        )
        self._heap: list[tuple[int, int, Event | WorkerId]] = []
        """What the world still has to say; a worker's id stands for an observation of it."""
        self._sequence = 0
        self._deciders: dict[type[Decision], Callable[[int, Any], None]] = {
            Dispatch: self._dispatch,
            Reject: self._reject,
            Load: self._load,
            Unload: self._unload,
            Drain: lambda _, decision: self._drain(decision),
            Undrain: lambda _, decision: self._undrain(decision),
            Observe: lambda now_us, decision: self._say(now_us + OBSERVE_US, decision.worker),
        }
        self._effects: dict[type[Effect], Callable[[WorkerId, Any], None]] = {
            FirstToken: lambda _, effect: self._say(
                effect.at_us, FirstTokenReceived(request=RequestId(effect.request))
            ),
            Finished: lambda _, effect: self._finished(effect),
            Failed: self._failed,
            LoadStarted: self._load_started,
            RunnerLoaded: lambda worker, effect: self.servers[worker].loaded.update({effect.blob: None}),
            LoadReplied: self._load_replied,
            RunnerGone: self._runner_gone,
            MemoryFreed: self._memory_freed,
        }

    # ------------------------------------------------------------------ the interface

    def added(self) -> list[WorkerAdded]:
        return [
            WorkerAdded(
                worker=worker,
                kind=WorkerKind.ollama,
                capacity_bytes=Bytes(machine.vram_bytes),
                headroom_bytes=HEADROOM_BYTES,
                overhead_bytes=Bytes(FOOTPRINT_BYTES),
                parallel=self._workload.slots,
                fit_percent=FIT_PERCENT,
            )
            for worker, machine in self._machines.items()
        ]

    def observed(self, worker: WorkerId, now_us: int) -> WorkerObserved:
        twin = self.servers[worker].twin
        loaded = tuple(_shown(line, now_us) for line in twin.loaded())
        return WorkerObserved(worker=worker, started_us=InstantUs(now_us), loaded=loaded, stored=self._stored)

    def ready(self, model: int) -> bool:
        blob = self._workload.models[model].blob
        return any(blob in server.loaded and blob not in server.draining for server in self.servers.values())

    def due_us(self) -> int:
        due_us = self._heap[0][0] if self._heap else FOREVER_US
        for server in self.servers.values():
            twin_us = server.twin.next_deadline_us()
            if twin_us is not None and twin_us < due_us:
                due_us = twin_us
        return due_us

    def take(self, now_us: int) -> list[Event]:
        for worker, server in self.servers.items():
            twin_us = server.twin.next_deadline_us()
            if twin_us is not None and twin_us <= now_us:
                self._step(worker, now_us, given=Tick())
        events: list[Event] = []
        while self._heap and self._heap[0][0] <= now_us:
            what = heapq.heappop(self._heap)[2]
            events.append(what if isinstance(what, Event) else self.observed(what, now_us))
        return events

    def act(self, now_us: int, decision: Decision) -> None:
        decider = self._deciders.get(type(decision))
        if decider is not None:  # HealthChange and Answer are news, not orders
            decider(now_us, decision)

    # ------------------------------------------------------------------ decisions

    def _dispatch(self, now_us: int, decision: Dispatch) -> None:
        arrival = self._workload.arrivals[request_index(decision.request)]
        model = self._workload.models[arrival.model]
        given = generate(decision.request, model, service_us=arrival.service_us)
        if model.blob in self.servers[decision.worker].ahead:
            del self.servers[decision.worker].ahead[model.blob]
            self.tally.prefetch_used()
        self._step(decision.worker, now_us, given=given)

    def _reject(self, now_us: int, decision: Reject) -> None:
        self.tally.refuse(request_index(decision.request), now_us, reason=str(decision.refusal))

    def _load(self, now_us: int, decision: Load) -> None:
        self._begin(decision)
        self._step(decision.worker, now_us, given=load_only(operation_name(decision), decision.name))

    def _unload(self, now_us: int, decision: Unload) -> None:
        self._begin(decision)
        self._step(decision.worker, now_us, given=TwinUnload(request=operation_name(decision), name=decision.name))

    def _begin(self, decision: Load | Unload) -> None:
        server = self.servers[decision.worker]
        assert server.operation is None, "one operation at a time on a worker"
        server.operation = decision

    def _drain(self, decision: Drain) -> None:
        self.servers[decision.worker].draining[decision.model] = None

    def _undrain(self, decision: Undrain) -> None:
        self.servers[decision.worker].draining.pop(decision.model, None)

    # ------------------------------------------------------------------ effects

    def _step(self, worker: WorkerId, now_us: int, *, given: Input) -> None:
        for effect in self.servers[worker].twin.step(now_us, given):
            note = self._effects.get(type(effect))
            if note is not None:  # grants and replies to unloads say nothing that the core is told
                note(worker, effect)

    def _finished(self, effect: Finished) -> None:
        number = request_index(effect.request)
        self.tally.started(number, effect.at_us - effect.prompt_us - effect.output_us)
        self.tally.ended(number, effect.at_us)
        event = RequestFinished(request=RequestId(effect.request), outcome=Outcome.completed)
        self._say(effect.at_us, event)

    def _failed(self, worker: WorkerId, effect: Failed) -> None:
        """A load that failed, else a request: nothing has been sent to its client."""
        operation = self.servers[worker].operation
        if operation is not None and effect.request == operation_name(operation):
            self._end(worker, effect.at_us, outcome=OperationOutcome.failed, detail=effect.text)
            return
        request = RequestId(effect.request)
        fault = FaultKind.busy if effect.status == 503 else FaultKind.failed
        self._say(effect.at_us, DispatchFailed(request=request, worker=worker, fault=fault, detail=effect.text))

    def _load_started(self, worker: WorkerId, effect: LoadStarted) -> None:
        server = self.servers[worker]
        if isinstance(server.operation, Load) and server.operation.cause in AHEAD:
            server.ahead[effect.blob] = None
            self.tally.prefetch_began()
        self.tally.load_began(effect.blob, effect.at_us)
        self.tally.load_took(effect.expected_us)

    def _load_replied(self, worker: WorkerId, effect: LoadReplied) -> None:
        self._end(worker, effect.at_us, outcome=OperationOutcome.done)

    def _runner_gone(self, worker: WorkerId, effect: RunnerGone) -> None:
        server = self.servers[worker]
        del server.loaded[effect.blob]
        server.draining.pop(effect.blob, None)
        server.ahead.pop(effect.blob, None)
        self.tally.evicted(effect.blob, effect.at_us)

    def _memory_freed(self, worker: WorkerId, effect: MemoryFreed) -> None:
        operation = self.servers[worker].operation
        if isinstance(operation, Unload) and operation.model == effect.blob:
            self._end(worker, effect.at_us, outcome=OperationOutcome.done)

    def _end(self, worker: WorkerId, at_us: int, *, outcome: OperationOutcome, detail: str = "") -> None:
        server = self.servers[worker]
        operation, server.operation = server.operation, None
        assert operation is not None, "an operation ends once"
        loaded = None
        if isinstance(operation, Load) and outcome is OperationOutcome.done:
            lines = (line for line in server.twin.loaded() if line.blob == operation.model)
            loaded = next((_shown(line, at_us) for line in lines), None)
        fault = None if outcome is OperationOutcome.done else FaultKind.failed
        event = OperationEnded(
            operation=operation.operation, outcome=outcome, fault=fault, detail=detail, loaded=loaded
        )
        self._say(at_us, event)

    def _say(self, at_us: int, what: Event | WorkerId) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_us, self._sequence, what))


def operation_name(operation: Load | Unload) -> str:
    """The operation's call towards the twin; requests have names of another form."""
    return f"operation-{operation.operation}"


def _shown(line: Loaded, now_us: int) -> LoadedModel:
    """One line of /api/ps as the worker's adapter reads it."""
    return LoadedModel(
        name=line.name,
        model=ModelId(line.blob),
        bytes=Bytes(line.size_bytes),
        spilled_bytes=Bytes(line.size_bytes - line.vram_bytes),
        num_ctx=line.context_length,
        pinned=line.expires_us - now_us > KEPT_FOREVER_US // 2,
        expired=line.expires_us <= now_us,
    )
