"""From outcomes to rows, ratios and goals.

CPU: ratios are taken within a round, and then their median. Delays: the quietest round of each, because a neighbour
that takes the core for milliseconds is not the proxy's doing, and only ever adds.
"""

import statistics
from collections.abc import Callable
from typing import Any

from bellmare.bench.proxy.jobs import Outcome
from bellmare.bench.proxy.measures import CHUNKS_PER_STREAM, HEADLINE, Measured, Plan
from bellmare.bench.proxy.subjects import DIRECT, Subject

FREED_WITHIN_MS = 100.0
JOINED_MAX = 1.5
"""Chunks per read above which CPU per chunk is that of a proxy which is late."""
OWN = "bellmare"

Figure = Callable[[Outcome], float | None]


def cpu_per_request(outcome: Outcome) -> float | None:
    return outcome.cpu_us / outcome.requests if outcome.requests and outcome.cpu_us else None


def cpu_per_chunk(outcome: Outcome) -> float | None:
    return outcome.cpu_us / outcome.chunks if outcome.chunks and outcome.cpu_us else None


def per_second(count: str) -> Figure:
    """Requests or chunks per second of the window."""

    def figure(outcome: Outcome) -> float | None:
        return float(getattr(outcome, count)) / outcome.window_s if outcome.window_s else None

    return figure


def _named(name: str) -> Figure:
    def figure(outcome: Outcome) -> float | None:
        return float(getattr(outcome, name))

    return figure


def _chunks_per_read(outcome: Outcome) -> float | None:
    return outcome.chunks / outcome.reads if outcome.reads else None


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def median(measured: Measured, phase: str, subject: str, *, figure: Figure) -> float | None:
    """Over the rounds; None if it was not measured."""
    return _median([figure(outcome) for outcome in measured.of(phase, subject)])


def paired(measured: Measured, phase: str, *, figure: Figure, ours: str, theirs: str) -> list[tuple[float, float]]:
    """Both figures of each round in which both exist."""
    both = zip(measured.of(phase, ours), measured.of(phase, theirs), strict=False)
    pairs = ((figure(one), figure(other)) for one, other in both)
    return [(one, other) for one, other in pairs if one is not None and other is not None]


def ratio(measured: Measured, phase: str, *, figure: Figure, to: str) -> float | None:
    """Median over rounds of our figure by theirs."""
    return _median([a / b for a, b in paired(measured, phase, figure=figure, ours=OWN, theirs=to) if b])


def quietest(measured: Measured, phase: str, subject: str, *, figure: Figure) -> float | None:
    """The least over the rounds; None if it was not measured."""
    known = [value for value in map(figure, measured.of(phase, subject)) if value is not None]
    return min(known, default=None)


def added(measured: Measured, phase: str, subject: str, *, figure: Figure) -> float | None:
    """The subject's quietest round above that of the direct way."""
    ours = quietest(measured, phase, subject, figure=figure)
    direct = quietest(measured, phase, DIRECT, figure=figure)
    return None if ours is None or direct is None else ours - direct


def row(measured: Measured, plan: Plan, subject: Subject) -> dict[str, Any]:
    """All that was measured of one subject; None where it was not, or cannot be."""
    name = subject.name
    cpu_us = median(measured, "request", name, figure=cpu_per_request)
    streams = {rate.name: stream_row(measured, f"chunk {rate.name}", name) for rate in plan.rates}
    headline = streams.get(HEADLINE, {})
    every = [o for phase in measured.outcomes.values() for o in phase.get(name, [])]
    left = [ms for outcome in measured.of("disconnect", name) for ms in outcome.left_ms]
    leavers = sum(outcome.held for outcome in measured.of("disconnect", name))
    return {
        "proxy": name,
        "version": subject.version,
        "cpu_us_per_request": _round(cpu_us),
        "requests_per_s": _round(median(measured, "request", name, figure=per_second("requests")), 0),
        "requests_per_s_per_core": _round(1e6 / cpu_us if cpu_us else None, 0),
        "cpu_us_per_chunk": headline.get("cpu_us_per_chunk"),
        "chunks_per_s": headline.get("chunks_per_s"),
        "added_p50_us": _round(added(measured, "latency", name, figure=_named("p50_us")), 0),
        "added_p99_us": _round(added(measured, "latency", name, figure=_named("p99_us")), 0),
        "added_chunk_p50_us": headline.get("added_chunk_p50_us"),
        "added_chunk_p90_us": headline.get("added_chunk_p90_us"),
        "first_byte_us": headline.get("first_byte_us"),
        "chunks_per_s_per_core": chunks_per_core(headline),
        "waited_percent": _round(_median([waited_percent(outcome) for outcome in every])),
        "streams": streams,
        "bytes_per_idle_connection": _bytes_each(measured, "idle", name),
        "bytes_per_stream": _bytes_each(measured, "held", name),
        "bytes_per_stalled_reader": _bytes_each(measured, "stalled", name),
        "freed_within_100_ms": round(sum(ms <= FREED_WITHIN_MS for ms in left) / leavers, 3) if leavers else None,
        "freed_max_ms": round(max(left), 1) if left else None,
        "upstream_connections": {
            phase: max(o.upstream_connections for o in outcomes[name])
            for phase, outcomes in measured.outcomes.items()
            if phase != "warm-up" and outcomes.get(name)
        },
        "requests_per_upstream_connection": _round(_reuse(measured.of("request", name)), 0),
        "served": sum(outcome.served for outcome in every),
        "errors": sum(outcome.errors for outcome in every),
        "error": next((outcome.error for outcome in every if outcome.error), None),
    }


