"""The core's whole state as plain data: what a snapshot holds and a replay starts from.

Nothing here decides anything. Objects name each other by id, so that the tree can be written and read back; the
indexes that make a step cheap are derived from it in ``fleet``.
"""

from enum import StrEnum

import msgspec

from bellmare.core.decisions import CacheState, LoadCause, UnloadCause
from bellmare.core.events import HintSource, Priority, RequestKind, StoredModel, WorkerKind
from bellmare.core.knowledge import Caller, Demand, Experience, Forecast, Score
from bellmare.core.residency import Residency
from bellmare.core.shadow_state import Shadows
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId


class Runner(msgspec.Struct):
    """One loaded model on one worker. Exists in every residency but ``absent``."""

    worker: WorkerId
    model: ModelId
    name: str
    """The name that loaded it; unloading goes by name (ollama.md 2.3)."""
    residency: Residency
    num_ctx: int
    slots: int
    bytes: Bytes
    """What the ledger books: the estimate while loading, the measurement afterwards."""
    since_us: InstantUs
    """When it took its present residency; an observation begun earlier cannot contradict it."""
    ready_us: InstantUs = InstantUs(0)
    used_us: InstantUs = InstantUs(0)
    """Last dispatch or finish."""
    load_us: SpanUs = SpanUs(0)
    """What loading it again would cost."""
    in_flight: dict[RequestId, None] = {}
    zombies: list[InstantUs] = []
    """Ends of slots whose request was aborted in prefill, ascending: the engine still works on them (ollama.md 2.4)."""
    pinned: bool = True
    """Ollama's own timer is off, as far as the last observation knew."""
    adopt_after_us: InstantUs = InstantUs(0)
    """Not pinned again before this instant."""
    unload_tries: int = 0
    sent_us: InstantUs = InstantUs(-1)
    """When the eviction policy was last told that it leaves; -1: never."""
    untried: bool = False
    """Loaded ahead of demand, and nobody has asked for it since."""
    batch_seq: int = 0
    """Requests with a lower number waited when it was loaded: they are served before it may be drained; 0: none."""
    spared_us: InstantUs = InstantUs(0)
    """Not drained while busy before this instant: a drain of it was given up."""
    spilled: bool = False
    """A part of it runs on the CPU, as last seen: it is used only where no other copy has a free slot."""
    granted_num_ctx: int = 0
    """The context that our own load brought; less than was asked is the worker's limit, not a wrong shape."""

    @property
    def used(self) -> int:
        """Slots taken, zombies included."""
        return len(self.in_flight) + len(self.zombies)


class OperationKind(StrEnum):
    load = "load"
    unload = "unload"


class Operation(msgspec.Struct):
    """A load or unload under way. At most one per worker."""

    operation: OperationId
    kind: OperationKind
    worker: WorkerId
    model: ModelId
    started_us: InstantUs
    expected_us: SpanUs
    deadline_us: InstantUs
    """When its end is given up as lost: timeout plus grace."""
    load_cause: LoadCause | None = None
    unload_cause: UnloadCause | None = None


class Placement(msgspec.Struct):
    """An intent on one worker: let ``victims`` leave, one after another, then load ``model``."""

    model: ModelId
    name: str
    cause: LoadCause
    num_ctx: int
    need_bytes: Bytes
    predicted_bytes: int
    """What Ollama's own fit test will be about."""
    victims: list[ModelId]
    started_us: InstantUs
    spares: list[ModelId] = []
    """Those of ``victims`` that are one copy more than their model needs."""


