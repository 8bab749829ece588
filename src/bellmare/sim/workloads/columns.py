"""Reads tables of numbers, CSV (gzipped or not) and parquet, by the names of their columns. Knows no trace.

Files come from elsewhere: a table may lack columns, have more, name them otherwise, or hold some rows that say nothing.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

ROWS_MAX = 5_000_000
BAD_ROWS_PERCENT_MAX = 5
"""So many rows may be damaged and are left out; of more the file is not what it seems to be, and the first is named."""
NUMBER_MAX = 1e12
PARQUET_MARK, GZIP_MARK = b"PAR1", b"\x1f\x8b"
UNKNOWN = frozenset({"", "nan", "null", "none", "na", "-"})
"""How tables say that a value is not known."""
ALIASES: Mapping[str, str] = {
    "timestamp": "t", "time": "t", "start_time": "t", "submit_time": "t", "gmt_create": "t",
    "user_id": "user", "tenant": "user", "userid": "user",
    "model_id": "model", "model_name": "model", "base_model": "model",
    "exec_time": "exec_s", "exec_time_s": "exec_s", "execution_time": "exec_s", "duration": "exec_s",
    "duration_s": "exec_s",
    "hashfunction": "func", "function": "func", "average": "avg_ms", "invocation": "invocations",
    "context_tokens": "contexttokens", "generated_tokens": "generatedtokens",
    "client_id": "client", "latency_ms": "ms",
}  # fmt: skip
"""Other names of columns, in lower case, as published files and their extracts have them."""

Row = Mapping[str, str]
Read = TypeVar("Read")


class TraceError(ValueError):
    """The file is missing, damaged or no trace that we know."""


def column_names(path: Path) -> frozenset[str]:
    """Canonical names of the columns; empty if the file is no table."""
    try:
        with path.open("rb") as file:
            mark = file.read(len(PARQUET_MARK))
        if mark == PARQUET_MARK:
            return frozenset(column_names_of_parquet(path))
        with _open(path) as lines:
            return frozenset(_canonical(name) for name in next(csv.reader(lines), []))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, TraceError):
        return frozenset()


def is_parquet(path: Path) -> bool:
    """By its content, or by its name if it has none to speak of."""
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET_MARK)) == PARQUET_MARK or path.suffix == ".parquet"
    except OSError:
        return path.suffix == ".parquet"


def rows(path: Path, needed: Sequence[str], wanted: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """Rows with their number in the file, what is missing as empty text. All columns of ``needed`` must be there; of
    ``wanted`` those that are. Raises ``TraceError``.
    """
    if is_parquet(path):
        yield from _parquet_rows(path, needed, wanted)
        return
    try:
        with _open(path) as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [_canonical(name) for name in reader.fieldnames or ()]
            _need(path, reader.fieldnames, needed=needed, wanted=wanted)
            there = [name for name in (*needed, *wanted) if name in reader.fieldnames]
            for line, row in enumerate(reader, start=2):
                _bound(path, line)
                yield line, {name: row[name] or "" for name in there}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from error


def usable(lines: Iterator[tuple[int, Row]], read: Callable[[int, Row], Read]) -> Iterator[Read]:
    """What ``read`` makes of each row; damaged ones are left out, or the first is raised if they are too many."""
    count = bad = 0
    first: TraceError | None = None
    for number, row in lines:
        count += 1
        try:
            found = read(number, row)
        except TraceError as error:
            bad += 1
            first = first or error
            continue
        yield found
    if first is not None and bad * 100 > BAD_ROWS_PERCENT_MAX * count:
        raise first


def number(path: Path, line: int, text: str) -> float:
    """A finite number of at least 0. Raises ``TraceError`` with the line."""
    try:
        value = float(text)
    except ValueError as error:
        raise TraceError(f"{path}:{line}: '{text}' is no number") from error
    if not (math.isfinite(value) and 0 <= value < NUMBER_MAX):
        raise TraceError(f"{path}:{line}: {text} is out of range")
    return value


def known(text: str | None) -> bool:
    """Whether the table says anything there."""
    return text is not None and text.strip().lower() not in UNKNOWN


def instant_s(path: Path, line: int, text: str) -> float:
    """Seconds since some beginning, or a date with a time of day (without a zone: UTC)."""
    try:
        float(text)
    except ValueError:
        try:
            found = datetime.fromisoformat(text.strip())
        except ValueError:
            return number(path, line, text)  # says what is wrong
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return number(path, line, text)


def _canonical(name: str) -> str:
    plain = name.strip().lstrip("\ufeff").strip('"').lower()
    return ALIASES.get(plain, plain)


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(len(GZIP_MARK)) == GZIP_MARK
    if zipped or path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8")
    return path.open(newline="", encoding="utf-8")


def _need(path: Path, names: Sequence[str], *, needed: Sequence[str], wanted: Sequence[str]) -> None:
    if any(column not in names for column in needed):
        missing = [column for column in (*needed, *wanted) if column not in names]
        raise TraceError(f"{path}: no column {', '.join(missing)}")


def _bound(path: Path, line: int) -> None:
    if line > ROWS_MAX:
        raise TraceError(f"{path}: more than {ROWS_MAX} lines")


def column_names_of_parquet(path: Path) -> list[str]:
    """The same in order, or a ``TraceError`` that says why they cannot be read."""
    parquet = _parquet(path)
    try:
        return [_canonical(name) for name in parquet.read_schema(path).names]
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise TraceError(f"{path}: {error}") from error


def _parquet_rows(path: Path, needed: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[int, Row]]:
    parquet = _parquet(path)
    names = column_names_of_parquet(path)
    _need(path, names, needed=needed, wanted=wanted)
    try:
        raw = {name: parquet.read_schema(path).names[names.index(name)] for name in (*needed, *wanted) if name in names}
        table = parquet.read_table(path, columns=list(raw.values())).to_pydict()
    except (OSError, ValueError, KeyError) as error:
        raise TraceError(f"{path}: {error}") from error
    for line, values in enumerate(zip(*(table[column] for column in raw.values()), strict=True), start=1):
        _bound(path, line)
        yield line, {name: "" if v is None else str(v) for name, v in zip(raw, values, strict=True)}


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        how = "which is not installed; get it by: pip install 'bellmare[traces]'"
        raise TraceError(f"{path}: reading parquet files needs the package pyarrow, {how}") from error
    return parquet
