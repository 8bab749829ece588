"""Checks of single request fields, in Ollama's own words where it has any (ollama.md 1.4, 1.6, 2.2)."""

import functools
import math
import re
import sys
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.images import IMAGES_MAX, PIXELS_MAX, pixels

RELOAD_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
"""Options of the runner: another value reloads a loaded model (ollama.md 3.4). With ``shift`` the gateway's own."""
OLD_RELOAD_OPTIONS = frozenset(
    {"numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only", "num_gqa"}
)
"""Options of the runner in older Ollamas; the present one warns and ignores them (ollama.md 1.4)."""

_INTEGERS = RELOAD_OPTIONS - {"use_mmap"} | {"num_keep", "seed", "num_predict", "top_k", "repeat_last_n"}
_FLOATS = frozenset(
    {"top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_BOOLEANS = frozenset({"use_mmap"})
SAMPLING_OPTIONS = (_INTEGERS | _FLOATS | {"stop"}) - RELOAD_OPTIONS
"""Options of one request that a worker may see as they are."""
_SCALARS = frozenset({bool, int, float, str})
_PLAIN_KINDS: dict[str, frozenset[type]] = {
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    **dict.fromkeys(_FLOATS, frozenset({int, float})),
    **dict.fromkeys(_BOOLEANS, frozenset({bool})),
    "stop": frozenset(),
}
"""In which types an option needs no change; any scalar for options that are not here."""
_STRINGS = frozenset({str})
_THINK_LEVELS = ("high", "medium", "low", "max")
_INT64 = 1 << 63
_FLOAT_MAX = sys.float_info.max
_TOP_LOGPROBS_MAX = 20

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?([^\d.]*)", re.ASCII)
_TEXT_CHARS_MAX = 64

_PIECE = 4 << 20
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


def _go_quote(text: str) -> str:
    """A string as Go's %q prints it, near enough for a message, and bounded."""
    return msgspec.json.encode(text[:_TEXT_CHARS_MAX]).decode()


@functools.lru_cache(maxsize=256)
def _go_duration_ns(text: str) -> int:
    """``time.ParseDuration``, with its error texts. What is remembered is short: longer texts are refused."""
    quoted = _go_quote(text)
    invalid = InvalidRequest(f"time: invalid duration {quoted}")
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest or len(text) > _TEXT_CHARS_MAX:
        raise invalid
    total = 0
    while rest:
        match = _DURATION_PART.match(rest)
        assert match is not None
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not whole and not fraction:
            raise invalid
        if not unit:
            raise InvalidRequest(f"time: missing unit in duration {quoted}")
        scale = _NANOSECONDS.get(unit)
        if scale is None:
            raise InvalidRequest(f"time: unknown unit {_go_quote(unit)} in duration {quoted}")
        total += int(whole or "0") * scale + int(fraction or "0") * scale // 10 ** len(fraction)
        rest = rest[match.end() :]
    if total >= _INT64:
        raise invalid
    return -total if text.startswith("-") else total


def _go_type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "[]interface {}" if isinstance(value, list) else "map[string]interface {}"


def keep_alive_seconds(value: object) -> float | None:
    """Seconds that a model is to stay after its last request: ``None`` if not said, ``inf`` for ever, 0 unload.

    ``value`` is the decoded JSON. Raises :class:`InvalidRequest` in Ollama's words (ollama.md 2.2).
    """
    if value is None or value is msgspec.UNSET:
        return None
    if isinstance(value, str):
        nanoseconds = _go_duration_ns(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        nanoseconds = int(min(max(value, -1.0), _INT64 / 1e9) * 1e9)
        if value < 0:
            nanoseconds = -1
    else:
        raise InvalidRequest(f"Unsupported type: '{_go_type(value)}'")
    return math.inf if nanoseconds < 0 or nanoseconds >= _INT64 else nanoseconds / 1e9


def check_think(value: object) -> None:
    """A bool, or one of Ollama's four levels."""
    expected = '"high", "medium", "low", "max", true, or false'
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, str):
        raise InvalidRequest(f"think must be a boolean or string ({expected})")
    if value not in _THINK_LEVELS:
        raise InvalidRequest(f"invalid think value: {_go_quote(value)} (must be {expected})")


def checked_format(value: object) -> Any:
    """``"json"``, a schema object, or ``None`` where the client wrote nothing, ``null`` or ``""``."""
    if value is None or value == "":
        return None
    if value == "json" or isinstance(value, dict):
        return value
    shown = msgspec.json.encode(value)[:_TEXT_CHARS_MAX].decode(errors="replace")
    raise InvalidRequest(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def check_top_logprobs(value: int | None) -> None:
    if value is not None and not 0 <= value <= _TOP_LOGPROBS_MAX:
        raise InvalidRequest(f"top_logprobs must be between 0 and {_TOP_LOGPROBS_MAX}")


def _checked_option(key: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _INTEGERS:
        fits = number and -_INT64 <= value < _INT64
        if not number or (not fits and (key in RELOAD_OPTIONS or not -_FLOAT_MAX <= value <= _FLOAT_MAX)):
            raise _wrong_option(key, "of type integer")
        # Ollama cuts 100.7 to 100, and so do we. What is out of range, as some clients' seeds, it takes as well, and
        # makes of it what its machine makes of such a float.
        return int(value) if fits else float(value)
    if key in _FLOATS and not number:
        raise _wrong_option(key, "of type float32")
    if key in _BOOLEANS and not isinstance(value, bool):
        raise _wrong_option(key, "of type boolean")
    if key == "stop":
        if not isinstance(value, list):
            raise _wrong_option(key, "of type array")
        if not all(isinstance(item, str) for item in value):
            raise _wrong_option(key, "of an array of strings")
    return value


def _wrong_option(key: str, wanted: str) -> InvalidRequest:
    """Ollama's status for it is 500, though it is the client's mistake (ollama.md 1.4)."""
    return InvalidRequest(f'option "{key}" must be {wanted}', status=500)


def are_plain(options: dict[str, Any]) -> bool:
    """Whether :func:`checked_options` would give the same again and nothing in it is nested, but for ``stop``."""
    for key, value in options.items():
        kind = type(value)
        if kind in _PLAIN_KINDS.get(key, _SCALARS):
            if kind is int and not -_INT64 <= value < _INT64:
                return False
        elif key != "stop" or kind is not list or not _STRINGS.issuperset(map(type, value)):
            return False
    return True


def checked_options(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Known options in the types that Ollama wants, unknown ones as they are, nulls dropped."""
    if options is None:
        return None
    return {key: _checked_option(key, value) for key, value in options.items() if value is not None}


def check_image_count(count: int) -> None:
    """Of one request."""
    if count > IMAGES_MAX:
        raise InvalidRequest(f"more than {IMAGES_MAX} images", status=413)


def check_images(images: list[str] | None) -> None:
    """Standard base64 with padding, as Go decodes it; line breaks are allowed. 30 MB take 20 ms (measured)."""
    check_image_count(len(images or ()))
    for image in images or ():
        if image.isascii():
            # In pieces: one call into C keeps every other thread waiting.
            pieces = (image[start : start + _PIECE] for start in range(0, len(image), _PIECE))
            others = b"".join(piece.encode().translate(None, _BASE64) for piece in pieces)
            if (len(image) - len(others)) % 4 == 0 and not others.strip(b"\r\n"):
                if pixels(image) > PIXELS_MAX:
                    raise InvalidRequest(f"an image has more than {PIXELS_MAX // 1_000_000} megapixels", status=413)
                continue
        raise InvalidRequest(f"illegal base64 data at input byte {_odd_byte(image)}")


def _odd_byte(image: str) -> int:
    """About where Go's decoder stops in what is no base64: at the first byte that cannot stand there, else in front of
    the group that is not whole.
    """
    odd = _NO_BASE64.search(image)
    return odd.start() if odd is not None else len(image) - len(image) % 4
