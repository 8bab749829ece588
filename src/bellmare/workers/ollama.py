"""Any server that speaks Ollama's API, as a worker: stock Ollama, the simulated worker and the embedded engine alike.

Every call carries a timeout. Nothing here decides: it asks, loads and unloads as told, and translates.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from bellmare.core.events import FaultKind, LoadedModel, StoredModel, WorkerAdded, WorkerKind
from bellmare.core.memory import memory_shape
from bellmare.core.units import GIB, MIB, Bytes, ModelId, WorkerId
from bellmare.http.client import Upstream, UpstreamError, UpstreamFailureKind
from bellmare.http.messages import Response
from bellmare.protocols import ollama
from bellmare.protocols.errors import BadAnswer, InvalidRequest, upstream_error_text
from bellmare.protocols.names import KEPT_PREFIX, canonical_name, is_cloud_name
from bellmare.workers.port import Observation, WorkerFault

SHOWS_AT_ONCE = 4
"""Questions for model details under way; a first look at 300 names must not flood a server."""
ANSWER_BYTES_MAX = 64 * MIB
"""/api/show lists every tensor: some megabytes for the largest models."""
GONE_POLL_S = 0.05
LISTED_TRIES = 20
"""A loaded model is in /api/ps at once; a second is for servers that write their list behind."""
MEMORY_BACK_S = 1.5
"""A runner leaves /api/ps before the driver has its memory back, typically 0.5 to 1.5 s; a load sent in between finds
no room and makes Ollama evict somebody (ollama.md 2.3, 3.3). Waited out where the memory itself cannot be seen."""
MEMORY_BACK_MAX_S = 5.0
"""Ollama's own patience."""
MEMORY_BACK_PERCENT = 75
"""So much of the runner's size must be free again, by Ollama's own rule."""
GUESSED_CAPACITY_BYTES = Bytes(8 * GIB)
"""For a remote Ollama of unknown size: the smallest card in common use. Raised when more is seen to fit."""
GPU_RUNNER_OVERHEAD_BYTES = Bytes(512 * MIB)
"""CUDA context and kernels, once per llama-server process (ollama.md 4.2)."""
GPU_HEADROOM_BYTES = Bytes(GIB)
"""llama-server moves layers to the CPU, silently, below 1 GiB free (ollama.md 3.3)."""
STOCK_RUNNERS_MAX = 3
"""OLLAMA_MAX_LOADED_MODELS defaults to three per GPU, and is not shown by the API."""
ONE_SLOT_FAMILIES = (
    "mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe", "nemotron_h",
)  # fmt: skip
"""Ollama forces one slot for these (ollama.md 3.2)."""
DIGESTS_MAX = 10_000
_UNREADABLE = (BadAnswer, msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a worker's nonsense raises."""

FAULTS: dict[UpstreamFailureKind, FaultKind] = {
    UpstreamFailureKind.refused: FaultKind.refused,
    UpstreamFailureKind.connect_timeout: FaultKind.unreachable,
    UpstreamFailureKind.reset: FaultKind.reset,
    UpstreamFailureKind.closed_early: FaultKind.reset,
    UpstreamFailureKind.bad_response: FaultKind.bad_answer,
    UpstreamFailureKind.too_large: FaultKind.bad_answer,
    UpstreamFailureKind.timeout: FaultKind.timeout,
    UpstreamFailureKind.stalled: FaultKind.timeout,
}


class WorkerSettings(msgspec.Struct, frozen=True):
    """What the operator says of one worker; None leaves it to the worker's own word, else to the defaults."""

    kind: WorkerKind = WorkerKind.ollama
    capacity_bytes: Bytes | None = None
    headroom: Callable[[WorkerKind, int], Bytes] | None = None
    """Bytes to keep free, by kind and capacity; None: the kind's default."""
    parallel: int | None = None
    runners_max: int | None = None
    local_capacity_bytes: Bytes | None = None
    """Memory of this machine's GPUs, if the worker runs on it: a better guess than the default."""


class _OwnWord(msgspec.Struct, frozen=True):
    """GET /api/bellmare of our own workers; stock Ollama answers 404."""

    kind: WorkerKind
    vram_bytes: int
    parallel: int
    runners_max: int = 0
    fit_percent: int = 100
    overhead_bytes: int | None = None
    vram_used_bytes: int | None = None
    """None: memory is back as soon as a runner is gone."""


class OllamaWorker:
    """One worker over HTTP; see ``port.WorkerPort``."""

    def __init__(
        self, worker: WorkerId, upstream: Upstream, *, settings: WorkerSettings, now_utc: Callable[[], str]
    ) -> None:
        self.worker = worker
        self.upstream = upstream
        self.settings = settings
        self.tags: dict[str, ollama.TagsModel] = {}
        """Canonical name to the worker's own entry, for the merged list."""
        self.running: tuple[ollama.PsModel, ...] = ()
        """As /api/ps showed it last: at an observation, after a load, during an unload."""
        self._now_utc = now_utc
        self._tags_body = b""
        self.abilities: dict[str, frozenset[str]] = {}
        """What its models can do, by canonical name, in Ollama's words; models of old Ollamas are missing."""
        self._described: dict[tuple[str, str], StoredModel] = {}
        """By name and digest."""
        self._stored: dict[str, StoredModel] = {}
        self._blobs: dict[str, ModelId] = {}
        """Manifest digest to blob, for everything ever seen: /api/ps keeps old digests (ollama.md 2.3)."""
        self._version = ""
        self._observing = asyncio.Lock()
        """Two looks at once would take from each other what they have read."""

    async def profile(self, *, timeout_s: float) -> WorkerAdded:
        own = await self._own_word(timeout_s=timeout_s)
        settings = self.settings
        kind = own.kind if own is not None else settings.kind
        gpu = kind is not WorkerKind.embedded
        capacity = settings.capacity_bytes
        if capacity is None and own is not None:
            capacity = Bytes(own.vram_bytes)
        known = capacity is not None
        if capacity is None:
            capacity = settings.local_capacity_bytes or GUESSED_CAPACITY_BYTES
        headroom = GPU_HEADROOM_BYTES if gpu else Bytes(0)
        if settings.headroom is not None:
            headroom = settings.headroom(kind, capacity)
        overhead = GPU_RUNNER_OVERHEAD_BYTES if gpu else Bytes(0)
        if own is not None and own.overhead_bytes is not None:
            overhead = Bytes(own.overhead_bytes)
        runners_max = settings.runners_max
        if runners_max is None:
            runners_max = own.runners_max if own is not None else STOCK_RUNNERS_MAX
        return WorkerAdded(
            worker=self.worker,
            kind=kind,
            capacity_bytes=capacity,
            capacity_known=known,
            headroom_bytes=headroom,
            overhead_bytes=overhead,
            overhead_shown=not gpu,
            parallel=settings.parallel or (own.parallel if own is not None else 1),
            runners_max=runners_max,
            fit_percent=own.fit_percent if own is not None else 80,
        )

    async def _own_word(self, *, timeout_s: float) -> _OwnWord | None:
        try:
            answer = await self._fetch("GET", "/api/bellmare", timeout_s=timeout_s)
            return msgspec.json.decode(answer.body, type=_OwnWord) if answer.status == 200 else None
        except _UNREADABLE:
            return None

    async def observe(self, *, timeout_s: float) -> Observation:
        async with _within(timeout_s):
            try:
                async with self._observing:
                    return await self._observe(timeout_s=timeout_s)
            except _UNREADABLE as error:
                raise WorkerFault(FaultKind.bad_answer, str(error)) from error

    async def _observe(self, *, timeout_s: float) -> Observation:
        stored = await self._look_at_disk(timeout_s=timeout_s)
        running = await self._running(timeout_s=timeout_s)
        if not self._version:
            answer = await self._ok("GET", "/api/version", timeout_s=timeout_s)
            self._version = str(msgspec.json.decode(answer.body, type=dict[str, object]).get("version", ""))[:40]
        return Observation(loaded=tuple(self._loaded(entry) for entry in running), stored=stored, version=self._version)

    async def _look_at_disk(self, *, timeout_s: float) -> tuple[StoredModel, ...]:
        """The names on disk, described; read again only if the list is not byte for byte what it was."""
        answer = await self._ok("GET", "/api/tags", timeout_s=timeout_s)
        if answer.body == self._tags_body:
            return tuple(self._stored.values())
        tags: dict[str, ollama.TagsModel] = {}
        for entry in ollama.decode_tags(answer.body).models:
            try:
                if not is_cloud_name(entry.name) and not entry.name.startswith(KEPT_PREFIX):
                    tags[canonical_name(entry.name)] = entry
            except InvalidRequest:
                continue  # a name that no client could ask for either
        gate = asyncio.Semaphore(SHOWS_AT_ONCE)
        fresh = [entry for name, entry in tags.items() if (name, entry.digest) not in self._described]
        looks = (self._describe(entry, gate=gate, timeout_s=timeout_s) for entry in fresh)
        for outcome in await asyncio.gather(*looks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        keys = {(name, entry.digest) for name, entry in tags.items()}
        self._described = {key: model for key, model in self._described.items() if key in keys}
        self._stored = {name: self._described[name, entry.digest] for name, entry in tags.items()}
        self.tags = tags
        self.abilities = {name: found for name, found in self.abilities.items() if name in tags}
        for model in self._stored.values():
            self._blobs[model.digest] = model.model
        while len(self._blobs) > DIGESTS_MAX:
            del self._blobs[next(iter(self._blobs))]
        self._tags_body = answer.body
        return tuple(self._stored.values())

    async def _describe(self, entry: ollama.TagsModel, *, gate: asyncio.Semaphore, timeout_s: float) -> None:
        """Remember what /api/show says about one name, at once: a first look that times out goes on where it was."""
        show = ollama.ShowAnswer()
        body = ollama.encode_show(ollama.ShowRequest(model=entry.name), model=entry.name)
        try:
            async with gate:
                answer = await self._fetch("POST", "/api/show", body=body, timeout_s=timeout_s)
            if answer.status == 200:
                show = ollama.decode_show(answer.body)
        except BadAnswer:
            pass  # the weights' size alone gives a coarser estimate
        except WorkerFault as fault:
            if fault.fault is not FaultKind.bad_answer:
                raise
        name = canonical_name(entry.name)
        self._described[name, entry.digest] = stored_model(name, entry, show)
        if show.capabilities:
            self.abilities[name] = frozenset(show.capabilities)
        else:
            self.abilities.pop(name, None)

    async def _running(self, *, timeout_s: float) -> list[ollama.PsModel]:
        answer = await self._ok("GET", "/api/ps", timeout_s=timeout_s)
        try:
            running = ollama.decode_ps(answer.body).models
        except BadAnswer as error:
            raise WorkerFault(FaultKind.bad_answer, str(error)) from error
        self.running = tuple(running)
        return running

    def _loaded(self, entry: ollama.PsModel) -> LoadedModel:
        try:
            name = canonical_name(entry.name)
        except InvalidRequest:
            name = entry.name
        return LoadedModel(
            name=name,
            model=self._blobs.get(entry.digest) if entry.digest else self._blob(name),
            bytes=Bytes(max(entry.size, entry.size_vram)),
            spilled_bytes=Bytes(max(0, entry.size - entry.size_vram) if entry.size_vram else 0),
            num_ctx=entry.context_length,
            pinned=ollama.expires_far(entry.expires_at),
            expired=ollama.expires_before(entry.expires_at, self._now_utc()),
        )

    async def load(self, name: str, *, num_ctx: int, embedding: bool, timeout_s: float) -> LoadedModel:
        async with _within(timeout_s):
            return await self._load(name, num_ctx=num_ctx, embedding=embedding, timeout_s=timeout_s)

    async def _load(self, name: str, *, num_ctx: int, embedding: bool, timeout_s: float) -> LoadedModel:
        path, body = ollama.load_body(name, num_ctx, embedding=embedding)
        answer = await self._fetch("POST", path, body=body, timeout_s=timeout_s)
        if answer.status != 200:
            raise WorkerFault(_status_fault(answer.status), upstream_error_text(answer.body))
        error = ollama.first_error(answer.body)
        if error is not None:
            raise WorkerFault(FaultKind.failed, error)
        for _ in range(LISTED_TRIES):
            running = await self._running(timeout_s=timeout_s)
            found = next((entry for entry in running if self._is(entry, name)), None)
            if found is not None:
                return self._loaded(found)
            await asyncio.sleep(GONE_POLL_S)
        raise WorkerFault(FaultKind.bad_answer, f"'{name}' was reported loaded but is not in /api/ps")

    async def unload(self, name: str, *, timeout_s: float) -> None:
        async with _within(timeout_s):
            await self._unload(name, timeout_s=timeout_s)

    async def _unload(self, name: str, *, timeout_s: float) -> None:
        path, body = ollama.unload_body(name)
        own = await self._own_word(timeout_s=timeout_s)
        before = await self._running(timeout_s=timeout_s)
        answer = await self._fetch("POST", path, body=body, timeout_s=timeout_s)
        if answer.status != 200:
            raise WorkerFault(_status_fault(answer.status), upstream_error_text(answer.body))
        # Ollama tells nobody when a runner is gone, so one has to ask again.
        while any(self._is(entry, name) for entry in await self._running(timeout_s=timeout_s)):  # noqa: ASYNC110
            await asyncio.sleep(GONE_POLL_S)
        leaving = next((entry for entry in before if self._is(entry, name)), None)
        if leaving is not None and leaving.size_vram > 0:
            await self._memory_back(own, leaving.size_vram, staying=[e for e in before if e is not leaving])

    async def _memory_back(self, before: _OwnWord | None, size_bytes: int, *, staying: list[ollama.PsModel]) -> None:
        """Wait until the driver has the memory of a runner that is gone.

        A runner that had crashed gave it back long ago, although /api/ps went on listing it (ollama.md 12): then no
        more is in use than those that stay account for.
        """
        if before is None:
            await asyncio.sleep(MEMORY_BACK_S)
            return
        if before.vram_used_bytes is None:
            return
        others = sum(entry.size_vram + (before.overhead_bytes or 0) for entry in staying)
        back = size_bytes * MEMORY_BACK_PERCENT // 100
        enough = max(before.vram_used_bytes - back, others + size_bytes - back)
        for _ in range(round(MEMORY_BACK_MAX_S / GONE_POLL_S)):
            now = await self._own_word(timeout_s=MEMORY_BACK_MAX_S)
            if now is None or now.vram_used_bytes is None or now.vram_used_bytes <= enough:
                return
            await asyncio.sleep(GONE_POLL_S)

    def _is(self, entry: ollama.PsModel, name: str) -> bool:
        loaded = self._loaded(entry)
        blob = self._blob(name)
        return loaded.name == name if blob is None or loaded.model is None else loaded.model == blob

    def _blob(self, name: str) -> ModelId | None:
        stored = self._stored.get(name)
        return stored.model if stored is not None else None

    async def close(self) -> None:
        await self.upstream.close()

    async def _ok(self, method: str, path: str, *, timeout_s: float) -> Response:
        answer = await self._fetch(method, path, timeout_s=timeout_s)
        if answer.status != 200:
            raise WorkerFault(FaultKind.bad_answer, f"{path}: status {answer.status}")
        return answer

    async def _fetch(self, method: str, path: str, *, body: bytes = b"", timeout_s: float) -> Response:
        try:
            return await self.upstream.fetch(
                method, path, body=body, timeout_s=timeout_s, body_max_bytes=ANSWER_BYTES_MAX
            )
        except UpstreamError as error:
            raise WorkerFault(FAULTS[error.failure.kind], error.failure.detail) from error


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    """The whole of a method's work within its timeout, as a fault of the worker."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise WorkerFault(FaultKind.timeout, f"no end within {timeout_s} s") from None


def _status_fault(status: int) -> FaultKind:
    if status == 404:
        return FaultKind.not_found
    return FaultKind.busy if status == 503 else FaultKind.failed


def stored_model(name: str, entry: ollama.TagsModel, show: ollama.ShowAnswer) -> StoredModel:
    """One name as the core wants it: identity is the blob, sizes from the GGUF's own figures (ollama.md 3.1, 4.1)."""
    info = show.model_info or {}
    shape = memory_shape(info)
    architecture = str(info.get("general.architecture") or show.details.family)
    context = info.get(f"{architecture}.context_length")
    capabilities = show.capabilities or []
    embedding = "embedding" in capabilities and "completion" not in capabilities
    blob = ollama.blob_of(show.modelfile) or (f"digest:{entry.digest}" if entry.digest else f"name:{name}")
    return StoredModel(
        name=name,
        model=ModelId(blob),
        digest=entry.digest,
        weights_bytes=Bytes(max(0, entry.size)),
        kv_bytes_per_token=shape.kv_bytes_per_token,
        predicted_kv_bytes_per_token=shape.predicted_kv_bytes_per_token,
        recurrent_bytes_per_slot=shape.fixed_bytes_per_slot,
        compute_bytes=shape.compute_bytes,
        context_max=context if isinstance(context, int) and context > 0 else 0,
        num_ctx=ollama.num_ctx_of(show.parameters),
        parallel_max=1 if embedding or architecture in ONE_SLOT_FAMILIES else 0,
        embedding=embedding,
    )
