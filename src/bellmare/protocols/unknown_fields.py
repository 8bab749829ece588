"""Fields of a request that we do not know: kept beside the known ones and written back where they stood.

A newer client may send what only a newer Ollama understands. The usual request has no such field and is decoded
without this module; one that has takes the long way, and its structs become :class:`Extended` ones.
"""

import functools
from typing import Any, TypeVar, cast

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import Gate, check_depth, check_object, decode_as, explain, quoted

UNKNOWN_MAX = 1000
"""Unknown fields of one request, wherever they stand. No API has so many; each costs a dictionary entry."""
UNKNOWN_BYTES_MAX = 1 << 20
"""Of all unknown fields of a request's own object together, as of ``tools``: 16 MiB of small lists took 1.2 s."""

_S = TypeVar("_S", bound=msgspec.Struct)


class Extended(msgspec.Struct, frozen=True, gc=False):
    """Marks the structs that carry fields which their type does not know; they are made at run time."""


def extra_of(request: Extended) -> dict[str, Any]:
    """The unknown fields, by their names in JSON."""
    found: dict[str, Any] = cast("Any", request).extra
    return found


class _Nested(msgspec.Struct, frozen=True):
    """A field that holds structs: one, or a list of them."""

    kind: type[msgspec.Struct]
    listed: bool


class _Kind(msgspec.Struct, frozen=True):
    """What has to be known of a struct type."""

    names: dict[str, str]
    """Name in JSON to attribute."""
    folded: dict[str, str]
    """Case-folded to the name in JSON: Go would take one for the other."""
    nested: dict[str, _Nested]
    """By the name in JSON."""
    strict: Any
    """The subclass that refuses what it does not know, at every depth: how unknown fields are noticed for nothing."""
    extended: Any
    """The subclass with ``extra``."""


def _nested_in(annotated: Any) -> _Nested | None:
    """What structs a field's type holds, through ``| None``."""
    if isinstance(annotated, msgspec.inspect.UnionType):
        found = [nested for nested in map(_nested_in, annotated.types) if nested is not None]
        return found[0] if found else None
    if isinstance(annotated, msgspec.inspect.StructType):
        return _Nested(annotated.cls, listed=False)
    if isinstance(annotated, msgspec.inspect.ListType):
        inner = _nested_in(annotated.item_type)
        return _Nested(inner.kind, listed=True) if inner is not None else None
    return None


