"""An instance of a JSON schema: what a model says that obeys ``format``, or with what it fills in a tool's arguments.

Deterministic. Values that stand in the prompt are preferred (numbers, quoted words, names, a value of an enum); the
rest is made up. A schema that is not understood gives a string, never an exception.
"""

import re
from collections.abc import Iterator
from typing import Any

from bellmare.workers.sim.pattern import matching

DEPTH_MAX = 24
"""References may be recursive; below this depth only what must be there is there."""
ITEMS_MAX = 64
_OPTIONAL_DEPTH = 4
"""Optional properties and items of arrays are given down to here, so that a tree has leaves."""
_SCAN_CHARS_MAX = 20_000
"""Of a prompt only so much is searched for values."""

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_QUOTED = re.compile(r"'([^'\n]{1,200})'|\"([^\"\n]{1,200})\"|[\u201c\u2018]([^\u201d\u2019\n]{1,200})[\u201d\u2019]")
_NAMED = re.compile(r"(?<=[a-z,] )[A-Z][\w-]*(?:,? [A-Z][\w-]*)*")
"""Capitalised words that do not begin a sentence: San Francisco, CA."""
_FORMATS = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "duration": "PT1M",
    "email": "mare@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_WORDS = ("bell", "mare", "river", "stone", "train", "rope", "pace", "load")


class Hints:
    """Values of a prompt, each given out once and in order."""

    def __init__(self, text: str) -> None:
        text = text[-_SCAN_CHARS_MAX:]
        self.text = text
        self.numbers = [float(found) for found in _NUMBER.findall(text)]
        quoted = ["".join(groups) for groups in _QUOTED.findall(text)]
        self._strings = iter(quoted + _NAMED.findall(text))
        self._left = iter(self.numbers)
        self._made = 0

    def number(self) -> float | None:
        return next(self._left, None)

    def string(self) -> str:
        """From the prompt, else one word of ours after the other."""
        found = next(self._strings, None)
        if found is None:
            found = _WORDS[self._made % len(_WORDS)]
            self._made += 1
        return found


def instance(schema: object, hints: Hints) -> Any:
    """A value that is valid under ``schema`` (draft 2020-12, what is usual of it)."""
    return _Maker(schema, hints).make(schema, 0)


