"""Keeps a runner addressable while its name is moved or deleted.

Ollama's runner goes on under a name that no longer leads to it, for ever if it is pinned, and keep_alive 0 by that name
does nothing (ollama.md 2.3, 12). So the old version gets a name of its own first, by which it is unloaded afterwards.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2s

import msgspec

from bellmare.http.client import UpstreamError
from bellmare.protocols import ollama
from bellmare.protocols.names import KEPT_PREFIX
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.port import WorkerFault

TIMEOUT_S = 30.0
GONE_S = 600.0
"""A runner leaves when its last answer has ended."""
POLL_S = 0.25


def kept_name(name: str) -> str:
    """The name under which the old version of ``name`` is kept meanwhile."""
    return f"{KEPT_PREFIX}{blake2s(name.encode(), digest_size=8).hexdigest()}:latest"


@asynccontextmanager
async def keeping(port: OllamaWorker, name: str) -> AsyncIterator[None]:
    """Do inside what moves or deletes ``name``; afterwards a runner of the version that it had is unloaded."""
    before = port.tags.get(name)
    resident = before is not None and any(entry.digest == before.digest for entry in port.running)
    if before is None or not resident:
        yield
        return
    kept = kept_name(name)
    copy = msgspec.json.encode({"source": before.name, "destination": kept})
    await port.upstream.fetch("POST", "/api/copy", body=copy, timeout_s=TIMEOUT_S)
    try:
        yield
    finally:
        await _let_go(port, name, kept=kept, digest=before.digest)


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
