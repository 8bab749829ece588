"""What the oracle writes down: workers, runners, operations and requests as the core was told of them."""

from dataclasses import dataclass, field

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.units import ModelId, OperationId, RequestId, WorkerId

LOST = (e.FaultKind.refused, e.FaultKind.reset)
SECOND = 1_000_000
MIB = 1 << 20
GIB = 1 << 30
NEVER = -1
UNLOAD_TRIES = 3
RESTING_LOADS = 2
"""A model sent away is not loaded ahead of demand before so many times its load span have passed (I6)."""
SPECULATIVE = (d.LoadCause.prewarm, d.LoadCause.hint)
"""Loads for which nobody waits."""


class Broken(AssertionError):  # noqa: N818 a rule is broken: that is what a reader of a failure wants to see
    """A rule does not hold. The text begins with the rule."""


def moving(old: int, new: int) -> int:
    """The documented moving average: an eighth of each new value."""
    return new if old == 0 else old + (new - old) // 8


@dataclass
class RunnerBook:
    state: str
    """loading, ready, draining or unloading."""
    bytes: int
    num_ctx: int
    slots: int
    since: int
    ready: int = 0
    """When its own load ended; 0 for one that was found."""
    load_span: int = 0
    """How long its own load took; 0 for one that was found."""
    granted: int = 0
    """The context that its own load brought."""
    in_flight: dict[RequestId, None] = field(default_factory=dict)
    zombies: list[int] = field(default_factory=list)
    why: d.UnloadCause | None = None
    """Why it is draining."""

    @property
    def used(self) -> int:
        return len(self.in_flight) + len(self.zombies)


@dataclass
class OperationBook:
    decision: d.Load | d.Unload
    deadline: int
    started: int


@dataclass
class ClaimBook:
    """Room that is being made on a worker for a model: what was true when its victims were chosen."""

    need: int
    num_ctx: int
    begun: int
    asked: bool = False
    """Whether somebody waited for it then, or a pin or an operator wanted it: not ahead of demand."""
    beside: bool = False
    """Whether another copy existed then."""
    later: list[tuple[int, int]] = field(default_factory=list)
    """Context and need as they were when a victim was drained again: perhaps for an intent that was planned anew."""
    victims: dict[ModelId, None] = field(default_factory=dict)
    costly: list[str] = field(default_factory=list)
    """Why a load for which nobody waits could not have had these victims; empty: it could."""


@dataclass
class WorkerBook:
    spec: e.WorkerAdded
    capacity: int
    lost_at: int
    routable: bool = False
    observed: int = NEVER
    unreachable: int = 0
    stored: dict[str, e.StoredModel] = field(default_factory=dict)
    foreign: int = 0
    runners: dict[ModelId, RunnerBook] = field(default_factory=dict)
    gone: dict[ModelId, int] = field(default_factory=dict)
    evicted: dict[ModelId, int] = field(default_factory=dict)
    """Until when a model that the core sent away may not come back ahead of demand: twice its load from then on."""
    claims: dict[ModelId, ClaimBook] = field(default_factory=dict)
    refused_until: dict[ModelId, int] = field(default_factory=dict)
    """Back-off after a failed load, as far as it is certain."""
    resting_until: dict[ModelId, int] = field(default_factory=dict)
    """The same, as long as it may be."""
    failed_loads: dict[ModelId, int] = field(default_factory=dict)
    """In a row: the back-off doubles each time."""
    unloads_broken: int = 0
    """Unloads that failed here. Three of one victim give its claimant a back-off of which these books know nothing."""
    operation: OperationId | None = None
    rate: int = 0
    good: int = 0
    """Answers that began or ended well."""
    judged_since: int = NEVER
    """When the window began within which outcomes are counted; then the two counts of it."""
    good_then: int = 0
    bad: int = 0
    row: int = 0
    """Failures of transport since the last success."""
    ejections: int = 0
    ejected_until: int = NEVER
    back: int = NEVER
    """When it last came into routing."""
    loss: int = NEVER
    """A loss whose requests may go elsewhere beside the budget of retries."""
    cap: int = 0
    """Requests at once while it has to prove itself; 0: no cap; -1: none for now."""
    grows: int = NEVER
    """When the cap is raised next."""

    @property
    def full(self) -> bool:
        """It has as many requests as its cap allows."""
        return self.cap != 0 and self.cap <= sum(len(runner.in_flight) for runner in self.runners.values())

    @property
    def held(self) -> int:
        return sum(runner.bytes for runner in self.runners.values())

    @property
    def unshown(self) -> int:
        """What a runner takes beside what the worker shows of it."""
        return 0 if self.spec.overhead_shown else self.spec.overhead_bytes

    def slots(self, entry: e.StoredModel) -> int:
        """Concurrent generations of one runner here."""
        return min(self.spec.parallel, entry.parallel_max or self.spec.parallel)


@dataclass
class RequestBook:
    event: e.RequestArrived
    blob: ModelId
    arrived: int
    number: int
    """Its place in the order of arrivals."""
    ready_then: bool
    """Whether a ready runner of its model was in routing when it came."""
    phase: str = "new"
    worker: WorkerId | None = None
    dispatched: int = 0
    first_token: bool = False
    attempts: int = 0
    crashes: int = 0
    fingerprint: str = ""
    may_retry: bool = True
    """The budget had room when it failed."""
    timed_out: bool = False
    """Its last failure was a timeout."""
    failed_on: list[WorkerId] = field(default_factory=list)
    failed_at: int = NEVER
    """When it last failed: the workers that failed it are avoided for a while from then on."""
    ahead: int = 0
    """Requests of its own class that waited when it came."""
    bypassed: int = 0
    """Later arrivals of its own class that were served before it."""
    bypassed_by_any: int = 0

    @property
    def lane(self) -> tuple[str, e.Priority, str]:
        """Requests of one lane are equal in every right but the order of their arrival."""
        return (self.event.tenant, self.event.priority, self.event.name)
