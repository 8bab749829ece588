"""Decides which models are loaded: on request, one load at a time, within a memory budget. Never evicts by itself.

Ollama's rules without its evictions: a runner belongs to a blob, a request with another context length or another
``shift`` makes it reload, and keep_alive counts from the end of the last request (ollama.md 2.2, 3.4). A load that does
not fit is refused.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from bellmare.core.units import MIB
from bellmare.http.client import Upstream
from bellmare.workers.embedded.catalogue import ModelBlob, NamedModel
from bellmare.workers.embedded.process import EngineArguments, EngineProcess, EngineStartError

FOREVER_S = math.inf
RUNNER_OVERHEAD_BYTES = 96 * MIB
"""Of one child beside weights and KV: Python, compute and output buffers; 85 MiB were measured for SmolLM2."""
KEEP_ALIVE_S_MAX = 10 * 365 * 86_400.0
"""Longer is for ever; an event loop's timer overflows somewhere above."""


class EngineConfig(msgspec.Struct, frozen=True):
    """``memory_bytes`` bounds the sum of :func:`claimed_bytes` of all runners."""

    memory_bytes: int
    parallel: int
    threads: int
    keep_alive_s: float
    load_timeout_s: float
    stop_grace_s: float = 2.0
    runner_overhead_bytes: int = RUNNER_OVERHEAD_BYTES


class Counters(msgspec.Struct):
    """Since the start. ``own_evictions`` is zero by construction, and said so that a gateway can check it."""

    loads: int = 0
    failed_loads: int = 0
    refused_loads: int = 0
    implicit_loads: int = 0
    """Loads that an ordinary request caused because its model was not loaded."""
    reloads: int = 0
    """Loads that a request caused by asking for another context length or ``shift``."""
    unloads: int = 0
    crashes: int = 0
    bytes_max: int = 0
    """The most that was ever claimed at once."""
    own_evictions: int = 0


class State(enum.Enum):
    loading = enum.auto()
    ready = enum.auto()
    draining = enum.auto()
    """About to be reloaded: finishes what it has, takes nothing new."""
    stopping = enum.auto()


class Runner:
    """One loaded model. Owned by :class:`Engine`; others only read it."""

    __slots__ = (
        "claimed_bytes", "expires_at_s", "gone", "idle", "keep_alive_s", "model",
        "num_ctx", "process", "references", "shift", "slots", "state", "timer", "upstream",
    )  # fmt: skip

    def __init__(
        self, model: NamedModel, *, num_ctx: int, shift: bool, claimed_bytes: int, parallel: int
    ) -> None:  # tidy: what makes a runner
        self.model = model
        """Under the name that caused the load."""
        self.num_ctx = num_ctx
        self.shift = shift
        self.claimed_bytes = claimed_bytes
        self.state = State.loading
        self.process: EngineProcess | None = None
        """Set from ``ready`` on, as is ``upstream``."""
        self.upstream: Upstream | None = None
        self.references = 0
        """Requests that hold it, waiting for a slot or running; above zero it is not stopped."""
        self.idle = asyncio.Event()
        """Set while ``references`` is zero."""
        self.idle.set()
        self.gone = asyncio.Event()
        self.slots = asyncio.Semaphore(parallel)
        """First come, first served, as Ollama's."""
        self.keep_alive_s = 0.0
        self.expires_at_s = 0.0
        """Unix time; infinite for ever. Corrected only when a request ends, as under Ollama."""
        self.timer: asyncio.TimerHandle | None = None


class LoadRefused(Exception):  # noqa: N818 - a decision, not an error: the load does not fit
    """The text is for the client."""


def claimed_bytes(blob: ModelBlob, *, num_ctx: int, parallel: int, overhead_bytes: int) -> int:
    """Memory that a runner is taken to need: file + f16 KV cache of all slots + a fixed overhead."""
    return blob.size_bytes + blob.header.kv_bytes_per_token * num_ctx * parallel + overhead_bytes


