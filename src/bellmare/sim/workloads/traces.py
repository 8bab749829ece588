"""Importers of published traces, by path. A file that cannot be read as what it claims to be is a ``TraceError``."""

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import Arrival, Workload, build, randomness

SERVICE_PERCENT = 30
"""A service takes so much of the trace's execution time (policy.md 3): 8.6 s on average for GenTD26."""
MINUTE_US = 60 * SECOND_US
FUNCTIONS = 40
CALLS_MIN, CALLS_MAX = 6, 400
"""Functions with so many calls a day stand for models (policy.md 3)."""
SERVICE_MIN_S, SERVICE_MAX_S = 1.0, 8.0
"""Durations of functions are clipped to what a model takes (policy.md 3)."""
ROWS_MAX = 5_000_000
CLIENTS = 40
RATE_PERCENT = 1
"""ServeGen's clients are those of a cloud: 40 of them at a hundredth of their rate are one machine's (policy.md 3)."""
CLIENT_REQUESTS_MIN, CLIENT_REQUESTS_MAX = 20, 10_000
CLIENT_RATE_MAX = 0.5
"""Clients with so many requests a week at that rate, and at most so many per second in any window: a runner serves two
a second, and a client that overruns it waits for slots, not for models. Our choice."""
BURST_MIN, BURST_MAX = 0.1, 5.0
"""Coefficients of variation are kept within these (5.1 is the 90th percentile, 1,038 the largest): drawn from a gamma
distribution, one of a hundred puts thousands of requests into one instant of a window that had some hundred."""
SERVEGEN_DAYS = 7
SERVEGEN_SLOTS = 8
WINDOW_US = 600 * SECOND_US
SERVEGEN_SERVICE_LOG_MEAN, SERVEGEN_SERVICE_LOG_DEVIATION = 1.2, 0.7
"""ServeGen's windows carry no durations: log-normal, 4.2 s on average."""

Row = Mapping[str, str]


class TraceError(ValueError):
    """The file is missing, damaged or no trace that we know."""


