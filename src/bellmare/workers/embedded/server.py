"""Puts the embedded worker together, and runs it in the foreground for the command line."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from bellmare.core.units import MIB
from bellmare.http.server import Server, listen
from bellmare.workers.embedded.app import App
from bellmare.workers.embedded.catalogue import Catalogue
from bellmare.workers.embedded.child import NOT_INSTALLED
from bellmare.workers.embedded.engine import RUNNER_OVERHEAD_BYTES, Counters, Engine, EngineConfig
from bellmare.workers.embedded.fetch import default_models_dir

CLOSE_GRACE_S = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_MEMORY_BYTES_UNKNOWN = 4096 * MIB
"""Where the system does not say how much it has."""


class EngineNotInstalledError(Exception):
    """The extra ``embedded`` is missing; the text says how to install it."""


def half_of_memory_bytes() -> int:
    """Half of the physical memory: the other half is the operating system's, the page cache's and the user's."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return _MEMORY_BYTES_UNKNOWN


class EmbeddedConfig(msgspec.Struct, frozen=True):
    """Settings of one embedded worker. Each has a default with which ``bellmare up`` works."""

    models_dir: Path = msgspec.field(default_factory=default_models_dir)
    memory_bytes: int = msgspec.field(default_factory=half_of_memory_bytes)
    """For all runners together. A load past it is refused; nothing is ever evicted."""
    parallel: int = 2
    """Slots per model. Not Ollama's 1, so that a second person's first token does not wait for the first one's last
    (0.2 s instead of 1.2 s for SmolLM2 on 2 cores). No more, because together they make no more tokens a second
    (measured 111 for one, 115 for two), and each slot costs its KV cache."""
    threads: int = 0
    """Per model; zero is the engine's own choice, the physical cores."""
    num_ctx: int = 4096
    """Tokens per slot where a request names none; never above the model's training context. Ollama's CPU default."""
    keep_alive_s: float = 300.0
    """Of a load that names none, as Ollama; infinite for ever."""
    load_timeout_s: float = 300.0
    runner_overhead_bytes: int = RUNNER_OVERHEAD_BYTES

    def __post_init__(self) -> None:
        assert self.memory_bytes > 0
        assert 1 <= self.parallel <= 64
        assert self.num_ctx > 0


class EmbeddedServer:
    """A running worker. Made by :func:`start_embedded_worker`; must be closed."""

    def __init__(self, server: Server, app: App, engine: Engine, catalogue: Catalogue) -> None:
        self._server = server
        self._app = app
        self._engine = engine
        self.catalogue = catalogue

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def counters(self) -> Counters:
        return self._engine.counters

    @property
    def engine(self) -> Engine:
        return self._engine

    async def close(self, *, grace_s: float = CLOSE_GRACE_S) -> None:
        """Let answers end within ``grace_s``, cut the rest, end all children. When it returns no process is left."""
        await self._server.close(grace_s)
        await self._app.close()
        await self._engine.close()


def check_installed() -> None:
    """Raise :class:`EngineNotInstalledError` if the engine's package is missing. Does not import it (0.1 s, 100 MB)."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineNotInstalledError(NOT_INSTALLED)


async def start_embedded_worker(config: EmbeddedConfig, *, host: str = "127.0.0.1", port: int = 0) -> EmbeddedServer:
    """Listen on ``host``:``port`` (0: any free port). No model is loaded or fetched by this.

    Raises :class:`EngineNotInstalledError`, or OSError if the address cannot be bound.
    """
    check_installed()
    models = Catalogue(config.models_dir)
    await models.refresh()
    engine = Engine(
        EngineConfig(
            memory_bytes=config.memory_bytes,
            parallel=config.parallel,
            threads=config.threads,
            keep_alive_s=config.keep_alive_s,
            load_timeout_s=config.load_timeout_s,
            runner_overhead_bytes=config.runner_overhead_bytes,
        )
    )
    app = App(models, engine, num_ctx=config.num_ctx, check_host=host in _LOOPBACK)
    server = await listen(app, host, port)
    return EmbeddedServer(server, app, engine, models)


async def run_embedded_worker(
    config: EmbeddedConfig, *, host: str, port: int, on_ready: Callable[[EmbeddedServer], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then end all children. For the command line, on the main thread."""
    worker = await start_embedded_worker(config, host=host, port=port)
    try:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        if on_ready is not None:
            on_ready(worker)
        await stopped.wait()
    finally:
        await worker.close()
