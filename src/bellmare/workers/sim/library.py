"""The simulated disk and registry: blobs, and what create, pull and push do with them (ollama.md 6).

Of an uploaded blob only digest, size and first bytes are kept. Whatever GGUF it was, it is shaped as ``UPLOADED``.
"""

import hashlib
import re
from typing import Any

import msgspec

from bellmare.http.server import Exchange
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import canonical_name
from bellmare.twin.messages import StoreName
from bellmare.workers.sim.driver import Driver
from bellmare.workers.sim.faults import Faults
from bellmare.workers.sim.listing import Shelf
from bellmare.workers.sim.progress import Lines
from bellmare.workers.sim.render import JSON, encode
from bellmare.workers.sim.requests import Body
from bellmare.workers.sim.transfer import Download, Downloads, Transfer
from bellmare.workers.sim.world import Entry, SimModel, World, blob_of

BLOBS_MAX = 1_000
"""Uploaded blobs that are remembered; the oldest is forgotten, as Ollama's prune would."""
BLOBS_PATH = "/api/blobs/"
UPLOADED = SimModel("uploaded:latest", "llama", 30, 9, 3, 0, 576, 1536, 49_152, 8192, tied=True, quantization="Q8_0")
"""SmolLM2-135M's shape."""
NO_MANIFEST = "pull model manifest: file does not exist"
_HASHED_INLINE_BYTES = 1 << 20
"""A larger body is hashed on a thread: 1 MiB takes a millisecond."""
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_SMALL_LAYERS = (("license", 11_343), ("template", 182), ("config", 485))
"""Layers beside the model, with their bytes."""