class Breaker(msgspec.Struct):
    """How a worker's requests have ended lately (``breaker``)."""

    good: int = 0
    """Answers that began or ended well, ever: all that a success changes."""
    row: int = 0
    """Failures since the last success, as far as one has looked."""
    row_good: int = 0
    """``good`` at the last failure."""
    window_us: InstantUs = InstantUs(-1)
    """When the window began in which outcomes are counted; -1: none is open."""
    window_good: int = 0
    """``good`` when it began."""
    window_bad: int = 0
    ejections: int = 0
    """Ejections in a row: the span doubles each time."""
    until_us: InstantUs = InstantUs(-1)
    """Out of routing until an observation taken in after this instant; -1: not ejected."""
    back_us: InstantUs = InstantUs(-1)
    """When it last came into routing."""
    lost_us: InstantUs = InstantUs(-1)
    """A loss whose requests are tried elsewhere beside the budget; -1: none."""
    grow_us: InstantUs = InstantUs(-1)
    """When its rest is over, or its cap is raised next; -1: it is on trial, or has no cap."""


class Worker(msgspec.Struct):
    worker: WorkerId
    index: int
    """Position in ``State.roster``; the tie-break that no hash seed can change."""
    kind: WorkerKind
    capacity_bytes: Bytes
    capacity_known: bool
    headroom_bytes: Bytes
    overhead_bytes: Bytes
    overhead_shown: bool
    parallel: int
    runners_max: int
    fit_percent: int
    healthy: bool = False
    reason: str = "not observed yet"
    unreachable: int = 0
    """Observations in a row without an answer."""
    observed_us: InstantUs = InstantUs(-1)
    """Start of the newest observation that was taken in; -1: none yet."""
    distrust_us: InstantUs = InstantUs(-1)
    """Nothing is placed here until an observation begun after this instant."""
    version: str = ""
    stored: dict[str, StoredModel] = {}
    runners: dict[ModelId, Runner] = {}
    foreign_bytes: Bytes = Bytes(0)
    used_bytes: Bytes = Bytes(0)
    """Sum over ``runners`` of ``bytes``; kept, and checked by ``check``."""
    operation: OperationId | None = None
    placement: Placement | None = None
    leaving: dict[ModelId, UnloadCause] = {}
    """Runners to be unloaded for their own sake, as soon as they are idle and no operation runs."""
    left: dict[ModelId, InstantUs] = {}
    """When a runner was last gone: an observation begun before that may still show it."""
    resting: dict[ModelId, InstantUs] = {}
    """Models unloaded here lately, and before which instant they are not loaded again ahead of demand."""
    backoff: dict[ModelId, tuple[int, InstantUs]] = {}
    """Failed loads in a row and when the next may be tried."""
    load_bytes_per_s: int = 0
    """Learned; zero before the first load."""
    prefill_tokens_per_s: int = 0
    look_us: InstantUs = InstantUs(0)
    """When it is looked at next for work ahead of demand."""
    room_us: InstantUs = InstantUs(0)
    """When a runner was last asked to leave ahead of demand."""
    unload_us: SpanUs = SpanUs(0)
    """Learned: from the unload call until the memory is back; zero before the first."""
    cap: int = 0
    """Requests at once while it has to prove itself, over all its runners; zero: only its slots count; -1: it rests."""
    breaker: Breaker = msgspec.field(default_factory=Breaker)

    @property
    def at_cap(self) -> bool:
        """It has as many requests as it may while it has to prove itself."""
        return self.cap != 0 and self.cap <= sum(len(runner.in_flight) for runner in self.runners.values())

    @property
    def unshown_bytes(self) -> int:
        """What a runner takes beyond its size in /api/ps."""
        return 0 if self.overhead_shown else self.overhead_bytes

    @property
    def free_bytes(self) -> int:
        """What a load may still take by our own ledger; negative when measurement passed the limit."""
        return self.capacity_bytes - self.headroom_bytes - self.foreign_bytes - self.used_bytes


class Want(StrEnum):
    nothing = "nothing"
    pending = "pending"
    """Wants a copy; the scheduler has not looked for room yet."""
    blocked = "blocked"
    """Wants a copy; there was no room when last looked."""


class Account(msgspec.Struct):
    """What one tenant has had of one model in one lane. There is one while it has a request there."""

    served: int
    """Virtual time: slot time over weight (``fairness.SHARE_UNIT``); comparable within the lane only."""
    live: int = 0
    """Its requests that wait or run."""


