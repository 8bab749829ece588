"""The plan of a benchmark and its execution: phases, rounds, rotated order. Keeps every outcome, judges none."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import msgspec

from bellmare.bench.proxy.jobs import Job, Mode, Outcome
from bellmare.bench.proxy.running import Running, cores, run_job, started
from bellmare.bench.proxy.subjects import DIRECT, Subject

PHASES = ("request", "chunk", "latency", "memory", "disconnect")
CHUNKS_PER_STREAM = 40
"""So each chunk bears a fortieth of its request, as in the measurements that the goals come from."""
DESCRIPTORS_SPARE = 1000


@dataclass(slots=True, frozen=True)
class Rate:
    """One offered load of streams."""

    name: str
    streams: int
    interval_us: int

    @property
    def per_second(self) -> float:
        return self.streams * 1e6 / self.interval_us


RATES = (Rate("10k", 500, 50_000), Rate("25k", 500, 20_000), Rate("50k", 1000, 20_000))
HEADLINE = "25k"
WARMUP_STREAMS = 100


@dataclass(slots=True, frozen=True)
class Plan:
    """How much is done. Seconds are windows of one measurement."""

    rounds: int = 3
    phases: tuple[str, ...] = PHASES
    rates: tuple[Rate, ...] = RATES
    request_s: float = 1.5
    chunk_s: float = 1.2
    latency_s: float = 2.5
    idle_connections: int = 5000
    held_streams: int = 2000
    stalled_readers: int = 200
    stall_s: float = 2.5
    leaving_clients: int = 50

    @staticmethod
    def quick(rounds: int, phases: tuple[str, ...]) -> "Plan":
        """Under a minute: for development, not for figures that are passed on."""
        return Plan(
            rounds=rounds, phases=phases, rates=tuple(rate for rate in RATES if rate.name == HEADLINE),
            request_s=0.6, chunk_s=0.6, latency_s=0.8, idle_connections=1000, held_streams=300, stalled_readers=50,
            stall_s=1.0,
        )  # fmt: skip

    def within(self, descriptors: int) -> "Plan":
        """The same with no more idle connections than one process may have descriptors for."""
        room = max(100, (descriptors - DESCRIPTORS_SPARE) // 2)
        return replace(
            self,
            idle_connections=min(self.idle_connections, room),
            held_streams=min(self.held_streams, room // 2),
        )


@dataclass(slots=True)
class Measured:
    """Every outcome by phase, then subject, then round; phases of streams are ``chunk 25k`` and so on."""

    outcomes: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)

    def keep(self, phase: str, subject: str, outcome: Outcome) -> None:
        self.outcomes.setdefault(phase, {}).setdefault(subject, []).append(outcome)

    def of(self, phase: str, subject: str) -> list[Outcome]:
        return self.outcomes.get(phase, {}).get(subject, [])


class Bench:
    """One run over ``subjects`` in front of the upstream at ``upstream_port``."""

    def __init__(self, plan: Plan, subjects: list[Subject], *, upstream_port: int, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.subjects = subjects
        self.measured = Measured()
        self._upstream_port = upstream_port
        self._tell = tell
        self._proxy_core, self._load_core = cores()

    def run(self) -> Measured:
        """All phases. Raises CannotRun."""
        in_rounds = [phase for phase in self.plan.phases if phase != "memory"]
        if in_rounds:
            with ExitStack() as stack:
                running = {
                    subject.name: stack.enter_context(started(subject, self._upstream_port, core=self._proxy_core))
                    for subject in self.subjects
                }
                for number in range(self.plan.rounds):
                    for phase, job in self._jobs(in_rounds, first=number == 0):
                        self._round(f"round {number + 1}/{self.plan.rounds}", phase, job=job, running=running)
        if "memory" in self.plan.phases:
            for subject in self.subjects:
                if subject.name != DIRECT:
                    self._memory(subject)
        return self.measured

    def _jobs(self, phases: list[str], *, first: bool) -> list[tuple[str, Job]]:
        plan = self.plan
        jobs: list[tuple[str, Job]] = []
        if "request" in phases:
            jobs.append(("request", self._job(Mode.saturate, window_s=plan.request_s)))
        for rate in plan.rates if "chunk" in phases else ():
            job = self._job(
                Mode.stream, window_s=plan.chunk_s, connections=rate.streams, interval_us=rate.interval_us,
                chunks=CHUNKS_PER_STREAM, warmup_s=0.1,
            )  # fmt: skip
            jobs.append((f"chunk {rate.name}", job))
        if "latency" in phases:
            jobs.append(("latency", self._job(Mode.paced, window_s=plan.latency_s)))
        if "disconnect" in phases and first:
            jobs.append(("disconnect", self._job(Mode.leave, connections=plan.leaving_clients)))
        return jobs

    @staticmethod
    def _job(mode: Mode, **more: float) -> Job:
        return msgspec.convert({"mode": mode, "port": 0, "upstream_port": 0, **more}, Job)

    def _round(self, number: str, phase: str, *, job: Job, running: dict[str, Running]) -> None:
        """The same work through everybody; who begins changes from round to round."""
        names = list(running)
        turn = len(self.measured.of(phase, names[0])) % len(names)
        for name in names[turn:] + names[:turn]:
            self._tell(f"{number}: {phase} through {name}")
            self._measure(phase, name, job=job, running=running[name])

    def _measure(self, phase: str, name: str, *, job: Job, running: Running) -> None:
        job = msgspec.structs.replace(job, port=running.port, pid=running.pid, upstream_port=self._upstream_port)
        outcome = run_job(job, core=self._load_core)
        self.measured.keep(phase, name, outcome)
        if outcome.errors:
            self._tell(f"{phase} through {name}: {outcome.errors} errors, the first: {outcome.error}")

    def _memory(self, subject: Subject) -> None:
        """Each kind in a fresh process, which a little work has warmed: freed memory would hide what the next takes."""
        plan = self.plan
        kinds = (
            ("idle", self._job(Mode.idle, connections=plan.idle_connections)),
            ("held", self._job(Mode.hold, connections=plan.held_streams, interval_us=1_000_000, window_s=1.0)),
            ("stalled", self._job(Mode.stall, connections=plan.stalled_readers, window_s=plan.stall_s)),
        )
        for kind, job in kinds:
            self._tell(f"memory: {kind} through {subject.name}")
            with started(subject, self._upstream_port, core=self._proxy_core) as running:
                for warm in (
                    self._job(Mode.saturate, window_s=0.3, warmup_s=0.0),
                    self._job(Mode.stream, connections=WARMUP_STREAMS, interval_us=5000, chunks=20, window_s=0.1),
                ):
                    self._measure("warm-up", subject.name, job=warm, running=running)
                self._measure(kind, subject.name, job=job, running=running)
