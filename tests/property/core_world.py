"""A fleet that knows nothing of the core: workers with real memory, requests, lost messages, stale sights, deaths.

Every action takes small integers and does what they pick, or nothing, so that Hypothesis and a seeded generator can
both drive it. Each step goes to the engine under test, past the oracle, and, once copied, to a restored engine too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core_books import MIB, SECOND, Broken, must
from core_oracle import Oracle

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig, ModelConfig, TenantConfig
from bellmare.core.engine import Engine

GIB = 1 << 30
TIMERS_IN_A_ROW_MAX = 200
"""So many steps at one instant without the world doing anything is a loop."""
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
FAULTS = tuple(e.FaultKind)
KINDS = (e.RequestKind.generation, e.RequestKind.generation, e.RequestKind.embedding, e.RequestKind.load)
TENANTS = ("ann", "bob", "cy")
PRIORITIES = (e.Priority.normal, e.Priority.low, e.Priority.normal, e.Priority.high)
CONFIG = CoreConfig(
    queue_per_model_max=6,
    queue_total_max=14,
    queue_wait_max_us=40 * SECOND,
    drain_after_us=5 * SECOND,
    load_timeout_us=60 * SECOND,
    unload_timeout_us=20 * SECOND,
    zombie_max_us=30 * SECOND,
    drain_max_us=8 * SECOND,
    batch_max_us=4 * SECOND,
    models={"ant": ModelConfig(pinned=True), "eel": ModelConfig(num_ctx=4096)},
    tenants={"bob": TenantConfig(weight=3)},
)
SPECS = (  # capacity, headroom, overhead, parallel, runners at once, share of free memory
    (24, 1, 512, 2, 0, 100),
    (12, 1, 256, 1, 0, 80),
    (8, 0, 0, 4, 2, 100),
    (16, 2, 512, 3, 3, 80),
    (6, 0, 0, 1, 0, 100),
)


@dataclass
class TrueRunner:
    """What a worker really holds."""

    name: str
    bytes: int
    num_ctx: int
    pinned: bool = True
    expired: bool = False
    told: bool = False
    """Whether the core has been told of it as it is now; it cannot be held to what it does not know."""


@dataclass
class TrueWorker:
    spec: e.WorkerAdded
    names: dict[str, e.StoredModel]
    alive: bool = True
    foreign: int = 0
    foreign_told: int = 0
    runners: dict[str, TrueRunner] = field(default_factory=dict)
    stored_told: bool = False


@dataclass
class Sight:
    """An observation on its way."""

    worker: str
    event: Any


class World:
    def __init__(self, config: CoreConfig = CONFIG, *, check_every: int = 1) -> None:
        self.config = config
        self.engine = Engine(config)
        self.copy: Engine | None = None
        self.oracle = Oracle(config)
        self.now = 1_000 * SECOND
        self.workers: dict[str, TrueWorker] = {}
        self.sights: list[Sight] = []
        self.operations: list[Any] = []
        """Asked for and not ended yet, as the world knows it; their end may be lost."""
        self.next_request = 0
        self.next_worker = 0
        self.log: list[tuple[int, Any, list[Any]]] = []
        self.steps = 0
        self.check_every = check_every
        self.dead_requests: list[tuple[str, str]] = []
        """Requests whose worker died under them; the failure is not reported yet."""

    # ------------------------------------------------------------------ one step

    def step(self, event: Any) -> list[Any]:
        self.steps += 1
        self.oracle.told(self.now, event)
        decisions = self.engine.step(self.now, event)
        self.log.append((self.now, event, decisions))
        if self.copy is not None:
            must(self.copy.step(self.now, event) == decisions, "a restored engine decides the same", event)
            must(self.copy.next_deadline_us() == self.engine.next_deadline_us(), "and waits for the same", event)
        self._check_memory(decisions)
        self.oracle.decided(decisions)
        for decision in decisions:
            if isinstance(decision, d.Load | d.Unload):
                self.operations.append(decision)
        self.oracle.settled(event.request if isinstance(event, e.RequestArrived) else None)
        if self.steps % self.check_every == 0:
            problems = self.engine.check()
            must(not problems, "the engine's own check", problems)
        return decisions

    def _check_memory(self, decisions: list[Any]) -> None:
        """By what is really there and was told, no load is asked for that the GPU cannot take."""
        for decision in decisions:
            if not isinstance(decision, d.Load) or decision.cause is d.LoadCause.adopt:
                continue
            worker = self.workers[decision.worker]
            spec = worker.spec
            if spec.capacity_known and worker.alive:
                held = sum(r.bytes + spec.overhead_bytes for r in worker.runners.values() if r.told)
                total = held + worker.foreign_told + decision.reserved_bytes
                must(total <= spec.capacity_bytes - spec.headroom_bytes, "real memory is enough", decision, total)

    def due(self) -> None:
        """Hand in all timers that are due, as a driver does; they must come to rest."""
        for _ in range(TIMERS_IN_A_ROW_MAX):
            deadline = self.engine.next_deadline_us()
            if deadline is None or deadline > self.now:
                return
            self.step(e.TimePassed())
        raise Broken("no rest: timers follow each other at one instant")

    def feed(self, event: Any) -> list[Any]:
        decisions = self.step(event)
        self.due()
        return decisions

    # ------------------------------------------------------------------ picking

    def _worker(self, pick: int) -> str | None:
        names = list(self.workers)
        return names[pick % len(names)] if names else None

    def pick_request(self, pick: int, phases: tuple[str, ...], *, healthy: bool = True) -> str | None:
        dead = {request for request, _ in self.dead_requests} if healthy else {}
        live = [k for k, r in self.oracle.requests.items() if r.phase in phases and k not in dead]
        return live[pick % len(live)] if live else None

    # ------------------------------------------------------------------ workers

    def stored(self, name: str, version: int = 0) -> e.StoredModel:
        """Names of a size that their letter gives; two of them are one blob, and one is for embeddings."""
        number = NAMES.index(name)
        blob = "blob-dog" if name == "cat" else f"blob-{name}"
        return e.StoredModel(
            name=name,
            model=f"{blob}-{version}" if version else blob,
            digest=f"{number:02}{version:02}" * 16,
            weights_bytes=(3 * GIB if name in ("cat", "dog") else (number + 1) * GIB),
            kv_bytes_per_token=0,
            context_max=16_384 if name == "fox" else 0,
            parallel_max=1 if name == "bee" else 0,
            embedding=name == "bee",
        )

    def add_worker(self, pick: int, names: int, *, known: bool = True) -> None:
        if len(self.workers) >= 4:
            return
        capacity, headroom, overhead, parallel, runners_max, fit = SPECS[pick % len(SPECS)]
        worker = f"w{self.next_worker}"
        self.next_worker += 1
        spec = e.WorkerAdded(
            worker=worker,
            kind=e.WorkerKind.ollama,
            capacity_bytes=capacity * GIB,
            capacity_known=known,
            headroom_bytes=headroom * GIB,
            overhead_bytes=overhead * MIB,
            parallel=parallel,
            runners_max=runners_max,
            fit_percent=fit,
        )
        kept = {name: self.stored(name) for i, name in enumerate(NAMES) if names >> i & 1}
        self.workers[worker] = TrueWorker(spec, kept)
        self.feed(spec)

    def remove_worker(self, pick: int) -> None:
        worker = self._worker(pick)
        if worker is None:
            return
        self._orphan(worker)
        del self.workers[worker]
        self.operations = [operation for operation in self.operations if operation.worker != worker]
        self.feed(e.WorkerRemoved(worker=worker))

    def kill(self, pick: int, *, empties: bool) -> None:
        """Nothing answers there from now on; what ran there is lost."""
        worker = self._worker(pick)
        if worker is None or not self.workers[worker].alive:
            return
        self.workers[worker].alive = False
        if empties:
            self.workers[worker].runners = {}
        self._orphan(worker)

    def _orphan(self, worker: str) -> None:
        for key, request in self.oracle.requests.items():
            if request.phase == "running" and request.worker == worker and (key, worker) not in self.dead_requests:
                self.dead_requests.append((key, worker))

    def revive(self, pick: int) -> None:
        dead = [worker for worker in self.workers.values() if not worker.alive]
        if dead:
            dead[pick % len(dead)].alive = True

    # ------------------------------------------------------------------ observations

    def look(self, pick: int, *, timeout: bool = False, stored: bool = True) -> None:
        """Ask a worker: what it shows is what it holds now, whenever the answer arrives."""
        name = self._worker(pick)
        if name is None or len(self.sights) >= 6:
            return
        worker = self.workers[name]
        event: Any
        if not worker.alive or timeout:
            fault = e.FaultKind.timeout if timeout else e.FaultKind.refused
            event = e.WorkerUnreachable(worker=name, started_us=self.now, fault=fault)
        else:
            event = e.WorkerObserved(
                worker=name,
                started_us=self.now,
                loaded=tuple(
                    e.LoadedModel(
                        name=runner.name,
                        model=blob,
                        bytes=runner.bytes,
                        num_ctx=runner.num_ctx,
                        pinned=runner.pinned,
                        expired=runner.expired,
                    )
                    for blob, runner in worker.runners.items()
                ),
                stored=tuple(worker.names.values()) if stored or not worker.stored_told else None,
                foreign_bytes=worker.foreign,
            )
        self.sights.append(Sight(name, event))

    def arrive_sight(self, pick: int) -> None:
        """Some answer arrives, not always the oldest first."""
        if not self.sights:
            return
        sight = self.sights.pop(pick % len(self.sights))
        worker = self.workers.get(sight.worker)
        if worker is None:
            return
        event = sight.event
        if isinstance(event, e.WorkerObserved):
            self._note_told(worker, event)
        self.feed(event)

    def _note_told(self, worker: TrueWorker, event: e.WorkerObserved) -> None:
        book = self.oracle.workers[event.worker]
        stale = event.started_us < book.observed or (not book.routable and event.started_us <= book.lost_at)
        if stale:
            return
        worker.stored_told = worker.stored_told or event.stored is not None
        worker.foreign_told = event.foreign_bytes
        shown = {line.model: line.bytes for line in event.loaded}
        for blob, runner in worker.runners.items():
            known = book.runners.get(blob)
            younger = known is not None and known.since >= event.started_us
            if shown.get(blob) == runner.bytes and not younger and book.gone.get(blob, -1) < event.started_us:
                runner.told = blob in self.oracle.blobs or event.stored is not None

    def observe_now(self, name: str) -> None:
        self.sights = [sight for sight in self.sights if sight.worker != name]
        self.look(list(self.workers).index(name))
        self.arrive_sight(len(self.sights) - 1)

    # ------------------------------------------------------------------ operations

    def end_operation(self, pick: int, fault: int = -1, *, lost: bool = False, short: bool = False) -> None:
        """An operation ends in the world, well or not; the core hears of it unless the message is lost."""
        if not self.operations:
            return
        operation = self.operations.pop(pick % len(self.operations))
        worker = self.workers[operation.worker]
        if not worker.alive:
            fault = FAULTS.index(e.FaultKind.reset)
        line = None
        entry = worker.names.get(operation.name)
        if entry is None:
            fault = FAULTS.index(e.FaultKind.not_found)
        elif isinstance(operation, d.Unload) and entry.model != operation.model and operation.model in worker.runners:
            fault = FAULTS.index(e.FaultKind.failed)  # it would unload another blob: what was asked for stays
        if fault < 0:
            line = self._carry_out(worker, operation, short=short)
        if lost:
            return
        if fault < 0:
            outcome, kind = e.OperationOutcome.done, None
        else:
            kind = FAULTS[fault % len(FAULTS)]
            timed_out = kind is e.FaultKind.timeout
            outcome = e.OperationOutcome.timed_out if timed_out else e.OperationOutcome.failed
        self.feed(e.OperationEnded(operation=operation.operation, outcome=outcome, fault=kind, loaded=line))

    def _carry_out(self, worker: TrueWorker, operation: Any, *, short: bool) -> e.LoadedModel | None:
        blob = worker.names[operation.name].model  # names are what goes over the wire
        if isinstance(operation, d.Unload):
            worker.runners.pop(blob, None)
            return None
        runner = worker.runners.get(blob)
        if runner is None:
            size = (operation.reserved_bytes - worker.spec.overhead_bytes) * 95 // 100
            num_ctx = 2048 if short else operation.num_ctx
            runner = worker.runners[blob] = TrueRunner(operation.name, size, num_ctx)
            given_up = operation.operation not in self.oracle.operations
            runner.told = blob == operation.model and not given_up
        runner.pinned, runner.expired = True, False
        return e.LoadedModel(name=runner.name, model=blob, bytes=runner.bytes, num_ctx=runner.num_ctx, pinned=True)

    # ------------------------------------------------------------------ requests

    def arrive(self, name: int, wait_s: int, kind: int, tokens: int) -> None:
        request = f"r{self.next_request}"
        self.next_request += 1
        self.feed(
            e.RequestArrived(
                request=request,
                name=NAMES[name] if name < len(NAMES) else "unheard-of",
                deadline_us=self.now + wait_s * SECOND,
                kind=KINDS[kind % len(KINDS)],
                tenant=TENANTS[tokens % len(TENANTS)],
                priority=PRIORITIES[tokens % len(PRIORITIES)],
                prompt_tokens=tokens,
            )
        )

    def cancel(self, pick: int) -> None:
        request = self.pick_request(pick, ("waiting", "running"), healthy=False)
        if request is not None:
            self.dead_requests = [dead for dead in self.dead_requests if dead[0] != request]
            self.feed(e.RequestCancelled(request=request))

    def first_token(self, pick: int) -> None:
        request = self.pick_request(pick, ("running",))
        if request is not None and not self.oracle.requests[request].first_token:
            self.feed(e.FirstTokenReceived(request=request))

    def finish(self, pick: int, fault: int = -1) -> None:
        """It ends; failed after its first byte if there is a fault."""
        request = self.pick_request(pick, ("running",))
        if request is None:
            return
        if not self.oracle.requests[request].first_token:
            self.feed(e.FirstTokenReceived(request=request))
        kind = FAULTS[fault % len(FAULTS)] if fault >= 0 else None
        outcome = e.Outcome.completed if fault < 0 else e.Outcome.failed
        self.feed(e.RequestFinished(request=request, outcome=outcome, fault=kind, output_tokens=7))

    def fail_dispatch(self, pick: int, fault: int) -> None:
        """Nothing came of it and nothing was sent: it may run elsewhere."""
        request = self.pick_request(pick, ("running",))
        if request is None or self.oracle.requests[request].first_token:
            return
        worker = str(self.oracle.requests[request].worker)
        self.feed(e.DispatchFailed(request=request, worker=worker, fault=FAULTS[fault % len(FAULTS)]))

    def report_dead(self, pick: int) -> None:
        """The data plane notices a connection that died."""
        if not self.dead_requests:
            return
        request, worker = self.dead_requests.pop(pick % len(self.dead_requests))
        if self.oracle.requests[request].first_token:
            event: Any = e.RequestFinished(request=request, outcome=e.Outcome.failed, fault=e.FaultKind.reset)
        else:
            event = e.DispatchFailed(request=request, worker=worker, fault=e.FaultKind.reset)
        self.feed(event)

    # ------------------------------------------------------------------ operators and the world's own will

    def ask_load(self, name: int, pick: int) -> None:
        worker = self._worker(pick) if pick >= 0 else None
        self.feed(e.LoadRequested(ticket=f"t{self.steps}", name=NAMES[name % len(NAMES)], worker=worker))

    def ask_unload(self, name: int, pick: int) -> None:
        worker = self._worker(pick) if pick >= 0 else None
        self.feed(e.UnloadRequested(ticket=f"t{self.steps}", name=NAMES[name % len(NAMES)], worker=worker))

    def release(self, name: int) -> None:
        self.feed(e.ModelReleased(name=NAMES[name % len(NAMES)]))

    def rename(self, pick: int, name: int, version: int) -> None:
        """A name now belongs to another blob on that worker, is new there, or is gone."""
        worker = self._worker(pick)
        if worker is None:
            return
        names = self.workers[worker].names
        name = name % len(NAMES)
        if version % 4 == 3:
            names.pop(NAMES[name], None)
        else:
            names[NAMES[name]] = self.stored(NAMES[name], version % 4)

    def meddle(self, pick: int, what: int, size: int) -> None:
        """Somebody else uses the worker, a timer fires, memory grows, a runner vanishes."""
        worker_id = self._worker(pick)
        if worker_id is None or not self.workers[worker_id].alive:
            return
        worker = self.workers[worker_id]
        if what % 6 == 0:
            worker.foreign = size % 4 * GIB
        elif what % 6 == 1:
            entries = list(worker.names.values())
            entry = entries[size % len(entries)] if entries else None
            loading = entry is not None and any(
                o.model == entry.model and o.worker == worker_id for o in self.operations
            )
            if entry is not None and entry.model not in worker.runners and not loading:
                num_ctx = (2048, 8192, 16_384)[size % 3]
                worker.runners[entry.model] = TrueRunner(entry.name, entry.weights_bytes, num_ctx, pinned=False)
        elif worker.runners:
            runner_id = list(worker.runners)[size % len(worker.runners)]
            runner = worker.runners[runner_id]
            if what % 6 == 2:
                runner.bytes += size % 3 * GIB
                runner.told = False
            elif what % 6 == 3:
                runner.pinned = False
            elif what % 6 == 4:
                runner.expired = True
            else:
                del worker.runners[runner_id]

    # ------------------------------------------------------------------ time

    def pass_time(self, us: int) -> None:
        """Time goes on, and a driver wakes at each deadline on the way."""
        until = self.now + us
        for _ in range(5_000):
            deadline = self.engine.next_deadline_us()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.due()
        self.now = until

    def jump(self, offset: int) -> None:
        """Exactly to the next deadline, one microsecond before it, or one after, as a late driver does."""
        deadline = self.engine.next_deadline_us()
        if deadline is None:
            return
        self.now = max(self.now, deadline + offset)
        self.step(e.TimePassed())
        self.due()

    # ------------------------------------------------------------------ copies

    def copy_engine(self) -> None:
        """From here on a restored engine runs beside the first."""
        self.copy = Engine.restore(self.config, self.engine.snapshot())
        must(self.copy.snapshot() == self.engine.snapshot(), "a snapshot restores to itself")
        must(not self.copy.check(), "a restored engine is sound", self.copy.check())

    def replay(self) -> None:
        """The recorded events give a fresh engine the same decisions."""
        fresh = Engine(self.config)
        for now, event, decisions in self.log:
            must(fresh.step(now, event) == decisions, "a replay decides the same", now, event)
        must(fresh.snapshot() == self.engine.snapshot(), "and ends in the same state")
