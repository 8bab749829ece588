"""Names the GGUF files of one folder and says what each holds. Reads and hashes; never runs or writes a model.

``name.gguf`` is ``name:latest`` and ``name__tag.gguf`` is ``name:tag``; a link is a second name for the same blob. The
file name is all there is to say about a model, so there is no index that could disagree with the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import DEFAULT_TAG, canonical_name
from bellmare.workers.embedded.gguf_header import GgufArray, GgufError, GgufHeader, read_header

FILES_MAX = 1_000
DIGEST_CACHE = ".bellmare-digests.json"
_DIGEST_CACHE_BYTES_MAX = 4 << 20
_HASH_BYTES = 1 << 20
_SUFFIX = ".gguf"
_TAG_MARK = "__"
_THOUSAND, _MILLION, _BILLION = 10**3, 10**6, 10**9


class ModelBlob(msgspec.Struct, frozen=True):
    """One GGUF file, whatever its names. ``digest`` is the SHA-256 of its bytes, 64 hex digits."""

    path: Path
    size_bytes: int
    modified_ns: int
    digest: str
    header: GgufHeader


class NamedModel(msgspec.Struct, frozen=True):
    """``name`` is canonical (``protocols.names``)."""

    name: str
    blob: ModelBlob


def name_of_file(stem: str) -> str:
    """The canonical name of ``stem.gguf``. Raises :class:`InvalidRequest` if Ollama would not accept it as a name."""
    model, mark, tag = stem.rpartition(_TAG_MARK)
    return canonical_name(f"{model}:{tag}" if mark and model and tag else stem)


def file_name_of(name: str) -> str:
    """The file in which a model of canonical ``name`` is kept; the inverse of :func:`name_of_file`."""
    model, _, tag = canonical_name(name).rpartition(":")
    return (model if tag == DEFAULT_TAG else f"{model}{_TAG_MARK}{tag}") + _SUFFIX


class Catalogue:
    """The models of ``folder`` as of the last :meth:`refresh`. Used from one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, NamedModel] = {}
        self._blobs: dict[Path, ModelBlob] = {}
        """By real path; an entry is valid while size and modification time are the file's."""
        self.skipped: dict[str, str] = {}
        """Files of the folder that are no models for us, with the reason."""
        self._turn = asyncio.Lock()

    async def refresh(self) -> None:
        """Look at the folder again; a file not seen before is hashed, in a thread, at some 1 GB/s."""
        async with self._turn:
            self._models, self._blobs, self.skipped = await asyncio.to_thread(_scan, self._folder, self._blobs)

    def models(self) -> list[NamedModel]:
        """Newest first, as /api/tags lists them."""
        return sorted(self._models.values(), key=lambda model: (-model.blob.modified_ns, model.name))

    async def find(self, name: str) -> NamedModel | None:
        """The model of a canonical name. An unknown name or a changed file: the folder is read again."""
        model = self._models.get(name)
        if model is None or not _is_current(model.blob):
            await self.refresh()
            model = self._models.get(name)
        return model


def _is_current(blob: ModelBlob) -> bool:
    try:
        status = blob.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (blob.size_bytes, blob.modified_ns)


_Scan = tuple[dict[str, NamedModel], dict[Path, ModelBlob], dict[str, str]]


def _scan(folder: Path, known: dict[Path, ModelBlob]) -> _Scan:
    """Blocking. Files that end in ``.gguf``, sorted by name, at most ``FILES_MAX``."""
    models: dict[str, NamedModel] = {}
    blobs: dict[Path, ModelBlob] = {}
    skipped: dict[str, str] = {}
    digests = _DigestCache(folder)
    for path in sorted(folder.glob(f"*{_SUFFIX}"))[:FILES_MAX]:
        if path.name.startswith("."):
            continue
        try:
            real = path.resolve(strict=True)
            blob = blobs.get(real) or known.get(real)
            if blob is None or not _is_current(blob):
                blob = _read_blob(real, digests)
            name = name_of_file(path.name[: -len(_SUFFIX)])
        except (OSError, GgufError, InvalidRequest) as error:
            skipped[path.name] = str(error)
            continue
        blobs[real] = blob
        if name in models:
            skipped[path.name] = f"another file is already named {name}"
        else:
            models[name] = NamedModel(name, blob)
    digests.save()
    return models, blobs, skipped


def _read_blob(path: Path, digests: _DigestCache) -> ModelBlob:
    header = read_header(path)
    status = path.stat()
    digest = digests.digest(path, status)
    return ModelBlob(path, status.st_size, status.st_mtime_ns, digest, header)


class _DigestCache:
    """Digests in one JSON file beside the models, valid by size and modification time.

    A folder that cannot be written costs a re-hash at each start.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / DIGEST_CACHE
        self._changed = False
        self._entries = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            if self._path.stat().st_size > _DIGEST_CACHE_BYTES_MAX:
                return {}
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def digest(self, path: Path, status: os.stat_result) -> str:
        key, stamp = str(path), [status.st_size, status.st_mtime_ns]
        entry = self._entries.get(key)
        if isinstance(entry, dict) and entry.get("stamp") == stamp and len(str(entry.get("sha256"))) == 64:
            return str(entry["sha256"])
        digest = _hash(path)
        self._entries[key] = {"stamp": stamp, "sha256": digest}
        self._changed = True
        return digest

    def save(self) -> None:
        if not self._changed:
            return
        kept = {key: entry for key, entry in self._entries.items() if Path(key).exists()}
        temporary = self._path.with_name(f"{DIGEST_CACHE}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(kept, indent=1))
            temporary.replace(self._path)
        except OSError:
            pass  # a read-only folder: the digests stay in this process


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def details(blob: ModelBlob) -> dict[str, Any]:
    """``details`` of /api/tags, /api/ps and /api/show."""
    header = blob.header
    return {
        "parent_model": "",
        "format": "gguf",
        "family": header.architecture,
        "families": [header.architecture],
        "parameter_size": _short_number(header.parameter_count),
        "quantization_level": header.file_type,
        "context_length": header.context_length,
        "embedding_length": header.embedding_length,
    }


def capabilities(blob: ModelBlob) -> list[str]:
    """A chat template is what tools can be told through (``toolcalls``)."""
    if blob.header.is_embedding_model:
        return ["embedding"]
    return ["completion", "tools"] if blob.header.chat_template else ["completion"]


def model_info(header: GgufHeader, *, arrays: bool = False) -> dict[str, Any]:
    """``model_info`` of /api/show. Without ``arrays``, as Ollama without ``verbose``, they are null (ollama.md 1.4)."""
    hidden = {"general.name", "tokenizer.chat_template"}
    shown: dict[str, Any] = {
        key: (value.values if arrays else None) if isinstance(value, GgufArray) else value
        for key, value in header.metadata.items()
        if key not in hidden
    }
    shown["general.parameter_count"] = header.parameter_count
    return shown


def modelfile(model: NamedModel) -> str:
    """Ollama's text, whose FROM names the blob by its digest: gateways key runners by it. A comment has the path."""
    blob = model.blob
    return f"# {blob.path}\nFROM {blob.path.parent}/blobs/sha256-{blob.digest}\n"


def _short_number(count: int) -> str:
    """As Ollama's ``format.HumanNumber``: 134.52M, 8.0B is written 8B only if whole."""
    for unit, letter, digits in ((_BILLION, "B", 1), (_MILLION, "M", 2), (_THOUSAND, "K", 0)):
        if count >= unit:
            number = count / unit
            return f"{number:.0f}{letter}" if number == int(number) else f"{number:.{digits}f}{letter}"
    return str(count)
