"""Human quantities: sizes, times, counts, percentages. Each kind parses, checks its range, shows and describes itself.

A kind stands in ``Annotated[int, Size(...)]`` of a setting, so that range, error text, schema and documentation come
from one place. Nothing here rounds silently and nothing guesses a unit.
"""

import math
import re
from decimal import Decimal
from typing import Any

import msgspec
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from bellmare.settings.problems import did_you_mean, nearest, quoted

SIZE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
"""GPUs are sold in GB and allocate in GiB, 7 % apart: both are understood and never mixed up."""
DURATION_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
TEXT_MAX = 40
"""Longer than any quantity; keeps ``Decimal`` from working on megabytes of digits."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_PERCENT = re.compile(r"([0-9]+)\s*%", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_WHOLE = re.compile(r"[+-]?[0-9](?:_?[0-9])*", re.ASCII)


class Parsed:
    """Base of the kinds: one value as written, parsed, shown again and described."""

    __slots__ = ()

    def parse(self, value: object) -> Any:
        """The value of ``value`` as written; ValueError with one line of reason. What was parsed before is kept."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """``value``, as ``parse`` made it, in the form that a person would write."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON schema of what ``parse`` accepts in a file."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)


def parse_size(value: object) -> int:
    """Bytes from ``24GB`` (10^9), ``24GiB`` (2^30) or a plain number of bytes. Raises ValueError with the reason."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= TEXT_MAX else None
    if match is None:
        raise ValueError(f"{quoted(value)} is not a size; say for example 24GB, 24GiB or 500MiB")
    number, unit = match.groups()
    if not unit and "." in number:
        raise ValueError(f"{quoted(value)} is not a whole number of bytes; add a unit such as GB or GiB")
    factor = {name.casefold(): factor for name, factor in SIZE_UNITS.items()}.get(unit.casefold() or "b")
    if factor is None:
        letter = unit[0].upper()
        if f"{letter}B" in SIZE_UNITS and unit.casefold() in {letter.casefold(), f"{letter}i".casefold()}:
            power = "KMGT".index(letter) + 1
            hint = f"; say {number}{letter}B (10^{3 * power}) or {number}{letter}iB (2^{10 * power})"
        else:
            hint = f"; the units are {', '.join(SIZE_UNITS)}"
        raise ValueError(f"{quoted(value)} has the unknown unit {quoted(unit)}{hint}")
    size = Decimal(number) * factor
    if size != int(size):
        raise ValueError(f"{quoted(value)} is not a whole number of bytes")
    return int(size)


def show_size(value: int) -> str:
    """The shortest exact form: ``24GB``, ``1GiB``, ``1234``."""
    for unit, factor in sorted(SIZE_UNITS.items(), key=lambda item: -item[1]):
        if factor > 1 and value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


def parse_duration(value: object) -> int:
    """Microseconds from ``5s``, ``2m``, ``500ms``, ``1h30m`` or a plain number of seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{quoted(value)} is not a time; say for example 5s, 2m or 500ms")
        return _whole_us(Decimal(str(value)) * DURATION_UNITS_US["s"], value)
    text = value.strip() if isinstance(value, str) and len(value) <= TEXT_MAX else ""
    parts = _DURATION_PART.findall(text)
    if not parts or not re.fullmatch(f"(?:{_DURATION_PART.pattern})+", text, re.ASCII):
        raise ValueError(f"{quoted(value)} is not a time; say for example 5s, 2m or 500ms")
    if len(parts) == 1 and not parts[0][1]:
        parts = [(parts[0][0], "s")]
    total_us = Decimal(0)
    for number, unit in parts:
        factor = DURATION_UNITS_US.get(unit.casefold())
        if factor is None:
            known = ", ".join(DURATION_UNITS_US)
            raise ValueError(f"{quoted(value)} has the unknown unit {quoted(unit)}; the units are {known}")
        total_us += Decimal(number) * factor
    return _whole_us(total_us, value)


def _whole_us(total_us: Decimal, value: object) -> int:
    if total_us != int(total_us):
        raise ValueError(f"{quoted(value)} is finer than a microsecond")
    return int(total_us)


