"""Bodies that go to a worker; no others ever do. Eight fields and keep_alive are the gateway's (reliability.md F5)."""

from typing import Any

import msgspec

from bellmare.protocols.ollama_fields import OLD_RELOAD_OPTIONS, RELOAD_OPTIONS, SAMPLING_OPTIONS
from bellmare.protocols.ollama_requests import ChatRequest, GenerateRequest, InferenceRequest, ShowRequest
from bellmare.protocols.unknown_fields import Extended, extra_of, to_plain, without

_encode = msgspec.json.Encoder().encode

_OWNED = RELOAD_OPTIONS | OLD_RELOAD_OPTIONS | {"keep_alive", "shift"}
_GENERATIONS = (GenerateRequest, ChatRequest)
"""Those with a ``shift``."""
_RUNNER_FIELD = "runner"
"""Of newer Ollamas: chooses another engine for the model, which reloads it, so it is the gateway's too."""
_OWNED_UNKNOWN = _OWNED | {_RUNNER_FIELD}
"""What no request may carry as a field that its route does not know."""
_KEEP_ALIVE_FOREVER = -1
_KEEP_ALIVE_UNLOAD = 0


def encode_for_worker(request: InferenceRequest, *, model: str, num_ctx: int) -> bytes:
    """Canonical JSON of a client's request, for ``model`` in the one shape that the gateway gives it.

    Dropped whatever the client wrote: keep_alive, ``shift`` and the seven options that reload a runner, in any case.
    ``num_ctx`` is in tokens per slot and must be that of the load, or the worker reloads (ollama.md 3.4).
    """
    assert num_ctx > 0
    asked = request.options or {}
    if not SAMPLING_OPTIONS.issuperset(asked):
        asked = {key: value for key, value in asked.items() if key.casefold() not in _OWNED}
    options = {**asked, "num_ctx": num_ctx}
    if isinstance(request, _GENERATIONS) and request.shift is not None:
        request = msgspec.structs.replace(request, shift=None)
    request = msgspec.structs.replace(request, model=model, keep_alive=None, options=options)
    if isinstance(request, Extended):
        return _encode(to_plain(without(request, _OWNED_UNKNOWN)))
    return _encode(request)


def encode_for_cloud(request: InferenceRequest) -> bytes:
    """Canonical JSON of a request for a model of ollama.com: whatever concerns a runner is nothing to us."""
    return _encode(to_plain(msgspec.structs.replace(request, keep_alive=None)))


def encode_show(request: ShowRequest, *, model: str) -> bytes:
    """Canonical JSON of a show request."""
    return _encode(to_plain(msgspec.structs.replace(request, model=model, name=None)))


def requested_reload_options(request: InferenceRequest) -> tuple[str, ...]:
    """Which of the fields that would reload a runner the client sent, sorted; none of them was obeyed."""
    shift = isinstance(request, _GENERATIONS) and request.shift is not None
    extended = isinstance(request, Extended)
    if not shift and not extended and (not request.options or RELOAD_OPTIONS.isdisjoint(request.options)):
        return ()
    sent = RELOAD_OPTIONS.intersection(request.options or {})
    if isinstance(request, Extended):
        sent |= {_RUNNER_FIELD for name in extra_of(request) if name.casefold() == _RUNNER_FIELD}
    return tuple(sorted(sent | {"shift"} if shift else sent))


def load_body(name: str, num_ctx: int, *, embedding: bool) -> tuple[str, bytes]:
    """Path and body of a POST that makes ``name`` resident for ever with ``num_ctx`` tokens per slot (ollama.md 2.1).

    The answer comes when the model is loaded; closing the connection before aborts the load. Embedding models refuse
    /api/generate and load by an /api/embed without input.
    """
    assert num_ctx > 0
    body: dict[str, Any] = {"model": name, "keep_alive": _KEEP_ALIVE_FOREVER, "options": {"num_ctx": num_ctx}}
    if embedding:
        return "/api/embed", _encode(body)
    return "/api/generate", _encode({**body, "stream": False})


def unload_body(name: str) -> tuple[str, bytes]:
    """Path and body of a POST that asks ``name`` to leave, embedding models too (ollama.md 2.3).

    The answer comes at once, the model goes when its last request has ended: gone is what /api/ps no longer shows.
    """
    body = {"model": name, "keep_alive": _KEEP_ALIVE_UNLOAD, "stream": False}
    return "/api/generate", _encode(body)