class Library:
    """Handlers of the routes that change what is on the disk."""

    def __init__(self, driver: Driver, shelf: Shelf, *, world: World, faults: Faults, downloads: Downloads) -> None:
        self._driver = driver
        self._shelf = shelf
        self._world = world
        self._faults = faults
        self._downloads = downloads
        self._blobs: dict[str, tuple[int, bytes]] = {}
        """Uploaded: size and first four bytes, by digest."""

    # ---- blobs ------------------------------------------------------------------------------------------------------

    def head_blob(self, exchange: Exchange) -> None:
        """HEAD /api/blobs/:digest: 200, 404, or 400 for what is no digest."""
        digest = _digest_of(exchange.request.path)
        exchange.respond(200 if self._has(digest) else 404, JSON, b"")

    def post_blob(self, exchange: Exchange) -> None:
        """POST /api/blobs/:digest: 201, 200 if it is there, 400 if the body has another digest."""
        digest = _digest_of(exchange.request.path)
        if self._has(digest):
            exchange.respond(200, JSON, b"")
            return
        body = exchange.request.body
        if len(body) <= _HASHED_INLINE_BYTES:
            self._keep(exchange, digest, body=body, found=hashlib.sha256(body).hexdigest())
            return
        hashing = self._driver.loop.run_in_executor(None, lambda: hashlib.sha256(body).hexdigest())
        hashing.add_done_callback(lambda done: self._keep(exchange, digest, body=body, found=done.result()))

    def _keep(self, exchange: Exchange, digest: str, *, body: bytes, found: str) -> None:
        if found != digest:
            text = f'digest mismatch, expected "sha256:{digest}", got "sha256:{found}"'
            exchange.respond(400, JSON, encode({"error": text}))
            return
        while len(self._blobs) >= BLOBS_MAX:
            del self._blobs[next(iter(self._blobs))]
        self._blobs[digest] = (len(body), bytes(body[:4]))
        exchange.respond(201, JSON, b"")

    def _has(self, digest: str) -> bool:
        return digest in self._blobs or any(model.blob == digest for model in self._driver.twin.names())

    # ---- create -----------------------------------------------------------------------------------------------------

    def create(self, exchange: Exchange) -> None:
        """POST /api/create from another model or from uploaded files; a model that is missing is pulled first."""
        body = Body(exchange.request.body)
        name = canonical_name(body.asked_name)
        base, files = body.text("from"), body.get("files")
        if base:
            source = self._driver.twin.model(canonical_name(base))
            if source is None:
                self._pull_base(exchange, body, name=name)
                return
            self._write(exchange, body, name=name, base=self._world.entry(source))
            return
        if not isinstance(files, dict):
            raise InvalidRequest("neither 'from' or 'files' was specified")
        blob = self._uploaded(files)
        lines = Lines(exchange, stream=body.stream)
        lines.say({"status": "parsing GGUF"})
        self._store(lines, _created(UPLOADED, body, name=name), blob=blob)

    def _uploaded(self, files: dict[str, Any]) -> str:
        """The blob of the first file. Raises for what was never uploaded or is no GGUF."""
        if not files:
            raise InvalidRequest("no files provided to convert")
        digests = [_digest_of(str(digest)) for digest in files.values()]
        for digest in digests:
            if not self._has(digest):
                text = f"stat /models/blobs/sha256-{digest}: no such file or directory"
                raise InvalidRequest(text)
            if digest in self._blobs and self._blobs[digest][1] != b"GGUF":
                raise InvalidRequest("supplied file was not in GGUF format")
        return digests[0]

    def _pull_base(self, exchange: Exchange, body: Body, *, name: str) -> None:
        known = self._registered(canonical_name(body.text("from")))
        lines = Lines(exchange, stream=body.stream)
        lines.say({"status": "pulling manifest"})
        if known is None:
            lines.fail(NO_MANIFEST)
            return

        def done() -> None:
            entry = self._stored(known, blob_of(known))
            self._store(lines, _created(entry.model, body, name=name), blob=entry.twin.blob)

        self._download(lines, known, done=done)

    def _write(self, exchange: Exchange, body: Body, *, name: str, base: Entry) -> None:
        lines = Lines(exchange, stream=body.stream)
        self._store(lines, _created(base.model, body, name=name), blob=base.twin.blob)

    def _store(self, lines: Lines, model: SimModel, *, blob: str) -> None:
        lines.say({"status": f"using existing layer sha256:{blob}"})
        entry = self._stored(model, blob)
        lines.say({"status": f"creating new layer sha256:{entry.twin.digest}"})
        lines.say({"status": "writing manifest"})
        lines.end()

    def _stored(self, model: SimModel, blob: str) -> Entry:
        entry = self._world.add(model, blob)
        self._shelf.touch(entry.twin.name)
        self._driver.give(StoreName(entry.twin))
        return entry

    # ---- pull and push ----------------------------------------------------------------------------------------------

    def pull(self, exchange: Exchange) -> None:
        """POST /api/pull: over time, with progress; what is there is complete at once (ollama.md 6.3)."""
        body = Body(exchange.request.body)
        name = body.name
        lines = Lines(exchange, stream=body.stream)
        lines.say({"status": "pulling manifest"})
        present = self._driver.twin.model(name)
        known = self._registered(name) or (self._world.entry(present).model if present else None)
        if known is None:
            lines.fail(NO_MANIFEST)
            return
        if present is not None:
            entry = self._world.entry(present)
            for line in _layer_lines(entry.twin.blob, entry.weights_bytes):
                lines.say(line)
            _finish(lines)
            return

        def done() -> None:
            self._stored(known, blob_of(known))
            _finish(lines)

        self._download(lines, known, done=done)

    def _download(self, lines: Lines, model: SimModel, *, done: Any) -> None:
        blob = blob_of(model)
        if self._has(blob):
            done()
            return
        entry = Entry(model, blob)
        download = self._downloads.of(blob, entry.weights_bytes)
        if self._faults.take_pull_failure():
            download.break_at = download.size_bytes // 2
        Transfer(lines, download, driver=self._driver, done=done, forget=self._downloads.forget).begin()

    def push(self, exchange: Exchange) -> None:
        """POST /api/push: takes as long as a pull. Names of the library are nobody's to push to."""
        body = Body(exchange.request.body)
        name = body.name
        lines = Lines(exchange, stream=body.stream)
        lines.say({"status": "retrieving manifest"})
        model = self._driver.twin.model(name)
        if model is None:
            lines.say({"status": "couldn't retrieve manifest"})
            path = name.replace(":", "/")
            lines.fail(f"open /models/manifests/registry.ollama.ai/{path}: no such file or directory")
            return
        if "/" not in name:
            lines.fail("you are not authorized to push to this namespace, create the model under a namespace you own")
            return

        def done() -> None:
            lines.say({"status": "pushing manifest"})
            lines.end()

        upload = Download(model.blob, self._world.entry(model).weights_bytes, self._downloads.bytes_per_s)
        Transfer(lines, upload, driver=self._driver, done=done, forget=lambda _: None, verb="pushing").begin()

    def _registered(self, name: str) -> SimModel | None:
        return self._downloads.registry.get(name)


def _finish(lines: Lines) -> None:
    lines.say({"status": "verifying sha256 digest"})
    lines.say({"status": "writing manifest"})
    lines.end()


def _layer_lines(blob: str, size_bytes: int) -> list[dict[str, Any]]:
    layers = [(blob, size_bytes)]
    layers += [(hashlib.sha256((blob + kind).encode()).hexdigest(), size) for kind, size in _SMALL_LAYERS]
    return [
        {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size, "completed": size}
        for digest, size in layers
    ]


def _digest_of(text: str) -> str:
    """64 hex digits out of a path or a value. Raises as Ollama for anything else."""
    match = _DIGEST.fullmatch(text.removeprefix(BLOBS_PATH))
    if match is None:
        raise InvalidRequest("invalid digest format")
    return match.group(1).lower()


def _created(base: SimModel, body: Body, *, name: str) -> SimModel:
    """``base`` with what a create request says of template, system and parameters."""
    given = body.get("parameters")
    parameters = dict(base.parameters) | (given if isinstance(given, dict) else {})
    num_ctx = parameters.pop("num_ctx", base.num_ctx)
    return msgspec.structs.replace(
        base,
        name=name,
        shares="",
        template=body.text("template") or base.template,
        system=body.text("system") or base.system,
        parameters=parameters,
        num_ctx=int(num_ctx) if isinstance(num_ctx, int | float) else 0,
    )
