"""What the oracle writes down: workers, runners, operations and requests as the core was told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bellmare.core import events as e

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
