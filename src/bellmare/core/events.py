"""Everything the core can be told. Past tense; the union is closed and every kind has one handler in the engine."""

from enum import StrEnum

import msgspec

from bellmare.core.config import CoreConfig
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId


class Event(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all events."""


class WorkerKind(StrEnum):
    """What stands behind a worker's address; it decides defaults, never behaviour on the wire."""

    ollama = "ollama"
    sim = "sim"
    embedded = "embedded"


class StoredModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One name on a worker's disk, with what the memory formula needs (ollama.md 4)."""

    name: str
    """Canonical name (``protocols.names``)."""
    model: ModelId
    digest: str
    """Manifest digest, 64 hex digits without prefix, as /api/tags prints it."""
    weights_bytes: Bytes
    kv_bytes_per_token: Bytes = Bytes(0)
    """KV cache of one token of one slot, f16; zero if not known."""
    predicted_kv_bytes_per_token: Bytes = Bytes(0)
    """The same by Ollama's own crude formula, on which its fit test rests (ollama.md 4.4); zero: as above."""
    recurrent_bytes_per_slot: Bytes = Bytes(0)
    compute_bytes: Bytes = Bytes(0)
    """Compute buffers at the default batch; zero if not known."""
    context_max: int = 0
    """Training context; zero if not known."""
    num_ctx: int = 0
    """``PARAMETER num_ctx`` of the Modelfile; zero if unset."""
    parallel_max: int = 0
    """Slots that Ollama allows this family; zero is no limit. Embedding models: 1."""
    embedding: bool = False


class LoadedModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of /api/ps. ``model`` is None if the digest belongs to no blob that we know: foreign memory."""

    name: str
    model: ModelId | None
    bytes: Bytes
    """Memory in use; zero if the worker cannot say (CPU builds report 0)."""
    spilled_bytes: Bytes = Bytes(0)
    """The part that did not fit the GPU: size minus size_vram."""
    num_ctx: int = 0
    pinned: bool = False
    """The keep-alive is for ever: only then does Ollama's own timer not take it away."""
    expired: bool = False
    """The keep-alive has passed: leaving, or serving its last requests."""


class WorkerAdded(Event, frozen=True, tag=True):
    """A worker joined the fleet; nothing is known of its contents until the first observation."""

    worker: WorkerId
    kind: WorkerKind
    capacity_bytes: Bytes
    capacity_known: bool = True
    """False: a guess, raised when a measurement shows more."""
    headroom_bytes: Bytes = Bytes(0)
    overhead_bytes: Bytes = Bytes(0)
    """Memory of one runner beside its buffers: the CUDA context, once per process."""
    overhead_shown: bool = False
    """Whether the sizes of /api/ps contain the overhead already; Ollama's do not (ollama.md 2.5)."""
    parallel: int = 1
    runners_max: int = 0
    """Runners at once; zero is no limit. Stock Ollama: three per GPU."""
    fit_percent: int = 100
    """A load beside others must be predicted within this share of free memory. Stock Ollama: 80."""


class WorkerRemoved(Event, frozen=True, tag=True):
    worker: WorkerId


class WorkerObserved(Event, frozen=True, tag=True):
    """What a worker showed. ``started_us`` is when the question was sent: the answer cannot know of anything later."""

    worker: WorkerId
    started_us: InstantUs
    loaded: tuple[LoadedModel, ...]
    stored: tuple[StoredModel, ...] | None = None
    """None: unchanged since the last observation that carried it."""
    foreign_bytes: Bytes = Bytes(0)
    version: str = ""


class FaultKind(StrEnum):
    """Why the outside world did not do as asked; the same words in metrics and logs."""

    refused = "refused"
    """Nothing listens there."""
    reset = "reset"
    """The connection broke, as when the server dies."""
    unreachable = "unreachable"
    """No connection in time: a black hole, or a machine too busy to accept."""
    timeout = "timeout"
    bad_answer = "bad_answer"
    busy = "busy"
    crashed = "crashed"
    not_found = "not_found"
    failed = "failed"


class WorkerUnreachable(Event, frozen=True, tag=True):
    worker: WorkerId
    started_us: InstantUs
    fault: FaultKind


class RequestKind(StrEnum):
    generation = "generation"
    embedding = "embedding"
    load = "load"
    """An empty prompt: the client only wants the model ready."""


class Priority(StrEnum):
    """How much a request may be preferred to others that wait; it never interrupts who runs."""

    high = "high"
    normal = "normal"
    low = "low"


class RequestArrived(Event, frozen=True, tag=True):
    """A parsed request asks to be run. ``deadline_us`` is the instant by which it must have been dispatched."""

    request: RequestId
    name: str
    deadline_us: InstantUs
    kind: RequestKind = RequestKind.generation
    tenant: str = ""
    """Who asks: slots are shared fairly between tenants, and what each asks for next is predicted."""
    priority: Priority = Priority.normal
    prompt_tokens: int = 0
    """Estimate from the body's size; only spans are computed from it."""
    fingerprint: str = ""
    """Equal for equal requests; the gateway need only give it while ``State.suspects`` or ``poison`` hold something."""


class RequestCancelled(Event, frozen=True, tag=True):
    """The client left, in whatever phase the request was."""

    request: RequestId


class FirstTokenReceived(Event, frozen=True, tag=True):
    request: RequestId


class Outcome(StrEnum):
    completed = "completed"
    failed = "failed"


class RequestFinished(Event, frozen=True, tag=True):
    """The answer ended. ``failed`` after bytes were sent, or with an error of the request's own: never retried."""

    request: RequestId
    outcome: Outcome
    fault: FaultKind | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    fingerprint: str = ""
    """With ``crashed``: as in RequestArrived, if that did not have it."""


class DispatchFailed(Event, frozen=True, tag=True):
    """A worker did not serve a request of which nothing has been sent to the client yet: it may run elsewhere."""

    request: RequestId
    worker: WorkerId
    fault: FaultKind
    detail: str = ""
    fingerprint: str = ""
    """With ``crashed``: as in RequestArrived, if that did not have it."""


class OperationOutcome(StrEnum):
    done = "done"
    failed = "failed"
    timed_out = "timed_out"


class OperationEnded(Event, frozen=True, tag=True):
    """Exactly one for each Load and Unload. ``done`` means confirmed: ready to serve, or gone from /api/ps."""

    operation: OperationId
    outcome: OperationOutcome
    fault: FaultKind | None = None
    detail: str = ""
    loaded: LoadedModel | None = None
    """For a finished load: the runner as /api/ps shows it."""


class LoadRequested(Event, frozen=True, tag=True):
    """An operator asks for a model, on one worker or on the best. ``ticket`` comes back in the answer."""

    ticket: str
    name: str
    worker: WorkerId | None = None


class UnloadRequested(Event, frozen=True, tag=True):
    """An operator asks a model to leave one worker or all. Requests under way finish first."""

    ticket: str
    name: str
    worker: WorkerId | None = None


class ModelReleased(Event, frozen=True, tag=True):
    """A client said that it needs a model no more (keep_alive 0): the first victim.

    It leaves at once if nobody else is to be expected and nobody is at it; for others it stays.
    """

    name: str
    alone: bool = False
    """No other client has asked for it lately."""


class HintSource(StrEnum):
    """Where the knowledge comes from that a model will be asked for soon. Each is scored by itself."""

    prepare = "prepare"
    """A client said so: POST /api/prepare."""
    next_header = "next_header"
    """A request named the model of the next one: X-Bellmare-Next."""
    show = "show"
    """/api/show of the model: clients look before they ask."""
    tags = "tags"
    """/api/tags by a caller that we know: mostly he goes on with his usual model."""
    body = "body"
    """The head of a request has come, its long body is still on its way."""
    chain = "chain"
    """The tenant's last request is mostly followed by one for this model (found by the core itself)."""
    period = "period"
    """The model is called at equal intervals (found by the core itself)."""


class HintGiven(Event, frozen=True, tag=True):
    """Somebody will ask for a model in about ``in_us``. Never more than a guess: it is scored by what comes of it."""

    source: HintSource
    name: str = ""
    """Canonical; empty: the tenant's usual model."""
    tenant: str = ""
    in_us: SpanUs = SpanUs(0)
    """When the request is expected; zero: as soon as this source's hints usually come true."""
    ttl_us: SpanUs = SpanUs(0)
    """After so long it is no longer expected; zero: the configured default."""


class ConfigChanged(Event, frozen=True, tag=True):
    """The operator's settings have changed. All but ``shadows`` holds from here on; nothing resident leaves for it."""

    config: CoreConfig


class StandbyChanged(Event, frozen=True, tag=True):
    """Whether another process decides what is resident: until told otherwise no load and no unload begins here.

    What runs goes on, and requests still go to what is resident.
    """

    standby: bool


class TimePassed(Event, frozen=True, tag=True):
    """Nothing happened but time: a deadline of ``next_deadline_us`` is due."""


AnyEvent = (
    WorkerAdded
    | WorkerRemoved
    | WorkerObserved
    | WorkerUnreachable
    | RequestArrived
    | RequestCancelled
    | FirstTokenReceived
    | RequestFinished
    | DispatchFailed
    | OperationEnded
    | LoadRequested
    | UnloadRequested
    | ModelReleased
    | HintGiven
    | ConfigChanged
    | StandbyChanged
    | TimePassed
)
