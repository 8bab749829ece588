"""What the twin can be told and what it answers: two closed vocabularies. Requests are named by the caller; instants
are µs.
"""

import msgspec

from bellmare.twin.config import TwinModel


class RunnerOptions(msgspec.Struct, frozen=True):
    """The options that make a runner's shape (section 1.4). None and the defaults mean automatic."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int | None = None
    """Accepted and ignored: forced to 0 without a draft model, and no model here has one."""


class Input(msgspec.Struct, frozen=True, tag=True):
    """Base of all inputs."""


class Generate(Input, frozen=True):
    """A generation or an embedding. Whether the client streams makes no difference here: Ollama always streams from its
    runner.
    """

    request: str
    name: str
    prompt_tokens: int = 32
    output_tokens: int = 32
    """Tokens that the model produces before it stops by itself or by num_predict; the context's limits are applied
    here.
    """
    length_cut: bool = False
    """num_predict is what stops it: done_reason "length"."""
    keep_alive_us: int | None = None
    """None: absent. Zero: unload when idle. ``config.FOREVER_US``: negative values."""
    options: RunnerOptions = RunnerOptions()
    shift: bool | None = None
    truncate: bool = True
    embed: bool = False
    fail_after_tokens: int = -1
    """A fault: fails in mid-stream after so many tokens, as if the connection to the runner broke; negative: never."""


class LoadOnly(Input, frozen=True):
    """An empty prompt (or /api/embed without input): wait for the runner, then answer (section 2.1)."""

    request: str
    name: str
    keep_alive_us: int | None = None
    options: RunnerOptions = RunnerOptions()
    shift: bool | None = None
    embed: bool = False


class Unload(Input, frozen=True):
    """An empty prompt with keep_alive 0 (section 2.3)."""

    request: str
    name: str


class Cancel(Input, frozen=True):
    """The client closed the connection. Unknown and ended requests are ignored: the two may cross."""

    request: str


class CopyName(Input, frozen=True):
    """POST /api/copy, and what a pull of a newer version does to a name: it now means another blob. Unloads nothing."""

    source: str
    destination: str


class StoreName(Input, frozen=True):
    """POST /api/create and a pull that ended well: the model's name means it from now on. Unloads nothing."""

    model: TwinModel


class DeleteName(Input, frozen=True):
    """DELETE /api/delete. Unloads nothing (section 2.3)."""

    name: str


class CrashRunner(Input, frozen=True):
    """The runner's process dies (killed for memory, say); Ollama learns of it from the next request."""

    blob: str


class HangRunner(Input, frozen=True):
    """The runner stops working but keeps its connections; if it is not loaded, its next load hangs until the load
    timeout.
    """

    blob: str


class FailLoad(Input, frozen=True):
    """The next load of the blob fails: the process terminates during start."""

    blob: str


class Slow(Input, frozen=True):
    """Generations that begin from now on take so many percent of their normal span."""

    percent: int


class Tick(Input, frozen=True):
    """Only time passes."""


class Effect(msgspec.Struct, frozen=True, tag=True):
    """Base of all effects. ``at_us`` is when it truly happened, which a late tick does not change."""

    at_us: int


class Granted(Effect, frozen=True):
    """The scheduler gave the request its runner. ``waited_us`` is ``load_duration``: queue and load together (section
    1.4).
    """

    request: str
    waited_us: int
    context_length: int


class FirstToken(Effect, frozen=True):
    """Prefill ended. Token k, from 0, leaves at ``at_us + k * token_us``; there are ``tokens``, unless ``Failed`` comes
    first.
    """

    request: str
    token_us: int
    tokens: int
    prompt_tokens: int


class Finished(Effect, frozen=True):
    """The answer is complete. Spans are µs; ``done_reason`` is "stop" or "length"."""

    request: str
    prompt_tokens: int
    output_tokens: int
    total_us: int
    load_us: int
    prompt_us: int
    output_us: int
    done_reason: str


class Failed(Effect, frozen=True):
    """The request ended badly. ``tokens`` have left before; zero means that the status can still be sent."""

    request: str
    status: int
    text: str
    tokens: int = 0


class Stalled(Effect, frozen=True):
    """The runner hung: no token after the first ``tokens``, and nothing more until the client leaves."""

    request: str
    tokens: int


class LoadReplied(Effect, frozen=True):
    """Answer to ``LoadOnly``."""

    request: str


class UnloadReplied(Effect, frozen=True):
    """Answer to ``Unload``: at once, also if the model was not loaded."""

    request: str


class LoadStarted(Effect, frozen=True):
    blob: str
    expected_us: int


class RunnerLoaded(Effect, frozen=True):
    """Appears in /api/ps from now on."""

    blob: str
    vram_bytes: int


class LoadAborted(Effect, frozen=True):
    """The load ended without a runner: client gone, failure or timeout."""

    blob: str


class RunnerGone(Effect, frozen=True):
    """Gone from /api/ps; its memory is not back yet."""

    blob: str
    by_own_choice: bool
    """Ollama's scheduler chose it as victim or reloads it, nobody asked for it."""


class MemoryFreed(Effect, frozen=True):
    """The wait for VRAM ended."""

    blob: str
    vram_bytes: int


class Loaded(msgspec.Struct, frozen=True):
    """One line of /api/ps (section 2.5). ``expires_us`` may lie in the past: leaving, or not yet corrected."""

    name: str
    digest: str
    blob: str
    size_bytes: int
    vram_bytes: int
    context_length: int
    expires_us: int
    refcount: int
    """Not on the wire: requests that hold the runner."""
    alive: bool
    """Not on the wire: false after a crash, which /api/ps does not show."""


class Counters(msgspec.Struct):
    """What a gateway promises to keep at zero, or low. Read by tests, and by the adapter through /api/bellmare."""

    own_evictions: int = 0
    """Victims that Ollama's scheduler chose by itself."""
    reloads: int = 0
    """Loaded runners thrown away because a request's shape differed, or because they had died."""
    own_queue_max: int = 0
    """Most requests that waited at one instant in the pending queue or on a semaphore."""
    queued_total: int = 0
    """Requests that ever waited there."""
    semaphore_waits: int = 0
    """Those of them that waited for one of a loaded runner's slots."""
    slot_waits: int = 0
    """Requests that Ollama let through but that waited inside llama-server, behind a ghost prefill (section 2.4)."""
    loads: int = 0
    loads_aborted: int = 0
    unloads_asked: int = 0
    rejected_503: int = 0
    vram_used_max: int = 0
    vram_overcommits: int = 0
    """Loads that found less memory free than they need, and so spilled to the host (section 3.3)."""
    granted_total: int = 0
    finished_total: int = 0
    """Generations with a good end."""
    load_replies_total: int = 0
    """Loads with a good end. Granted is finished plus these, plus what failed or was cancelled after its grant."""
    failed_total: int = 0
    cancelled_total: int = 0
    in_flight_max: dict[str, int] = msgspec.field(default_factory=dict)
    """Per blob: most generations at one instant in a slot or waiting for one; above the slots, somebody waited."""
