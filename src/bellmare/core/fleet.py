"""The state with its indexes, and the only places where both are changed.

Every index is a pure function of the state, so that a snapshot restores to the same decisions. A change costs what it
changes: sorted lists are kept by bisection, and what must be looked at again is marked, never searched for.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from zlib import crc32

from bellmare.core.bins import forget
from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision
from bellmare.core.fairness import Turns
from bellmare.core.naming import CLASS_MARK, NO_CONFIG, Naming
from bellmare.core.residency import Cue, Residency, after
from bellmare.core.state import Model, Placement, Request, RequestPhase, Runner, State, Want, Worker
from bellmare.core.timers import Timer, Timers
from bellmare.core.units import Bytes, InstantUs, ModelId, RequestId, WorkerId

__all__ = ["CLASS_MARK", "NO_CONFIG", "Fleet", "Timer"]

REST_LOADS = 2
"""An unloaded model is not loaded again ahead of demand before so many of its load spans have passed: no thrashing."""


class Fleet(Naming):
    """State, indexes, the clock of the step in progress and its decisions."""

    __slots__ = (
        "_open_key",
        "_preference",
        "_ready_key",
        "_room_key",
        "blocked",
        "dirty_models",
        "dirty_workers",
        "live",
        "loading",
        "now_us",
        "open",
        "out",
        "pending",
        "queues",
        "ready_slots",
        "room",
        "timers",
        "turns",
        "weights",
    )  # fmt: skip

    def __init__(self, config: CoreConfig, state: State) -> None:
        super().__init__(config, state)
        self.timers = Timers(state)
        self.now_us = InstantUs(0)
        self.out: list[Decision] = []
        self.queues: dict[ModelId, list[tuple[int, Request]]] = {}
        """Waiting requests by order of arrival. Who leaves is taken out at once, so that the queue is bounded too."""
        self.turns: dict[ModelId, Turns] = {}
        """The same requests by whose turn it is."""
        self.weights = {name: tenant.weight for name, tenant in config.tenants.items()}
        self.open: dict[ModelId, list[tuple[int, int]]] = {}
        """Ready runners with a free slot: (load in per mille, worker index), least loaded first."""
        self.ready_slots: dict[ModelId, int] = {}
        """Slots of all ready runners, taken or free."""
        self.loading: dict[ModelId, int] = {}
        """Copies that are being loaded."""
        self.live: dict[ModelId, int] = {}
        """Requests that wait or run."""
        self.room: list[tuple[int, int]] = []
        """Workers that may start a placement: (free bytes, worker index)."""
        self.pending: list[tuple[int, ModelId]] = []
        self.blocked: list[tuple[int, ModelId]] = []
        """Models without a copy, by the arrival of who waits longest."""
        self.dirty_models: dict[ModelId, None] = {}
        self.dirty_workers: dict[WorkerId, None] = {}
        self._open_key: dict[tuple[int, ModelId], int] = {}
        self._ready_key: dict[tuple[int, ModelId], int] = {}
        self._room_key: dict[int, int] = {}
        self._preference: dict[ModelId, list[int]] = {}
        look_ahead = state.look_ahead
        self._derive()
        state.look_ahead = look_ahead  # no loader became free by being read

    # ------------------------------------------------------------------ derived from a snapshot

    def _derive(self) -> None:
        for model in self.state.models.values():
            self.know(model)
        for live in self.state.requests.values():
            self.live[live.model] += 1
        waiting = [r for r in self.state.requests.values() if r.phase is RequestPhase.waiting]
        for request in sorted(waiting, key=lambda r: r.seq):
            self.queues[request.model].append((request.seq, request))
            self.turns[request.model].file(request)
        self.rebind()
        for worker in self.state.workers.values():
            for runner in worker.runners.values():
                self.refresh_open(worker, runner, alone=True)
                self.loading[runner.model] += runner.residency is Residency.loading
            self.refresh_room(worker)
        for model in self.state.models.values():
            if model.want is not Want.nothing:
                insort(self._wants(model.want), (model.want_seq, model.model))

    # ------------------------------------------------------------------ looking things up

    def at(self, index: int) -> Worker:
        return self.state.workers[self.state.roster[index]]

    def runner_of(self, request: Request) -> tuple[Worker, Runner] | None:
        """Where a running request holds a slot; None once its worker or runner is gone."""
        worker = self.state.workers.get(request.worker) if request.worker is not None else None
        runner = worker.runners.get(request.model) if worker is not None else None
        if worker is None or runner is None or request.request not in runner.in_flight:
            return None
        return worker, runner

    def acceptable(self, worker: Worker, request: Request) -> bool:
        """Whether ``worker`` may serve it: it binds the name to the blob, and did not fail it while others can."""
        if worker.worker in request.excluded and self._others_can(request):
            return False
        return self.holds(worker, request)

    def _others_can(self, request: Request) -> bool:
        """Whether a worker in routing that did not fail the request stores its model under its name."""
        for worker_id in self.state.models[request.model].holders:
            worker = self.state.workers[worker_id]
            if worker.healthy and worker_id not in request.excluded and self.holds(worker, request):
                return True
        return False

    def preference(self, model: Model) -> list[int]:
        """The model's own order of the workers that store it: rendezvous hashing, stable under joins and leaves."""
        order = self._preference.get(model.model)
        if order is None:
            indexes = [self.state.workers[w].index for w in model.holders]
            order = sorted(indexes, key=lambda index: crc32(f"{model.model}|{self.state.roster[index]}".encode()))
            self._preference[model.model] = order
        return order

    def know(self, model: Model) -> None:
        """A blob never seen before gets its queue and its list of free runners."""
        self.queues[model.model] = []
        self.turns[model.model] = Turns(model, self.weights)
        self.open[model.model] = []
        self.ready_slots[model.model] = 0
        self.loading[model.model] = 0
        self.live[model.model] = 0

    def recall(self, model: Model) -> None:
        """What an earlier life learned of a blob that has just been seen for the first time in this one."""
        known = self.state.remembered.pop(model.model, None)
        if known is None:
            return
        model.demand, model.load_us, model.service_us = known.demand, known.load_us, known.service_us
        if model.demand.arrivals:
            self.state.asked.append(model.model)
            self.state.recent[model.model] = None

    def forget_unused(self, model: Model) -> None:
        """Drop a model that nothing refers to any more; seen again, it is new, and what was learned is learned anew."""
        if not self.unused(model):
            return
        model_id = model.model
        self.set_want(model, Want.nothing)
        del self.state.models[model_id]
        if model.demand.arrivals:
            self.state.asked.remove(model_id)
            del self.state.recent[model_id]
        self.state.foreseen.pop(model_id, None)
        for index in (self.queues, self.turns, self.open, self.ready_slots, self.loading, self.live):
            del index[model_id]
        self._preference.pop(model_id, None)
        self.dirty_models.pop(model_id, None)
        for worker in self.state.workers.values():
            worker.backoff.pop(model_id, None)
        forget(self.state, model_id)
        if model.context:
            del self.state.models[model.blob].classes[model_id]
            self.doubt(model.blob)

    def unused(self, model: Model) -> bool:
        """Whether no worker stores or holds it, nobody asked for it, and no observation under way can still show it."""
        if model.holders or model.copies or model.placements or model.classes or self.live[model.model]:
            return False
        if any(operation.model == model.model for operation in self.state.operations.values()):
            return False
        return not any(model.model in worker.left for worker in self.state.workers.values())

    def holders_changed(self, model: Model) -> None:
        self._preference.pop(model.model, None)

    def change_holders(self, model: Model, change: int) -> None:
        """So many healthy holders more or less; the last one's loss starts the grace of those who wait."""
        model.healthy_holders += change
        assert model.healthy_holders >= 0
        self.touch(model.model)
        if model.healthy_holders:
            model.stranded_us = InstantUs(-1)
        elif model.stranded_us < 0:
            model.stranded_us = self.now_us
            self.set_timer(self.now_us + self.config.worker_lost_grace_us, Timer.stranded, model.model)

    def copies(self, model: Model) -> Iterator[tuple[Worker, Runner]]:
        """Its runners in any residency. Lazy, because one of hundreds often answers the question."""
        workers = self.state.workers
        for worker_id in model.copies:
            worker = workers[worker_id]
            yield worker, worker.runners[model.model]

    def head(self, model: Model) -> Request | None:
        """Who waits longest."""
        queue = self.queues[model.model]
        return queue[0][1] if queue else None

    def wanting(self, model: Model) -> Request | None:
        """Who waits longest among those that some worker in routing may serve; without any, who waits longest.

        A request whose name is gone, or is stored on lost workers only, must not keep the others from getting a copy.
        """
        head = self.head(model)
        if head is None or self.servable(model, head):
            return head
        refused: dict[str, None] = {head.name: None}
        for _, request in self.queues[model.model]:
            if request.name in refused:
                continue
            if self.servable(model, request):
                return request
            refused[request.name] = None
        return head

    def servable(self, model: Model, request: Request) -> bool:
        """Whether any worker in routing stores the model under the request's name."""
        for worker_id in model.holders:
            worker = self.state.workers[worker_id]
            if worker.healthy and self.holds(worker, request):
                return True
        return False

    def evictable_us(self, runner: Runner) -> InstantUs:
        """A runner stays at least as long as its own load took: shorter is thrash."""
        return InstantUs(runner.ready_us + runner.load_us)

    # ------------------------------------------------------------------ marking and timing

    def decide(self, decision: Decision) -> None:
        self.out.append(decision)

    def touch(self, model: ModelId) -> None:
        self.dirty_models[model] = None

    def doubt(self, model_id: ModelId) -> None:
        """Something referred to the model and does no more: this step finds out whether anything still does."""
        if not self.state.models[model_id].holders:
            self.touch(model_id)

    def touch_worker(self, worker: WorkerId) -> None:
        self.dirty_workers[worker] = None

    def count(self, what: str) -> None:
        counters = self.state.counters
        counters[what] = counters.get(what, 0) + 1

    def set_timer(self, at_us: int, timer: Timer, key: str, *, key2: str = "") -> None:
        self.timers.set(at_us, timer, key, key2=key2)

    # ------------------------------------------------------------------ requests

    def add_request(self, request: Request) -> None:
        self.state.requests[request.request] = request
        self.live[request.model] += 1
        self.turns[request.model].began(request)

    def drop_request(self, request_id: RequestId) -> Request | None:
        """Forget a request, which may have been the last thing that kept its model known."""
        request = self.state.requests.pop(request_id, None)
        if request is not None:
            self.live[request.model] -= 1
            self.turns[request.model].ended(request, self.now_us - request.dispatched_us)
            self.doubt(request.model)
        return request

    def move_request(self, request: Request, model: Model) -> None:
        """A waiting request that has left its queue is one for another class of its blob from now on."""
        self.turns[request.model].ended(request, 0)
        self.live[request.model] -= 1
        self.touch(request.model)
        request.model = model.model
        self.live[request.model] += 1
        self.turns[request.model].began(request)

    # ------------------------------------------------------------------ runners and the ledger

    def add_runner(self, worker: Worker, runner: Runner) -> None:
        assert runner.model not in worker.runners
        worker.runners[runner.model] = runner
        worker.used_bytes = Bytes(worker.used_bytes + runner.bytes)
        self.state.models[runner.model].copies[worker.worker] = None
        self.loading[runner.model] += runner.residency is Residency.loading
        self.refresh_open(worker, runner)
        self.refresh_room(worker)

    def move(self, worker: Worker, runner: Runner, cue: Cue) -> None:
        """Take one step of the residency table; ``gone`` removes the runner and gives its bytes back to the ledger."""
        self.loading[runner.model] -= runner.residency is Residency.loading
        if cue is Cue.gone and runner.residency is Residency.unloading:
            worker.resting[runner.model] = InstantUs(self.now_us + REST_LOADS * runner.load_us)
        runner.residency = after(runner.residency, cue)
        runner.since_us = self.now_us
        if runner.residency is Residency.absent:
            if runner.untried:
                self.state.forecast.useless += 1.0
                self.count("ahead_useless")
            del worker.runners[runner.model]
            worker.leaving.pop(runner.model, None)
            worker.left[runner.model] = self.now_us
            worker.used_bytes = Bytes(worker.used_bytes - runner.bytes)
            self.state.models[runner.model].copies.pop(worker.worker, None)
        self.refresh_open(worker, runner)
        self.refresh_room(worker)
        self.touch(runner.model)
        self.touch_worker(worker.worker)

    def set_bytes(self, worker: Worker, runner: Runner, measured: Bytes) -> None:
        worker.used_bytes = Bytes(worker.used_bytes - runner.bytes + measured)
        runner.bytes = measured
        self.refresh_room(worker)

    def set_placement(self, worker: Worker, placement: Placement | None) -> None:
        if worker.placement is not None:
            self.state.models[worker.placement.model].placements.pop(worker.worker, None)
            self.touch(worker.placement.model)
        worker.placement = placement
        if placement is not None:
            self.state.models[placement.model].placements[worker.worker] = None
        self.refresh_room(worker)

    # ------------------------------------------------------------------ indexes

    def refresh_open(self, worker: Worker, runner: Runner, *, alone: bool = False) -> None:
        """Put the runner where its load belongs among those with a free slot; with a cap, the others too."""
        slots, used = runner.slots, runner.used
        ready = runner.residency is Residency.resident and worker.healthy
        key = used * 1000 // slots if ready and used < slots else -1
        if runner.spilled and key >= 0:
            key += 1000  # after every copy that is wholly on its GPU
        if worker.cap:
            if not alone:
                self._refresh_others(worker, runner)
            if worker.at_cap:
                key = -1
        place = (worker.index, runner.model)
        if ready is not (place in self._ready_key):
            self._refresh_ready(place, slots if ready else 0)
        self._file_open(place, key)

    def shift_open(self, worker: Worker, runner: Runner) -> None:
        """As ``refresh_open``, for a ready runner without a cap of which only the number of slots taken has changed."""
        slots, used = runner.slots, len(runner.in_flight) + len(runner.zombies)
        self._file_open((worker.index, runner.model), used * 1000 // slots if used < slots else -1)

    def _file_open(self, place: tuple[int, ModelId], key: int) -> None:
        """Where a runner belongs by its load; -1: nowhere."""
        old = self._open_key.get(place, -1)
        if key == old:
            return
        index, entries = place[0], self.open[place[1]]
        if old >= 0:
            del entries[bisect_left(entries, (old, index))]
        if key >= 0:
            insort(entries, (key, index))
            self._open_key[place] = key
        else:
            del self._open_key[place]

    def _refresh_others(self, worker: Worker, runner: Runner) -> None:
        for other in worker.runners.values():
            if other is not runner:
                self.refresh_open(worker, other, alone=True)
                self.touch(other.model)

    def _refresh_ready(self, place: tuple[int, ModelId], slots: int) -> None:
        if slots:
            self._ready_key[place] = slots
            self.ready_slots[place[1]] += slots
        else:
            self.ready_slots[place[1]] -= self._ready_key.pop(place)

    def refresh_room(self, worker: Worker) -> None:
        """Put the worker where its free bytes belong among those that may start a placement, or nowhere."""
        available = self.available(worker)
        free = worker.free_bytes
        old = self._room_key.get(worker.index)
        if available and old == free:
            return
        if old is not None:
            del self.room[bisect_left(self.room, (old, worker.index))]
            del self._room_key[worker.index]
        if available:
            insort(self.room, (free, worker.index))
            self._room_key[worker.index] = free
            self.state.look_ahead = True

    def available(self, worker: Worker) -> bool:
        """Whether a placement may start: in routing, known, and nothing under way."""
        return (
            worker.healthy
            and worker.operation is None
            and worker.placement is None
            and worker.distrust_us < worker.observed_us
            and self.state.workers.get(worker.worker) is worker
        )

    def set_want(self, model: Model, want: Want) -> None:
        """File the model under ``want``, by the arrival of its longest waiting request."""
        if model.want is want:
            queue = self.queues[model.model]
            if want is not Want.nothing and queue and queue[0][0] == model.want_seq:
                return  # nothing has changed: mostly so
        if model.want is not Want.nothing:
            entries = self._wants(model.want)
            del entries[bisect_left(entries, (model.want_seq, model.model))]
        model.want = want
        if want is Want.nothing:
            model.may_drain = False
            return
        head = self.head(model)
        model.want_seq = head.seq if head is not None else self.state.next_seq
        insort(self._wants(want), (model.want_seq, model.model))

    def _wants(self, want: Want) -> list[tuple[int, ModelId]]:
        return self.pending if want is Want.pending else self.blocked