def load_trace(path: Path, *, seed: int, service_percent: int = SERVICE_PERCENT) -> Workload:
    """The trace at ``path``, known by its file's name; ``seed`` draws sizes and what the file leaves open."""
    for mark, reader in _READERS.items():
        if mark in path.name:
            if not path.is_file():
                raise TraceError(f"{path}: no such file")
            return reader(path, seed, service_percent)
    raise TraceError(f"{path}: not a trace that is known by name ({', '.join(_READERS)})")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Lines of a CSV file, gzipped or not, with their number in the file."""
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(f"{path}: no column {', '.join(missing)}")
            for number, row in enumerate(reader, start=2):
                if number > ROWS_MAX:
                    raise TraceError(f"{path}: more than {ROWS_MAX} lines")
                yield number, row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from error


def _number(path: Path, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise TraceError(f"{path}:{line}: '{text}' is no number") from error
    if not (math.isfinite(value) and 0 <= value < 1e12):
        raise TraceError(f"{path}:{line}: {text} is out of range")
    return value


def gentd26(path: Path, seed: int, service_percent: int) -> Workload:
    """GenTD26 (alibaba/clusterdata, cluster-trace-v2026-GenAI): user, model and execution time of each request."""
    models: dict[str, int] = {}
    users: dict[str, int] = {}
    arrivals = []
    for line, row in _rows(path, ("t", "user", "model", "exec_s")):
        exec_us = int(_number(path, line, row["exec_s"]) * SECOND_US)
        arrivals.append(
            Arrival(
                at_us=int(_number(path, line, row["t"]) * SECOND_US),
                model=models.setdefault(row["model"], len(models)),
                service_us=max(1, exec_us * service_percent // 100),
                user=users.setdefault(row["user"], len(users)),
            )
        )
    if not arrivals:
        raise TraceError(f"{path}: no requests in it")
    return build(path.name, seed=seed, arrivals=arrivals)


def azure_functions(path: Path, seed: int, service_percent: int) -> Workload:
    """Azure Functions 2019, calls per minute: ``*_minutes`` beside ``*_functions``; either path will do.

    Durations are taken as they are, clipped; calls lie anywhere within their minute.
    """
    del service_percent
    functions = path.with_name(path.name.replace("_minutes", "_functions"))
    minutes = path.with_name(path.name.replace("_functions", "_minutes"))
    spans_s: dict[str, float] = {}
    for line, row in _rows(functions, ("func", "avg_ms", "invocations")):
        if CALLS_MIN <= _number(functions, line, row["invocations"]) <= CALLS_MAX:
            span_s = _number(functions, line, row["avg_ms"]) / 1000
            spans_s[row["func"]] = min(max(span_s, SERVICE_MIN_S), SERVICE_MAX_S)
    chance = randomness(seed, "azure functions")
    names = sorted(spans_s)
    chosen = {name: i for i, name in enumerate(chance.sample(names, min(FUNCTIONS, len(names))))}
    arrivals = []
    for line, row in _rows(minutes, ("func", "minute", "count")):
        number = chosen.get(row["func"])
        if number is None:
            continue
        start_us = int(_number(minutes, line, row["minute"])) * MINUTE_US
        for _ in range(min(int(_number(minutes, line, row["count"])), CALLS_MAX)):
            at_us = start_us + chance.randrange(MINUTE_US)
            arrivals.append(Arrival(at_us, number, int(spans_s[row["func"]] * SECOND_US), number))
    if not arrivals:
        raise TraceError(f"{minutes}: no function with {CALLS_MIN} to {CALLS_MAX} calls")
    return build(path.name, seed=seed, arrivals=arrivals)


def servegen(path: Path, seed: int, service_percent: int) -> Workload:
    """ServeGen (alibaba/ServeGen): rate and burstiness of each client in windows of ten minutes. Needs pyarrow."""
    del service_percent
    try:
        from pyarrow import parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise TraceError(f"{path}: reading parquet files needs the package pyarrow, which is not installed") from error
    try:
        table = parquet.read_table(path, columns=["model", "client", "t", "rate", "cv"]).to_pydict()
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise TraceError(f"{path}: {error}") from error
    windows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in zip(*(table[name] for name in ("model", "client", "t", "rate", "cv")), strict=True):
        windows.setdefault((str(row[0]), str(row[1])), []).append((float(row[2]), float(row[3]), float(row[4])))
    chance = randomness(seed, "servegen")
    fitting = sorted(client for client, seen in windows.items() if _fitting(seen))
    clients = chance.sample(fitting, min(CLIENTS, len(fitting)))
    begin_s = min((window[0] for client in clients for window in windows[client]), default=0.0)
    arrivals: list[Arrival] = []
    for number, client in enumerate(clients):
        for t, rate, cv in sorted(windows[client]):
            if t - begin_s < SERVEGEN_DAYS * 86_400 and rate > 0:
                arrivals.extend(
                    _window(chance, number, window=(t, rate * RATE_PERCENT / 100, min(max(cv, BURST_MIN), BURST_MAX)))
                )
    if not arrivals:
        raise TraceError(f"{path}: no requests in it")
    return build(path.name, seed=seed, arrivals=arrivals, slots=SERVEGEN_SLOTS)


def _fitting(windows: list[tuple[float, float, float]]) -> bool:
    rates = [rate * RATE_PERCENT / 100 for _, rate, _ in windows]
    requests = sum(rates) * WINDOW_US / SECOND_US
    return CLIENT_REQUESTS_MIN <= requests <= CLIENT_REQUESTS_MAX and max(rates) <= CLIENT_RATE_MAX


def _window(chance: Random, number: int, *, window: tuple[float, float, float]) -> Iterator[Arrival]:
    start_s, rate, cv = window
    shape = 1 / (cv * cv)
    at_us = int(start_s * SECOND_US)
    end_us = at_us + WINDOW_US
    while True:
        at_us += max(1, int(chance.gammavariate(shape, 1 / (rate * shape)) * SECOND_US))
        if at_us >= end_us:
            return
        span_s = chance.lognormvariate(SERVEGEN_SERVICE_LOG_MEAN, SERVEGEN_SERVICE_LOG_DEVIATION)
        yield Arrival(at_us, number, int(span_s * 1000) * 1000, number)


_READERS: dict[str, Callable[[Path, int, int], Workload]] = {
    "gentd26_requests": gentd26,
    "azfn2019": azure_functions,
    "servegen": servegen,
}
