"""The tree of keys, read off the model: what exists, of which kind, and what an unknown key was perhaps meant to be."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from pydantic.fields import FieldInfo

from bellmare.settings.model import Section, Settings
from bellmare.settings.problems import Path, dotted, nearest
from bellmare.settings.quantities import Parsed

ITEM = "[]"
"""Stands in a path for any item of a list."""
NAME = "<name>"
"""Stands in a path for any name in a mapping."""


class Key(msgspec.Struct, frozen=True):
    """One key of the file."""

    path: tuple[str, ...]
    """With ``[]`` and ``<name>`` where there are many: ``("workers", "[]", "url")``."""
    kind: Parsed | None
    """None: a section, a list or a mapping."""
    section: type[Section] | None
    """What stands below it: the section's keys, or those of each item."""
    collection: str
    """``[]`` or ``<name>`` if there may be many of the section; else empty."""
    field: FieldInfo

    @property
    def default(self) -> Any:
        return self.field.default

    @property
    def description(self) -> str:
        assert self.field.description, f"{dotted(self.path)} needs a reason"
        return self.field.description


def _unwrap(annotation: Any) -> Iterator[Any]:
    """All plain types and all metadata in an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        yield from metadata
        yield from _unwrap(base)
    elif origin in {Union, types.UnionType, tuple, dict}:
        for argument in get_args(annotation):
            yield from _unwrap(argument)
    else:
        yield annotation


def _key(path: tuple[str, ...], field: FieldInfo) -> Key:
    parts = [*field.metadata, *_unwrap(field.annotation)]
    kind = next((part for part in parts if isinstance(part, Parsed)), None)
    section = next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)
    origin = get_origin(field.annotation)
    collection = "" if kind is not None else ITEM if origin is tuple else NAME if origin is dict else ""
    return Key(path, kind, section, collection, field)


def keys_of(section: type[Section], parent: tuple[str, ...] = ()) -> dict[str, Key]:
    """The keys directly in ``section``, by name, in order."""
    fields = section.model_fields
    return {field.alias or name: _key((*parent, field.alias or name), field) for name, field in fields.items()}


def all_keys(section: type[Section] = Settings, parent: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every key, parents before children."""
    for key in keys_of(section, parent).values():
        yield key
        if key.section is not None:
            below = (*key.path, key.collection) if key.collection else key.path
            yield from all_keys(key.section, below)


def section_at(path: Path) -> type[Section] | None:
    """The section whose keys stand directly below ``path``, or None if there is no such."""
    section: type[Section] | None = Settings
    skip = False
    for part in path:
        if skip:
            skip = False
            continue
        key = keys_of(section).get(str(part)) if section is not None else None
        if key is None:
            return None
        section, skip = key.section, bool(key.collection)
    return None if skip else section


def meant(path: Path) -> str | None:
    """What the unknown key at the end of ``path`` was perhaps meant to be: a name beside it, else a dotted key."""
    section = section_at(path[:-1])
    name = str(path[-1])
    known = {key.path[-1]: dotted(key.path).replace(f".{ITEM}", ITEM) for key in reversed(list(all_keys()))}
    elsewhere = known.get(name.casefold().replace("-", "_"))
    beside = nearest(name, keys_of(section)) if section is not None else None
    if beside and beside.casefold() == name.casefold().replace("-", "_"):
        return beside
    return elsewhere or beside or known.get(nearest(name, known) or "")
