"""What shadows hold, as plain data: part of ``state.State``. ``ghosts``, ``ghost_stock`` and ``shadows`` keep it."""

import msgspec

from bellmare.core.knowledge import Experience
from bellmare.core.units import Bytes, InstantUs, ModelId, SpanUs, WorkerId


class Held(msgspec.Struct):
    """A model that a shadow believes to be loaded: what an eviction policy asks of a runner, and no more."""

    model: ModelId
    bytes: Bytes
    used_us: InstantUs
    load_us: SpanUs
    ready_us: InstantUs
    """When its load ends."""
    busy_us: InstantUs
    """When its last request should end."""


class Bin(msgspec.Struct):
    """One worker's memory as a shadow fills it."""

    index: int
    """As ``Worker.index``."""
    held: dict[ModelId, Held] = {}
    used_bytes: int = 0
    filed: int = 0
    """What it is filed under in ``Shadow.room``; the worker's own limits may have changed since."""
    loader_us: InstantUs = InstantUs(0)
    """Its loader is free from then on."""
    in_routing: bool = False
    connections: int = 0
    """Requests under way. Kept for stock Ollama only."""


class Tally(msgspec.Struct):
    """Cold starts and loads on demand, in all and lately: the latter decayed, as of ``at_us``."""

    cold_starts: int = 0
    """Requests for which no copy was ready on arrival."""
    loads: int = 0
    load_us: SpanUs = SpanUs(0)
    recent_cold_starts: float = 0.0
    recent_loads: float = 0.0
    recent_load_s: float = 0.0
    recent_squares: float = 0.0
    """Squares of the loads' seconds: how much their sum may owe to chance."""
    at_us: InstantUs = InstantUs(0)


class Shadow(msgspec.Struct):
    """What the fleet would hold if another policy decided, on demand only. Kept by ``ghosts`` and ``ghost_stock``."""

    bins: dict[WorkerId, Bin] = {}
    where: dict[ModelId, WorkerId] = {}
    """Which bin holds a model. Unused by stock Ollama, which holds a model on several workers."""
    room: list[tuple[int, int]] = []
    """Bins in routing: (free bytes, or connections of stock Ollama; worker index), ascending."""
    ends: list[tuple[InstantUs, int]] = []
    """When requests under way should end, and on which worker: a heap. Kept for stock Ollama only."""
    tally: Tally = msgspec.field(default_factory=Tally)
    experience: Experience = msgspec.field(default_factory=Experience)


class Shadows(msgspec.Struct):
    """All shadows, and what the real fleet did meanwhile. Kept by ``shadows``."""

    ghosts: dict[str, Shadow] = {}
    """By the name of the policy; ``stock`` is stock Ollama."""
    fleet: Tally = msgspec.field(default_factory=Tally)
    switched_us: InstantUs = InstantUs(-1)
    """When the policy in use was last changed, or the first request came; -1: none has come."""
    compared_us: InstantUs = InstantUs(0)
    switches: int = 0
