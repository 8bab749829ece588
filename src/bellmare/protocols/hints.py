"""What clients say of models that they will ask for: the body of ``/api/prepare`` and the header ``X-Bellmare-Next``.

Both are read strictly, although a hint is only a guess: who misspells one should hear of it, not wonder why it is slow.
"""

import re

import msgspec

from bellmare.core.hints import AHEAD_MAX_US, TTL_MAX_US
from bellmare.core.units import SpanUs
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import check_object, decode_as, quoted
from bellmare.protocols.names import canonical_name, is_cloud_name

MODELS_MAX = 8
"""Of one call: an agent's steps. Whoever names more says nothing about which is next."""
NEXT_MAX = 4
"""Of one header."""
IN_MS_MAX = AHEAD_MAX_US // 1000
TTL_MS_MAX = TTL_MAX_US // 1000
"""What the core heeds at most (a day, a quarter of an hour); more is refused instead of cut in silence."""

_IN_MS = re.compile(r"\s*in_ms\s*=\s*([0-9]{1,12})\s*")


class Expected(msgspec.Struct, frozen=True):
    """One model that somebody expects to ask for."""

    name: str
    """Canonical."""
    spelling: str
    """As the client wrote it; answers repeat it."""
    in_us: SpanUs = SpanUs(0)
    """When; zero: not said."""


class Preparation(msgspec.Struct, frozen=True):
    """A parsed ``/api/prepare``."""

    models: tuple[Expected, ...]
    """1 to ``MODELS_MAX``, each once."""
    ttl_us: SpanUs = SpanUs(0)
    """So long after it is due a request is still expected; zero: not said."""


class _Prepare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str | None = None
    models: list[str] | None = None
    in_ms: float | None = None
    ttl_ms: float | None = None


_FIELDS = frozenset(("model", "models", "in_ms", "ttl_ms"))
_decoder = msgspec.json.Decoder(_Prepare)


def parse_prepare(body: bytes) -> Preparation:
    """POST /api/prepare: ``model`` or ``models``, ``in_ms`` and ``ttl_ms``. Raises :class:`InvalidRequest`."""
    check_object(body, known=_FIELDS)
    said = decode_as(body, _decoder)
    if said.model is not None and said.models is not None:
        raise InvalidRequest("say model or models, not both")
    spellings = said.models if said.models is not None else [said.model or ""]
    if not 1 <= len(spellings) <= MODELS_MAX:
        raise InvalidRequest(f"models must name 1 to {MODELS_MAX} models")
    in_us = _span_us("in_ms", said.in_ms, ms_max=IN_MS_MAX)
    found: dict[str, Expected] = {}
    for spelling in spellings:
        model = _expected(spelling, in_us)
        found.setdefault(model.name, model)
    return Preparation(models=tuple(found.values()), ttl_us=_span_us("ttl_ms", said.ttl_ms, ms_max=TTL_MS_MAX))


def parse_next(value: str) -> tuple[Expected, ...]:
    """``X-Bellmare-Next: model[;in_ms=N][, model...]``. Raises :class:`InvalidRequest`."""
    parts = value.split(",")
    if len(parts) > NEXT_MAX:
        raise InvalidRequest(f"X-Bellmare-Next names more than {NEXT_MAX} models")
    found: dict[str, Expected] = {}
    for part in parts:
        spelling, semicolon, said = part.partition(";")
        span = _IN_MS.fullmatch(said) if semicolon else None
        if semicolon and span is None:
            raise InvalidRequest(f"X-Bellmare-Next must be model[;in_ms=N], separated by commas, not {quoted(part)}")
        in_us = _span_us("in_ms", float(span.group(1)) if span is not None else None, ms_max=IN_MS_MAX)
        try:
            model = _expected(spelling.strip(), in_us)
        except InvalidRequest as error:
            raise InvalidRequest(f"X-Bellmare-Next: {error.message}", status=error.status) from None
        found.setdefault(model.name, model)
    return tuple(found.values())


def _expected(spelling: str, in_us: SpanUs) -> Expected:
    if is_cloud_name(spelling):
        raise InvalidRequest(f"{quoted(spelling)} runs on ollama.com, which this gateway does not use", status=403)
    return Expected(name=canonical_name(spelling), spelling=spelling, in_us=in_us)


def _span_us(field: str, said_ms: float | None, *, ms_max: int) -> SpanUs:
    if said_ms is None:
        return SpanUs(0)
    if not 0 <= said_ms <= ms_max:
        raise InvalidRequest(f"{field} must be between 0 and {ms_max}")
    return SpanUs(round(said_ms * 1000))
