"""The port between the shell and whatever runs models. Adapters raise :class:`WorkerFault`, no library's errors."""

from typing import Protocol

import msgspec

from bellmare.core.events import FaultKind, LoadedModel, StoredModel, WorkerAdded
from bellmare.core.units import WorkerId
from bellmare.http.client import Upstream


class WorkerFault(Exception):  # noqa: N818 - named for whose error it is
    """The outside world did not do as asked. ``detail`` is for operators, not for tenants."""

    def __init__(self, fault: FaultKind, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail


class Observation(msgspec.Struct, frozen=True):
    """What a worker showed, in the core's words."""

    loaded: tuple[LoadedModel, ...]
    stored: tuple[StoredModel, ...]
    version: str


class WorkerPort(Protocol):
    """One worker. Every method waits at most ``timeout_s`` and ends with a value or a :class:`WorkerFault`."""

    worker: WorkerId
    upstream: Upstream
    """Where requests are relayed; the relay uses it directly, so that bytes pass through nothing else."""

    async def profile(self, *, timeout_s: float) -> WorkerAdded:
        """Capacity, slots and rules: from settings, else from the worker's own word, else the kind's defaults."""

    async def observe(self, *, timeout_s: float) -> Observation:
        """Read /api/ps, and /api/tags with /api/show for names not seen before."""

    async def load(self, name: str, *, num_ctx: int, embedding: bool, timeout_s: float) -> LoadedModel:
        """Make ``name`` resident and pinned with ``num_ctx`` per slot; returns it as /api/ps then shows it."""

    async def unload(self, name: str, *, timeout_s: float) -> None:
        """Ask it to leave and wait until it is gone from /api/ps."""

    async def close(self) -> None:
        """Close idle connections."""
