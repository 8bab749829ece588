"""The oracle's ledger: what the core was told, written down by the documented contract. It calls nothing of the core.

An observation never contradicts a change younger than its start, memory is free only once that is confirmed, a slot is
taken until its request's end or the end of its aborted prefill.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.units import ModelId, OperationId, RequestId, WorkerId
from bellmare.sim.swarm.books import (
    LOST,
    NEVER,
    RESTING_LOADS,
    SECOND,
    UNLOAD_TRIES,
    Broken,
    OperationBook,
    RequestBook,
    RunnerBook,
    WorkerBook,
    moving,
)
from bellmare.sim.swarm.holdings import Holdings, Shape, weights


class Ledger(Holdings, ABC):
    """Books, and the events that change them. ``Oracle`` adds what the core decides."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self.now = 0
        self.requests: dict[RequestId, RequestBook] = {}
        """Those that live. Who has ended is only in ``ended``."""
        self.waiting: dict[ModelId, dict[RequestId, RequestBook]] = {}
        self.waiting_since: dict[ModelId, int] = {}
        """Since when somebody has waited for the model without a break."""
        self.stranded_since: dict[ModelId, int] = {}
        """Since when no worker in routing stores a model for which somebody waits."""
        self.ended: dict[RequestId, str] = {}
        """How each request ended."""
        self.operations: dict[OperationId, OperationBook] = {}
        self.classes: dict[ModelId, None] = {}
        """Context classes that are configured, or of which something is left."""
        self.largest: dict[ModelId, int] = {}
        """The largest measurement of a blob in any shape."""
        self.service: dict[ModelId, int] = {}
        self.service_of_all = 0
        self.failed_now: dict[ModelId, None] = {}
        """Models of which a load failed in this step."""
        self.asked_in: dict[ModelId, int] = {}
        """When an operator last asked for the model."""
        self.asked_out: dict[ModelId, int] = {}
        self.given_back: dict[ModelId, int] = {}
        """When their only client said that it needs them no more."""
        self.met: dict[str, int] = {}
        self.checked: dict[str, int] = {}
        """How often each rule was looked at."""
        self.counted: dict[str, int] = {}
        """What the core's own counters must say."""
        self.arrivals = 0
        self.standby = False
        self.policy = config.eviction
        self.switched = -1
        """When the policy was last changed; -1: never."""
        self.suspects: dict[str, tuple[WorkerId, int]] = {}
        self.poison: dict[str, int] = {}
        """Until when such requests are refused."""
        self._told: dict[type[Any], Callable[[Any], None]] = {
            kind: getattr(self, f"_{kind.__name__}") for kind in e.Event.__subclasses__()
        }

    def meet(self, *what: object) -> None:
        for one in what:
            self.met[str(one)] = self.met.get(str(one), 0) + 1

    def must(self, holds: bool, rule: str, *about: object) -> None:
        """Look at one rule. Raises ``Broken``."""
        self.checked[rule] = self.checked.get(rule, 0) + 1
        if not holds:
            raise Broken(f"{rule}: {about}")

    def count(self, what: str) -> None:
        self.counted[what] = self.counted.get(what, 0) + 1

    # ------------------------------------------------------------------ events

    def told(self, now: int, event: e.Event) -> None:
        """Write down one event, and what the passing of time alone has ended by then."""
        self.must(now >= self.now, "time does not go back", now, self.now)
        self.now = now
        self.failed_now = {}
        self._told[type(event)](event)
        fault = getattr(event, "fault", None)
        if fault is not None:
            self.meet(f"FaultKind.{fault}")
        for operation, book in list(self.operations.items()):
            if book.deadline <= now:
                self.meet("operation given up")
                self._operation_over(e.OperationEnded(operation, e.OperationOutcome.timed_out, e.FaultKind.timeout))
        self.grow()
        for worker in self.workers.values():
            for runner in worker.runners.values():
                if runner.zombies:
                    runner.zombies = [until for until in runner.zombies if until > now]

    def _WorkerAdded(self, event: e.WorkerAdded) -> None:  # noqa: N802 named after its event
        self.workers[event.worker] = WorkerBook(event, event.capacity_bytes, self.now - 1)

    def _WorkerRemoved(self, event: e.WorkerRemoved) -> None:  # noqa: N802
        worker = self.workers.pop(event.worker, None)
        if worker is not None and worker.operation is not None:
            del self.operations[worker.operation]
        self.count_votes()

    def _WorkerObserved(self, event: e.WorkerObserved) -> None:  # noqa: N802
        worker = self.workers.get(event.worker)
        if worker is None or event.started_us < worker.observed:
            return
        if not worker.routable and event.started_us <= worker.lost_at:
            return
        worker.observed, worker.unreachable = event.started_us, 0
        worker.routable = self.comes_back(worker)
        if event.stored is not None:
            worker.stored = {entry.name: entry for entry in event.stored}
            for entry in event.stored:
                self.blobs[entry.model] = entry
            self.count_votes()
        lines = [(line.model, line) for line in event.loaded if line.model is not None and line.model in self.blobs]
        shown = dict(lines)
        strangers = [line.bytes + worker.unshown for line in event.loaded if line.model not in shown]
        worker.foreign = event.foreign_bytes + sum(strangers)
        known: dict[ModelId, None] = {}
        for plain, line in lines:
            blob = self._seen_as(worker, plain, line, started=event.started_us)
            known[blob] = None
            self._seen(worker, blob, line, started=event.started_us)
        for blob, runner in list(worker.runners.items()):
            if blob not in known and not self._younger(worker, blob, runner, started=event.started_us):
                self._remove(worker, blob)
                self.meet("found gone")
        if not worker.spec.capacity_known:
            fitting = sum(line.bytes for line in event.loaded if not line.spilled_bytes)
            needed = fitting + worker.spec.headroom_bytes + worker.unshown * len(event.loaded)
            worker.capacity = max(worker.capacity, needed)

    def _younger(self, worker: WorkerBook, blob: ModelId, runner: RunnerBook, *, started: int) -> bool:
        if runner.state == "loading":
            return True
        if runner.state == "unloading":
            operation = self.operations.get(worker.operation) if worker.operation is not None else None
            if operation is not None and operation.decision.model == blob:
                return True
        return runner.since >= started

    def _seen_as(self, worker: WorkerBook, plain: ModelId, line: e.LoadedModel, *, started: int) -> ModelId:
        """By its context a runner is of a class; one that is of none is what it was, else of the canonical one."""
        held = next((one for one in worker.runners if weights(one) == plain), None)
        if held is not None:
            runner = worker.runners[held]
            if self._younger(worker, held, runner, started=started) or line.num_ctx in (0, runner.num_ctx):
                return held
        for one in (plain, *self.class_ids(plain)):
            if self.canonical(one) == line.num_ctx:
                return one
        return held or plain

    def _seen(self, worker: WorkerBook, blob: ModelId, line: e.LoadedModel, *, started: int) -> None:
        sibling = self.sibling(worker, blob)
        gone = max((at for one, at in worker.gone.items() if weights(one) == weights(blob)), default=NEVER)
        if sibling is not None:  # somebody has loaded it anew, with another context
            self._remove(worker, sibling)
            self.meet("loaded anew by others")
        runner = worker.runners.get(blob)
        if runner is None:
            if sibling is None and gone >= started:
                return
            num_ctx = line.num_ctx or self.canonical(blob)
            runner = RunnerBook("ready", 0, num_ctx, worker.slots(self.entry(blob)), self.now)
            runner.bytes = self.need(worker, blob, num_ctx)
            worker.runners[blob] = runner
            self.meet("adopted")
            self._book(worker, blob, runner, measured=line.bytes)
        elif not self._younger(worker, blob, runner, started=started):
            if runner.state == "unloading":
                if line.expired:
                    runner.bytes = max(runner.bytes, line.bytes + worker.unshown)
                    return
                runner.state, runner.since = "ready", self.now
            runner.num_ctx = line.num_ctx or runner.num_ctx
            if line.bytes and self._shape(worker, blob, runner) in self.measured:
                runner.bytes = line.bytes + worker.unshown  # growth is drift: the next load is expected as before
                self.largest[blob] = max(self.largest.get(blob, 0), line.bytes)
            else:
                self._book(worker, blob, runner, measured=line.bytes)

    def _shape(self, worker: WorkerBook, blob: ModelId, runner: RunnerBook) -> Shape:
        return (blob, str(worker.spec.kind), runner.num_ctx, runner.slots)

    def _book(self, worker: WorkerBook, blob: ModelId, runner: RunnerBook, *, measured: int) -> None:
        """A measurement counts for the runner, and for the next of its shape; zero says nothing."""
        if measured > 0:
            self.measured[self._shape(worker, blob, runner)] = measured
            self.largest[blob] = max(self.largest.get(blob, 0), measured)
            runner.bytes = measured + worker.unshown

    def _remove(self, worker: WorkerBook, blob: ModelId) -> None:
        runner = worker.runners.pop(blob)
        worker.gone[blob] = self.now
        if runner.state == "unloading":
            worker.evicted[blob] = self.now + RESTING_LOADS * runner.load_span
        for claim in worker.claims.values():
            claim.victims.pop(blob, None)

    def _WorkerUnreachable(self, event: e.WorkerUnreachable) -> None:  # noqa: N802
        worker = self.workers.get(event.worker)
        if worker is None or event.started_us <= worker.observed:
            return
        worker.unreachable += 1
        if event.fault in LOST or worker.unreachable >= self.config.unreachable_max:
            worker.routable = False
            worker.lost_at = max(worker.lost_at, event.started_us)

    # ------------------------------------------------------------------ whom to trust: ``trust`` knows

    @abstractmethod
    def went_well(self, worker: WorkerBook) -> None:
        """A request of the worker has begun to be answered, or was answered."""

    @abstractmethod
    def fails(self, worker: WorkerBook, request: RequestBook, fault: e.FaultKind) -> None:
        """A request failed there."""

    @abstractmethod
    def comes_back(self, worker: WorkerBook) -> bool:
        """Whether an observation brings it into routing."""

    @abstractmethod
    def grow(self) -> None:
        """Slow starts go on as time passes."""

    @abstractmethod
    def tries_again(self, request: RequestBook, event: e.DispatchFailed) -> None:
        """Whether the contract has room for one more try of a request that a worker failed."""

    @abstractmethod
    def crashes(self, request: RequestBook, fingerprint: str) -> None:
        """A runner died under it."""

    @abstractmethod
    def is_poison(self, fingerprint: str) -> bool:
        """Whether such requests are refused now."""

    # ------------------------------------------------------------------ requests

    def _RequestArrived(self, event: e.RequestArrived) -> None:  # noqa: N802
        self.must(event.request not in self.requests and event.request not in self.ended, "ids are used once", event)
        blob = self.resolve(event.name) or ModelId("")
        ready = any(
            w.routable and blob in w.runners and w.runners[blob].state == "ready" for w in self.workers.values()
        )
        book = RequestBook(event, blob, self.now, self.arrivals, ready)
        book.fingerprint = event.fingerprint
        book.ahead = sum(1 for other in self.waiting.get(blob, {}).values() if other.lane == book.lane)
        self.arrivals += 1
        self.requests[event.request] = book
        if blob:
            self._waits(book)

    def _RequestCancelled(self, event: e.RequestCancelled) -> None:  # noqa: N802
        request = self.requests.get(event.request)
        if request is None:
            return
        if request.phase == "running":
            self._release(request, aborted=True)
        self.count("cancelled")
        self._end(request, "cancelled")

    def _FirstTokenReceived(self, event: e.FirstTokenReceived) -> None:  # noqa: N802
        request = self.requests[event.request]
        worker = self.workers.get(request.worker) if request.worker is not None else None
        request.first_token = True
        took = self.now - request.dispatched
        if worker is not None:
            self.went_well(worker)
        if worker is not None and request.event.prompt_tokens and took > 0:
            worker.rate = max(1, moving(worker.rate, request.event.prompt_tokens * SECOND // took))

    def _RequestFinished(self, event: e.RequestFinished) -> None:  # noqa: N802
        request = self.requests[event.request]
        held = self._release(request, aborted=False)
        if event.outcome is e.Outcome.completed:
            took = max(1, self.now - request.dispatched)
            self.service[request.blob] = moving(self.service.get(request.blob, 0), took)
            self.service_of_all = moving(self.service_of_all, took)
            self.suspects.pop(request.fingerprint, None)
            if held and not request.first_token and request.worker is not None:
                self.went_well(self.workers[request.worker])
        elif held and event.fault is not None:
            self._blame(request, event.fault)
        if event.fault is e.FaultKind.crashed:
            self.crashes(request, event.fingerprint)
        self.count(str(event.outcome))
        self._end(request, str(event.outcome))

    def _DispatchFailed(self, event: e.DispatchFailed) -> None:  # noqa: N802
        request = self.requests[event.request]
        self.must(request.phase == "running" and request.worker == event.worker, "the world reports what runs", event)
        held = self._release(request, aborted=event.fault is e.FaultKind.timeout)
        if held:
            self._blame(request, event.fault)
        self.avoids(request)
        self.tries_again(request, event)
        request.phase, request.worker = "waiting", None
        if event.worker not in request.failed_on:
            request.failed_on.append(event.worker)
        request.failed_at = self.now
        self.count("retry")
        self._waits(request)

    def _blame(self, request: RequestBook, fault: e.FaultKind) -> None:
        assert request.worker is not None
        worker = self.workers[request.worker]
        self.fails(worker, request, fault)
        if fault in LOST:
            worker.routable, worker.lost_at = False, self.now
        elif fault in (e.FaultKind.not_found, e.FaultKind.unreachable):
            worker.lost_at = self.now
        elif fault is e.FaultKind.busy:
            worker.runners[request.blob].zombies.append(self.now + SECOND)

    def avoids(self, request: RequestBook) -> None:
        """Once the exclusion is over, any worker may have it again."""
        if request.failed_on and request.failed_at + self.config.exclusion_us <= self.now:
            request.failed_on.clear()

    def _release(self, request: RequestBook, *, aborted: bool) -> bool:
        worker = self.workers.get(request.worker) if request.worker is not None else None
        runner = worker.runners.get(request.blob) if worker is not None else None
        if worker is None or runner is None or request.event.request not in runner.in_flight:
            return False
        del runner.in_flight[request.event.request]
        if aborted and not request.first_token and request.event.kind is not e.RequestKind.load:
            spent = self.now - request.dispatched
            left = request.event.prompt_tokens * SECOND // (worker.rate or 500) - spent
            if left > 0:
                runner.zombies.append(self.now + min(left, self.config.zombie_max_us))
                self.meet("zombie")
        return True

    def _waits(self, request: RequestBook) -> None:
        waiting = self.waiting.setdefault(request.blob, {})
        if not waiting:
            self.waiting_since[request.blob] = self.now
        waiting[request.event.request] = request

    def _waits_no_more(self, request: RequestBook) -> None:
        waiting = self.waiting.get(request.blob)
        if waiting is not None and waiting.pop(request.event.request, None) is not None and not waiting:
            del self.waiting_since[request.blob], self.waiting[request.blob]

    def _end(self, request: RequestBook, how: str) -> None:
        self._waits_no_more(request)
        del self.requests[request.event.request]
        self.ended[request.event.request] = how

    # ------------------------------------------------------------------ operations

    def _OperationEnded(self, event: e.OperationEnded) -> None:  # noqa: N802
        if event.operation in self.operations:
            self._operation_over(event)
        else:
            self.meet("ended too late")

    def _operation_over(self, event: e.OperationEnded) -> None:
        book = self.operations.pop(event.operation)
        decision, line = book.decision, event.loaded
        worker = self.workers[decision.worker]
        worker.operation = None
        runner = worker.runners.get(decision.model)
        done = event.outcome is e.OperationOutcome.done
        done = done and (line is None or line.model in (None, weights(decision.model)))
        if isinstance(decision, d.Unload):
            self._unload_over(worker, decision, runner, event=event)
        elif runner is None:
            worker.lost_at = self.now
        elif done:
            self._load_done(worker, book, runner, line=line)
        elif decision.cause is d.LoadCause.adopt:
            worker.lost_at = self.now
        else:
            self._load_broke(worker, decision, runner, fault=event.fault)

    def _unload_over(
        self, worker: WorkerBook, decision: d.Unload, runner: RunnerBook | None, *, event: e.OperationEnded
    ) -> None:
        if runner is None:
            return
        if event.outcome is e.OperationOutcome.done:
            self._remove(worker, decision.model)
            return
        runner.since = self.now
        worker.unloads_broken += 1
        worker.lost_at = self.now
        if event.fault in LOST:
            worker.routable = False

    def _load_done(
        self, worker: WorkerBook, book: OperationBook, runner: RunnerBook, *, line: e.LoadedModel | None
    ) -> None:
        decision = book.decision
        assert isinstance(decision, d.Load)
        if line is not None:
            runner.num_ctx = line.num_ctx or runner.num_ctx
            self._book(worker, decision.model, runner, measured=line.bytes)
        runner.since = self.now
        if decision.cause is d.LoadCause.adopt:
            return
        runner.state, runner.granted = "ready", runner.num_ctx
        runner.ready, runner.load_span = self.now, self.now - book.started
        worker.refused_until.pop(decision.model, None)
        worker.resting_until.pop(decision.model, None)
        worker.failed_loads.pop(decision.model, None)

    def _load_broke(
        self, worker: WorkerBook, decision: d.Load, runner: RunnerBook, *, fault: e.FaultKind | None
    ) -> None:
        if runner.state == "loading":
            runner.state, runner.since = "unloading", self.now
        worker.lost_at = self.now
        if fault in LOST:
            worker.routable = False
        if fault not in (e.FaultKind.refused, e.FaultKind.unreachable):  # else nobody heard of the load
            self.failed_now[decision.model] = None
            tries = worker.failed_loads[decision.model] = worker.failed_loads.get(decision.model, 0) + 1
            certain = tries if worker.unloads_broken < UNLOAD_TRIES else 1
            span, most = self.config.load_backoff_us, self.config.load_backoff_max_us
            worker.refused_until[decision.model] = self.now + min(span << (certain - 1), most)
            worker.resting_until[decision.model] = self.now + min(span << (tries - 1), most)

    # ------------------------------------------------------------------ operators, hints, time

    def _LoadRequested(self, event: e.LoadRequested) -> None:  # noqa: N802
        blob = self.resolve(event.name)
        if blob is not None:
            self.asked_in[blob] = self.now

    def _UnloadRequested(self, event: e.UnloadRequested) -> None:  # noqa: N802
        blob = self.resolve(event.name)
        if blob is not None:
            self.asked_out[blob] = self.now
            for one in self.classes:
                if weights(one) == blob:  # a plain name means all contexts
                    self.asked_out[one] = self.now

    def _ModelReleased(self, event: e.ModelReleased) -> None:  # noqa: N802
        self.meet("released")
        blob = self.resolve(event.name)
        if blob is not None and event.alone:
            for one in (blob, *(one for one in self.classes if weights(one) == blob)):
                self.given_back[one] = self.now

    def _HintGiven(self, event: e.HintGiven) -> None:  # noqa: N802
        self.meet("hinted")

    def _ConfigChanged(self, event: e.ConfigChanged) -> None:  # noqa: N802
        """What is resident keeps a context that was right so far."""
        if event.config.eviction not in (self.config.eviction, self.policy):
            self.policy, self.switched = event.config.eviction, self.now
            self.meet("policy set")
        contexts = {blob: self.canonical(blob) for blob in (*self.blobs, *self.classes)}
        self.config = msgspec.structs.replace(event.config, shadows=self.config.shadows)
        self.count_votes()
        for worker in self.workers.values():
            for blob, runner in worker.runners.items():
                kept = runner.state in ("ready", "draining") and contexts[blob] <= runner.num_ctx
                if kept and runner.num_ctx < self.canonical(blob):
                    runner.granted = runner.num_ctx
                    self.meet("context kept")

    def _StandbyChanged(self, event: e.StandbyChanged) -> None:  # noqa: N802
        self.standby = event.standby
        self.meet(f"standby {event.standby}")

    def _TimePassed(self, event: e.TimePassed) -> None:  # noqa: N802
        """The rest of ``told`` is what time does."""