class Engine:
    """All runners of this worker, keyed by blob. Used from one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.counters = Counters()
        self._runners: dict[str, Runner] = {}
        """By digest of the blob: several names share one runner. Present until the process is gone."""
        self._load_turn = asyncio.Lock()
        """First come, first served; holding it is the right to load."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def runners(self) -> list[Runner]:
        """Those whose memory is or was usable, latest expiry first. A loading one is not among them (ollama.md 1.2)."""
        shown = [runner for runner in self._runners.values() if runner.state is not State.loading]
        return sorted(shown, key=lambda runner: -runner.expires_at_s)

    def bytes_now(self) -> int:
        """Claimed by all runners, those loading and those leaving included."""
        return sum(runner.claimed_bytes for runner in self._runners.values())

    @asynccontextmanager
    async def runner(
        self, model: NamedModel, *, num_ctx: int, shift: bool, keep_alive_s: float | None, implicit: bool
    ) -> AsyncIterator[Runner]:  # tidy: what a request says of its runner
        """Hold a ready runner of ``model`` with ``num_ctx`` tokens per slot, loading it if needed.

        ``keep_alive_s``: None keeps the runner's own. ``implicit``: a load here is one that nobody asked for by name.
        Raises :class:`LoadRefused` or :class:`EngineStartError`. Cancelled during a load, the load is aborted.
        """
        runner = self._ready(model, num_ctx, shift=shift)
        if runner is None:
            async with self._load_turn:
                runner = self._ready(model, num_ctx, shift=shift) or await self._load(
                    model, num_ctx=num_ctx, shift=shift, implicit=implicit
                )
                self._take(runner, keep_alive_s)
        else:
            self._take(runner, keep_alive_s)
        try:
            yield runner
        finally:
            self._give_back(runner)

    def expire(self, model: NamedModel) -> None:
        """Unload when idle; nothing if it is not loaded."""
        runner = self._runners.get(model.blob.digest)
        if runner is None or runner.state is not State.ready:
            return
        runner.keep_alive_s = 0.0
        runner.expires_at_s = time.time()
        if runner.references == 0:
            self._stop(runner)

    async def close(self) -> None:
        """End all children and wait for their exits. Loads under way must have been cancelled before."""
        self._closed = True
        for runner in list(self._runners.values()):
            self._stop(runner)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ready(self, model: NamedModel, num_ctx: int, *, shift: bool) -> Runner | None:
        runner = self._runners.get(model.blob.digest)
        if runner is None or runner.state is not State.ready:
            return None
        return runner if (runner.num_ctx, runner.shift) == (num_ctx, shift) else None

    def _take(self, runner: Runner, keep_alive_s: float | None) -> None:
        runner.references += 1
        runner.idle.clear()
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s if keep_alive_s < KEEP_ALIVE_S_MAX else FOREVER_S

    def _give_back(self, runner: Runner) -> None:
        assert runner.references > 0
        runner.references -= 1
        runner.expires_at_s = time.time() + runner.keep_alive_s
        if runner.references == 0:
            runner.idle.set()
            if runner.state is State.ready:
                self._start_timer(runner)

    def _start_timer(self, runner: Runner) -> None:
        if runner.keep_alive_s <= 0:
            self._stop(runner)
        elif runner.keep_alive_s != FOREVER_S:
            runner.timer = asyncio.get_running_loop().call_later(runner.keep_alive_s, self._stop, runner)

    async def _load(self, model: NamedModel, *, num_ctx: int, shift: bool, implicit: bool) -> Runner:
        """With the turn held. A runner of another shape leaves first, but only if the new one would then fit."""
        await self._wait_for_leaving()
        old = self._runners.get(model.blob.digest)
        is_reload = old is not None
        claimed = self._claimed(model.blob, num_ctx)
        new = Runner(model, num_ctx=num_ctx, shift=shift, claimed_bytes=claimed, parallel=self.config.parallel)
        self._check_fits(new, instead_of=old)
        if old is not None:
            assert old.state is State.ready, "only the holder of the turn makes it anything else"
            await self._drain(old)
        self.counters.loads += 1
        self.counters.reloads += is_reload
        self.counters.implicit_loads += implicit and not is_reload
        self._runners[model.blob.digest] = new
        self.counters.bytes_max = max(self.counters.bytes_max, self.bytes_now())
        await self._start(new)
        return new

    def _claimed(self, blob: ModelBlob, num_ctx: int) -> int:
        overhead = self.config.runner_overhead_bytes
        return claimed_bytes(blob, num_ctx=num_ctx, parallel=self.config.parallel, overhead_bytes=overhead)

    async def _wait_for_leaving(self) -> None:
        """Memory of a stopping runner counts until its process is gone, so wait for it rather than refuse."""
        for runner in list(self._runners.values()):
            if runner.state is State.stopping:
                await runner.gone.wait()

    def _check_fits(self, new: Runner, *, instead_of: Runner | None) -> None:
        others = sum(one.claimed_bytes for one in self._runners.values() if one is not instead_of)
        free = self.config.memory_bytes - others
        if new.claimed_bytes > free:
            self.counters.refused_loads += 1
            raise LoadRefused(
                f"model requires more system memory ({_gib(new.claimed_bytes)}) than is available ({_gib(free)} of "
                f"{_gib(self.config.memory_bytes)}); this worker never unloads another model by itself"
            )

    async def _drain(self, runner: Runner) -> None:
        runner.state = State.draining
        try:
            await runner.idle.wait()
        except asyncio.CancelledError:
            if runner.state is State.draining:
                runner.state = State.ready
                if runner.references == 0:
                    self._start_timer(runner)
            raise
        self._stop(runner)
        await runner.gone.wait()

    async def _start(self, runner: Runner) -> None:
        """On any failure the runner is taken out again and no process is left."""
        arguments = EngineArguments(
            runner.model.blob.path,
            runner.num_ctx,
            parallel=self.config.parallel,
            threads=self.config.threads,
            shift=runner.shift,
            embeddings=runner.model.blob.header.is_embedding_model,
        )
        try:
            process = await EngineProcess.start(arguments, timeout_s=self.config.load_timeout_s)
        except BaseException as error:
            del self._runners[runner.model.blob.digest]
            runner.gone.set()
            self.counters.failed_loads += isinstance(error, EngineStartError)
            raise
        runner.process = process
        runner.upstream = Upstream(process.host, process.port, base_path=process.base_path)
        runner.state = State.ready
        runner.keep_alive_s = self.config.keep_alive_s
        runner.expires_at_s = time.time() + runner.keep_alive_s
        self._spawn(self._watch(runner, process))
        if self._closed:
            self._stop(runner)

    def _stop(self, runner: Runner) -> None:
        """Begin to end the process; :meth:`_watch` takes the runner out when it is gone."""
        if runner.state in (State.stopping, State.loading):
            return
        runner.state = State.stopping
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        assert runner.process is not None
        self._spawn(runner.process.stop(grace_s=self.config.stop_grace_s))

    async def _watch(self, runner: Runner, process: EngineProcess) -> None:
        """The one place where a runner that was ready leaves: unloaded, or crashed if nobody asked for it."""
        await process.exited.wait()
        if runner.state is State.stopping and not process.died:
            self.counters.unloads += 1
        else:
            self.counters.crashes += 1
            runner.state = State.stopping
            if runner.timer is not None:
                runner.timer.cancel()
        del self._runners[runner.model.blob.digest]
        runner.gone.set()
        assert runner.upstream is not None
        await runner.upstream.close()
        await process.stop(grace_s=0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Workers stand below the runtime, whose task group they may not import.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _gib(size_bytes: int) -> str:
    return f"{max(0, size_bytes) / (1 << 30):.2f} GiB"
