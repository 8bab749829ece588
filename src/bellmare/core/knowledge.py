"""What the core knows of demand, as plain data: arrivals, habits, hints, and what forecast and policies have learned.

Part of ``state.State``; decides nothing. ``demand``, ``hints``, ``forecast`` and ``eviction`` keep it.
"""

import msgspec

from bellmare.core.events import HintSource
from bellmare.core.units import InstantUs, ModelId, SpanUs


class Demand(msgspec.Struct):
    """When a model was asked for, and how often. Kept by ``demand``; decayed values are of the instant beside them."""

    arrivals: int = 0
    last_us: InstantUs = InstantUs(-1)
    before_us: InstantUs = InstantUs(-1)
    """The arrival before the last one."""
    counters: list[float] = []
    """Arrivals, decayed with each of ``demand.SPANS_S``, as of ``last_us``; empty before the first."""
    gap_ln: float = 0.0
    """Moving average of ln(1 + seconds) between arrivals."""
    gap_spread: float = 0.0
    """Mean distance of the gaps' logarithms from that average: small for a timer."""
    sessions: float = 0.0
    sessions_us: InstantUs = InstantUs(0)
    """Tenants whose last request this model had, decayed."""
    chain: float = 0.0
    chain_us: InstantUs = InstantUs(0)
    """Requests that tenants' last requests let expect, decayed."""
    followers: dict[ModelId, float] = {}
    """Which models the same tenants asked for next, soon after."""
    logits: list[float] = []
    """What the forecast's heads last said, good until ``logits_until_us``; kept here so that a restored core goes on
    with the same numbers."""
    logits_until_us: InstantUs = InstantUs(-1)
    hints: dict[HintSource, "Hint"] = {}
    samples: list["Sample"] = []
    """What the forecast saw of it and has not been told the truth about."""


class Hint(msgspec.Struct):
    """Somebody, or the core itself, expects requests for a model. One for each model and source."""

    given_us: InstantUs
    due_us: InstantUs
    until_us: InstantUs
    """Not expected any more after this instant."""
    chance: float
    """That it comes true, by what became of such hints."""
    expected: int = 1
    """Requests."""
    tenant: str = ""


class Score(msgspec.Struct):
    """What became of hints: decayed counts."""

    right: float = 0.0
    wrong: float = 0.0
    lead_us: SpanUs = SpanUs(0)
    """From hint to request, on average."""


class Sample(msgspec.Struct):
    """Features of one model at one instant, waiting for its next arrival."""

    at_us: InstantUs
    features: list[float]


class Caller(msgspec.Struct):
    """One tenant's habits."""

    model: ModelId | None = None
    """Asked for last."""
    last_us: InstantUs = InstantUs(0)
    habits: dict[ModelId, float] = {}
    """What he asks for, and how often."""
    score: Score = msgspec.field(default_factory=Score)
    """Of his hints."""


class Experience(msgspec.Struct):
    """What one eviction policy remembers beside the demand; each uses what it needs."""

    inflation: float = 0.0
    priority: dict[ModelId, float] = {}
    histogram: dict[ModelId, list[int]] = {}
    hits: list[list[float]] = []
    ends: list[list[float]] = []
    density: list[list[float]] = []
    events: int = 0


class Forecast(msgspec.Struct):
    """What the forecast has learned. Kept by ``forecast``."""

    weights: list[list[float]] = []
    """In use: one list per head."""
    learned: list[list[float]] = []
    """Being learned; becomes ``weights`` now and then."""
    squares: list[list[float]] = []
    """Sums of squared gradients (Adagrad)."""
    version: int = 0
    """Counts how often ``weights`` changed."""
    lessons: int = 0
    cursor: int = 0
    sampled_us: InstantUs = InstantUs(0)
    idle_us: SpanUs = SpanUs(0)
    """How long victims had not been used when they left: the cache's characteristic time."""
    byte_price: float = 0.0
    """Seconds of expected waiting that a byte of GPU memory is worth: what victims cost per byte."""
    misses: float = 0.0
    misses_us: InstantUs = InstantUs(0)
    """Loads on demand, decayed."""
    needs: list[int] = []
    """Bytes of the latest loads on demand."""
    useful: float = 0.0
    useless: float = 0.0
    """Loads ahead of demand that served somebody, and those that left unused; decayed."""
    caution: float = 1.0
    """Times ``prewarm.KAPPA``: the price of a load ahead of demand, by how useful the last ones were."""
    ahead_us: InstantUs = InstantUs(0)
    """Loads ahead of demand are not looked for again before this instant."""
    spent_us: float = 0.0
    spent_at_us: InstantUs = InstantUs(0)
    """Loader time given to loads ahead of demand, decayed over an hour."""