def show_duration(value_us: int) -> str:
    """The shortest exact form in one unit of at most minutes: ``120s``, ``500ms``, ``10m``."""
    for unit in ("h", "m", "s", "ms"):
        factor = DURATION_UNITS_US[unit]
        if value_us and value_us % factor == 0 and (unit not in {"h", "m"} or value_us // factor > 2):
            return f"{value_us // factor}{unit}"
    return f"{value_us}us" if value_us else "0s"


class Size(Parsed, msgspec.Struct, frozen=True):
    """A size in bytes within a range, both ends included."""

    low: int
    high: int

    def parse(self, value: object) -> int:
        size = parse_size(value)
        if not self.low <= size <= self.high:
            raise ValueError(f"{quoted(value)} is out of range; {self.describe()}")
        return size

    def describe(self) -> str:
        return f"a size from {show_size(self.low)} to {show_size(self.high)}"

    def show(self, value: int) -> str:
        return show_size(value)

    def schema(self) -> dict[str, Any]:
        units = "|".join(unit for unit in SIZE_UNITS)
        return {
            "description": self.describe(),
            "anyOf": [
                {"type": "integer", "minimum": self.low, "maximum": self.high},
                {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)?\s*({units})?$"},
            ],
        }


class Duration(Parsed, msgspec.Struct, frozen=True):
    """A length of time in microseconds within a range, both ends included."""

    low_us: int
    high_us: int

    def parse(self, value: object) -> int:
        span_us = parse_duration(value)
        if not self.low_us <= span_us <= self.high_us:
            raise ValueError(f"{quoted(value)} is out of range; {self.describe()}")
        return span_us

    def describe(self) -> str:
        return f"a time from {show_duration(self.low_us)} to {show_duration(self.high_us)}"

    def show(self, value: int) -> str:
        return show_duration(value)

    def schema(self) -> dict[str, Any]:
        seconds = DURATION_UNITS_US["s"]
        return {
            "description": self.describe(),
            "anyOf": [
                {"type": "number", "minimum": self.low_us / seconds, "maximum": self.high_us / seconds},
                {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?\s*(us|ms|s|m|h|d)\s*)+$|^[0-9]+(\.[0-9]+)?$"},
            ],
        }


class Count(Parsed, msgspec.Struct, frozen=True):
    """A whole number within a range, both ends included. ``unit`` is a plural noun for the error text."""

    low: int
    high: int
    unit: str

    def parse(self, value: object) -> int:
        if isinstance(value, str) and len(value) <= TEXT_MAX and _WHOLE.fullmatch(value.strip()):
            value = int(value.strip())
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{quoted(value)} is not a whole number; {self.describe()}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{quoted(value)} is out of range; {self.describe()}")
        return value

    def describe(self) -> str:
        return f"{self.low} to {self.high} {self.unit}"

    def show(self, value: int) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"description": self.describe(), "type": "integer", "minimum": self.low, "maximum": self.high}


class Counts(Parsed, msgspec.Struct, frozen=True):
    """Some whole numbers, each of the kind ``one``; kept ascending, and each once."""

    one: Count
    most: int

    def parse(self, value: object) -> tuple[int, ...]:
        if isinstance(value, str) and len(value) <= TEXT_MAX * self.most:
            value = [part for part in value.split(",") if part.strip()]
        elif isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{quoted(value)} is not a list of whole numbers; {self.describe()}")
        if len(value) > self.most:
            raise ValueError(f"{len(value)} numbers are too many; {self.describe()}")
        return tuple(sorted({self.one.parse(number) for number in value}))

    def describe(self) -> str:
        return f"up to {self.most} of {self.one.describe()}"

    def show(self, value: tuple[int, ...]) -> str:
        return ", ".join(self.one.show(number) for number in value)

    def schema(self) -> dict[str, Any]:
        item = {key: said for key, said in self.one.schema().items() if key != "description"}
        return {"description": self.describe(), "type": "array", "items": item, "maxItems": self.most}


class Percent(Parsed, msgspec.Struct, frozen=True):
    """A whole percentage within a range, both ends included: ``80%`` or 80."""

    low: int
    high: int

    def parse(self, value: object) -> int:
        match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= TEXT_MAX else None
        number: object = int(match[1]) if match is not None else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{quoted(value)} is not a whole percentage such as 80%; {self.describe()}")
        if not self.low <= number <= self.high:
            raise ValueError(f"{quoted(value)} is out of range; {self.describe()}")
        return number

    def describe(self) -> str:
        return f"{self.low}% to {self.high}%"

    def show(self, value: int) -> str:
        return f"{value}%"

    def schema(self) -> dict[str, Any]:
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {"description": self.describe(), "anyOf": [{"type": "string", "pattern": r"^\s*\d+\s*%\s*$"}, number]}


