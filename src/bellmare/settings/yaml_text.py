"""YAML text to plain values with the place of each: bounded in size, depth and number of values, never running code.

Works on ruamel.yaml's events instead of its constructors: that gives the place of every key, finds duplicate keys and
stops alias bombs while they grow. Scalars follow YAML 1.2's core schema: ``off`` and ``no`` are words, not booleans.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from bellmare.settings.problems import Path, quoted

SIZE_MAX = 1 << 20
"""Bytes of a file; a fleet of a thousand workers needs a tenth."""
DEPTH_MAX = 16
"""Levels; ours has four. The scanner is quadratic in the depth of brackets."""
VALUES_MAX = 20_000
"""Values after aliases are expanded; three aliases to the power of twelve are half a million."""
BRACKETS_MAX = 200
"""Opening brackets side by side, which the scanner reads ahead of any event: 10^6 of them took minutes."""

_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_SPECIAL = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}
_BRACKETS = re.compile(rf"(?:[\[{{][\s,]*){{{BRACKETS_MAX}}}")
_DIGITS_MAX = 40


class Mark(msgspec.Struct, frozen=True):
    """A place in a text, both counted from one."""

    line: int
    column: int


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with the text itself. ``path`` is the key it happened at, if it is of one."""

    mark: Mark
    path: Path
    reason: str


class Document(msgspec.Struct):
    """What a text says. ``value`` is made of dict, list, str, int, float, bool; keys without a value are left out."""

    value: Any
    keys: dict[Path, Mark]
    """Where each key or list item begins."""
    values: dict[Path, Mark]
    faults: list[Fault]


class _StopError(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Anchored(msgspec.Struct, frozen=True):
    value: Any
    count: int


class _Builder:
    """Reads one document from parser events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.document = Document(None, {}, {}, [])
        self.anchors: dict[str, _Anchored] = {}
        self.count = 0

    def build(self) -> Document:
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _StopError(Fault(_mark(event), (), "a second document begins here; there can be only one"))
                self.document.value = self.node(next(self.events), ())
        return self.document

    def node(self, event: Any, path: Path) -> Any:
        mark = _mark(event)
        self.document.values[path] = mark
        if len(path) > DEPTH_MAX:
            raise _StopError(Fault(mark, (), f"nested deeper than {DEPTH_MAX} levels"))
        if isinstance(event, AliasEvent):
            return self.alias(event, path)
        if event.tag and not isinstance(event, ScalarEvent):
            self.fault(event, f"the tag {quoted(str(event.tag))} is not understood", path=path)
        before = self.count
        self.add(1, mark)
        if isinstance(event, MappingStartEvent):
            value: Any = self.mapping(path)
        elif isinstance(event, SequenceStartEvent):
            value = self.sequence(path)
        else:
            value = self.scalar(event, path)
        if getattr(event, "anchor", None):
            self.anchors[event.anchor] = _Anchored(value, self.count - before)
        return value

    def add(self, values: int, mark: Mark) -> None:
        self.count += values
        if self.count > VALUES_MAX:
            raise _StopError(Fault(mark, (), f"more than {VALUES_MAX} values, aliases expanded"))

    def alias(self, event: AliasEvent, path: Path) -> Any:
        found = self.anchors.get(event.anchor)
        if found is None:
            self.fault(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it", path=path)
            return None
        self.add(found.count, _mark(event))
        return found.value

    def mapping(self, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, Mark] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise _StopError(Fault(_mark(event), path, "a key must be a plain word"))
            key = str(event.value)
            inner = (*path, key)
            if key in seen:
                self.fault(event, f"duplicate key; it is already set in line {seen[key].line}", path=inner)
                self.node(next(self.events), inner)
                continue
            if key == "<<" and event.implicit[0]:
                self.fault(
                    event,
                    "merge keys are not understood (YAML 1.2 has none); repeat the keys, or use an alias",
                    path=inner,
                )
                self.node(next(self.events), inner)
                continue
            seen[key] = self.document.keys[inner] = _mark(event)
            value = self.node(next(self.events), inner)
            if value is not None:
                result[key] = value
        return result

    def sequence(self, path: Path) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            inner = (*path, len(result))
            self.document.keys[inner] = _mark(event)
            result.append(self.node(event, inner))
        return result

    def scalar(self, event: ScalarEvent, path: Path) -> Any:
        text = str(event.value)
        tag = str(event.tag) if event.tag else ""
        if tag and tag not in {"!", "tag:yaml.org,2002:str"}:
            self.fault(event, f"the tag {quoted(tag)} is not understood", path=path)
            return None
        if tag or not event.implicit[0]:
            return text
        return plain(text)

    def fault(self, event: Any, reason: str, *, path: Path) -> None:
        self.document.faults.append(Fault(_mark(event), path, reason))


def plain(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in {"true", "True", "TRUE"}:
        return True
    if text in {"false", "False", "FALSE"}:
        return False
    if len(text) > _DIGITS_MAX:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _SPECIAL.get(text.casefold(), text)


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def decode(raw: bytes) -> str:
    """Bytes of a file as text. Raises ValueError with the reason; ``args[1]``, if present, is the line."""
    if len(raw) > SIZE_MAX:
        raise ValueError(f"larger than {SIZE_MAX >> 20}MiB; this cannot be a configuration of bellmare")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text", raw.count(b"\n", 0, error.start) + 1) from None


def read_yaml(text: str) -> Document:
    """Parse ``text``; what is wrong stands in ``faults`` and never raises. After a syntax error ``value`` is None."""
    brackets = _BRACKETS.search(text)
    if brackets:
        return _failed(Fault(_mark_at(text, brackets.start()), (), f"nested deeper than {DEPTH_MAX} levels"))
    builder = _Builder(iter(YAML(typ="safe", pure=True).parse(text)))
    try:
        return builder.build()
    except _StopError as stop:
        faults = [*builder.document.faults, stop.fault]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
        reason = str(error.problem or error.context or "unreadable")
        if error.context and error.problem:
            reason = f"{reason} {error.context}"
        faults = [*builder.document.faults, Fault(place, (), f"not valid YAML: {' '.join(reason.split())}")]
    except YAMLError as error:
        position = getattr(error, "position", 0)
        character = getattr(error, "character", "")
        reason = f"the character {quoted(character)} is not allowed" if character else "unreadable"
        faults = [Fault(_mark_at(text, position), (), f"not valid YAML: {reason}")]
    return Document(None, {}, {}, faults)


def _failed(fault: Fault) -> Document:
    return Document(None, {}, {}, [fault])


def _mark_at(text: str, position: int) -> Mark:
    return Mark(text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1)
