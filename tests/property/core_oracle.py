"""The oracle's own books of what the core was told and what it decided. It uses nothing of the core but its words.

Every rule of the world is written here a second time, from the documented contract: an observation never contradicts a
change younger than its start, memory is free only once it is confirmed, a slot is taken until its request's end or the
end of its aborted prefill. A decision that these books do not allow raises ``Broken``.
"""

from __future__ import annotations

from typing import Any

from core_books import (
    LOST,
    RETRYABLE,
    SECOND,
    OperationBook,
    RequestBook,
    RunnerBook,
    WorkerBook,
    moving,
    must,
    passed_over,
    surely_before,
    surely_fits,
    tried_in_vain,
)

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig


class Oracle:
    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.now = 0
        self.workers: dict[str, WorkerBook] = {}
        self.requests: dict[str, RequestBook] = {}
        self.operations: dict[int, OperationBook] = {}
        self.blobs: dict[str, e.StoredModel] = {}
        self.first_seen: dict[str, dict[str, int]] = {}
        self.measured: dict[str, int] = {}
        self.service: dict[str, int] = {}
        self.last_operation = 0
        self.failed_loads: dict[str, None] = {}
        self.load_failed_at: dict[tuple[str, str], int] = {}
        self.met: dict[str, int] = {}
        self.ended = 0

    def meet(self, *what: object) -> None:
        for one in what:
            self.met[str(one)] = self.met.get(str(one), 0) + 1

    # ------------------------------------------------------------------ what the core is told

    def told(self, now: int, event: Any) -> None:
        self.now = now
        self.failed_loads = {}
        getattr(self, f"_{type(event).__name__}")(event)
        fault = getattr(event, "fault", None)
        if fault is not None:
            self.meet(f"FaultKind.{fault}")
        for operation, book in list(self.operations.items()):
            if book.deadline <= now:
                self._operation_over(operation, e.OperationOutcome.timed_out, e.FaultKind.timeout, None)
        for worker in self.workers.values():
            for runner in worker.runners.values():
                runner.zombies = [until for until in runner.zombies if until > now]

    def _WorkerAdded(self, event: e.WorkerAdded) -> None:
        self.workers[event.worker] = WorkerBook(event, event.capacity_bytes, self.now - 1)

    def _WorkerRemoved(self, event: e.WorkerRemoved) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is not None and worker.operation is not None:
            del self.operations[worker.operation]
        self._count_votes()

    def _WorkerObserved(self, event: e.WorkerObserved) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or event.started_us < worker.observed:
            return
        if not worker.routable and event.started_us <= worker.lost_at:
            return
        worker.observed, worker.routable, worker.unreachable = event.started_us, True, 0
        if event.stored is not None:
            worker.stored = {entry.name: entry for entry in event.stored}
            for entry in event.stored:
                self.blobs[entry.model] = entry
            self._count_votes()
        known = [line for line in event.loaded if line.model in self.blobs]
        worker.foreign = event.foreign_bytes + sum(line.bytes for line in event.loaded if line.model not in self.blobs)
        for line in known:
            self._seen(worker, line, event.started_us)
        listed = {line.model for line in known}
        for blob, runner in list(worker.runners.items()):
            if blob not in listed and not self._younger(worker, blob, runner, event.started_us):
                self._remove(worker, blob)
        if not worker.spec.capacity_known:
            fitting = sum(line.bytes for line in event.loaded if not line.spilled_bytes)
            needed = fitting + worker.spec.headroom_bytes + worker.spec.overhead_bytes * len(event.loaded)
            worker.capacity = max(worker.capacity, needed)

    def _younger(self, worker: WorkerBook, blob: str, runner: RunnerBook, started: int) -> bool:
        if runner.state == "loading":
            return True
        if runner.state == "unloading":
            operation = self.operations.get(worker.operation) if worker.operation is not None else None
            if operation is not None and operation.decision.model == blob:
                return True
        return runner.since >= started

    def _seen(self, worker: WorkerBook, line: e.LoadedModel, started: int) -> None:
        runner = worker.runners.get(str(line.model))
        overhead = worker.unshown
        if runner is None:
            if worker.gone.get(str(line.model), -1) < started:
                entry = self.blobs[str(line.model)]
                slots = min(worker.spec.parallel, entry.parallel_max or 999)
                size = line.bytes + overhead if line.bytes else 0
                worker.runners[str(line.model)] = RunnerBook("ready", size, line.num_ctx, slots, self.now)
                self.meet("adopted")
        elif not self._younger(worker, str(line.model), runner, started):
            if runner.state == "unloading":
                if line.expired:
                    runner.bytes = max(runner.bytes, line.bytes + overhead)
                    return
                runner.state, runner.since = "ready", self.now
            runner.bytes = line.bytes + overhead if line.bytes else runner.bytes
            runner.num_ctx = line.num_ctx or runner.num_ctx
        if line.bytes:
            self._measure(line)

    def _measure(self, line: e.LoadedModel) -> None:
        blob = str(line.model)
        self.measured[blob] = max(self.measured.get(blob, 0), line.bytes)

    def _remove(self, worker: WorkerBook, blob: str) -> None:
        del worker.runners[blob]
        worker.gone[blob] = self.now

    def _WorkerUnreachable(self, event: e.WorkerUnreachable) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or event.started_us <= worker.observed:
            return
        worker.unreachable += 1
        if event.fault in LOST or worker.unreachable >= self.config.unreachable_max:
            worker.routable = False
            worker.lost_at = max(worker.lost_at, event.started_us)

    def _RequestArrived(self, event: e.RequestArrived) -> None:
        must(event.request not in self.requests, "ids are used once")
        self.requests[event.request] = RequestBook(event, self.resolve(event.name) or "", self.now)

    def _RequestCancelled(self, event: e.RequestCancelled) -> None:
        request = self.requests.get(event.request)
        if request is None or request.phase == "ended":
            return
        if request.phase == "running":
            self._release(request, aborted=True)
        self._end(request)

    def _FirstTokenReceived(self, event: e.FirstTokenReceived) -> None:
        request = self.requests[event.request]
        worker = self.workers.get(str(request.worker))
        request.first_token = True
        took = self.now - request.dispatched
        if worker is not None and request.event.prompt_tokens and took > 0:
            worker.rate = max(1, moving(worker.rate, request.event.prompt_tokens * SECOND // took))

    def _RequestFinished(self, event: e.RequestFinished) -> None:
        request = self.requests[event.request]
        held = self._release(request, aborted=False)
        if event.outcome is e.Outcome.completed:
            took = max(1, self.now - request.dispatched)
            self.service[request.blob] = moving(self.service.get(request.blob, 0), took)
        elif held and event.fault is not None:
            self._blame(request, event.fault)
        self._end(request)

    def _DispatchFailed(self, event: e.DispatchFailed) -> None:
        request = self.requests[event.request]
        must(request.phase == "running" and request.worker == event.worker, "the world reports what runs")
        held = self._release(request, aborted=event.fault is e.FaultKind.timeout)
        if held:
            self._blame(request, event.fault)
        request.phase = "waiting"
        request.crashes += event.fault is e.FaultKind.crashed
        request.failed_on.append(event.worker)
        request.failed_at[event.worker] = self.now

    def _blame(self, request: RequestBook, fault: e.FaultKind) -> None:
        worker = self.workers[str(request.worker)]
        if fault in LOST:
            worker.routable, worker.lost_at = False, self.now
        elif fault in (e.FaultKind.not_found, e.FaultKind.unreachable):
            worker.lost_at = self.now
        elif fault is e.FaultKind.busy:
            worker.runners[request.blob].zombies.append(self.now + SECOND)

    def _release(self, request: RequestBook, *, aborted: bool) -> bool:
        worker = self.workers.get(str(request.worker))
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

    def _end(self, request: RequestBook) -> None:
        must(request.phase != "ended", "a request ends once", request)
        request.phase = "ended"
        self.ended += 1

    def _OperationEnded(self, event: e.OperationEnded) -> None:
        if event.operation in self.operations:
            self._operation_over(event.operation, event.outcome, event.fault, event.loaded)

    def _operation_over(
        self, operation: int, outcome: e.OperationOutcome, fault: e.FaultKind | None, line: e.LoadedModel | None
    ) -> None:
        decision = self.operations.pop(operation).decision
        worker = self.workers[decision.worker]
        worker.operation = None
        runner = worker.runners.get(decision.model)
        done = outcome is e.OperationOutcome.done and (line is None or line.model in (None, decision.model))
        if isinstance(decision, d.Unload):
            if runner is None:
                return
            if done:
                self._remove(worker, decision.model)
                return
            runner.since = self.now
        elif runner is None:
            worker.lost_at = self.now
            return
        elif done:
            if line is not None and line.bytes:
                runner.bytes = line.bytes + worker.unshown
                self._measure(line)
            runner.num_ctx = line.num_ctx if line is not None and line.num_ctx else runner.num_ctx
            runner.since = self.now
            if decision.cause is not d.LoadCause.adopt:
                runner.state = "ready"
            return
        elif decision.cause is d.LoadCause.adopt:
            worker.lost_at = self.now
            return
        else:
            runner.state, runner.since = "unloading", self.now
            self.failed_loads[decision.model] = None
            self.load_failed_at[decision.worker, decision.model] = self.now
        worker.lost_at = self.now
        if fault in LOST:
            worker.routable = False

    def _LoadRequested(self, event: e.LoadRequested) -> None: ...
    def _UnloadRequested(self, event: e.UnloadRequested) -> None: ...
    def _ModelReleased(self, event: e.ModelReleased) -> None: ...
    def _HintGiven(self, event: e.HintGiven) -> None: ...
    def _TimePassed(self, event: e.TimePassed) -> None: ...

    # ------------------------------------------------------------------ names

    def _count_votes(self) -> None:
        """How many workers bind each name to which blob; of equals the one bound first wins."""
        counts: dict[str, dict[str, int]] = {}
        for worker in self.workers.values():
            for name, entry in worker.stored.items():
                blobs = counts.setdefault(name, {})
                blobs[entry.model] = blobs.get(entry.model, 0) + 1
        kept: dict[str, dict[str, int]] = {}
        for name, blobs in counts.items():
            before = self.first_seen.get(name, {})
            order = [blob for blob in before if blob in blobs] + [blob for blob in blobs if blob not in before]
            kept[name] = {blob: blobs[blob] for blob in order}
        self.first_seen = kept

    def resolve(self, name: str) -> str | None:
        votes = self.first_seen.get(name, {})
        return max(votes, key=votes.__getitem__) if votes else None

    def binds(self, worker: WorkerBook, request: RequestBook) -> bool:
        entry = worker.stored.get(request.event.name)
        return entry is not None and entry.model == request.blob

    # ------------------------------------------------------------------ what it decided

    def decided(self, decisions: list[Any]) -> None:
        for decision in decisions:
            self.meet(type(decision).__name__)
            getattr(self, f"_{type(decision).__name__}")(decision)

    def _Reject(self, decision: d.Reject) -> None:
        request = self.requests[decision.request]
        why, wait, config = decision.refusal, decision.retry_after_us, self.config
        self.meet(f"Refusal.{why}")
        must(request.phase in ("new", "waiting"), "only who does not run is refused", decision, request)
        waiting = [r for r in self.requests.values() if r.phase == "waiting" and r is not request]
        same = [r for r in waiting if r.blob == request.blob]
        away = not any(w.routable and self.binds(w, request) for w in self.workers.values())
        if why is d.Refusal.unknown_model:
            must(not self.first_seen.get(request.event.name), "unknown only if nobody stores it", decision)
        elif why is d.Refusal.queue_full:
            full = len(same) >= config.queue_per_model_max or len(waiting) >= config.queue_total_max
            must(full and request.phase == "new", "queue_full only at a bound", decision, len(same), len(waiting))
        elif why is d.Refusal.wait_too_long:
            must(len(same) > 0 and request.phase == "new", "too long only behind others", decision)
        elif why is d.Refusal.deadline_passed:
            must(self.now >= request.event.deadline_us, "deadline_passed only at the deadline", decision)
        elif why is d.Refusal.no_healthy_worker:
            routable = [w for w in self.workers.values() if w.routable]
            none_stores = not any(request.blob in {s.model for s in w.stored.values()} for w in routable)
            must(away and (request.phase == "new" or none_stores), "no_healthy_worker only if so", decision)
        elif why is d.Refusal.model_does_not_fit:
            must(not surely_fits(self, request), "does_not_fit only if so", decision)
        elif why is d.Refusal.load_failed:
            failed = request.blob in self.failed_loads or tried_in_vain(self, request, wait)
            must(failed, "load_failed only when a load failed", decision)
        elif why is d.Refusal.worker_failed:
            spent = request.attempts >= config.attempts_max or request.crashes >= 2
            must(spent, "worker_failed only when the attempts are spent", decision, request)
        self._honest_wait(decision, request)
        self._end(request)

    def _honest_wait(self, decision: d.Reject, request: RequestBook) -> None:
        wait = decision.retry_after_us
        foreign = decision.refusal is d.Refusal.model_does_not_fit and any(w.foreign for w in self.workers.values())
        later = wait > 0 and (foreign or decision.refusal is d.Refusal.load_failed)
        if decision.refusal not in RETRYABLE and not later:
            must(wait == 0, "retrying soon is pointless", decision)
            return
        must(8 * SECOND // 10 <= wait <= self.config.retry_after_max_us, "Retry-After within bounds", decision)
        ready = [w.runners[request.blob] for w in self.workers.values() if w.routable and request.blob in w.runners]
        slots = sum(runner.slots for runner in ready if runner.state == "ready")
        if slots and request.blob in self.service and decision.refusal in RETRYABLE[1:]:
            predicted = surely_before(self.requests, request) * self.service[request.blob] // slots
            must(wait >= min(predicted, self.config.retry_after_max_us) // 2, "Retry-After is honest", decision)

    def _Dispatch(self, decision: d.Dispatch) -> None:
        self.meet(f"CacheState.{decision.cache}")
        request = self.requests[decision.request]
        must(request.phase in ("new", "waiting"), "only who waits is dispatched", decision, request)
        worker = self.workers.get(decision.worker)
        must(worker is not None and worker.routable, "never to a lost worker", decision)
        assert worker is not None
        must(self.binds(worker, request), "only where the name means the blob", decision)
        runner = worker.runners.get(decision.model)
        must(runner is not None and runner.state == "ready", "only to a resident model", decision, runner)
        assert runner is not None
        must(runner.used < runner.slots, "never beyond its slots", decision, runner)
        must(decision.num_ctx == runner.num_ctx, "with the runner's own context", decision, runner)
        must(decision.model == request.blob, "to the blob that its name meant", decision)
        must(not passed_over(self.requests, request, decision.worker), "a tenant's first comes first", decision)
        request.attempts += 1
        must(decision.attempt == request.attempts <= self.config.attempts_max, "attempts are bounded", decision)
        must(decision.queued_us == self.now - request.arrived, "the wait is told as it was", decision)
        must(decision.load_us >= 0, "spans are not negative", decision)
        failed_at = request.failed_at.get(decision.worker)
        if failed_at is not None and self.now < failed_at + self.config.exclusion_us:
            others = [w for i, w in self.workers.items() if w.routable and i not in request.failed_on]
            must(not any(self.binds(w, request) for w in others), "a retry goes elsewhere", decision, request)
        if len(request.failed_on) and decision.worker not in request.failed_on:
            self.meet("retried elsewhere")
        runner.in_flight[decision.request] = None
        request.phase, request.worker = "running", decision.worker
        request.dispatched, request.first_token = self.now, False

    def _begin(self, decision: d.Load | d.Unload) -> WorkerBook:
        worker = self.workers[decision.worker]
        must(decision.operation > self.last_operation, "operation ids rise", decision)
        self.last_operation = decision.operation
        must(worker.routable, "operations on workers in routing only", decision)
        must(worker.operation is None, "one operation at a time on a worker", decision, worker.operation)
        must(worker.observed > worker.lost_at, "nothing begins on a worker that is in doubt", decision)
        entry = worker.stored.get(decision.name)
        must(entry is not None and entry.model == decision.model, "the name reaches the blob there", decision)
        deadline = self.now + decision.timeout_us + self.config.operation_grace_us
        self.operations[decision.operation] = OperationBook(decision, deadline)
        worker.operation = decision.operation
        return worker

    def _Load(self, decision: d.Load) -> None:
        self.meet(f"LoadCause.{decision.cause}")
        worker = self._begin(decision)
        must(decision.expected_us > 0 and decision.timeout_us > 0, "operations have a span", decision)
        if decision.cause is d.LoadCause.adopt:
            must(worker.runners[decision.model].state == "ready", "only residents are adopted", decision)
            return
        must(decision.model not in worker.runners, "no model is loaded twice", decision)
        if worker.spec.capacity_known:
            total = worker.held + worker.foreign + decision.reserved_bytes
            limit = worker.capacity - worker.spec.headroom_bytes
            must(total <= limit, "memory is never promised twice", decision, total, limit)
        if worker.runners:
            free = worker.capacity - worker.foreign - worker.held
            predicted = self._ollamas_prediction(worker, decision)
            must(predicted * 100 <= free * worker.spec.fit_percent, "Ollama's own share", decision, predicted, free)
        limit = worker.spec.runners_max
        must(not limit or len(worker.runners) < limit, "Ollama's own number of runners", decision)
        entry = self.blobs[decision.model]
        slots = min(worker.spec.parallel, entry.parallel_max or 999)
        worker.runners[decision.model] = RunnerBook(
            "loading", decision.reserved_bytes, decision.num_ctx, slots, self.now
        )

    def _ollamas_prediction(self, worker: WorkerBook, decision: d.Load) -> int:
        """File and cache for all slots; where nothing is known of the cache, what was reserved."""
        entry = self.blobs[decision.model]
        cache = entry.predicted_kv_bytes_per_token or entry.kv_bytes_per_token
        slots = min(worker.spec.parallel, entry.parallel_max or 999)
        return entry.weights_bytes + cache * decision.num_ctx * slots

    def _Unload(self, decision: d.Unload) -> None:
        self.meet(f"UnloadCause.{decision.cause}")
        worker = self._begin(decision)
        runner = worker.runners[decision.model]
        must(runner.used == 0, "a busy runner is never unloaded", decision, runner)
        must(runner.state in ("draining", "unloading"), "drain before unload", decision, runner)
        if decision.cause in (d.UnloadCause.room, d.UnloadCause.replica):
            must(not self._pinned(worker, decision.model), "a pinned model is no victim", decision)
            must(decision.wanted_by is not None, "room is made for somebody", decision)
        runner.state, runner.since = "unloading", self.now

    def _pinned(self, worker: WorkerBook, blob: str) -> bool:
        pinned = [name for name, said in self.config.models.items() if said.pinned]
        return any(self.resolve(name) == blob for name in pinned)

    def _Drain(self, decision: d.Drain) -> None:
        runner = self.workers[decision.worker].runners[decision.model]
        must(runner.state == "ready", "only residents are drained", decision, runner)
        runner.state, runner.since = "draining", self.now
        self.meet("drained busy" if runner.used else "drained idle")

    def _Undrain(self, decision: d.Undrain) -> None:
        if decision.worker not in self.workers:
            return  # it is being removed
        runner = self.workers[decision.worker].runners[decision.model]
        must(runner.state == "draining", "only the draining are undrained", decision, runner)
        runner.state, runner.since = "ready", self.now

    def _HealthChange(self, decision: d.HealthChange) -> None:
        worker = self.workers.get(decision.worker)
        if worker is not None:
            must(worker.routable == decision.healthy, "health is as it was told", decision)

    def _Observe(self, decision: d.Observe) -> None:
        must(decision.worker in self.workers, "only known workers are asked", decision)

    def _Answer(self, decision: d.Answer) -> None:
        self.meet(f"Answer.{decision.accepted}")

    # ------------------------------------------------------------------ after a step

    def settled(self, asked: str | None) -> None:
        """After a whole step: the request that came has its place, and nobody waits beside a free slot."""
        if asked is not None and self.requests[asked].phase == "new":
            self.requests[asked].phase = "waiting"
        self._forget_blobs()
        by_blob: dict[str, list[RequestBook]] = {}
        for request in self.requests.values():
            if request.phase == "waiting":
                by_blob.setdefault(request.blob, []).append(request)
        for name, worker in self.workers.items():
            if not worker.routable:
                continue
            for blob, runner in worker.runners.items():
                if runner.state != "ready" or runner.used >= runner.slots:
                    continue
                for request in by_blob.get(blob, ()):
                    free = self.binds(worker, request) and name not in request.failed_on
                    must(not free, "nobody waits beside a free slot", request, name)

    def _forget_blobs(self) -> None:
        """A blob is known while a disk or a GPU holds it, somebody asked for it, or a sight on its way may show it."""
        known = {entry.model for worker in self.workers.values() for entry in worker.stored.values()}
        unstored = [blob for blob in self.blobs if blob not in known]
        if not unstored:
            return
        known |= {blob for worker in self.workers.values() for blob in worker.runners}
        known |= {b for worker in self.workers.values() for b, gone in worker.gone.items() if gone >= worker.observed}
        known |= {request.blob for request in self.requests.values() if request.phase != "ended"}
        known |= {operation.decision.model for operation in self.operations.values()}
        for blob in unstored:
            if blob not in known:
                del self.blobs[blob]
                self.measured.pop(blob, None)
                self.service.pop(blob, None)
                self.meet("forgotten")

    def forget_ended(self) -> None:
        """Long runs keep only what lives."""
        self.requests = {key: request for key, request in self.requests.items() if request.phase != "ended"}
