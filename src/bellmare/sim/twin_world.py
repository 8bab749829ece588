"""The faithful world: every worker is the twin of a stock Ollama, told what the gateway would tell it over HTTP.

Slower than ``world``. What it adds: Ollama's own fit test, spilling, its queue and semaphores, and the memory that
comes back only after a runner has left the list.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.core.decisions import Decision, Dispatch, Load, Observe, Reject, Unload
from bellmare.core.decisions import Drain, Undrain
from bellmare.core.events import (
    DispatchFailed,
    Event,
    FaultKind,
    FirstTokenReceived,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestFinished,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import GIB, Bytes, InstantUs, ModelId, WorkerId
from bellmare.sim.fleet import FOOTPRINT_BYTES, SimFleet
from bellmare.sim.tally import Tally
from bellmare.sim.twins import (
    CONTEXT,
    RUNNERS_UNLIMITED,
    generate,
    load_only,
    predicted_kv_bytes_per_token,
    twin_config,
    twin_models,
)
from bellmare.sim.world import FOREVER_US, request_index, stored_models
from bellmare.twin.config import FOREVER_US as KEPT_FOREVER_US
from bellmare.twin.messages import (
    Effect,
    Failed,
    Finished,
    FirstToken,
    Input,
    Loaded,
    LoadReplied,
    LoadStarted,
    MemoryFreed,
    RunnerGone,
    RunnerLoaded,
    Tick,
    Unload as TwinUnload,
)
from bellmare.twin.server import Twin

HEADROOM_BYTES = Bytes(GIB)
"""llama-server moves layers to the CPU below so much free memory (ollama.md 3.3)."""
FIT_PERCENT = 80


class Server:
    """One worker: its twin, and the operation that the gateway has under way there."""

    __slots__ = ("load", "twin", "unload")

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.load: Load | None = None
        self.unload: Unload | None = None


class TwinWorld:
    """A ``World`` of twins. Effects of a step become events of the same instant."""

    def __init__(self, workload: Any, fleet: SimFleet, tally: Tally) -> None:
        self.fleet = fleet
        self.tally = tally
        self.slots: int = workload.slots
        config = twin_config(fleet, slots=self.slots, pinned=True, unlimited=True)
        models = twin_models(workload)
        self.servers = {worker: Server(Twin(config, models)) for worker in fleet.names()}
