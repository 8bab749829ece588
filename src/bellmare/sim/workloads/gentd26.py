"""GenTD26 (alibaba/clusterdata, cluster-trace-v2026-GenAI): requests with model and user, and how long loads took."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import GB, SIZES_GB, Arrival, Workload, build, randomness
from bellmare.sim.workloads.columns import Row, TraceError, column_names, instant_s, known, number, rows, usable
from bellmare.sim.workloads.spans import drawn_us, median_us


class _Request(NamedTuple):
    at_us: int
    model: str
    user: str
    exec_us: int | None


def gentd26(path: Path, seed: int, service_percent: int) -> Workload:
    """Model, user and execution time of each request, in any order; failed ones too, since they needed their model.

    A service takes ``service_percent`` of the execution time; where a row has none, the median; where no row has,
    spans are drawn. Rows without a user are users of their own.
    """

    def read(line: int, row: Row) -> _Request:
        if not known(row["model"]):
            raise TraceError(f"{path}:{line}: no model")
        text = row.get("exec_s")
        exec_us = int(number(path, line, text) * SECOND_US) if text is not None and known(text) else None
        user = row["user"] if known(row.get("user")) else f"line {line}"
        return _Request(int(instant_s(path, line, row["t"]) * SECOND_US), row["model"], user, exec_us)

    requests = list(usable(rows(path, ("t", "model"), ("user", "exec_s")), read))
    if not requests:
        raise TraceError(f"{path}: no requests in it")
    measured = [request.exec_us for request in requests if request.exec_us is not None]
    if not measured and "exec_s" in column_names(path):
        raise TraceError(f"{path}: exec_s is no number in any row")
    usual_us = median_us(measured) if measured else None
    chance = randomness(seed, "spans")
    models: dict[str, int] = {}
    users: dict[str, int] = {}
    arrivals = []
    for request in requests:
        exec_us = request.exec_us if request.exec_us is not None else usual_us
        service_us = drawn_us(chance) if exec_us is None else max(1, exec_us * service_percent // 100)
        model = models.setdefault(request.model, len(models))
        arrivals.append(Arrival(request.at_us, model, service_us, users.setdefault(request.user, len(users))))
    return build(path.name, seed=seed, arrivals=arrivals)


class LoadTimes(msgspec.Struct, frozen=True):
    """How long loads of one kind took."""

    kind: str
    loads: int
    p50_s: float
    p90_s: float
    p99_s: float
    disk_bytes_per_s: int | None
    """At this rate, after a second of spawning, a model of the median size would load as quickly as half of these; None
    if they took no longer than the spawn.
    """


def load_times(path: Path) -> list[LoadTimes]:
    """One line for each kind, those with most loads first. Raises ``TraceError``."""

    def read(line: int, row: Row) -> tuple[str, float]:
        return row["kind"], number(path, line, row["ms"]) / 1000

    spans_s: dict[str, list[float]] = {}
    for kind, span_s in usable(rows(path, ("kind", "ms")), read):
        spans_s.setdefault(kind, []).append(span_s)
    if not spans_s:
        raise TraceError(f"{path}: no loads in it")
    ordered = sorted(spans_s.items(), key=lambda item: (-len(item[1]), item[0]))
    return [_times(kind, sorted(found)) for kind, found in ordered]


def _times(kind: str, spans_s: list[float]) -> LoadTimes:
    p50, p90, p99 = (round(spans_s[max(0, -(-len(spans_s) * share // 100) - 1)], 1) for share in (50, 90, 99))
    weights_bytes = SIZES_GB[len(SIZES_GB) // 2] * GB
    rate = int(weights_bytes / (p50 - 1)) if p50 > 1 else None
    return LoadTimes(kind, len(spans_s), p50, p90, p99, rate)