class Lane(msgspec.Struct):
    """Requests of one priority for one model, and how they have been served."""

    virtual: int = 0
    """Where the lane stands: what the tenant served last had had before. Never falls."""
    passed: int = 0
    """Turns in a row that higher lanes got while somebody waited in this one."""
    accounts: dict[str, Account] = {}
    idle: dict[str, int] = {}
    """Tenants without a request that had more than their share, the one idle longest first: ``Account.served``."""


class Model(msgspec.Struct):
    """One blob with one context, whatever its names: the canonical context, or one of its classes."""

    model: ModelId
    stored: StoredModel
    """The description seen last; equal blobs have equal descriptions but for names and digests. A class has its
    blob's."""
    blob: ModelId = ModelId("")
    """What workers know of it. Runners of one blob exclude each other on a worker; equal to ``model`` unless it is a
    class."""
    context: int = 0
    """Context per slot of a class; zero: the canonical one."""
    classes: dict[ModelId, None] = {}
    """Of the canonical one: its classes, the smallest first; those too that are configured no more and still live."""
    holders: dict[WorkerId, int] = {}
    """Workers that store it, and under how many names."""
    healthy_holders: int = 0
    copies: dict[WorkerId, None] = {}
    """Workers with a runner of it, in any residency."""
    placements: dict[WorkerId, None] = {}
    """Workers that make room for it."""
    waiting: int = 0
    want: Want = Want.nothing
    want_seq: int = 0
    """Its place among the models that want a copy: the arrival of who waited longest when it was filed."""
    tried_for: str = ""
    """The name, and the workers excluded, for which a place was last looked for: others may be served elsewhere."""
    blocked_us: InstantUs = InstantUs(0)
    may_drain: bool = False
    drain_tries: int = 0
    """Drains for it that were given up since it was last loaded."""
    replica_after_us: InstantUs = InstantUs(0)
    """Room for one more copy is not looked for again before this instant."""
    backoff_us: InstantUs = InstantUs(0)
    """No worker is in load back-off for it after this instant."""
    lanes: dict[Priority, Lane] = {}
    service_us: SpanUs = SpanUs(0)
    """Moving average from dispatch to end; zero before the first."""
    load_us: SpanUs = SpanUs(0)
    least_bytes: Bytes = Bytes(0)
    """No runner of it can be booked for less, on any worker: what a quick look at a full worker compares with."""
    measured_bytes: dict[str, Bytes] = {}
    """Runner bytes as measured, by ``costs.shape_key``."""
    failures: int = 0
    """Failed loads in a row over all workers."""
    released_us: InstantUs = InstantUs(-1)
    demand: Demand = msgspec.field(default_factory=Demand)
    """When a client last said that it needs it no more."""
    stranded_us: InstantUs = InstantUs(-1)
    """Since when no healthy worker stores it while requests wait; -1: not so."""

    def __post_init__(self) -> None:
        self.blob = self.blob or self.model

    @property
    def label(self) -> str:
        """What operators read: the name, with the context if it is a class."""
        return f"{self.stored.name}#{self.context}" if self.context else self.stored.name


class RequestPhase(StrEnum):
    waiting = "waiting"
    running = "running"


class Request(msgspec.Struct):
    request: RequestId
    name: str
    """What workers know it by: without the context class, which ``model`` tells."""
    model: ModelId
    kind: RequestKind
    tenant: str
    prompt_tokens: int
    deadline_us: InstantUs
    arrived_us: InstantUs
    seq: int
    cache: CacheState
    priority: Priority = Priority.normal
    charged_us: SpanUs = SpanUs(-1)
    """Slot time that its tenant was charged for it when it was dispatched; -1: nothing that is not settled."""
    phase: RequestPhase = RequestPhase.waiting
    worker: WorkerId | None = None
    dispatched_us: InstantUs = InstantUs(0)
    first_token_us: InstantUs = InstantUs(-1)
    attempts: int = 0
    crashes: int = 0
    excluded_us: InstantUs = InstantUs(-1)
    """When the last of ``excluded`` failed it."""
    excluded: list[WorkerId] = []
    """Workers that failed it; used again only if nobody else stores the model."""
    fingerprint: str = ""
    """Of its content; empty unless some request was suspected when it came, or it took down a runner itself."""