@functools.lru_cache(maxsize=64)
def _kind(kind: type[msgspec.Struct]) -> _Kind:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    nested = {field.encode_name: _nested_in(field.type) for field in info.fields}
    fields: list[tuple[str, Any, Any]] = []
    for field in info.fields:
        found = nested[field.encode_name]
        if found is None:
            continue
        inner: Any = _kind(found.kind).strict
        if found.listed:
            inner = list.__class_getitem__(inner)
        kept = inner | None if field.default is None else inner
        fields.append((field.name, kept, msgspec.field(default=None if field.default is None else inner())))
    strict = msgspec.defstruct(
        kind.__name__,
        fields,
        bases=(kind,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        gc=False,
    )
    extended = msgspec.defstruct(
        kind.__name__, [("extra", dict[str, Any])], bases=(Extended, kind), frozen=True, kw_only=True, gc=False
    )
    names = {field.encode_name: field.name for field in info.fields}
    return _Kind(
        names=names,
        folded={name.casefold(): name for name in names},
        nested={name: found for name, found in nested.items() if found is not None},
        strict=strict,
        extended=extended,
    )


class _Extras:
    """The unknown fields of one object, and those of the objects in it, by field and place (0 for a single one)."""

    __slots__ = ("inner", "own")

    def __init__(self) -> None:
        self.own: dict[str, Any] = {}
        self.inner: dict[tuple[str, int], _Extras] = {}


def _split(kind: type[msgspec.Struct], value: Any, *, left: list[int]) -> tuple[Any, _Extras]:
    """``value`` without what ``kind`` does not know, and that. ``null`` is absent, or an empty object, as to Go."""
    extras = _Extras()
    if not isinstance(value, dict):
        return value, extras  # of a wrong type: the conversion says so
    about = _kind(kind)
    known: dict[str, Any] = {}
    for name, given in value.items():
        if name not in about.names:
            meant = about.folded.get(name.casefold())
            if meant is not None:
                raise InvalidRequest(f"field {quoted(name)} must be written {quoted(meant)}")
            left[0] -= 1
            if left[0] < 0:
                raise InvalidRequest("too many unknown fields")
            check_depth(given, f"field {quoted(name)}")
            if given is not None:  # null is absent to Go
                extras.own[name] = given
            continue
        if given is None:
            continue
        known[name] = given
        nested = about.nested.get(name)
        if nested is not None:
            known[name] = _split_nested(name, nested, given, extras=extras, left=left)
    return known, extras


def _split_nested(name: str, nested: _Nested, given: Any, *, extras: _Extras, left: list[int]) -> Any:
    listed = nested.listed and isinstance(given, list)
    stripped = []
    for place, item in enumerate(given if listed else [given]):
        plain, inner = _split(nested.kind, {} if item is None else item, left=left)
        stripped.append(plain)
        if inner.own or inner.inner:
            extras.inner[name, place] = inner
    return stripped if listed else stripped[0]


def _graft(value: Any, extras: _Extras | None, *, always: bool = False) -> Any:
    """The struct with its unknown fields; ``always`` makes it an :class:`Extended` one even without any."""
    if extras is None or not (always or extras.own or extras.inner):
        return value
    kind: type[msgspec.Struct] = type(value)
    about = _kind(kind)
    fields = {attribute: getattr(value, attribute) for attribute in about.names.values()}
    for name, nested in about.nested.items():
        attribute = about.names[name]
        inner = fields[attribute]
        if inner is None:
            continue
        if nested.listed:
            fields[attribute] = [_graft(item, extras.inner.get((name, place))) for place, item in enumerate(inner)]
        else:
            fields[attribute] = _graft(inner, extras.inner.get((name, 0)))
    return about.extended(extra=extras.own, **fields)


def decode_keeping(body: bytes, kind: type[_S]) -> _S:
    """``body`` as ``kind``, with what it does not know kept: the result is :class:`Extended`.

    ``body`` is valid JSON. Raises :class:`InvalidRequest`, and what ``msgspec.convert`` raises for wrong types.
    """
    known, extras = _split(kind, msgspec.json.decode(body), left=[UNKNOWN_MAX])
    return cast("_S", _graft(msgspec.convert(known, kind), extras, always=True))


class KeepingGate(Gate[_S]):
    """As :class:`Gate`, and unknown fields are kept."""

    __slots__ = ("_kind", "_strict")

    def __init__(self, kind: type[_S], known: frozenset[str]) -> None:
        super().__init__(kind, known)
        self._kind = kind
        self._strict: msgspec.json.Decoder[_S] = msgspec.json.Decoder(_kind(kind).strict)

    def __call__(self, body: bytes) -> _S:
        """``body`` in the gate's type. Raises :class:`InvalidRequest`."""
        if not self.usual(body):
            fields = check_object(body, known=self._known)
            if len(body) > UNKNOWN_BYTES_MAX:
                known = sum(memoryview(raw).nbytes for name, raw in fields.items() if name in self._known)
                if len(body) - known > UNKNOWN_BYTES_MAX:
                    text = f"unknown fields are larger than {UNKNOWN_BYTES_MAX >> 10} KiB"
                    raise InvalidRequest(text, status=413)
        try:
            return self._strict.decode(body)
        except msgspec.ValidationError:
            pass  # of a wrong type, or with fields that we do not know
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return decode_as(body, self._strict)  # raises, in a client's words
        try:
            return decode_keeping(body, self._kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise explain(error, body) from None


def without(request: Extended, names: frozenset[str]) -> Extended:
    """Without the unknown fields of these names, in whatever case."""
    kept = {name: value for name, value in extra_of(request).items() if name.casefold() not in names}
    return msgspec.structs.replace(request, extra=kept)


def to_plain(value: Any) -> Any:
    """What JSON is to be made of: structs become dictionaries without absent fields and with their unknown ones."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        plain = {
            field.encode_name: to_plain(given)
            for field in fields
            if field.name != "extra" and (given := getattr(value, field.name)) is not None
        }
        return plain | extra_of(value) if isinstance(value, Extended) else plain
    if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
        return [to_plain(item) for item in value]
    return value
