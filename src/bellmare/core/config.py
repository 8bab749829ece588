"""The core's own settings: numbers and names only, recorded at the head of every event log for its replay."""

import msgspec

from bellmare.core.units import SECOND_US, SpanUs


class ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator says about one model, keyed by canonical name."""

    num_ctx: int = 0
    """Canonical context per slot; zero: the Modelfile's, else the default."""
    pinned: bool = False
    """Loaded at start and never a victim. Concerns the canonical context only."""
    context_classes: tuple[int, ...] = ()
    """Other contexts per slot that it is served with: each is a model of its own to the core (``classes``)."""


class TenantConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator says about one tenant."""

    weight: int = 1
    """Its share of slot time among those that wait, from 1 to 100."""


class CoreConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """All limits of the core. Each is met by a test."""

    default_num_ctx: int = 8192
    """Ollama's default follows the GPU's size (4096 to 262144), which makes one model three shapes in one fleet."""
    queue_per_model_max: int = 512
    """As OLLAMA_MAX_QUEUE, but per model."""
    queue_total_max: int = 20_000
    queue_wait_max_us: SpanUs = SpanUs(120 * SECOND_US)
    """Predicted wait above which a request is refused at once instead of timing out later."""
    retry_after_max_us: SpanUs = SpanUs(60 * SECOND_US)
    """Clients give up on longer waits (openai-python 120 s, AI SDK 60 s)."""
    exclusion_us: SpanUs = SpanUs(5 * SECOND_US)
    """So long a retried request avoids the workers that failed it; then any that is back may have it again."""
    attempts_max: int = 3
    """Dispatches per request, all before the first byte."""
    drain_after_us: SpanUs = SpanUs(5 * SECOND_US)
    """A miss waits so long for an idle victim before a busy one is drained (policy findings: 5 s)."""
    drain_max_us: SpanUs = SpanUs(30 * SECOND_US)
    """A busy victim holds its worker's loader at most so long, doubled with each drain given up for the same model:
    then another victim is looked for. Ten times a usual answer, so that only an unusual one gives up a drain."""
    batch_max_us: SpanUs = SpanUs(15 * SECOND_US)
    """A model loaded for waiting requests is not drained before they were served, but at most so long."""
    suspicion_us: SpanUs = SpanUs(2 * SECOND_US)
    """A request that arrives so soon after its last worker was lost waits with the others: mostly it comes back."""
    worker_lost_grace_us: SpanUs = SpanUs(10 * SECOND_US)
    """Queued requests outlive the loss of their last worker so long."""
    load_timeout_us: SpanUs = SpanUs(600 * SECOND_US)
    unload_timeout_us: SpanUs = SpanUs(60 * SECOND_US)
    operation_grace_us: SpanUs = SpanUs(10 * SECOND_US)
    """Past its timeout by so much, an operation whose end was lost is given up and the worker observed."""
    load_backoff_us: SpanUs = SpanUs(5 * SECOND_US)
    """After a failed load of a model on a worker; doubles each time."""
    load_backoff_max_us: SpanUs = SpanUs(300 * SECOND_US)
    load_failures_max: int = 3
    """Failed loads in a row, over all workers, after which a model's waiting requests are refused."""
    unreachable_max: int = 2
    """Observations in a row without an answer before a worker leaves routing; a refused connection counts at once."""
    adopt_every_us: SpanUs = SpanUs(30 * SECOND_US)
    """A resident whose timer comes back is pinned again at most so often."""
    breaker_failures: int = 3
    """Failures of transport in a row that eject a worker."""
    breaker_outcomes: int = 10
    """So many outcomes within ``breaker_window_us`` are enough to judge a worker by their share of failures."""
    breaker_percent: int = 50
    """The share of failures among them that ejects it."""
    breaker_window_us: SpanUs = SpanUs(10 * SECOND_US)
    ejection_us: SpanUs = SpanUs(5 * SECOND_US)
    """How long a worker is ejected the first time, give or take a fifth; doubles each time."""
    ejection_max_us: SpanUs = SpanUs(300 * SECOND_US)
    """Also: a worker that was good for longer begins anew."""
    slow_start_us: SpanUs = SpanUs(20 * SECOND_US)
    """From the first success after an ejection until only its slots limit a worker."""
    retry_percent: int = 10
    """Retries among all requests of ``retry_window_us``; more would make a failing fleet fail for longer."""
    retry_floor: int = 10
    """Retries that a window has in any case: one a second."""
    retry_window_us: SpanUs = SpanUs(10 * SECOND_US)
    poison_us: SpanUs = SpanUs(600 * SECOND_US)
    """How long a request that took down two workers is refused: long enough for its client to give up."""
    zombie_max_us: SpanUs = SpanUs(120 * SECOND_US)
    """A slot whose request was aborted during prefill stays taken at most so long."""
    eviction: str = "hv"
    ahead: bool = True
    """Loads and makes room ahead of demand, by forecast and hints."""
    shadows: bool = True
    """Keeps ghosts of other policies and of stock Ollama on the live stream: metadata only."""
    switch_policy: bool = True
    """Changes the eviction policy when a ghost is clearly better; needs ``shadows``."""
    switch_dwell_us: SpanUs = SpanUs(3600 * SECOND_US)
    """From one change to the next, and from the first request to the first change, at least: an hour's requests are the
    least that says something, and a new policy needs as long to show itself (policy findings 5.6)."""
    switch_loads_min: int = 50
    """Loads of the ghost of the policy in use within the window before it is judged; ``shadows`` asks beside
    that whether the difference may be chance."""
    models: dict[str, ModelConfig] = {}
    tenants: dict[str, TenantConfig] = {}
