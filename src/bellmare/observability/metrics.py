"""Prometheus metrics, updated from steps of the core and ends of requests. Labels come from closed sets only.

Gauges are read off the core's state when scraped, so that they cannot drift from it. What every request and every step
counts are plain integers (``exposition``): a request costs about 1 us.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bellmare.core.decisions import Decision, Drain, HealthChange, Load, PolicySwitch, Reject, Unload, UnloadCause
from bellmare.core.engine import Engine
from bellmare.core.events import DispatchFailed, Event, OperationEnded
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.residency import Residency
from bellmare.core.units import InstantUs
from bellmare.observability.context_metrics import ContextMetrics
from bellmare.observability.exposition import (
    Buckets,
    Counters,
    Histograms,
    Spans,
    heading,
    labelled,
    metric_lines,
    number,
)
from bellmare.observability.hint_metrics import HintMetrics

SECONDS = Buckets(0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300)
"""Nine, and two histograms by model: whoever scrapes keeps every line as a series."""
LOAD_SECONDS = Buckets(0.25, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
MODELS_MAX = 500
"""Distinct model labels; further ones are booked as ``other``. Names come from the fleet, never from clients."""
COST_MAX = 0.01
"""Share of the loop's time that scrapes may take: a text is given out for a hundred times what it took to write."""
AGE_S_MAX = 1.0
"""But no longer: nobody scrapes more often on purpose."""


class EventLog(Protocol):
    """What is told of the event log; ``runtime.recorder.Recorder`` is one."""

    error: str
    """Why writing failed last; empty if all is well."""

    @property
    def dropped(self) -> int: ...


class _Book:
    """What is counted of the requests for one model."""

    __slots__ = ("duration", "first", "label", "output", "prompt", "statuses", "told")

    def __init__(self, label: str) -> None:
        self.label = label
        self.statuses: dict[int, int] = {}
        self.duration: Spans | None = None
        self.first: Spans | None = None
        self.prompt = 0
        self.output = 0
        self.told = False
        """Whether tokens were told of, be it none: only then is there a series."""


