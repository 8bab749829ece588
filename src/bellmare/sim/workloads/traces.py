"""Importers of traces, by path: what kind a file is, who reads it, and on which fleets it is run.

A file is known by its columns, else by its name; a folder or ``*.jsonl`` is an event log of bellmare's own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from bellmare.sim.workload import Workload
from bellmare.sim.workloads.azure import azure_functions, azure_tokens
from bellmare.sim.workloads.columns import TraceError, column_names, column_names_of_parquet, is_parquet
from bellmare.sim.workloads.event_log import event_log, recorded_fleet
from bellmare.sim.workloads.gentd26 import gentd26
from bellmare.sim.workloads.servegen import servegen

__all__ = ["KINDS", "TraceError", "TraceKind", "fleets_for", "load_trace", "recognise", "trace_name", "traces_in"]

SERVICE_PERCENT = 30
"""A service takes so much of the trace's execution time (policy.md 3): 8.6 s on average for GenTD26."""
FILES_MAX = 1_000
"""Files of one folder that are looked at."""
SUFFIXES = (".gz", ".csv", ".parquet", ".jsonl")

Reader = Callable[[Path, int, int], Workload]


class TraceKind(msgspec.Struct, frozen=True):
    """One format."""

    name: str
    marks: tuple[str, ...]
    """Parts of file names by which it is known where columns do not tell."""
    columns: frozenset[str]
    reader: Reader | None
    """None: it says nothing of requests."""
    fleets: tuple[str, ...]
    """On which it is usually run."""
    benchmark: bool = False
    """Whether it is run with all others of a folder; durations belong to another file, tokens name no models."""


KINDS = (
    TraceKind("functions", ("azfn", "_minutes"), frozenset({"func", "minute", "count"}), azure_functions,
              ("1x24GB", "1x48GB"), benchmark=True),
    TraceKind("durations", ("_functions",), frozenset({"func", "avg_ms"}), azure_functions,
              ("1x24GB", "1x48GB")),
    TraceKind("clients", ("servegen",), frozenset({"client", "t", "rate"}), servegen, ("1x48GB",),
              benchmark=True),
    TraceKind("tokens", ("azure_llm",), frozenset({"contexttokens", "generatedtokens"}), azure_tokens,
              ("1x48GB",)),
    TraceKind("load times", ("load_latency",), frozenset({"kind", "ms"}), None, ()),
    TraceKind("requests", ("gentd26",), frozenset({"t", "model"}), gentd26, ("1x24GB", "1x48GB", "1x96GB", "4x24GB"),
              benchmark=True),
)  # fmt: skip
"""Kinds with more columns of their own first: the first that fits is meant."""
EVENT_LOG = TraceKind("event log", (), frozenset(), lambda path, seed, _: event_log(path, seed), ())
UNKNOWN_FLEET = "1x24GB"
"""Of an event log that names no worker."""


def recognise(path: Path) -> TraceKind:
    """What kind of trace lies there. Raises ``TraceError`` if there is none that we know."""
    if path.is_dir() or (path.suffix == ".jsonl" and path.is_file()):
        return EVENT_LOG
    by_name = next((kind for kind in KINDS if any(mark in path.name for mark in kind.marks)), None)
    if not path.is_file() and by_name is not None:
        raise TraceError(f"{path}: no such file")
    names = column_names(path)
    by_columns = next((kind for kind in KINDS if kind.columns <= names), None)
    found = by_columns or by_name
    if found is None and is_parquet(path):
        column_names_of_parquet(path)  # says that pyarrow is missing, or what is wrong with the file
    if found is None:
        known = "; ".join(f"{kind.name}: {', '.join(sorted(kind.columns))}" for kind in KINDS)
        raise TraceError(f"{path}: not a trace that is known by name or by its columns ({known})")
    return found


def load_trace(path: Path, *, seed: int, service_percent: int = SERVICE_PERCENT) -> Workload:
    """The trace at ``path``; ``seed`` draws sizes and what the file leaves open."""
    kind = recognise(path)
    if kind.reader is None:
        raise TraceError(f"{path}: {kind.name} are no requests; nothing can be run on them")
    return kind.reader(path, seed, service_percent)


def fleets_for(path: Path, kind: TraceKind) -> tuple[str, ...]:
    """The fleets that suit a trace; for an event log the one that was recorded."""
    if kind is EVENT_LOG:
        return (recorded_fleet(path) or UNKNOWN_FLEET,)
    return kind.fleets


def trace_name(path: Path) -> str:
    """The file's name without what says how it is packed."""
    name = path.resolve().name if path.is_dir() else path.name
    while any(name.endswith(suffix) and name != suffix for suffix in SUFFIXES):
        name = name[: name.rindex(".")]
    return name


def traces_in(folder: Path) -> Iterator[tuple[Path, TraceKind | None, str]]:
    """Files of a folder by name: what each is if it belongs into a benchmark, else why not."""
    if not folder.is_dir():
        raise TraceError(f"{folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) > FILES_MAX:
        raise TraceError(f"{folder}: more than {FILES_MAX} files")
    for path in files:
        try:
            kind = recognise(path)
        except TraceError as error:
            yield path, None, str(error) if is_parquet(path) else "no trace that is known"
            continue
        if kind.benchmark:
            yield path, kind, ""
        else:
            yield path, None, f"{kind.name}: not a workload by itself"
