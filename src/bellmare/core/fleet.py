"""The state with its indexes, and the only places where both are changed.

Every index is a pure function of the state, so that a snapshot restores to the same decisions. A change costs what it
changes: sorted lists are kept by bisection, and what must be looked at again is marked, never searched for.
"""

from bisect import bisect_left, insort
from collections import deque
from enum import IntEnum
from heapq import heappop, heappush
from zlib import crc32

from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.decisions import Decision
from bellmare.core.residency import Cue, Residency, after
from bellmare.core.state import Model, Placement, Request, RequestPhase, Runner, State, Want, Worker
from bellmare.core.units import Bytes, InstantUs, ModelId, WorkerId

NO_CONFIG = ModelConfig()


class Timer(IntEnum):
    """What a deadline is for. Ties in time are broken by this order, then by key."""

    operation = 0
    zombie = 1
    request = 2
    look_again = 3
    """A worker may have a victim or a load that it had not before."""
    may_drain = 4
    stranded = 5
    continue_work = 6
    """Work left over by a step that reached its bound."""


class Fleet:
    """State, indexes, the clock of the step in progress and its decisions."""

    __slots__ = (
        "_open_key",
        "_preference",
        "_room_key",
        "blocked",
        "config",
        "dirty_models",
        "dirty_workers",
        "now_us",
        "open",
        "out",
        "pending",
        "queues",
        "room",
        "state",
    )  # fmt: skip

    def __init__(self, config: CoreConfig, state: State) -> None:
        self.config = config
        self.state = state
        self.now_us = InstantUs(0)
        self.out: list[Decision] = []
        self.queues: dict[ModelId, deque[Request]] = {}
        """Waiting requests in order of arrival; ended ones are skipped lazily."""
        self.open: dict[ModelId, list[tuple[int, int]]] = {}
        """Ready runners with a free slot: (load in per mille, worker index), least loaded first."""
        self.room: list[tuple[int, int]] = []
        """Workers that may start a placement: (free bytes, worker index)."""
        self.pending: list[tuple[int, ModelId]] = []
        self.blocked: list[tuple[int, ModelId]] = []
        """Models without a copy, by the arrival of who waits longest."""
        self.dirty_models: dict[ModelId, None] = {}
        self.dirty_workers: dict[WorkerId, None] = {}
        self._open_key: dict[tuple[int, ModelId], int] = {}
        self._room_key: dict[int, int] = {}
        self._preference: dict[ModelId, list[int]] = {}
        self._derive()

    # ------------------------------------------------------------------ derived from a snapshot

    def _derive(self) -> None:
        for model in self.state.models.values():
            self.know(model)
        waiting = [r for r in self.state.requests.values() if r.phase is RequestPhase.waiting]
        for request in sorted(waiting, key=lambda r: r.seq):
            self.queues[request.model].append(request)
        for worker in self.state.workers.values():
            for runner in worker.runners.values():
                self.refresh_open(worker, runner)
            self.refresh_room(worker)
        for model in self.state.models.values():
            if model.want is not Want.nothing:
                insort(self._wants(model.want), (model.want_seq, model.model))

    # ------------------------------------------------------------------ looking things up

    def model_config(self, model: Model) -> ModelConfig:
        return self.config.models.get(model.stored.name, NO_CONFIG)

    def resolve(self, name: str) -> Model | None:
        """The blob that serves ``name``: what most workers bind it to; of equals, the one seen first."""
        votes = self.state.votes.get(name)
        if not votes:
            return None
        return self.state.models[max(votes, key=votes.__getitem__)]

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
        if request.excluded and worker.worker in request.excluded:
            model = self.state.models[request.model]
            if model.healthy_holders > len(request.excluded):
                return False
        return self.holds(worker, request)

    def name_on(self, worker: Worker, model: ModelId, *, prefer: str) -> str | None:
        """A name that reaches the blob on that worker; None if none does any more (ollama.md 2.3)."""
        stored = worker.stored.get(prefer)
        if stored is not None and stored.model == model:
            return prefer
        return next((name for name, stored in worker.stored.items() if stored.model == model), None)

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
        self.queues[model.model] = deque()
        self.open[model.model] = []

    def holders_changed(self, model: Model) -> None:
        self._preference.pop(model.model, None)

    def copies(self, model: Model) -> list[tuple[Worker, Runner]]:
        workers = self.state.workers
        return [(workers[w], workers[w].runners[model.model]) for w in model.copies]

    def holds(self, worker: Worker, request: Request) -> bool:
        """Whether ``worker`` binds the very name that was asked for to the request's blob."""
        stored = worker.stored.get(request.name)
        return stored is not None and stored.model == request.model

    def head(self, model: Model) -> Request | None:
        """Who waits longest; ended requests before it are dropped from the queue."""
        queue = self.queues[model.model]
        requests = self.state.requests
        while queue:
            request = queue[0]
            if requests.get(request.request) is request and request.phase is RequestPhase.waiting:
                return request
            queue.popleft()
        return None

    def evictable_us(self, runner: Runner) -> InstantUs:
        """A runner stays at least as long as its own load took: shorter is thrash."""
        return InstantUs(runner.ready_us + runner.load_us)

    # ------------------------------------------------------------------ marking and timing

    def decide(self, decision: Decision) -> None:
        self.out.append(decision)

    def touch(self, model: ModelId) -> None:
        self.dirty_models[model] = None

    def touch_worker(self, worker: WorkerId) -> None:
        self.dirty_workers[worker] = None

    def count(self, what: str) -> None:
        counters = self.state.counters
        counters[what] = counters.get(what, 0) + 1

    def set_timer(self, at_us: int, timer: Timer, key: str, key2: str = "") -> None:
        heappush(self.state.timers, (InstantUs(at_us), timer, key, key2))

    def pop_due(self) -> tuple[InstantUs, int, str, str] | None:
        timers = self.state.timers
        if timers and timers[0][0] <= self.now_us:
            return heappop(timers)
        return None

    # ------------------------------------------------------------------ runners and the ledger

    def add_runner(self, worker: Worker, runner: Runner) -> None:
        assert runner.model not in worker.runners
        worker.runners[runner.model] = runner
        worker.used_bytes = Bytes(worker.used_bytes + runner.bytes)
        self.state.models[runner.model].copies[worker.worker] = None
        self.refresh_open(worker, runner)
        self.refresh_room(worker)

    def move(self, worker: Worker, runner: Runner, cue: Cue) -> None:
        """Take one step of the residency table; ``gone`` removes the runner and gives its bytes back to the ledger."""
        runner.residency = after(runner.residency, cue)
        runner.since_us = self.now_us
        if runner.residency is Residency.absent:
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

    def refresh_open(self, worker: Worker, runner: Runner) -> None:
        """Put the runner where its load belongs among those with a free slot, or nowhere."""
        slots, used = runner.slots, runner.used
        ready = runner.residency is Residency.resident and worker.healthy and used < slots
        key = used * 1000 // slots if ready else -1
        place = (worker.index, runner.model)
        old = self._open_key.get(place, -1)
        if key == old:
            return
        entries = self.open[runner.model]
        if old >= 0:
            del entries[bisect_left(entries, (old, worker.index))]
        if key >= 0:
            insort(entries, (key, worker.index))
            self._open_key[place] = key
        else:
            del self._open_key[place]

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

    def available(self, worker: Worker) -> bool:
        """Whether a placement may start: in routing, known, and nothing under way."""
        return (
            worker.healthy
            and worker.operation is None
            and worker.placement is None
            and worker.distrust_us <= worker.observed_us
            and self.state.workers.get(worker.worker) is worker
        )

    def set_want(self, model: Model, want: Want) -> None:
        """File the model under ``want``, by the arrival of its longest waiting request."""
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
