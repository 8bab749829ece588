"""Bodies that go to a worker; no others ever do. Eight fields and keep_alive are the gateway's (reliability.md F5)."""

from typing import Any

import msgspec

from bellmare.protocols.ollama_fields import OLD_RELOAD_OPTIONS, RELOAD_OPTIONS
from bellmare.protocols.ollama_requests import ChatRequest, GenerateRequest, InferenceRequest, ShowRequest

_encoder = msgspec.json.Encoder()

_OWNED = RELOAD_OPTIONS | OLD_RELOAD_OPTIONS | {"keep_alive", "shift"}
_KEEP_ALIVE_FOREVER = -1
_KEEP_ALIVE_UNLOAD = 0


def encode_for_worker(request: InferenceRequest, *, model: str, num_ctx: int) -> bytes:
    """Canonical JSON of a client's request, for ``model`` in the one shape that the gateway gives it.

    Dropped whatever the client wrote: keep_alive, ``shift`` and the seven options that reload a runner, in any case.
    ``num_ctx`` is in tokens per slot and must be that of the load, or the worker reloads (ollama.md 3.4).
    """
    assert num_ctx > 0
    options = {key: value for key, value in (request.options or {}).items() if key.casefold() not in _OWNED}
    options["num_ctx"] = num_ctx
    changes: dict[str, Any] = {"model": model, "keep_alive": None, "options": options}
    if isinstance(request, GenerateRequest | ChatRequest):
        changes["shift"] = None
    return _encoder.encode(msgspec.structs.replace(request, **changes))


def encode_show(request: ShowRequest, *, model: str) -> bytes:
    """Canonical JSON of a show request."""
    return _encoder.encode(msgspec.structs.replace(request, model=model, name=None))


def requested_reload_options(request: InferenceRequest) -> tuple[str, ...]:
    """Which of the eight fields the client sent, sorted; none of them was obeyed."""
    sent = RELOAD_OPTIONS.intersection(request.options or {})
    if isinstance(request, GenerateRequest | ChatRequest) and request.shift is not None:
        sent |= {"shift"}
    return tuple(sorted(sent))


def load_body(name: str, num_ctx: int, *, embedding: bool) -> tuple[str, bytes]:
    """Path and body of a POST that makes ``name`` resident for ever with ``num_ctx`` tokens per slot (ollama.md 2.1).

    The answer comes when the model is loaded; closing the connection before aborts the load. Embedding models refuse
    /api/generate and load by an /api/embed without input.
    """
    assert num_ctx > 0
    body: dict[str, Any] = {"model": name, "keep_alive": _KEEP_ALIVE_FOREVER, "options": {"num_ctx": num_ctx}}
    if embedding:
        return "/api/embed", _encoder.encode(body)
    return "/api/generate", _encoder.encode({**body, "stream": False})


def unload_body(name: str) -> tuple[str, bytes]:
    """Path and body of a POST that asks ``name`` to leave, embedding models too (ollama.md 2.3).

    The answer comes at once, the model goes when its last request has ended: gone is what /api/ps no longer shows.
    """
    body = {"model": name, "keep_alive": _KEEP_ALIVE_UNLOAD, "stream": False}
    return "/api/generate", _encoder.encode(body)