class Factor(Parsed, msgspec.Struct, frozen=True):
    """A positive number within a range, both ends included."""

    low: float
    high: float

    def parse(self, value: object) -> float:
        number: object = value
        if isinstance(value, str) and len(value) <= TEXT_MAX:
            try:
                number = float(value)
            except ValueError:
                number = None
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{quoted(value)} is not a number; {self.describe()}")
        if not self.low <= number <= self.high:  # NaN is in no range
            raise ValueError(f"{quoted(value)} is out of range; {self.describe()}")
        return float(number)

    def describe(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def show(self, value: float) -> str:
        return f"{value:g}"

    def schema(self) -> dict[str, Any]:
        return {"description": self.describe(), "type": "number", "minimum": self.low, "maximum": self.high}


class Flag(Parsed, msgspec.Struct, frozen=True):
    """true or false; from the environment also yes/no, on/off, 1/0."""

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = value.strip().casefold() if isinstance(value, str) else ""
        if word in {"true", "yes", "on", "1"}:
            return True
        if word in {"false", "no", "off", "0"}:
            return False
        raise ValueError(f"{quoted(value)} is neither true nor false")

    def show(self, value: bool) -> str:
        return "true" if value else "false"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Choice(Parsed, msgspec.Struct, frozen=True):
    """One word of a closed set."""

    words: tuple[str, ...]

    def parse(self, value: object) -> str:
        word = value.strip().casefold() if isinstance(value, str) else ""
        if word in self.words:
            return word
        known = ", ".join(self.words)
        raise ValueError(f"{quoted(value)} is none of {known}{did_you_mean(nearest(word, self.words))}")

    def show(self, value: str) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


class Word(Parsed, msgspec.Struct, frozen=True):
    """A string of a certain form. ``what`` says the form in words."""

    pattern: str
    what: str

    def parse(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII):
            return value
        raise ValueError(f"{quoted(value)} is not {self.what}")

    def show(self, value: str) -> str:
        return value

    def schema(self) -> dict[str, Any]:
        return {"description": self.what, "type": "string", "pattern": f"^(?:{self.pattern})$"}


class Words(Parsed, msgspec.Struct, frozen=True):
    """A list of words of one kind; in a variable or a flag with commas between."""

    word: Word
    most: int

    def parse(self, value: object) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError(f"{quoted(value)} is not a list")
        if len(parts) > self.most:
            raise ValueError(f"{len(parts)} are too many; at most {self.most}")
        return tuple(self.word.parse(part.strip() if isinstance(part, str) else part) for part in parts if part != "")

    def show(self, value: tuple[str, ...]) -> str:
        return ", ".join(value)

    def schema(self) -> dict[str, Any]:
        items = self.word.schema()
        what = items.pop("description")
        return {"description": f"a list of {what}", "type": "array", "maxItems": self.most, "items": items}


class Headroom(msgspec.Struct, frozen=True):
    """Memory kept free: a fixed size or a share of the worker's memory; exactly one is set."""

    size_bytes: int = 0
    percent: int = 0

    def of(self, capacity_bytes: int) -> int:
        return self.size_bytes or capacity_bytes * self.percent // 100

    def __str__(self) -> str:
        return f"{self.percent}%" if self.percent else show_size(self.size_bytes)


class HeadroomKind(Parsed, msgspec.Struct, frozen=True):
    """``1GiB`` or ``5%``."""

    high: int
    percent_max: int

    def parse(self, value: object) -> Headroom:
        if isinstance(value, Headroom):
            return value
        match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= TEXT_MAX else None
        if match:
            percent = int(match[1])
            if percent > self.percent_max:
                raise ValueError(f"{quoted(value)} is out of range; at most {self.percent_max}%")
            return Headroom(percent=percent)
        if isinstance(value, str) and "%" in value:
            raise ValueError(f"{quoted(value)} is not a whole percentage such as 5%")
        return Headroom(size_bytes=Size(0, self.high).parse(value))

    def show(self, value: Headroom) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        size = Size(0, self.high).schema()["anyOf"]
        return {
            "description": f"a size up to {show_size(self.high)}, or up to {self.percent_max}%",
            "anyOf": [*size, {"type": "string", "pattern": r"^[0-9]{1,2}\s*%$"}],
        }
