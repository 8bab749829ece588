"""ServeGen (alibaba/ServeGen): clients of a cloud with their rate and burstiness in windows of ten minutes."""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import Arrival, Workload, build, randomness
from bellmare.sim.workloads.columns import Row, TraceError, known, number, rows, usable
from bellmare.sim.workloads.spans import drawn_us

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
BURST_USUAL = 1.0
"""Where a window does not say: a Poisson process."""
DAYS = 7
SLOTS = 8
WINDOW_US = 600 * SECOND_US

Window = tuple[float, float, float]
"""Start in seconds, requests per second, coefficient of variation."""


def servegen(path: Path, seed: int, service_percent: int) -> Workload:
    """40 clients by seed, each with a model of its own; parquet needs pyarrow.

    Of a part of a week the bounds of requests are the same part; if nobody has enough, all who come at all are taken.
    """
    del service_percent
    windows = _windows(path)
    chance = randomness(seed, "servegen")
    days = _days(windows)
    least, most = CLIENT_REQUESTS_MIN * days / DAYS, CLIENT_REQUESTS_MAX * days / DAYS
    fitting = sorted(client for client, seen in windows.items() if _fitting(seen, least, most))
    fitting = fitting or sorted(client for client, seen in windows.items() if _fitting(seen, 0, most))
    clients = chance.sample(fitting, min(CLIENTS, len(fitting)))
    begin_s = min((window[0] for client in clients for window in windows[client]), default=0.0)
    by_client: list[list[Arrival]] = []
    for client in clients:
        came: list[Arrival] = []
        for start_s, rate, cv in sorted(windows[client]):
            if start_s - begin_s < DAYS * 86_400 and rate > 0:
                window = (start_s, rate * RATE_PERCENT / 100, min(max(cv, BURST_MIN), BURST_MAX))
                came.extend(_arrivals(chance, len(by_client), window=window))
        if came:
            by_client.append(came)
    if not by_client:
        raise TraceError(f"{path}: no requests in it")
    arrivals = [arrival for came in by_client for arrival in came]
    return build(path.name, seed=seed, arrivals=arrivals, slots=SLOTS)


def _windows(path: Path) -> dict[tuple[str, str], list[Window]]:
    """By model and client, in order of first mention."""

    def read(line: int, row: Row) -> tuple[tuple[str, str], Window]:
        cv = number(path, line, row["cv"]) if known(row.get("cv")) else BURST_USUAL
        rate = number(path, line, row["rate"]) if known(row.get("rate")) else 0.0
        return (row.get("model") or "", row["client"]), (number(path, line, row["t"]), rate, cv)

    found: dict[tuple[str, str], list[Window]] = {}
    for client, window in usable(rows(path, ("client", "t", "rate"), ("model", "cv")), read):
        found.setdefault(client, []).append(window)
    return found


def _days(windows: dict[tuple[str, str], list[Window]]) -> int:
    """That the file spans, begun ones in full, at most those that are run."""
    starts_s = [window[0] for seen in windows.values() for window in seen]
    span_s = max(starts_s) - min(starts_s) + WINDOW_US / SECOND_US if starts_s else 0
    return min(DAYS, max(1, math.ceil(span_s / 86_400)))


def _fitting(windows: list[Window], least: float, most: float) -> bool:
    rates = [rate * RATE_PERCENT / 100 for _, rate, _ in windows]
    requests = sum(rates) * WINDOW_US / SECOND_US
    return least <= requests <= most and 0 < max(rates) <= CLIENT_RATE_MAX


def _arrivals(chance: Random, number: int, *, window: Window) -> Iterator[Arrival]:
    start_s, rate, cv = window
    shape = 1 / (cv * cv)
    at_us = int(start_s * SECOND_US)
    end_us = at_us + WINDOW_US
    while True:
        at_us += max(1, int(chance.gammavariate(shape, 1 / (rate * shape)) * SECOND_US))
        if at_us >= end_us:
            return
        yield Arrival(at_us, number, drawn_us(chance), number)