class Metrics:
    """All counters and histograms of one process."""

    def __init__(
        self,
        engine: Engine,
        *,
        event_log: EventLog | None = None,
        lost_lines: Callable[[], int] = lambda: 0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``lost_lines`` counts those of the log; ``clock_s`` tells how long writing took, and how old a text is."""
        self.event_log = event_log
        """May be set later; without one there are no metrics of it."""
        self._state = engine.fleet.state
        self._lost_lines = lost_lines
        self._clock_s = clock_s
        self._text = b""
        self._text_until_s = float("-inf")
        self._models: dict[str, None] = {}
        self._books: dict[str, _Book] = {}
        """By label."""
        self.steps = 0
        self._bad = Counters("bad_requests", "Requests refused before they were parsed", "status")
        self._duration = Histograms(
            "request_duration_seconds", "From arrival to the end of the answer", SECONDS, labels=("model",)
        )
        self._first = Histograms(
            "first_token_seconds", "From arrival to the first byte of the answer", SECONDS, labels=("model",)
        )
        self._queue = Histograms("queue_wait_seconds", "From arrival to dispatch, loading included", SECONDS)
        self._queue_spans = self._queue.series()
        self._refusals = Counters("refusals", "Requests that the core refused", "refusal")
        self._retries = Counters("retries", "Dispatches that failed before the first byte", "fault")
        self._loads = Counters("model_loads", "Loads begun", "model", "cause")
        self._load_duration = Histograms(
            "model_load_duration_seconds",
            "From the load call to a ready runner",
            LOAD_SECONDS,
            labels=("model", "outcome"),
        )
        self._unloads = Counters("model_unloads", "Unloads begun", "model", "cause")
        self._evictions = Counters("evictions", "Unloads to make room for another model", "model")
        self._drains = Counters("drains", "Busy or idle runners taken out of service", "cause")
        self._health = Counters("worker_health_changes", "Workers going out of and into routing", "worker", "healthy")
        self._switches = Counters("policy_switches", "Changes of the eviction policy by its shadows", "to")
        self._counted: dict[type[Decision], Callable[[Any], None]] = {
            Reject: lambda decision: self._refusals.add(str(decision.refusal)),
            Load: lambda decision: self._loads.add(self.label(decision.name), str(decision.cause)),
            Unload: self._unload,
            Drain: lambda decision: self._drains.add(str(decision.cause)),
            HealthChange: lambda decision: self._health.add(decision.worker, str(decision.healthy).lower()),
            PolicySwitch: lambda decision: self._switches.add(decision.policy),
        }
        self.hints = HintMetrics(engine)
        self.context = ContextMetrics(self.label)
        self._collectors: tuple[Collector, ...] = (
            _StateCollector(engine, self._gauge_labels),
            _ShadowCollector(engine),
            self.hints,
            self.context,
            _EventLogCollector(lambda: self.event_log),
        )

    def add(self, collector: Collector) -> None:
        """Have the families of ``collector`` told too, behind all others."""
        self._collectors += (collector,)

    def scrape(self) -> bytes:
        """The text that Prometheus scrapes, as of now or of a moment ago: see ``COST_MAX``."""
        now_s = self._clock_s()
        if now_s >= self._text_until_s:
            self._text = self.render()
            done_s = self._clock_s()
            self._text_until_s = done_s + min(AGE_S_MAX, (done_s - now_s) / COST_MAX)
        return self._text

    def render(self) -> bytes:
        """The text of all metrics, as of now."""
        return "".join(self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        yield from self._request_lines()
        yield from self._bad.lines()
        yield from self._duration.lines()
        yield from self._first.lines()
        yield from self._queue.lines()
        yield from self._token_lines()
        yield from self._refusals.lines()
        yield from self._retries.lines()
        yield from self._loads.lines()
        yield from self._load_duration.lines()
        for counters in (self._unloads, self._evictions, self._drains, self._health, self._switches):
            yield from counters.lines()
        yield heading("bellmare_core_steps_total", "Events taken in by the core", "counter")
        yield f"bellmare_core_steps_total {number(self.steps)}\n"
        yield heading("bellmare_log_lines_dropped_total", "Lines of the log that were never written", "counter")
        yield f"bellmare_log_lines_dropped_total {number(self._lost_lines())}\n"
        for collector in self._collectors:
            for metric in collector.collect():
                yield from metric_lines(metric)

    def _request_lines(self) -> Iterator[str]:
        yield heading("bellmare_requests_total", "Requests by model and status", "counter")
        for book in self._books.values():
            labels = labelled(("model",), (book.label,))[:-1]
            for status, count in book.statuses.items():
                yield f'bellmare_requests_total{labels},status="{status}"}} {number(count)}\n'

    def _token_lines(self) -> Iterator[str]:
        yield heading("bellmare_tokens_total", "Tokens by model and direction", "counter")
        for book in self._books.values():
            if not book.told:
                continue
            for direction, count in (("prompt", book.prompt), ("output", book.output)):
                labels = labelled(("direction", "model"), (direction, book.label))
                yield f"bellmare_tokens_total{labels} {number(count)}\n"

    def known(self, name: str) -> bool:
        """Whether some worker stores ``name``, so that it may be a label."""
        return name in self._state.votes

    def label(self, model: str) -> str:
        """A bounded set of labels: ``unknown`` for a name that no worker stores, ``other`` past the bound."""
        if not model:
            return "unknown"
        if model not in self._models:
            if len(self._models) >= MODELS_MAX:
                return "other"
            self._models[model] = None
        return model

    def _gauge_labels(self, waiting: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Sums by label: after a new pull two blobs have one name. A model nobody ever asked for takes up no label."""
        sums = dict.fromkeys(self._models, 0)
        for name, count in waiting:
            if count:
                label = self.label(name)
                sums[label] = sums.get(label, 0) + count
        return sums

    # ------------------------------------------------------------------ from the data plane

    def bad_request(self, status: int) -> None:
        self._bad.add(str(status))

    def request(
        self, *, model: str, status: int, total_us: int, first_token_us: int | None, queued_us: int | None
    ) -> None:
        """Book one ended request; spans in microseconds, None where that phase was never reached."""
        book = self._books.get(model) or self._book(model)
        statuses = book.statuses
        statuses[status] = statuses.get(status, 0) + 1
        if book.duration is None:
            book.duration = self._duration.series(book.label)
        book.duration.add(total_us)
        if first_token_us is not None:
            if book.first is None:
                book.first = self._first.series(book.label)
            book.first.add(first_token_us)
        if queued_us is not None:
            self._queue_spans.add(queued_us)

    def tokens(self, model: str, prompt: int, output: int) -> None:
        book = self._books.get(model) or self._book(model)
        book.prompt += prompt
        book.output += output
        book.told = True

    def _book(self, model: str) -> _Book:
        """``_books`` holds labels, so that a name past the bound takes up no room."""
        label = self.label(model)
        book = self._books.get(label)
        if book is None:
            book = self._books[label] = _Book(label)
        return book

    # ------------------------------------------------------------------ from the core

    def step(self, _now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        """A watcher of the driver."""
        self.steps += 1
        for decision in decisions:
            count = self._counted.get(type(decision))
            if count is not None:
                count(decision)
        if type(event) is DispatchFailed:
            self._retries.add(str(event.fault))

    def _unload(self, decision: Unload) -> None:
        label = self.label(decision.name)
        self._unloads.add(label, str(decision.cause))
        if decision.cause in (UnloadCause.room, UnloadCause.replica, UnloadCause.context):
            self._evictions.add(label)

    def operation(self, decision: Load | Unload, event: OperationEnded, took_us: int) -> None:
        """Book the end of an operation."""
        if isinstance(decision, Load):
            self._load_duration.series(self.label(decision.name), str(event.outcome)).add(took_us)


class _StateCollector(Collector):
    """Gauges computed from the core's state at each scrape."""

    def __init__(self, engine: Engine, sums: Callable[[Iterable[tuple[str, int]]], dict[str, int]]) -> None:
        self._engine = engine
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        state = self._engine.fleet.state
        waiting = _gauge("queued_requests", "Requests waiting for a slot", "model")
        for label, count in self._sums((model.stored.name, model.waiting) for model in state.models.values()).items():
            waiting.add_metric([label], count)
        active = _gauge("active_models", "Models ready on a worker", "worker")
        memory = _gauge("vram_bytes", "The ledger of each worker's memory", "worker", "part")
        healthy = _gauge("worker_healthy", "Whether a worker is in routing", "worker")
        ejected = _gauge("worker_ejected", "Whether a worker is kept away because its requests failed", "worker")
        slots = _gauge("slots", "Slots of ready runners", "worker", "state")
        for worker in state.workers.values():
            runners = list(worker.runners.values())
            ready = [runner for runner in runners if runner.residency in (Residency.resident, Residency.draining)]
            active.add_metric([worker.worker], len(ready))
            healthy.add_metric([worker.worker], int(worker.healthy))
            ejected.add_metric([worker.worker], int(worker.breaker.until_us >= 0))
            parts = {"resident": 0, "reserved": 0, "unloading": 0}
            for runner in runners:
                parts[_PARTS[runner.residency]] += runner.bytes
            parts |= {
                "foreign": worker.foreign_bytes,
                "headroom": worker.headroom_bytes,
                "capacity": worker.capacity_bytes,
                "free": max(0, worker.free_bytes),
            }
            for part, size in parts.items():
                memory.add_metric([worker.worker, part], size)
            slots.add_metric([worker.worker, "busy"], sum(len(runner.in_flight) for runner in runners))
            slots.add_metric([worker.worker, "zombie"], sum(len(runner.zombies) for runner in runners))
            slots.add_metric([worker.worker, "total"], sum(runner.slots for runner in ready))
        yield from (waiting, active, memory, healthy, ejected, slots)
        yield _gauge("requests_in_system", "Requests waiting or running").add_metric_value(len(state.requests))


class _ShadowCollector(Collector):
    """What the fleet and its shadows did with the same requests, computed from the core's state at each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        report = self._engine.shadows()
        cold = CounterMetricFamily("bellmare_cold_starts", "Requests for which no copy was ready on arrival")
        cold.add_metric([], report.fleet.cold_starts)
        in_use = _gauge("eviction_policy", "Whether a policy decides now", "policy")
        for name in dict.fromkeys((*POLICIES, report.policy)):
            in_use.add_metric([name], int(name == report.policy))
        yield from (cold, in_use)
        if not report.shadows:
            return
        starts = CounterMetricFamily("bellmare_shadow_cold_starts", "Cold starts of a shadow", labels=["policy"])
        seconds = CounterMetricFamily(
            "bellmare_shadow_load_seconds", "Seconds of loading of a shadow", labels=["policy"]
        )
        for figures in report.shadows:
            starts.add_metric([figures.policy], figures.cold_starts)
            seconds.add_metric([figures.policy], figures.load_seconds)
        yield from (starts, seconds)
        saved = "saved against stock Ollama, decayed over six hours"
        yield _gauge("cold_starts_saved", f"Cold starts {saved}").add_metric_value(report.cold_starts_saved)
        yield _gauge("load_seconds_saved", f"Seconds of loading {saved}").add_metric_value(report.load_seconds_saved)
        yield _gauge("regret_ratio", "Loading beyond the best shadow's").add_metric_value(report.regret_ratio)


class _EventLogCollector(Collector):
    """What the event log lost; read when scraped, since it begins after the metrics."""

    def __init__(self, event_log: Callable[[], EventLog | None]) -> None:
        self._event_log = event_log

    def collect(self) -> Iterator[Metric]:
        log = self._event_log()
        if log is None:
            return
        lost = CounterMetricFamily("bellmare_event_log_dropped", "Steps that are in no file of the event log")
        lost.add_metric([], log.dropped)
        yield lost
        failing = _gauge("event_log_failing", "Whether the event log could not be written last")
        yield failing.add_metric_value(int(bool(log.error)))


_PARTS = {
    Residency.resident: "resident",
    Residency.draining: "resident",
    Residency.loading: "reserved",
    Residency.unloading: "unloading",
}


class _Gauge(GaugeMetricFamily):
    def add_metric_value(self, value: float) -> "_Gauge":
        self.add_metric([], value)
        return self


def _gauge(name: str, text: str, *labels: str) -> _Gauge:
    return _Gauge(f"bellmare_{name}", text, labels=labels)