def stream_row(measured: Measured, phase: str, name: str) -> dict[str, float | None]:
    """The figures at one offered rate of chunks."""
    cpu_us = median(measured, phase, name, figure=cpu_per_chunk)
    request_us = median(measured, "request", name, figure=cpu_per_request)
    without = None if cpu_us is None or request_us is None else cpu_us - request_us / CHUNKS_PER_STREAM
    return {
        "cpu_us_per_chunk": _round(cpu_us, 2),
        "cpu_us_per_chunk_without_request": _round(without, 2),
        "chunks_per_s": _round(median(measured, phase, name, figure=per_second("chunks")), 0),
        "chunks_per_read": _round(median(measured, phase, name, figure=_chunks_per_read), 2),
        "chunk_p50_us": _round(quietest(measured, phase, name, figure=_named("chunk_p50_us")), 0),
        "added_chunk_p50_us": _round(added(measured, phase, name, figure=_named("chunk_p50_us")), 0),
        "added_chunk_p90_us": _round(added(measured, phase, name, figure=_named("chunk_p90_us")), 0),
        "first_byte_us": _round(quietest(measured, phase, name, figure=_named("first_byte_us")), 0),
        "added_first_byte_us": _round(added(measured, phase, name, figure=_named("first_byte_us")), 0),
    }


def chunks_per_core(headline: dict[str, float | None]) -> float | None:
    """By CPU; but a proxy that is behind joins chunks, which makes each cheaper: then what it delivered."""
    cpu_us, delivered, per_read = (headline.get(k) for k in ("cpu_us_per_chunk", "chunks_per_s", "chunks_per_read"))
    if not cpu_us or delivered is None or per_read is None:
        return None
    return float(round(1e6 / cpu_us if per_read <= JOINED_MAX else delivered))


def waited_percent(outcome: Outcome) -> float | None:
    """Of the window, in which a thread of the proxy was kept from its core; None if nothing was timed."""
    return outcome.waited_us / outcome.window_s / 1e4 if outcome.window_s and outcome.cpu_us else None


def ratios(measured: Measured, plan: Plan) -> dict[str, float | None]:
    """Our CPU by that of the others; None without one of the two."""
    found = {
        f"request_vs_{name}": _round(ratio(measured, "request", figure=cpu_per_request, to=name), 3)
        for name in ("nginx", "haproxy", "caddy")
    }
    for name in ("nginx", "haproxy", "caddy"):
        found[f"chunk_vs_{name}"] = _round(ratio(measured, f"chunk {HEADLINE}", figure=cpu_per_chunk, to=name), 3)
    for rate in plan.rates:
        phase = f"chunk {rate.name}"
        found[f"chunk_{rate.name}_vs_nginx"] = _round(ratio(measured, phase, figure=cpu_per_chunk, to="nginx"), 3)
    return found


def goals(own: dict[str, Any] | None, found: dict[str, float | None]) -> list[dict[str, Any]]:
    """What the data plane promises, and whether this run kept it; ``met`` is None where it was not measured."""
    own = own or {}
    streams: dict[str, dict[str, float | None]] = own.get("streams", {})
    chunk_ratios = [
        value for name, value in found.items() if name.startswith("chunk_") and name.count("_") == 3 and value
    ]
    # At the lowest rate, as in the measurements that the goal comes from: near its limit everybody is late.
    delay_us = next((figures["added_chunk_p50_us"] for figures in streams.values()), None)
    wanted: list[tuple[str, str, float, float | None]] = [
        ("CPU per request, by nginx's", "at most", 2.5, found["request_vs_nginx"]),
        ("CPU per request, by Caddy's", "at most", 0.5, found["request_vs_caddy"]),
        ("CPU per chunk, by nginx's (worst rate)", "at most", 1.2, max(chunk_ratios, default=None)),
        ("requests/s per core", "at least", 15_000, own.get("requests_per_s_per_core")),
        ("chunks/s per core", "at least", 40_000, own.get("chunks_per_s_per_core")),
        ("added chunk delay p50, us (lowest rate)", "at most", 100, delay_us),
        ("added p99 at 200 requests/s, us", "at most", 2_000, own.get("added_p99_us")),
        ("bytes per open stream", "at most", 8 << 10, own.get("bytes_per_stream")),
        ("bytes per idle connection", "at most", 12 << 10, own.get("bytes_per_idle_connection")),
        ("bytes per stalled reader", "at most", 128 << 10, own.get("bytes_per_stalled_reader")),
        ("upstreams freed within 100 ms", "at least", 1.0, own.get("freed_within_100_ms")),
        ("requests per upstream connection", "at least", 10, own.get("requests_per_upstream_connection")),
        ("errors", "at most", 0, own.get("errors")),
    ]
    return [
        {
            "name": name,
            "wanted": f"{sense} {bound:g}",
            "value": _round(value, 3),
            "met": None if value is None else (value <= bound if sense == "at most" else value >= bound),
        }
        for name, sense, bound, value in wanted
    ]


def document(measured: Measured, plan: Plan, subjects: list[Subject]) -> dict[str, Any]:
    """Rows, ratios and goals."""
    rows = [row(measured, plan, subject) for subject in subjects]
    found = ratios(measured, plan)
    own = next((entry for entry in rows if entry["proxy"] == OWN), None)
    return {"rows": rows, "ratios": found, "goals": goals(own, found)}


def _reuse(outcomes: list[Outcome]) -> float | None:
    """Requests for each connection that the upstream accepted, in the worst round; all of them if it accepted none."""
    return min((outcome.served / max(1, outcome.upstream_connections) for outcome in outcomes), default=None)


def _bytes_each(measured: Measured, phase: str, name: str) -> int | None:
    outcomes = [o for o in measured.of(phase, name) if o.held]
    return round(statistics.median(o.memory_bytes / o.held for o in outcomes)) if outcomes else None


def _round(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits) if digits else float(round(value))
