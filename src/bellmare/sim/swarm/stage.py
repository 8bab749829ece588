"""One step of the core past the oracle: the engine under test, its restored copy, the hash of all that it decided."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.engine import Engine
from bellmare.core.units import InstantUs, ModelId, RequestId, WorkerId
from bellmare.sim.swarm.books import SECOND, Broken
from bellmare.sim.swarm.draws import PLAIN, Setting
from bellmare.sim.swarm.holdings import weights
from bellmare.sim.swarm.oracle import Oracle, event_request

REMEMBERED_MAX = 64
"""Requests that one hint stands for, and models that hints speak for."""
HABITS_MAX = 8
"""Models remembered of a tenant, and followers of a model."""
NEEDS_MAX = 32
"""Loads on demand whose sizes are remembered."""
SAMPLES_MAX = 3
"""Lessons of one model that wait for the truth."""
TIMERS_IN_A_ROW_MAX = 200
"""So many steps at one instant without the world doing anything is a loop."""
WAKES_PER_SPAN_MAX = 5_000
"""So many deadlines within one span of time that passes: a core that polls."""
START = 1_000 * SECOND


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
    runners: dict[ModelId, TrueRunner] = field(default_factory=dict)
    stored_told: bool = False

    @property
    def taken(self) -> int:
        """Memory that is really in use."""
        overhead = self.spec.overhead_bytes * len(self.runners)
        return sum(runner.bytes for runner in self.runners.values()) + overhead + self.foreign


class Stage:
    """The engine between a world and its judge. ``check_every``: steps between two walks over its whole state."""

    def __init__(self, setting: Setting = PLAIN, *, check_every: int = 1) -> None:
        self.setting = setting
        self.config = setting.config
        """With which the core began; ``oracle.config`` holds now."""
        self.engine = Engine(setting.config)
        self.copy: Engine | None = None
        self.oracle = Oracle(setting.config)
        self.now = InstantUs(START)
        self.workers: dict[WorkerId, TrueWorker] = {}
        self.operations: list[d.Load | d.Unload] = []
        """Asked for and not ended yet, as the world knows it; their end may be lost."""
        self.refusals: list[d.Reject] = []
        """Those that clients have not read yet."""
        self.errands: list[tuple[int, int, Callable[[], None]]] = []
        """What the outside will do at an instant: a heap."""
        self.log: list[tuple[InstantUs, e.Event, list[d.Decision]]] | None = []
        self.steps = 0
        self.actions = 0
        """Loads and unloads in all, adoptions not counted."""
        self.check_every = check_every
        self._hash = sha256()
        self._encoder = msgspec.json.Encoder()
        self._errands = 0
        self._counters: dict[str, int] = {}

    # ------------------------------------------------------------------ one step

    def step(self, event: e.Event) -> list[d.Decision]:
        """Hand in one event and judge what comes of it. Raises ``Broken``, or the core's own ``AssertionError``."""
        self.steps += 1
        oracle = self.oracle
        oracle.meet(type(event).__name__)
        oracle.told(self.now, event)
        decisions = self._ask(event)
        if self.log is not None:
            self.log.append((self.now, event, decisions))
        if decisions:
            self._hash.update(b"%d" % self.now)
            self._hash.update(self._encoder.encode(decisions))
        if self.copy is not None:
            oracle.must(self.copy.step(self.now, event) == decisions, "a restored engine decides the same", event)
            same = self.copy.next_deadline_us() == self.engine.next_deadline_us()
            oracle.must(same, "a restored engine waits for the same", event)
        self._check_memory(decisions)
        self._check_contexts(decisions)
        oracle.decided(decisions)
        for decision in decisions:
            oracle.meet(type(decision).__name__)
            if isinstance(decision, d.Load | d.Unload):
                self.operations.append(decision)
                self.actions += not (isinstance(decision, d.Load) and decision.cause is d.LoadCause.adopt)
            elif isinstance(decision, d.Reject):
                self.refusals.append(decision)
        oracle.settled(event_request(event))
        self._check_gauges()
        if self.steps % self.check_every == 0:
            self._check_deeply()
        return decisions

    def _ask(self, event: e.Event) -> list[d.Decision]:
        try:
            return self.engine.step(self.now, event)
        except AssertionError:
            raise
        except Exception as error:  # whatever it is, it would have ended the gateway's only writer
            raise Broken(f"the core does not crash: {type(error).__name__} {error} on {event}") from error

    def _check_contexts(self, decisions: list[d.Decision]) -> None:
        """By what is really there and was told, nothing asks a worker for a blob with another context (I2)."""
        for decision in decisions:
            if isinstance(decision, d.Load | d.Dispatch):
                runner = self.workers[decision.worker].runners.get(weights(decision.model))
                same = runner is None or not runner.told or runner.num_ctx == decision.num_ctx
                self.oracle.must(same, "no worker loads a blob anew by itself", decision, runner)

    def _check_memory(self, decisions: list[d.Decision]) -> None:
        """By what is really there and was told, no load is asked for that the GPU cannot take (I1)."""
        for decision in decisions:
            if not isinstance(decision, d.Load) or decision.cause is d.LoadCause.adopt:
                continue
            worker = self.workers[decision.worker]
            spec = worker.spec
            if spec.capacity_known and worker.alive:
                held = sum(r.bytes + spec.overhead_bytes for r in worker.runners.values() if r.told)
                total = held + worker.foreign_told + decision.reserved_bytes
                room = spec.capacity_bytes - spec.headroom_bytes
                self.oracle.must(total <= room, "real memory is enough", decision, total)

    def _check_gauges(self) -> None:
        """What the metrics show is what is so (I27)."""
        state, oracle = self.engine.fleet.state, self.oracle
        waiting = sum(len(requests) for requests in oracle.waiting.values())
        oracle.must(state.waiting == waiting, "the gauge of waiting requests is true", state.waiting, waiting)
        live = len(oracle.requests)
        oracle.must(len(state.requests) == live, "every request is known until its end", len(state.requests), live)
        oracle.must(len(state.operations) == len(oracle.operations), "every operation is known until its end")
        oracle.judge_routing({name: worker.healthy for name, worker in state.workers.items()})

    def _check_deeply(self) -> None:
        oracle = self.oracle
        problems = self.engine.check()
        oracle.must(not problems, "the engine's own check", problems)
        counters = self.engine.fleet.state.counters
        for what, count in self._counters.items():
            oracle.must(counters.get(what, 0) >= count, "counters never fall", what)
        self._counters = dict(counters)
        for what, count in oracle.counted.items():
            oracle.must(counters.get(what, 0) == count, "counters tell what happened", what, counters.get(what), count)
        for name, book in oracle.workers.items():
            held = self.engine.fleet.state.workers[name].used_bytes
            oracle.must(held == book.held, "the books of memory agree", name, held, book.held)

    def _check_slots(self) -> None:
        """Runners, and their slots in use with zombies, are the same in both books (I9, I27)."""
        workers = self.engine.fleet.state.workers
        for name, book in self.oracle.workers.items():
            runners = workers[name].runners
            same = runners.keys() == book.runners.keys()
            self.oracle.must(same, "the books of runners agree", name, list(runners), list(book.runners))
            for blob, runner in book.runners.items():
                used = runners[blob].used
                self.oracle.must(used == runner.used, "the books of slots agree", name, blob, used, runner.used)

    def _check_memories(self) -> None:
        """What is remembered of the past and said of the future is bounded, and hints end when they said (I16)."""
        state, must = self.engine.fleet.state, self.oracle.must
        must(
            len(set(state.asked)) == len(state.asked) == len(state.recent),
            "every model is remembered once",
            list(state.recent),
        )
        must(len(state.foreseen) <= REMEMBERED_MAX, "what is remembered is bounded", len(state.foreseen))
        must(len(state.forecast.needs) <= NEEDS_MAX, "what is remembered is bounded", len(state.forecast.needs))
        for tenant, caller in state.callers.items():
            must(len(caller.habits) <= HABITS_MAX, "what is remembered is bounded", tenant, caller.habits)
        for model in state.models.values():
            known = model.demand
            must(len(known.followers) <= HABITS_MAX, "what is remembered is bounded", model.model, known.followers)
            must(len(known.samples) <= SAMPLES_MAX, "what is remembered is bounded", model.model, len(known.samples))
            for source, hint in known.hints.items():
                must(hint.until_us > self.now, "no hint outlives its time", model.model, source, hint)
                must(0 < hint.expected <= REMEMBERED_MAX, "what is remembered is bounded", model.model, hint)

    # ------------------------------------------------------------------ time

    def due(self) -> None:
        """Hand in all timers that are due, as a driver does; they must come to rest."""
        for _ in range(TIMERS_IN_A_ROW_MAX):
            deadline = self.engine.next_deadline_us()
            if deadline is None or deadline > self.now:
                self.oracle.rested()
                self._check_slots()
                if self.steps % self.check_every == 0:
                    self._check_memories()
                return
            self.step(e.TimePassed())
        self.oracle.must(False, "timers come to rest", self.now)

    def feed(self, event: e.Event) -> list[d.Decision]:
        """One event, and what follows at the same instant."""
        decisions = self.step(event)
        self.due()
        return decisions

    def later(self, span_us: int, errand: Callable[[], None]) -> None:
        """Let the outside do something when ``span_us`` have passed."""
        self._errands += 1
        heapq.heappush(self.errands, (self.now + span_us, self._errands, errand))

    def pass_time(self, us: int) -> None:
        """Time goes on; a driver wakes at each deadline on the way, and the outside does what it meant to."""
        until = self.now + us
        for _ in range(WAKES_PER_SPAN_MAX):
            deadline = self.engine.next_deadline_us()
            if self.errands and self.errands[0][0] <= until and (deadline is None or self.errands[0][0] <= deadline):
                at, _, errand = heapq.heappop(self.errands)
                self.now = InstantUs(max(self.now, at))
                errand()
                continue
            if deadline is None or deadline > until:
                self.now = InstantUs(max(self.now, until))
                return
            self.now = InstantUs(max(self.now, deadline))
            self.due()
        self.oracle.must(False, "the core does not poll", self.now)

    def jump(self, offset: int) -> None:
        """Exactly to the next deadline, one microsecond before it, or one after, as a late driver does."""
        deadline = self.engine.next_deadline_us()
        if deadline is None:
            return
        self.now = InstantUs(max(self.now, deadline + offset))
        self.step(e.TimePassed())
        self.due()

    # ------------------------------------------------------------------ copies

    def copy_engine(self) -> None:
        """From here on a restored engine runs beside the first (I22)."""
        self.copy = Engine.restore(self.oracle.config, self.engine.snapshot())
        self.oracle.must(self.copy.snapshot() == self.engine.snapshot(), "a snapshot restores to itself")
        self.oracle.must(not self.copy.check(), "a restored engine is sound", self.copy.check())
        self.oracle.meet("restored")

    def replay(self) -> None:
        """The recorded events give a fresh engine the same decisions (I20)."""
        fresh = Engine(self.config)
        assert self.log is not None, "there is a record to replay"
        for now, event, decisions in self.log:
            self.oracle.must(fresh.step(now, event) == decisions, "a replay decides the same", now, event)
        self.oracle.must(fresh.snapshot() == self.engine.snapshot(), "a replay ends in the same state")
        self.oracle.meet("replayed")

    def digest(self) -> str:
        """Of every instant and every decision so far."""
        return self._hash.hexdigest()

    def phase(self, request: RequestId) -> str:
        """waiting, running, or how it ended."""
        book = self.oracle.requests.get(request)
        return book.phase if book is not None else self.oracle.ended[request]
