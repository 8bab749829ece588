"""The one gate through which a client's JSON comes: one object, no key twice, no key that Go would fold onto another.

Go matches keys without regard to case and takes the last (reliability.md F6): what we check
must be what a worker would run.
"""

import codecs
import functools
import re
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw

from bellmare.protocols.errors import InvalidRequest

FIELDS_MAX = 128
"""Top-level fields of one request; the largest dialect has about 40."""
_UNKNOWN_COLONS_MAX = 20_000
"""Above it the keys are not even looked at: a million take 0.4 s on the event loop, this many 8 ms (measured)."""
DEPTH_MAX = 64
"""Of values that are passed on as they are: schemas, tool parameters. Real ones stay under 20."""

_TEXT_BYTES_MAX = 16 << 20
"""Four million tokens, more than any model reads; a text of 64 MiB full of escapes takes 0.1 s to decode (measured)."""
SIZES_MAX: dict[str, int] = {
    "options": 64 << 10,
    "format": 1 << 20,
    "response_format": 1 << 20,
    "output_config": 1 << 20,
    "output_format": 1 << 20,
    "tools": 1 << 20,
    "context": 8 << 20,
    "stop": 64 << 10,
    "stop_sequences": 64 << 10,
    "prompt": _TEXT_BYTES_MAX,
    "system": _TEXT_BYTES_MAX,
    "suffix": _TEXT_BYTES_MAX,
    "template": _TEXT_BYTES_MAX,
    "instructions": _TEXT_BYTES_MAX,
    "text": 1 << 20,
    "functions": 1 << 20,
    "prediction": 1 << 20,
    "tool_choice": 64 << 10,
    "logit_bias": 64 << 10,
    "function_call": 64 << 10,
    "audio": 64 << 10,
    "modalities": 64 << 10,
    "web_search_options": 64 << 10,
    "conversation": 64 << 10,
    "previous_response_id": 64 << 10,
    "include": 64 << 10,
}
"""Bytes of fields that become many small objects: 2 million options took 3.6 s of the event loop (measured)."""
ESCAPES_MAX = 2_000_000
"""Backslashes of one body; six million took 0.2 s to decode in one go (measured), and code has one in forty bytes."""
OBJECTS_MAX = 50_000
"""Objects in ``messages``, ``input`` or ``system`` (a message, an image, a tool call each).

1.3 million took 1.2 s (measured).
"""
LISTS_MAX = 200_000
"""Lists there. Five million empty ones took 1.2 s, all of it in one call into C (measured)."""
COMMAS_MAX = 2_000_000
"""Of one body. So many elements of lists take 20 ms to decode; a text with so many commas has as many tokens."""

QUICK_BYTES_MAX = 48 << 10
"""Up to it :class:`Gate` needs not look for masses: no field passes ``SIZES_MAX``, no list ``OBJECTS_MAX``."""
assert min(*SIZES_MAX.values(), OBJECTS_MAX) >= QUICK_BYTES_MAX
_PEEK_BYTES = 32
"""In these a body written with blanks, as Python does, shows the first."""

_PIECE_BYTES = 4 << 20
"""Some milliseconds of any of the loops over a body."""

