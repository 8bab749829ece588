"""The canonical line of a request: rendered at once, in about 1 us, since every request has one.

The whole line is looked over instead of each value: a short printable ASCII line without a backslash holds no value
that would have to be made safe. Only what fails that is looked at value by value.
"""

from typing import Any

import msgspec

from bellmare.observability.safe_text import VALUE_MAX, Stamps, escape


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """All that the line of a request can say, in order; None is left out. Spans are in tenths of milliseconds."""

    id: str
    request: str | None = None
    """The core's own id; ``id`` may be the client's."""
    model: str | None = None
    worker: str | None = None
    dialect: str | None = None
    route: str | None = None
    status: int | None = None
    outcome: str | None = None
    refusal: str | None = None
    cache: str | None = None
    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    attempts: int | None = None
    error: str | None = None
    """What a worker said, cut short: it may quote other requests, so it is for operators only."""


_NAMES = RequestLine.__struct_fields__
_encode = msgspec.json.Encoder().encode


def render_json(line: RequestLine, stamps: Stamps) -> bytes:
    """For machines: one JSON object, time, level and event first."""
    us, _, head = stamps.now()
    try:
        body = _encode(line)
        plain = len(body) <= VALUE_MAX and body.isascii() and b"\\" not in body and b"\x7f" not in body
    except UnicodeEncodeError:  # a lone surrogate
        plain = False
    if not plain:
        body = _encode(_made_safe(line))
    return b'%b%06dZ","level":"info","event":"request",%b' % (head, us, body[1:])


def render_text(line: RequestLine, stamps: Stamps) -> bytes:
    """For people: ``12:00:01.123 info    request id=a1 model=llama3:latest``."""
    us, prefix, _ = stamps.now()
    parts = _parts(line)
    shown = " ".join(parts)
    plain = len(shown) <= VALUE_MAX and shown.isascii() and shown.isprintable()
    if not plain or shown.count(" ") >= len(parts) or "= " in shown or shown.endswith("="):
        safe = _made_safe(line)
        shown = " ".join(
            f"{name}={quoted(value)}"
            for name, value in zip(_NAMES, msgspec.structs.astuple(safe), strict=True)
            if value is not None
        )
    return f"{prefix[11:]}{us // 1000:03d} info    request {shown}".encode()


def _parts(line: RequestLine) -> list[str]:
    values = msgspec.structs.astuple(line)
    return [f"{name}={value}" for name, value in zip(_NAMES, values, strict=True) if value is not None]


def quoted(value: object) -> str:
    """A value in a line for people."""
    text = str(value)
    return f'"{text}"' if " " in text or not text else text


def _made_safe(line: RequestLine) -> RequestLine:
    values: tuple[Any, ...] = msgspec.structs.astuple(line)
    safe: list[Any] = [escape(value) if isinstance(value, str) else value for value in values]
    return RequestLine(*safe)
