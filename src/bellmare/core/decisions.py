"""Everything the core can decide. Imperative; each carries its cause, and operations carry an id and a timeout."""

from enum import StrEnum

import msgspec

from bellmare.core.units import Bytes, ModelId, OperationId, RequestId, SpanUs, WorkerId


class Decision(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all decisions."""


class Refusal(StrEnum):
    """Why a request ends without an answer. ``gateway`` maps each to a status and a text."""

    unknown_model = "unknown_model"
    """404: no worker stores the name."""
    queue_full = "queue_full"
    """429: the model's or the whole queue is at its count."""
    wait_too_long = "wait_too_long"
    """429: the predicted wait passes the bound or the request's own deadline."""
    no_healthy_worker = "no_healthy_worker"
    """503: every worker that stores the model is away."""
    model_does_not_fit = "model_does_not_fit"
    """503: larger than any worker that stores it. Retryable if it would fit without foreign memory."""
    load_failed = "load_failed"
    """502: no worker could load it. With Retry-After 503: all have failed, and try again after its deadline."""
    deadline_passed = "deadline_passed"
    """504: queued until its deadline."""
    worker_failed = "worker_failed"
    """502: the workers that tried it failed and the attempts are spent."""
    worker_timed_out = "worker_timed_out"
    """504: as above, and the last one did not answer in time."""
    retries_spent = "retries_spent"
    """502: a worker failed it, and too many requests have been tried again lately."""
    poison_suspected = "poison_suspected"
    """502: such a request took down runners on two workers."""


class CacheState(StrEnum):
    hit = "hit"
    """A ready runner had a free slot on arrival."""
    queued = "queued"
    """A ready runner existed, its slots were taken."""
    cold = "cold"
    """No runner was ready on arrival."""


class Reject(Decision, frozen=True, tag=True):
    request: RequestId
    refusal: Refusal
    retry_after_us: SpanUs = SpanUs(0)
    """Zero: retrying is pointless or the wait is not known."""
    detail: str = ""


class Dispatch(Decision, frozen=True, tag=True):
    """Hand one request to one worker, with the runner's own context length so that nothing is ever reloaded."""

    request: RequestId
    worker: WorkerId
    model: ModelId
    num_ctx: int
    cache: CacheState
    queued_us: SpanUs = SpanUs(0)
    """Waited in all, loading included."""
    load_us: SpanUs = SpanUs(0)
    """The part of ``queued_us`` before a runner was ready."""
    attempt: int = 1


class LoadCause(StrEnum):
    demand = "demand"
    replica = "replica"
    pinned = "pinned"
    operator = "operator"
    prewarm = "prewarm"
    """Nobody waits for it yet: the forecast says that somebody will ask."""
    hint = "hint"
    """Nobody waits for it yet: somebody said that a request is coming."""
    adopt = "adopt"
    """It is resident, but on Ollama's own timer: take the timer away."""


class Load(Decision, frozen=True, tag=True):
    operation: OperationId
    worker: WorkerId
    model: ModelId
    name: str
    num_ctx: int
    cause: LoadCause
    reserved_bytes: Bytes
    expected_us: SpanUs
    timeout_us: SpanUs
    embedding: bool = False


class UnloadCause(StrEnum):
    room = "room"
    """Its memory is needed; ``wanted_by`` says for whom."""
    context = "context"
    """Its blob is wanted there with another context, which ``wanted_by`` tells: a worker runs a blob once."""
    ahead = "ahead"
    """Hardly anybody will ask for it before somebody needs its room: so that he need not wait for the unload."""
    replica = "replica"
    """One copy more than the load needs."""
    operator = "operator"
    released = "released"
    """The only client that used it lately has said that it needs it no more, and nobody waits for it."""
    over_budget = "over_budget"
    """Measured memory passed the ledger's limit."""
    shape = "shape"
    """Its context is smaller than its class's."""
    replaced = "replaced"
    """Its name now belongs to another blob."""
    crashed = "crashed"
    """Its runner died or hangs; Ollama may go on listing it (ollama.md 12)."""


class Unload(Decision, frozen=True, tag=True):
    operation: OperationId
    worker: WorkerId
    model: ModelId
    name: str
    cause: UnloadCause
    timeout_us: SpanUs
    wanted_by: ModelId | None = None


class Drain(Decision, frozen=True, tag=True):
    """Stop handing requests to a busy runner, so that it can leave. Nothing to do on the wire."""

    worker: WorkerId
    model: ModelId
    cause: UnloadCause
    wanted_by: ModelId | None = None


class Undrain(Decision, frozen=True, tag=True):
    """The reason for draining is gone before the runner was unloaded: it serves again."""

    worker: WorkerId
    model: ModelId


class Observe(Decision, frozen=True, tag=True):
    """Ask a worker now instead of at the next poll."""

    worker: WorkerId


class HealthChange(Decision, frozen=True, tag=True):
    """A worker came into or went out of routing."""

    worker: WorkerId
    healthy: bool
    reason: str


class PolicySwitch(Decision, frozen=True, tag=True):
    """Another eviction policy decides from here on: its ghost was clearly better. News, nothing to do."""

    policy: str
    before: str
    saved_percent: int
    """Load-seconds that its ghost had less than the ghost of ``before``, lately."""
    loads: int
    """Of the ghost of ``before``, lately: what the judgement rests on."""


class Answer(Decision, frozen=True, tag=True):
    """The answer to an operator's LoadRequested or UnloadRequested."""

    ticket: str
    accepted: bool
    text: str
    workers: tuple[WorkerId, ...] = ()


AnyDecision = Reject | Dispatch | Load | Unload | Drain | Undrain | Observe | HealthChange | PolicySwitch | Answer