_utf8 = codecs.getincrementaldecoder("utf-8")
_OBJECT_BEGINS = re.compile(rb'[\[,:]\s*\{\s*["}]')
_LIST_BEGINS = re.compile(rb'[\[,:]\s*\[\s*["{}\[\]0-9tfn-]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_encode = msgspec.json.Encoder().encode
_OBJECT: msgspec.json.Decoder[dict[str, Raw]] = msgspec.json.Decoder(dict[str, Raw])

_T = TypeVar("_T")


def quoted(key: str) -> str:
    """A client's key in a message: bounded, in quotes, without control characters."""
    return '"' + _CONTROL.sub("?", key[:64]) + '"'


def _raw_decoder(known: frozenset[str], *, only: bool = False) -> msgspec.json.Decoder[Any]:
    """Known fields as raw JSON, the others left out or, with ``only``, refused."""
    names = sorted(known)
    fields = [(f"f{index}", Raw | msgspec.UnsetType, UNSET) for index in range(len(names))]
    rename = {f"f{index}": name for index, name in enumerate(names)}
    return msgspec.json.Decoder(msgspec.defstruct("Probe", fields, rename=rename, forbid_unknown_fields=only, gc=False))


@functools.lru_cache(maxsize=64)
def _probe(known: frozenset[str]) -> msgspec.json.Decoder[Any]:
    """Decodes known fields only, as raw JSON, so that a million others cost 8 ms instead of 0.4 s (measured)."""
    return _raw_decoder(known)


@functools.lru_cache(maxsize=64)
def _folded(known: frozenset[str]) -> dict[str, str]:
    return {name.casefold(): name for name in known}


def explain(error: Exception, body: bytes) -> InvalidRequest:
    """A client's words for what msgspec or Python's decoder found."""
    if isinstance(error, RecursionError):
        return InvalidRequest("invalid JSON: nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("invalid JSON: not valid UTF-8")
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"invalid request: {_CONTROL.sub('?', text)[:300]}")
    if "truncated" in text:
        # msgspec says the same of a string that ends in half a surrogate pair.
        whole = body.rstrip().endswith((b"}", b"]"))
        return InvalidRequest(
            "invalid JSON: unterminated string or unpaired surrogate escape"
            if whole
            else "invalid JSON: unexpected end"
        )
    text = text.removeprefix("JSON is malformed: ")
    if "trailing characters" in text:
        return InvalidRequest("invalid JSON: something follows the object")
    return InvalidRequest(f"invalid JSON: {text[:300]}")


def decode_as(body: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """``body`` in the decoder's type, or :class:`InvalidRequest` with the path of what does not fit."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise explain(error, body) from None


def _pieces(raw: Raw | bytes) -> Iterator[bytes]:
    """Its bytes in pieces: one call into C keeps every other thread waiting, so none may take a whole large body."""
    view = memoryview(raw)
    for start in range(0, view.nbytes, _PIECE_BYTES):
        yield bytes(view[start : start + _PIECE_BYTES])


def _count(raw: Raw, byte: bytes) -> int:
    """How often one byte is in it."""
    return sum(piece.count(byte) for piece in _pieces(raw))


def _decode_object(body: bytes, known: frozenset[str]) -> tuple[dict[str, Raw], int]:
    """Keys with their last values, and how many colons of ``body`` no key and no value accounts for."""
    if not body or body.isspace():
        raise InvalidRequest("missing request body")
    colons = body.count(b":")
    if known and colons > 0:
        probe = decode_as(body, _probe(known))
        found = {name: getattr(probe, f"f{index}") for index, name in enumerate(sorted(known))}
        fields = {name: raw for name, raw in found.items() if raw is not UNSET}
        left = colons - len(fields) - sum(_count(raw, b":") for raw in fields.values())
        if left == 0:
            return fields, 0
        if left > _UNKNOWN_COLONS_MAX:
            raise InvalidRequest("too many unknown fields")
    try:
        fields = _OBJECT.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest("invalid request: the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise explain(error, body) from None
    inner = sum(_count(raw, b":") for raw in fields.values()) + sum(key.count(":") for key in fields)
    return fields, colons - inner - len(fields)


def _refuse_collisions(fields: dict[str, Raw], known: frozenset[str]) -> None:
    folded = _folded(known)
    seen: dict[str, str] = {}
    for key in fields:
        fold = key.casefold()
        name = folded.get(fold)
        if name is not None and name != key:
            raise InvalidRequest(f"field {quoted(key)} must be written {quoted(name)}")
        if fold in seen:
            raise InvalidRequest(f"fields {quoted(seen[fold])} and {quoted(key)} differ only in case")
        seen[fold] = key


def _duplicate(body: bytes, fields: dict[str, Raw]) -> str:
    """Which key is twice in ``body``; the slow way, on the way out, over at most ``FIELDS_MAX`` keys."""
    twice = [key for key in fields if body.count(msgspec.json.encode(key)) > 1] or list(fields)
    return quoted(twice[0]) if len(twice) == 1 else "(one of " + ", ".join(map(quoted, twice[:8])) + ")"


def _refuse_masses(fields: dict[str, Raw]) -> None:
    """What would keep the event loop busy for seconds is refused before it is decoded; images are one string each."""
    for name, size_max in SIZES_MAX.items():
        raw = fields.get(name)
        if raw is not None and memoryview(raw).nbytes > size_max:
            raise InvalidRequest(f"{quoted(name)} is larger than {size_max >> 10} KiB", status=413)
    for name in ("messages", "input", "system"):  # the last may be a list of blocks in Anthropic's dialect
        raw = fields.get(name)
        if raw is None:
            continue
        if _count(raw, b"{") > OBJECTS_MAX and _about(raw, _OBJECT_BEGINS) > OBJECTS_MAX:
            raise InvalidRequest(f'"{name}" holds more than {OBJECTS_MAX} objects', status=413)
        if _count(raw, b"[") > LISTS_MAX and _about(raw, _LIST_BEGINS) > LISTS_MAX:
            raise InvalidRequest(f'"{name}" holds more than {LISTS_MAX} lists', status=413)


def _about(raw: Raw, begins: re.Pattern[bytes]) -> int:
    """About how many of something are in it: what opens one, not the brackets inside a long text.

    One per piece may be missed, of brackets in a row two of three, and a text that looks like it counts.
    """
    return sum(len(begins.findall(piece)) for piece in _pieces(raw))


def check_object(body: bytes, *, known: frozenset[str] = frozenset()) -> dict[str, Raw]:
    """The fields of one JSON object, each still undecoded. Raises :class:`InvalidRequest` for anything else.

    Refused besides what is no JSON object: a key twice, two keys that differ only in case, and, if ``known`` is
    given, a key that Go would fold onto a known field (``Model``, ``\\u212aeep_alive``).

    Duplicates are found by counting colons, without looking at each byte in Python: all colons of the body, less
    those inside values and keys, are the keys. A key with an escaped colon in it (``\\u003a``) would upset the sum and
    is refused; no dialect has such a field. Nested objects are not looked at: they are decoded and written anew.
    """
    if not body.isascii():
        try:
            decoder = _utf8(errors="strict")
            for piece in _pieces(body):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise explain(error, body) from None
    if len(body) > _PIECE_BYTES and sum(piece.count(b"\\") for piece in _pieces(body)) > ESCAPES_MAX:
        raise InvalidRequest(f"more than {ESCAPES_MAX} escapes in strings", status=413)
    if len(body) > COMMAS_MAX and sum(piece.count(b",") for piece in _pieces(body)) > COMMAS_MAX:
        raise InvalidRequest(f"more than {COMMAS_MAX} values", status=413)
    fields, surplus = _decode_object(body, known)
    if len(fields) > FIELDS_MAX:
        raise InvalidRequest(f"more than {FIELDS_MAX} fields")
    _refuse_masses(fields)
    _refuse_collisions(fields, known)
    if (b"\\u003a" in body or b"\\u003A" in body) and any(":" in key for key in fields):
        raise InvalidRequest("a field's name contains an escaped colon")
    if surplus:
        raise InvalidRequest(f"duplicate field {_duplicate(body, fields)}")
    return fields


class Gate(Generic[_T]):
    """:func:`check_object` and then :func:`decode_as`, with a short way for what clients usually send.

    The short way only ever accepts; whatever it does not accept is judged by ``check_object`` and refused in its words.
    It proves that no key is there twice by length: each usual field, written once without a space, is as long as the
    body. Anything else in it (the same key again, an escaped key, a blank) would make the body longer, never shorter.
    """

    __slots__ = ("_decoder", "_known", "_raw")

    def __init__(self, kind: type[_T], known: frozenset[str], *, ignored: frozenset[str] = frozenset()) -> None:
        """``ignored``: fields that clients send, too, of which ``kind`` knows nothing; others take the long way."""
        usual = known | ignored
        assert all(name.isascii() and name.isidentifier() for name in usual), "written as they are, without escapes"
        assert len({name.casefold() for name in usual}) == len(usual) <= FIELDS_MAX
        self._known = known
        self._decoder: msgspec.json.Decoder[_T] = msgspec.json.Decoder(kind)
        self._raw = _raw_decoder(usual, only=True)

    def __call__(self, body: bytes) -> _T:
        """``body`` in the gate's type. Raises :class:`InvalidRequest`."""
        if not self.usual(body):
            check_object(body, known=self._known)
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise explain(error, body) from None

    def usual(self, body: bytes) -> bool:
        """Whether the short way accepts ``body``: then ``check_object`` would too. False says nothing."""
        length = len(body)
        if length > QUICK_BYTES_MAX:
            return False
        try:
            if not body.isascii():
                body.decode()
            if b'": ' not in body[:_PEEK_BYTES] and len(_encode(self._raw.decode(body))) == length:
                return True
            compact = msgspec.json.format(body, indent=-1)  # takes blanks out, and nothing else
            return len(_encode(self._raw.decode(compact))) == len(compact)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False


def check_depth(value: object, name: str, *, depth_max: int = DEPTH_MAX) -> None:
    """Refuse a decoded value nested deeper than ``depth_max``: it must be encoded again, from any stack."""
    level: list[Any] = [value]
    for _ in range(depth_max + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    raise InvalidRequest(f"{name} is nested deeper than {depth_max} levels")
