"""What the oracle writes down: workers, runners, operations and requests as the core was told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bellmare.core import decisions as d
from bellmare.core import events as e

RETRYABLE = (d.Refusal.no_healthy_worker, d.Refusal.queue_full, d.Refusal.wait_too_long)
LOST = (e.FaultKind.refused, e.FaultKind.reset)
SECOND = 1_000_000
MIB = 1 << 20


class Broken(AssertionError):
    """A rule does not hold."""


def must(holds: bool, rule: str, *about: object) -> None:
    if not holds:
        raise Broken(f"{rule}: {about}")


def moving(old: int, new: int) -> int:
    return new if old == 0 else old + (new - old) // 8


@dataclass
class RunnerBook:
    state: str
    bytes: int
    num_ctx: int
    slots: int
    since: int
    in_flight: dict[str, None] = field(default_factory=dict)
    zombies: list[int] = field(default_factory=list)

    @property
    def used(self) -> int:
        return len(self.in_flight) + len(self.zombies)


@dataclass
class OperationBook:
    decision: Any
    deadline: int


@dataclass
class WorkerBook:
    spec: e.WorkerAdded
    capacity: int
    lost_at: int
    routable: bool = False
    observed: int = -1
    unreachable: int = 0
    stored: dict[str, e.StoredModel] = field(default_factory=dict)
    foreign: int = 0
    runners: dict[str, RunnerBook] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    operation: int | None = None
    rate: int = 0

    @property
    def held(self) -> int:
        return sum(runner.bytes for runner in self.runners.values())

    @property
    def unshown(self) -> int:
        """What a runner takes beside what the worker shows of it."""
        return 0 if self.spec.overhead_shown else self.spec.overhead_bytes


@dataclass
class RequestBook:
    event: e.RequestArrived
    blob: str
    arrived: int
    phase: str = "new"
    worker: str | None = None
    dispatched: int = 0
    first_token: bool = False
    attempts: int = 0
    crashes: int = 0
    failed_on: list[str] = field(default_factory=list)
    failed_at: dict[str, int] = field(default_factory=dict)


def surely_before(requests: dict[str, RequestBook], request: RequestBook) -> int:
    """Those of the same tenant and priority that wait for the same model go first, however the others fare."""
    mine = (request.blob, request.event.tenant, request.event.priority)
    return sum(
        (other.blob, other.event.tenant, other.event.priority) == mine
        for other in requests.values()
        if other.phase == "waiting" and other is not request
    )


def tried_in_vain(oracle: Any, request: RequestBook, wait: int) -> bool:
    """All workers that store its model and are large enough failed to load it, and try again after its deadline."""
    if not wait or oracle.now + wait * 10 // 8 < min(request.event.deadline_us, oracle.now + 55 * SECOND):
        return False
    for name, worker in oracle.workers.items():
        entries = [entry for entry in worker.stored.values() if entry.model == request.blob]
        if not worker.routable or not entries or (name, request.blob) in oracle.load_failed_at:
            continue
        need = entries[0].weights_bytes * 108 // 100 + 512 * MIB + worker.spec.overhead_bytes
        if request.blob in oracle.measured or need > worker.capacity - worker.spec.headroom_bytes:
            continue
        return False
    return True


def surely_fits(oracle: Any, request: RequestBook) -> bool:
    """Some worker that stores the model is large enough, beside what others use of its memory."""
    if request.blob in oracle.measured:
        return False  # booked as measured, which these books do not follow by shape
    for worker in oracle.workers.values():
        for entry in worker.stored.values():
            if entry.model == request.blob:
                need = entry.weights_bytes * 108 // 100 + 512 * MIB + worker.spec.overhead_bytes
                room = worker.capacity - worker.spec.headroom_bytes - worker.foreign
                if not worker.spec.capacity_known or need <= room:
                    return True
    return False


def passed_over(requests: dict[str, RequestBook], request: RequestBook, worker: str) -> bool:
    """An earlier one of the same tenant, priority and name waits that could have had this very slot."""
    asked = (request.blob, request.event.name, request.event.tenant, request.event.priority)
    for other in requests.values():  # by arrival
        if other is request:
            return False
        key = (other.blob, other.event.name, other.event.tenant, other.event.priority)
        if other.phase == "waiting" and worker not in other.failed_on and key == asked:
            return True
    return False
