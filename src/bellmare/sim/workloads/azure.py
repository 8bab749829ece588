"""Azure's public data sets: calls of functions per minute (2019), and lengths of requests to two LLMs (2023)."""

from collections import Counter
from pathlib import Path

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import Arrival, Workload, build, randomness
from bellmare.sim.workloads.columns import Row, TraceError, column_names, known, number, rows, usable
from bellmare.sim.workloads.generated import Sessions, sessions
from bellmare.sim.workloads.spans import drawn_us

MINUTE_US = 60 * SECOND_US
DAY_HOURS = 24
FUNCTIONS = 40
CALLS_MIN, CALLS_MAX = 6, 400
"""Functions with so many calls a day stand for models (policy.md 3)."""
SERVICE_MIN_S, SERVICE_MAX_S = 1.0, 8.0
"""Durations of functions are clipped to what a model takes (policy.md 3)."""
CALLS, SPANS = frozenset({"func", "minute", "count"}), frozenset({"func", "avg_ms"})
"""Columns by which the two files of a data set are known."""
FOLDER_MAX = 1_000
"""Files looked at for the one that belongs to another."""
PREFILL_TOKENS_PER_S, DECODE_TOKENS_PER_S = 2_000, 40
"""A quantised model of 7 to 13 billion weights on a 24 GB GPU, one request in its slot: our round figures."""


def azure_functions(path: Path, seed: int, service_percent: int) -> Workload:
    """Azure Functions 2019, calls per minute: ``*_minutes`` beside ``*_functions``; either path will do.

    Durations are taken as they are, clipped; calls lie anywhere within their minute. Without a file of durations, or
    for a function that it lacks, they are drawn. Without a number of calls in it the minutes are summed, and of a part
    of a day the bounds of calls are the same part. If nobody has enough calls, all who are called at all are taken.
    """
    del service_percent
    calls_path, spans_path = _pair(path)
    spans_s, calls = _functions(spans_path) if spans_path is not None else ({}, Counter[str]())
    minutes = _minutes(calls_path)
    hours = DAY_HOURS
    if not calls:
        hours = _hours(minutes)
        for func, _, count in minutes:
            calls[func] += count
    most = CALLS_MAX * hours // DAY_HOURS
    names = _fitting(calls, max(1, CALLS_MIN * hours // DAY_HOURS), most) or _fitting(calls, 1, CALLS_MAX)
    chance, spans_chance = randomness(seed, "azure functions"), randomness(seed, "azure spans")
    chosen = {func: i for i, func in enumerate(chance.sample(names, min(FUNCTIONS, len(names))))}
    service_us = {func: _span_us(spans_s.get(func), drawn_us(spans_chance)) for func in chosen}
    arrivals = []
    for func, minute, count in minutes:
        if func in chosen:
            for _ in range(min(count, CALLS_MAX)):
                at_us = minute * MINUTE_US + chance.randrange(MINUTE_US)
                arrivals.append(Arrival(at_us, chosen[func], service_us[func], chosen[func]))
    if not arrivals:
        raise TraceError(f"{calls_path}: no function with 1 to {CALLS_MAX} calls")
    return build(path.name, seed=seed, arrivals=_dense(arrivals))


def _hours(minutes: list[tuple[str, int, int]]) -> int:
    """That the calls span, begun ones in full, at most a day."""
    begun = [minute for _, minute, _ in minutes]
    return min(DAY_HOURS, -(-(max(begun) - min(begun) + 1) // 60)) if begun else DAY_HOURS


def _fitting(calls: Counter[str], least: int, most: int) -> list[str]:
    return sorted(func for func, count in calls.items() if least <= count <= most)


def _span_us(span_s: float | None, drawn: int) -> int:
    known_us = drawn if span_s is None else int(span_s * SECOND_US)
    return min(max(known_us, int(SERVICE_MIN_S * SECOND_US)), int(SERVICE_MAX_S * SECOND_US))


def _functions(path: Path) -> tuple[dict[str, float], Counter[str]]:
    """Mean seconds of each function, and how often it was called if the file says so."""
    spans_s: dict[str, float] = {}
    calls: Counter[str] = Counter()

    def read(line: int, row: Row) -> None:
        if known(row["avg_ms"]):
            spans_s[row["func"]] = number(path, line, row["avg_ms"]) / 1000
        if known(row.get("invocations")):
            calls[row["func"]] = int(number(path, line, row["invocations"]))

    for _ in usable(rows(path, ("func", "avg_ms"), ("invocations",)), read):
        pass
    return spans_s, calls


def _minutes(path: Path) -> list[tuple[str, int, int]]:
    def read(line: int, row: Row) -> tuple[str, int, int]:
        return row["func"], int(number(path, line, row["minute"])), int(number(path, line, row["count"]))

    return list(usable(rows(path, ("func", "minute", "count")), read))


def _pair(path: Path) -> tuple[Path, Path | None]:
    """The file of calls, and that of durations if there is one: by name, else the only one of its kind beside it."""
    found = column_names(path)
    if found >= CALLS or ("_functions" not in path.name and not found >= SPANS):
        return path, _partner(path, "_minutes", "_functions", columns=SPANS)
    calls_path = _partner(path, "_functions", "_minutes", columns=CALLS)
    if calls_path is None:
        raise TraceError(f"{path}: durations of functions, but no calls per minute beside it")
    return calls_path, path


def _partner(path: Path, ours: str, theirs: str, *, columns: frozenset[str]) -> Path | None:
    by_name = path.with_name(path.name.replace(ours, theirs))
    if by_name != path and by_name.is_file():
        return by_name
    beside = sorted(path.parent.iterdir())[:FOLDER_MAX] if path.parent.is_dir() else []
    fitting = [other for other in beside if other != path and other.is_file() and column_names(other) >= columns]
    return fitting[0] if len(fitting) == 1 else None


def _dense(arrivals: list[Arrival]) -> list[Arrival]:
    """Models numbered without gaps: a function that was chosen may have no call in this part of the trace."""
    numbers = {model: i for i, model in enumerate(sorted({arrival.model for arrival in arrivals}))}
    return [arrival._replace(model=numbers[arrival.model]) for arrival in arrivals]


def azure_tokens(path: Path, seed: int, service_percent: int) -> Workload:
    """Azure LLM 2023: lengths of prompts and answers, as service spans of generated sessions (as S1).

    The file names no models and no users. Spans are drawn from its rows by seed.
    """
    del service_percent

    def read(line: int, row: Row) -> int:
        prompt = number(path, line, row["contexttokens"])
        answer = number(path, line, row["generatedtokens"])
        return max(1, int((prompt / PREFILL_TOKENS_PER_S + answer / DECODE_TOKENS_PER_S) * SECOND_US))

    spans_us = list(usable(rows(path, ("contexttokens", "generatedtokens")), read))
    if not spans_us:
        raise TraceError(f"{path}: no requests in it")
    chance = randomness(seed, "azure tokens")
    made = sessions(seed, Sessions())
    arrivals = tuple(arrival._replace(service_us=chance.choice(spans_us)) for arrival in made.arrivals)
    return msgspec.structs.replace(made, name=path.name, arrivals=arrivals)
