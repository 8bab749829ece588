"""keep_alive as Ollama reads it (ollama.md 2.2): numbers are seconds, strings Go durations, negative is for ever."""

import math
import re

from bellmare.protocols.errors import InvalidRequest
from bellmare.twin.config import FOREVER_US

_UNITS_US = {"ns": 0.001, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_INT64_US = (1 << 63) / 1000
_GO_TYPES = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}


def keep_alive_us(value: object) -> int | None:
    """Microseconds; None for absent, ``FOREVER_US`` for negative values. Raises :class:`InvalidRequest`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kind = _GO_TYPES.get(type(value), type(value).__name__)
        raise InvalidRequest(f"Unsupported type: '{kind}'")
    span_us = _go_duration_us(value) if isinstance(value, str) else value * 1e6
    if span_us < 0 or math.isinf(span_us):
        return FOREVER_US
    return min(FOREVER_US, round(span_us))


def _go_duration_us(text: str) -> float:
    """time.ParseDuration, with its error texts."""
    body = text[1:] if text[:1] in ("-", "+") else text
    sign = -1 if text.startswith("-") else 1
    if body == "0":
        return 0
    total, position = 0.0, 0
    while position < len(body):
        part = _PART.match(body, position)
        if part is None:
            raise InvalidRequest(f'time: invalid duration "{text}"')
        number, unit = part.groups()
        if not unit:
            raise InvalidRequest(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS_US:
            raise InvalidRequest(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _UNITS_US[unit]
        position = part.end()
    if not body or total >= _INT64_US:
        raise InvalidRequest(f'time: invalid duration "{text}"')
    return sign * total