class _Maker:
    def __init__(self, root: object, hints: Hints) -> None:
        self._root = root
        self._hints = hints

    def make(self, schema: object, depth: int) -> Any:
        if not isinstance(schema, dict):
            return self._hints.string()
        if "$ref" in schema:
            if depth >= DEPTH_MAX:
                return None
            return self.make(self._referred(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._chosen(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self.make(self._simplest(schema[key], depth), depth + 1)
        if isinstance(schema.get("allOf"), list) and schema["allOf"]:
            return self.make(self._merged(schema), depth + 1)
        return self._typed(schema, _kind(schema), depth=depth)

    def _typed(self, schema: dict[str, Any], kind: str, *, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else self._string(schema)

    def _referred(self, pointer: object) -> object:
        """A JSON pointer into the same document; anything else is the schema that allows everything."""
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            return True
        found: object = self._root
        for step in pointer[1:].strip("/").split("/"):
            if not step:
                continue
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(name, True)
            elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                return True
        return found

    def _chosen(self, values: list[Any]) -> Any:
        text = self._hints.text.casefold()
        return next((one for one in values if isinstance(one, str) and one and one.casefold() in text), values[0])

    def _simplest(self, options: list[Any], depth: int) -> object:
        """The first that is something; deep down nothing, if that is allowed."""
        null = next((one for one in options if isinstance(one, dict) and one.get("type") == "null"), None)
        if null is not None and depth >= _OPTIONAL_DEPTH:
            return null
        return next((one for one in options if one is not null), null)

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        """``allOf`` flattened, references followed."""
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for given in schema["allOf"]:
            part = self._referred(given["$ref"]) if isinstance(given, dict) and "$ref" in given else given
            if not isinstance(part, dict):
                continue
            for key, value in part.items():
                if key == "properties" and isinstance(value, dict):
                    merged["properties"] = {**merged.get("properties", {}), **value}
                elif key == "required" and isinstance(value, list):
                    merged["required"] = [*merged.get("required", []), *value]
                else:
                    merged.setdefault(key, value)
        return merged

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        needed = [one for one in required if isinstance(one, str)] if isinstance(required, list) else []
        wanted = [
            name
            for name, part in properties.items()
            if name in needed or (depth < _OPTIONAL_DEPTH and not (isinstance(part, dict) and "default" in part))
        ]
        wanted += [name for name in needed if name not in properties]
        found = {name: self.make(properties.get(name, True), depth + 1) for name in wanted}
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and not properties and depth < _OPTIONAL_DEPTH:
            found[self._hints.string()] = self.make(more, depth + 1)
        return found

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        prefix = schema.get("prefixItems")
        found = [self.make(part, depth + 1) for part in prefix[:ITEMS_MAX]] if isinstance(prefix, list) else []
        items = schema.get("items", True)
        least, most = _bound(schema, "minItems", 0), _bound(schema, "maxItems", ITEMS_MAX)
        if items is not False and not found and depth < _OPTIONAL_DEPTH:
            least = max(1, least)
        options = items.get("enum") if isinstance(items, dict) else None
        while len(found) < min(least, most, ITEMS_MAX):
            value = self.make(items, depth + 1)
            if schema.get("uniqueItems") and value in found:
                value = _other(value, found, options if isinstance(options, list) else None)
            found.append(value)
        return found

    def _number(self, schema: dict[str, Any], *, whole: bool) -> int | float:
        low, high = _limits(schema)
        wanted = self._hints.number()
        value: float = 1 if wanted is None or not low <= wanted <= high or (whole and wanted % 1) else wanted
        value = min(max(value, low), high)
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool) and step > 0:
            value = -(-value // step) * step
        if whole:
            value = -(-value // 1)
        return int(value) if value == int(value) and (whole or wanted is None or wanted == int(wanted)) else value

    def _string(self, schema: dict[str, Any]) -> str:
        given = schema.get("format")
        if isinstance(given, str) and given in _FORMATS:
            return _FORMATS[given]
        if isinstance(schema.get("pattern"), str):
            found = matching(schema["pattern"])
            if found is not None:
                return found
        text = self._hints.string()
        least, most = _bound(schema, "minLength", 0), _bound(schema, "maxLength", 1 << 20)
        return (text + "." * (min(least, 1 << 16) - len(text)))[:most]


def _kind(schema: dict[str, Any]) -> str:
    """The type of an instance: as said, else as the other words imply."""
    said = schema.get("type")
    if isinstance(said, list):
        said = next((one for one in said if one != "null"), "null")
    if isinstance(said, str):
        return said
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "number" if "minimum" in schema or "maximum" in schema else "string"


def _bound(schema: dict[str, Any], key: str, otherwise: int) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _limits(schema: dict[str, Any]) -> tuple[float, float]:
    """Inclusive bounds; exclusive ones are taken one further, which is right for integers and safe for the rest."""
    low, high = -1e15, 1e15
    for key, shift in (("minimum", 0), ("exclusiveMinimum", 1), ("maximum", 0), ("exclusiveMaximum", -1)):
        value = schema.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if key in ("minimum", "exclusiveMinimum"):
                low = max(low, value + shift)
            else:
                high = min(high, value + shift)
    if low > high:  # a span below one, as 0 < x < 1
        low = high = (low + high) / 2
    return low, high


def _other(value: Any, taken: list[Any], options: list[Any] | None) -> Any:
    """A value like ``value`` that is not among ``taken``."""
    for candidate in _variants(value, options):
        if candidate not in taken:
            return candidate
    return value


def _variants(value: Any, options: list[Any] | None) -> Iterator[Any]:
    if options:
        yield from options
    elif isinstance(value, str):
        yield from (f"{value}{number}" for number in range(2, ITEMS_MAX + 2))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + number for number in range(1, ITEMS_MAX + 1))
