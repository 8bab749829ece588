"""Keeps a runner addressable while its name is moved or deleted.

Ollama's runner goes on under a name that no longer leads to it, for ever if it is pinned, and keep_alive 0 by that name
does nothing (ollama.md 2.3, 12). So the old version gets a name of its own first, by which it is unloaded afterwards.
Changes of one name at the same time share that name: the first gives it, the last takes it away.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2s

import msgspec

from bellmare.core.units import WorkerId
from bellmare.http.client import UpstreamError
from bellmare.protocols import ollama
from bellmare.protocols.names import KEPT_PREFIX
from bellmare.runtime.tasks import Tasks
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.port import WorkerFault

TIMEOUT_S = 30.0
GONE_S = 600.0
"""A runner leaves when its last answer has ended."""
POLL_S = 0.25


def kept_name(name: str, digest: str) -> str:
    """The name under which the version ``digest`` of ``name`` is kept meanwhile."""
    return f"{KEPT_PREFIX}{blake2s(f'{name} {digest}'.encode(), digest_size=8).hexdigest()}:latest"


class _Kept:
    """One version on one worker, as long as somebody changes its name."""

    __slots__ = ("gone", "named", "users")

    def __init__(self) -> None:
        self.users = 0
        self.named = asyncio.Event()
        """It has its other name, or cannot get it."""
        self.gone = asyncio.Event()
        """That name has been taken away again."""


class Keeper:
    """For all changes of a gateway. ``tasks`` holds what is still to be done when a client has left."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._kept: dict[tuple[WorkerId, str], _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @asynccontextmanager
    async def keeping(self, port: OllamaWorker, name: str) -> AsyncIterator[None]:
        """Do inside what moves or deletes ``name``; afterwards a runner of the version that it had is unloaded.

        Raises UpstreamError if the worker cannot be asked.
        """
        before = port.tags.get(name)
        resident = before is not None and any(entry.digest == before.digest for entry in port.running)
        if before is None or not resident:
            yield
            return
        other = kept_name(name, before.digest)
        key = (port.worker, other)
        while (kept := self._kept.get(key)) is not None and not kept.users:
            await kept.gone.wait()  # its last user lets it go, which has an end
        first = kept is None
        if kept is None:
            kept = self._kept[key] = _Kept()
        kept.users += 1
        try:
            if first:
                await _give_name(port, before.name, other=other, kept=kept)
            else:
                await kept.named.wait()  # the first one's, which has a timeout
            yield
        finally:
            kept.users -= 1
            if not kept.users:
                leaving = _let_go(port, name, kept=other, digest=before.digest)
                task = self._tasks.spawn(leaving, name="unload a version without a name")
                task.add_done_callback(partial(self._gone, key))
                await asyncio.wait((task,))  # it goes on if the client leaves

    def _gone(self, key: tuple[WorkerId, str], task: "asyncio.Task[None]") -> None:
        self._kept.pop(key).gone.set()


async def _give_name(port: OllamaWorker, name: str, *, other: str, kept: _Kept) -> None:
    copy = msgspec.json.encode({"source": name, "destination": other})
    try:
        await port.upstream.fetch("POST", "/api/copy", body=copy, timeout_s=TIMEOUT_S)
    finally:
        kept.named.set()


async def _let_go(port: OllamaWorker, name: str, *, kept: str, digest: str) -> None:
    try:
        observed = await port.observe(timeout_s=TIMEOUT_S)
        now = next((stored for stored in observed.stored if stored.name == name), None)
        if now is None or now.digest != digest:
            path, body = ollama.unload_body(kept)
            await port.upstream.fetch("POST", path, body=body, timeout_s=TIMEOUT_S)
            async with asyncio.timeout(GONE_S):
                while any(entry.digest == digest for entry in port.running):
                    await asyncio.sleep(POLL_S)
                    await port.observe(timeout_s=TIMEOUT_S)
        await port.upstream.fetch(
            "DELETE", "/api/delete", body=msgspec.json.encode({"model": kept}), timeout_s=TIMEOUT_S
        )
    except (UpstreamError, WorkerFault, TimeoutError):
        pass  # the worker is away: what it still has then is found at its next observation