class Retries(msgspec.Struct):
    """The budget of retries over all workers (``attempts``)."""

    since_us: InstantUs = InstantUs(-1)
    """When the window began; -1: nothing was retried yet."""
    first: int = 0
    """Requests dispatched for the first time since then."""
    again: int = 0
    """Retries since then."""
    before: int = 0
    """First dispatches per window's length, before it."""


class Burst(msgspec.Struct):
    """Arrivals of one name, right after another, that were dispatched at once. Kept by ``express``."""

    model: ModelId
    blob: ModelId
    name: str
    """Without the class that it may be asked for."""
    began_us: InstantUs
    """The arrival that opened it; that one is in the statistics already."""
    last_us: InstantUs
    count: int = 0
    """Arrivals since, not yet in the statistics."""
    tenants: dict[str, int] = {}
    """The same by tenant."""


class KnownModel(msgspec.Struct):
    """What is remembered of a blob from an earlier life."""

    demand: Demand
    load_us: SpanUs = SpanUs(0)
    service_us: SpanUs = SpanUs(0)


class State(msgspec.Struct):
    """Everything. Dictionaries keep insertion order; no set of strings is ever iterated."""

    roster: list[WorkerId] = []
    workers: dict[WorkerId, Worker] = {}
    models: dict[ModelId, Model] = {}
    votes: dict[str, dict[ModelId, int]] = {}
    """For each name, how many workers bind it to which blob: the majority serves it."""
    requests: dict[RequestId, Request] = {}
    operations: dict[OperationId, Operation] = {}
    waiting: int = 0
    next_seq: int = 0
    next_operation: int = 1
    replica_after_us: InstantUs = InstantUs(0)
    """Victims for one more copy of any model are not looked for again before this instant."""
    service_us: SpanUs = SpanUs(0)
    """Moving average over all models: the guess for one never seen."""
    timers: list[tuple[InstantUs, int, str, str]] = []
    """A heap of (instant, kind, key, key); outlived ones are skipped when due."""
    counters: dict[str, int] = {}
    remembered: dict[ModelId, KnownModel] = {}
    """Learned in an earlier life, of blobs that no worker has shown yet."""
    asked: list[ModelId] = []
    """Models that were ever asked for, in order of the first time."""
    recent: dict[ModelId, None] = {}
    """The same by their last request, the latest last."""
    activity: float = 0.0
    activity_us: InstantUs = InstantUs(0)
    """All arrivals, decayed over two minutes."""
    callers: dict[str, Caller] = {}
    """Tenants by their last request, the latest last."""
    foreseen: dict[ModelId, None] = {}
    """Models that hints speak for, to be looked at whenever a loader is free."""
    look_ahead: bool = False
    """A hint came, or a loader became free: what is foreseen is looked at once, in this step or the next."""
    scores: dict[HintSource, Score] = {}
    forecast: Forecast = msgspec.field(default_factory=Forecast)
    experience: Experience = msgspec.field(default_factory=Experience)
    """What the eviction policy in use has learned beside it."""
    policy: str = ""
    """Its name; set by the engine when it begins."""
    retries: Retries = msgspec.field(default_factory=Retries)
    suspects: dict[str, tuple[WorkerId, InstantUs]] = {}
    """Fingerprints of requests under which a runner died, where, and until when that counts; the oldest first."""
    poison: dict[str, InstantUs] = {}
    """Fingerprints of requests that are refused, and until when; the oldest first."""
    shadows: Shadows = msgspec.field(default_factory=Shadows)
    bursts: dict[str, Burst] = {}
    """By name, since the last step that was not of the express lane."""
    rested: dict[WorkerId, None] = {}
    """Workers on which a runner became idle since then."""
    standby: bool = False
    """Another process decides what is resident: no operation begins here."""
