"""Workers with real memory, and what goes wrong with them: deaths, stale sights, lost ends, strangers, renamed models.

Every action takes small integers and does what they pick, or nothing, so that Hypothesis and a seeded generator can
both drive it.
"""

from dataclasses import dataclass

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.units import Bytes, ModelId, RequestId, WorkerId
from bellmare.sim.swarm.books import GIB, MIB
from bellmare.sim.swarm.draws import PLAIN, TWINS, Setting
from bellmare.sim.swarm.holdings import weights
from bellmare.sim.swarm.marks import Fault
from bellmare.sim.swarm.stage import Stage, TrueRunner, TrueWorker

FAULT_KINDS = tuple(e.FaultKind)
SIGHTS_MAX = 6
"""Observations on their way at once."""
CONTEXTS = (2048, 8192, 16_384)
"""With which strangers load."""
VERSIONS = 4
"""Blobs that a name may mean in turn; the last number stands for none."""


@dataclass
class Sight:
    """An observation on its way."""

    worker: WorkerId
    event: e.WorkerObserved | e.WorkerUnreachable


class Machines(Stage):
    """The fleet as it really is."""

    def __init__(self, setting: Setting = PLAIN, *, check_every: int = 1) -> None:
        super().__init__(setting, check_every=check_every)
        self.names = tuple(self.setting.sizes)
        self.sights: list[Sight] = []
        self.broken = self.setting.broken
        self.dead_requests: list[tuple[RequestId, WorkerId]] = []
        """Requests whose worker died under them; the failure is not reported yet."""
        self.next_worker = 0

    def fault(self, fault: Fault) -> None:
        self.oracle.meet(f"Fault.{fault}")

    def pick_worker(self, pick: int) -> WorkerId | None:
        names = list(self.workers)
        return names[pick % len(names)] if names else None

    # ------------------------------------------------------------------ coming and going

    def stored(self, name: str, version: int = 0) -> e.StoredModel:
        """What a disk says of a name; some names share a blob."""
        size = self.setting.sizes[name]
        blob = f"blob-{TWINS.get(name, name)}"
        return e.StoredModel(
            name=name,
            model=ModelId(f"{blob}-{version}" if version else blob),
            digest=f"{self.names.index(name):02}{version:02}" * 16,
            weights_bytes=Bytes(size.weights),
            kv_bytes_per_token=Bytes(size.kv_bytes_per_token),
            context_max=size.context_max,
            parallel_max=size.parallel_max,
            embedding=size.embedding,
        )

    def add_worker(self, pick: int, names: int, *, known: bool = True) -> None:
        """``names``: a bit for each name that it stores."""
        if len(self.workers) >= self.setting.workers_max:
            return
        machine = self.setting.machines[pick % len(self.setting.machines)]
        worker = WorkerId(f"w{self.next_worker}")
        self.next_worker += 1
        spec = e.WorkerAdded(
            worker=worker,
            kind=e.WorkerKind.ollama,
            capacity_bytes=Bytes(machine.capacity_gib * GIB),
            capacity_known=known,
            headroom_bytes=Bytes(machine.headroom_gib * GIB),
            overhead_bytes=Bytes(machine.overhead_mib * MIB),
            parallel=machine.parallel,
            runners_max=machine.runners_max,
            fit_percent=machine.fit_percent,
        )
        kept = {name: self.stored(name) for i, name in enumerate(self.names) if names >> i & 1}
        self.workers[worker] = TrueWorker(spec, kept)
        self.fault(Fault.worker_added)
        self.feed(spec)

    def remove_worker(self, pick: int) -> None:
        worker = self.pick_worker(pick)
        if worker is None:
            return
        self._orphan(worker)
        del self.workers[worker]
        self.operations = [operation for operation in self.operations if operation.worker != worker]
        self.fault(Fault.worker_removed)
        self.feed(e.WorkerRemoved(worker=worker))

    def kill(self, pick: int, *, empties: bool) -> None:
        """Nothing answers there from now on; what ran there is lost."""
        worker = self.pick_worker(pick)
        if worker is None or not self.workers[worker].alive:
            return
        self.workers[worker].alive = False
        if empties:
            self.workers[worker].runners = {}
        self.fault(Fault.worker_lost_emptied if empties else Fault.worker_lost)
        self._orphan(worker)

    def _orphan(self, worker: WorkerId) -> None:
        for key, request in self.oracle.requests.items():
            if request.phase == "running" and request.worker == worker and (key, worker) not in self.dead_requests:
                self.dead_requests.append((key, worker))

    def revive(self, pick: int) -> None:
        dead = [worker for worker in self.workers.values() if not worker.alive]
        if dead:
            dead[pick % len(dead)].alive = True
            self.fault(Fault.worker_back)

    # ------------------------------------------------------------------ observations

    def look(self, pick: int, *, timeout: bool = False, stored: bool = True) -> None:
        """Ask a worker: what it shows is what it holds now, whenever the answer arrives."""
        name = self.pick_worker(pick)
        if name is None or len(self.sights) >= SIGHTS_MAX:
            return
        worker = self.workers[name]
        event: e.WorkerObserved | e.WorkerUnreachable
        if not worker.alive or timeout:
            fault = e.FaultKind.timeout if timeout else e.FaultKind.refused
            event = e.WorkerUnreachable(worker=name, started_us=self.now, fault=fault)
            if timeout:
                self.fault(Fault.no_answer)
        else:
            lines = (
                e.LoadedModel(
                    name=runner.name,
                    model=blob,
                    bytes=Bytes(runner.bytes),
                    num_ctx=runner.num_ctx,
                    pinned=runner.pinned,
                    expired=runner.expired,
                )
                for blob, runner in worker.runners.items()
            )
            event = e.WorkerObserved(
                worker=name,
                started_us=self.now,
                loaded=tuple(lines),
                stored=tuple(worker.names.values()) if stored or not worker.stored_told else None,
                foreign_bytes=Bytes(worker.foreign),
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
        if sight.event.started_us < self.oracle.workers[sight.worker].observed:
            self.fault(Fault.stale_sight)
        if isinstance(sight.event, e.WorkerObserved):
            self._note_told(worker, sight.event)
        self.feed(sight.event)

    def _note_told(self, worker: TrueWorker, event: e.WorkerObserved) -> None:
        book = self.oracle.workers[event.worker]
        stale = event.started_us < book.observed or (not book.routable and event.started_us <= book.lost_at)
        if stale:
            return
        worker.stored_told = worker.stored_told or event.stored is not None
        worker.foreign_told = event.foreign_bytes
        shown = {line.model: (line.bytes, line.num_ctx) for line in event.loaded}
        for blob, runner in worker.runners.items():
            known = next((book.runners[one] for one in book.runners if weights(one) == blob), None)
            younger = known is not None and known.since >= event.started_us
            if younger:
                continue
            left = max((at for one, at in book.gone.items() if weights(one) == blob), default=-1)
            seen = shown.get(blob) == (runner.bytes, runner.num_ctx) and left < event.started_us
            runner.told = seen and (blob in self.oracle.blobs or event.stored is not None)

    def observe_now(self, name: WorkerId) -> None:
        """A look whose answer arrives at once."""
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
        kind = self._what_breaks(worker, operation, FAULT_KINDS[fault % len(FAULT_KINDS)] if fault >= 0 else None)
        line = self._carry_out(worker, operation, short=short) if kind is None else None
        if operation.operation not in self.oracle.operations:
            self.fault(Fault.load_slow)
        if lost:
            self.fault(Fault.end_lost if kind is None else Fault.end_lost_undone)
            return
        outcome = e.OperationOutcome.done
        if kind is not None:
            outcome = e.OperationOutcome.timed_out if kind is e.FaultKind.timeout else e.OperationOutcome.failed
            self.fault(Fault.load_failed if isinstance(operation, d.Load) else Fault.unload_failed)
        self.feed(e.OperationEnded(operation=operation.operation, outcome=outcome, fault=kind, loaded=line))

    def _what_breaks(
        self, worker: TrueWorker, operation: d.Load | d.Unload, kind: e.FaultKind | None
    ) -> e.FaultKind | None:
        """The fault that was drawn, or what the state of the worker leaves no choice about."""
        entry = worker.names.get(operation.name)
        if not worker.alive:
            return e.FaultKind.reset
        if entry is None:
            return e.FaultKind.not_found
        if isinstance(operation, d.Unload):
            wanted = weights(operation.model)
            moved = entry.model != wanted and wanted in worker.runners
            return e.FaultKind.failed if moved else kind  # it would unload another blob: what was asked for stays
        if entry.model not in worker.runners:
            if operation.name in self.broken:
                self.fault(Fault.file_damaged)
                return e.FaultKind.failed
            room = worker.spec.capacity_bytes - worker.taken - worker.spec.overhead_bytes
            if worker.spec.capacity_known and self._real_bytes(worker, operation) > room:
                self.fault(Fault.out_of_memory)
                return e.FaultKind.failed
        return kind

    def _real_bytes(self, worker: TrueWorker, operation: d.Load) -> int:
        return (operation.reserved_bytes - worker.spec.overhead_bytes) * self.setting.real_percent // 100

    def _carry_out(self, worker: TrueWorker, operation: d.Load | d.Unload, *, short: bool) -> e.LoadedModel | None:
        blob = worker.names[operation.name].model  # names are what goes over the wire
        if isinstance(operation, d.Unload):
            worker.runners.pop(blob, None)
            return None
        runner = worker.runners.get(blob)
        if runner is None:
            if short:
                self.fault(Fault.short_context)
            num_ctx = min(1024, operation.num_ctx) if short else operation.num_ctx
            runner = TrueRunner(operation.name, self._real_bytes(worker, operation), num_ctx)
            worker.runners[blob] = runner
            runner.told = blob == weights(operation.model) and operation.operation in self.oracle.operations
        elif runner.num_ctx != operation.num_ctx:
            runner.num_ctx = operation.num_ctx  # what Ollama does with another context: it loads the blob anew
            self.fault(Fault.loaded_anew)
        runner.pinned, runner.expired = True, False
        return e.LoadedModel(
            name=runner.name, model=blob, bytes=Bytes(runner.bytes), num_ctx=runner.num_ctx, pinned=True
        )

    # ------------------------------------------------------------------ behind our back

    def rename(self, pick: int, name: int, version: int) -> None:
        """A name now belongs to another blob on that worker, is new there, or is gone."""
        worker = self.pick_worker(pick)
        if worker is None:
            return
        names, key = self.workers[worker].names, self.names[name % len(self.names)]
        if version % VERSIONS == VERSIONS - 1:
            names.pop(key, None)
            self.fault(Fault.unnamed)
        else:
            names[key] = self.stored(key, version % VERSIONS)
            self.fault(Fault.renamed)

    def meddle(self, pick: int, what: int, size: int) -> None:
        """Somebody else uses the worker, a timer fires, memory grows, a runner vanishes."""
        worker_id = self.pick_worker(pick)
        if worker_id is None or not self.workers[worker_id].alive:
            return
        worker = self.workers[worker_id]
        if what % 6 == 0:
            worker.foreign = size % 4 * GIB
            self.fault(Fault.foreign_memory)
        elif what % 6 == 1:
            self._let_stranger_load(worker_id, worker, size)
        elif worker.runners:
            blob = list(worker.runners)[size % len(worker.runners)]
            runner = worker.runners[blob]
            if what % 6 == 2:
                runner.bytes += size % 3 * GIB
                runner.told = False
                self.fault(Fault.grown)
            elif what % 6 == 3:
                runner.pinned = False
                self.fault(Fault.timer_back)
            elif what % 6 == 4:
                runner.expired = True
                self.fault(Fault.expired)
            else:
                del worker.runners[blob]
                self.fault(Fault.vanished)

    def _let_stranger_load(self, worker_id: WorkerId, worker: TrueWorker, size: int) -> None:
        entries = list(worker.names.values())
        if not entries:
            return
        entry = entries[size % len(entries)]
        loading = any(weights(o.model) == entry.model and o.worker == worker_id for o in self.operations)
        num_ctx = CONTEXTS[size % len(CONTEXTS)]
        held = worker.runners.get(entry.model)
        asked = (request for request in self.oracle.requests.values() if request.worker == worker_id)
        used = any(weights(request.blob) == entry.model for request in asked)
        if held is not None and not loading and not used and size % 2 and held.num_ctx != num_ctx:
            held.num_ctx, held.pinned, held.told = num_ctx, False, False
            self.fault(Fault.reloaded)
        if held is not None or loading:
            return
        worker.runners[entry.model] = TrueRunner(entry.name, entry.weights_bytes, num_ctx, pinned=False)
        self.fault(Fault.stranger)
