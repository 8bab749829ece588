"""What workers answer on the native API. What does not fit their types is a :class:`BadAnswer`."""

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import BadAnswer, upstream_error_text
from bellmare.protocols.rfc3339 import parse_rfc3339

_PINNED_FROM_YEAR = 2100
"""A keep-alive of -1 shows as about the year 2318 (ollama.md 2.2)."""
_NO_ERROR = (b"", b"null")
_T = TypeVar("_T")


class Final(msgspec.Struct, frozen=True):
    """The last line of a stream, or the whole of an unstreamed answer. Durations are nanoseconds (ollama.md 1.4)."""

    done: bool = False
    done_reason: str = ""
    error: str | None = None
    total_duration: int = 0
    load_duration: int = 0
    """Includes the wait in Ollama's scheduler."""
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class _ErrorLine(msgspec.Struct, frozen=True):
    error: Raw = Raw(b"")


class TagsModel(msgspec.Struct, frozen=True):
    """One model on a worker's disk. ``raw`` is its JSON as the worker wrote it, for the merged list."""

    name: str
    digest: str = ""
    """Of the manifest: 64 hex digits, no prefix."""
    size: int = 0
    model: str = ""
    modified_at: str = ""
    raw: Raw = Raw(b"{}")


class TagsAnswer(msgspec.Struct, frozen=True):
    models: list[TagsModel]


class PsModel(msgspec.Struct, frozen=True):
    """One runner. ``size`` 0 is a CPU build's word for a loaded model, not for a small one (ollama.md 12)."""

    name: str
    digest: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int = 0
    """Per slot."""
    expires_at: str = ""
    model: str = ""
    raw: Raw = Raw(b"{}")


class PsAnswer(msgspec.Struct, frozen=True):
    models: list[PsModel]


class Details(msgspec.Struct, frozen=True):
    family: str = ""
    families: list[str] | None = None
    format: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class Tensor(msgspec.Struct, frozen=True):
    name: str
    type: str
    shape: list[int]


class ShowAnswer(msgspec.Struct, frozen=True):
    """What the memory formula needs (ollama.md 4.1). Arrays in ``model_info`` are ``None`` without ``verbose``."""

    modelfile: str = ""
    parameters: str = ""
    details: Details = Details()
    model_info: dict[str, Any] | None = None
    projector_info: dict[str, Any] | None = None
    tensors: list[Tensor] | None = None
    capabilities: list[str] | None = None
    remote_host: str = ""
    """Set: the model runs on ollama.com."""


class _RawModels(msgspec.Struct, frozen=True):
    models: list[Raw] | None = None


_final_decoder = msgspec.json.Decoder(Final)
_error_decoder = msgspec.json.Decoder(_ErrorLine)
_list_decoder = msgspec.json.Decoder(_RawModels)
_tags_decoder = msgspec.json.Decoder(TagsModel)
_ps_decoder = msgspec.json.Decoder(PsModel)
_show_decoder = msgspec.json.Decoder(ShowAnswer)


def _decode(body: bytes | Raw, decoder: msgspec.json.Decoder[_T], what: str) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"{what}: {str(error)[:200]}") from None


def _owned(raw: Raw) -> Raw:
    """Without a reference to the whole answer."""
    return Raw(bytes(raw))


def decode_final(line: bytes) -> Final | None:
    """The counters of a line that ends a stream, by ``done`` or by ``error``; ``None`` for every other line."""
    try:
        final = _final_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return final if final.done or final.error is not None else None


def first_error(line: bytes) -> str | None:
    """The text of an ``{"error": ...}`` line inside a 200 (reliability.md F9); ``None`` if it is no such line."""
    try:
        error = bytes(_error_decoder.decode(line).error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if error in _NO_ERROR else upstream_error_text(line)


def decode_closing(line: bytes) -> tuple[str | None, Final | None]:
    """:func:`first_error` and :func:`decode_final` at once, in one decoding for all lines that Ollama writes."""
    try:
        final = _final_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return first_error(line), None  # an error that is an object, or no JSON
    if final.error is not None:
        return upstream_error_text(line), final
    return None, final if final.done else None


def decode_tags(body: bytes) -> TagsAnswer:
    """GET /api/tags."""
    models = _decode(body, _list_decoder, "/api/tags").models or []
    return TagsAnswer(
        [msgspec.structs.replace(_decode(raw, _tags_decoder, "/api/tags"), raw=_owned(raw)) for raw in models]
    )


def decode_ps(body: bytes) -> PsAnswer:
    """GET /api/ps."""
    models = _decode(body, _list_decoder, "/api/ps").models or []
    return PsAnswer([msgspec.structs.replace(_decode(raw, _ps_decoder, "/api/ps"), raw=_owned(raw)) for raw in models])


def decode_show(body: bytes) -> ShowAnswer:
    """POST /api/show."""
    return _decode(body, _show_decoder, "/api/show")


_FROM = re.compile(r"^[ \t]*FROM[ \t]+(.+?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_BLOB = re.compile(r"sha256[-:]([0-9a-fA-F]{64})$")


def blob_of(modelfile: str) -> str:
    """The model blob, which is the identity of a runner (ollama.md 3.1): ``sha256:<64 hex>``, else the path as written.

    Only the first FROM counts: further ones are projectors. Empty if there is none.
    """
    match = _FROM.search(modelfile)
    if match is None:
        return ""
    path = match.group(1).strip("\"'")
    blob = _BLOB.search(path)
    return f"sha256:{blob.group(1).lower()}" if blob else path


_NUM_CTX = re.compile(r"^[ \t]*num_ctx[ \t]+(\d{1,18})[ \t\r]*$", re.MULTILINE | re.ASCII)


def num_ctx_of(parameters: str) -> int:
    """``PARAMETER num_ctx`` out of the text of /api/show; zero if unset."""
    match = _NUM_CTX.search(parameters)
    return int(match.group(1)) if match else 0


def expires_far(expires_at: str) -> bool:
    """Whether the keep-alive is for ever: only then does Ollama's own timer leave the model alone."""
    try:
        return parse_rfc3339(expires_at) >= parse_rfc3339(f"{_PINNED_FROM_YEAR}-01-01T00:00:00Z")
    except ValueError:
        return False


def expires_before(expires_at: str, now_utc: str) -> bool:
    """Whether the keep-alive is over at ``now_utc``, both RFC 3339. False if ``expires_at`` cannot be read.

    By itself it does not mean that the model is leaving: it is stale while requests run (ollama.md 12).
    """
    try:
        expires_us = parse_rfc3339(expires_at)
    except ValueError:
        return False
    return expires_us < parse_rfc3339(now_utc)
