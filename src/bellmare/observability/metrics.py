"""Prometheus metrics, updated from steps of the core and ends of requests. Labels come from closed sets only.

Gauges are read off the core's state when scraped, so that they cannot drift from it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bellmare.core.decisions import Decision, Drain, HealthChange, Load, PolicySwitch, Reject, Unload, UnloadCause
from bellmare.core.engine import Engine
from bellmare.core.events import DispatchFailed, Event, OperationEnded
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.residency import Residency
from bellmare.core.units import InstantUs
from bellmare.observability.hint_metrics import HintMetrics

SECONDS = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300)
"""Nine, and two histograms by model, as every line costs 7 us of the loop at every scrape. With 15 buckets, three
histograms and the lines that say when a series began, 200 models took 80 ms; so they take 35."""
LOAD_SECONDS = (0.25, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
MODELS_MAX = 500
"""Distinct model labels; further ones are booked as ``other``. Names come from the fleet, never from clients."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # of the whole process, which is ours: a line per series that nobody reads


class EventLog(Protocol):
    """What is told of the event log; ``runtime.recorder.Recorder`` is one."""

    error: str
    """Why writing failed last; empty if all is well."""

    @property
    def dropped(self) -> int: ...


class Metrics:
    """All counters and histograms of one process, in a registry of its own."""

    def __init__(self, engine: Engine, *, event_log: EventLog | None = None) -> None:
        self.registry = CollectorRegistry()
        self.event_log = event_log
        """May be set later; without one there are no metrics of it."""
        self._models: dict[str, None] = {}
        self._requests = self._counter("requests", "Requests by model and status", "model", "status")
        self._bad = self._counter("bad_requests", "Requests refused before they were parsed", "status")
        self._duration = self._histogram("request_duration_seconds", "From arrival to the end of the answer", "model")
        self._first = self._histogram("first_token_seconds", "From arrival to the first byte of the answer", "model")
        self._queue = self._histogram("queue_wait_seconds", "From arrival to dispatch, loading included")
        self._tokens = self._counter("tokens", "Tokens by model and direction", "model", "direction")
        self._refusals = self._counter("refusals", "Requests that the core refused", "refusal")
        self._retries = self._counter("retries", "Dispatches that failed before the first byte", "fault")
        self._loads = self._counter("model_loads", "Loads begun", "model", "cause")
        self._load_duration = Histogram(
            "bellmare_model_load_duration_seconds",
            "From the load call to a ready runner",
            ["model", "outcome"],
            buckets=LOAD_SECONDS,
            registry=self.registry,
        )
        self._unloads = self._counter("model_unloads", "Unloads begun", "model", "cause")
        self._evictions = self._counter("evictions", "Unloads to make room for another model", "model")
        self._drains = self._counter("drains", "Busy or idle runners taken out of service", "cause")
        self._health = self._counter(
            "worker_health_changes", "Workers going out of and into routing", "worker", "healthy"
        )
        self._switches = self._counter("policy_switches", "Changes of the eviction policy by its shadows", "to")
        self.steps = self._counter("core_steps", "Events taken in by the core")
        self.registry.register(_StateCollector(engine, self._gauge_labels))
        self.registry.register(_ShadowCollector(engine))
        self.hints = HintMetrics(engine)
        self.registry.register(self.hints)
        self.registry.register(_EventLogCollector(lambda: self.event_log))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"bellmare_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"bellmare_{name}", text, labels, buckets=SECONDS, registry=self.registry)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return self.text(self.collect())

    def collect(self) -> list[Metric]:
        """All values of this moment, a third of the work of ``render``. On the loop's thread."""
        return list(self.registry.collect())

    @staticmethod
    def text(collected: Iterable[Metric]) -> bytes:
        """What ``collect`` gave, as Prometheus reads it. On any thread."""
        return generate_latest(_Collected(collected))

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
        self._bad.labels(str(status)).inc()

    def request(
        self, *, model: str, status: int, total_us: int, first_token_us: int | None, queued_us: int | None
    ) -> None:
        """Book one ended request; spans in microseconds, None where that phase was never reached."""
        label = self.label(model)
        self._requests.labels(label, str(status)).inc()
        self._duration.labels(label).observe(total_us / 1e6)
        if first_token_us is not None:
            self._first.labels(label).observe(first_token_us / 1e6)
        if queued_us is not None:
            self._queue.observe(queued_us / 1e6)

    def tokens(self, model: str, prompt: int, output: int) -> None:
        label = self.label(model)
        self._tokens.labels(label, "prompt").inc(prompt)
        self._tokens.labels(label, "output").inc(output)

    # ------------------------------------------------------------------ from the core

    def step(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        """A watcher of the driver."""
        self.steps.inc()
        if isinstance(event, DispatchFailed):
            self._retries.labels(str(event.fault)).inc()
        for decision in decisions:
            if isinstance(decision, Reject):
                self._refusals.labels(str(decision.refusal)).inc()
            elif isinstance(decision, Load):
                self._loads.labels(self._name(decision), str(decision.cause)).inc()
            elif isinstance(decision, Unload):
                self._unloads.labels(self._name(decision), str(decision.cause)).inc()
                if decision.cause in (UnloadCause.room, UnloadCause.replica):
                    self._evictions.labels(self._name(decision)).inc()
            elif isinstance(decision, Drain):
                self._drains.labels(str(decision.cause)).inc()
            elif isinstance(decision, HealthChange):
                self._health.labels(decision.worker, str(decision.healthy).lower()).inc()
            elif isinstance(decision, PolicySwitch):
                self._switches.labels(decision.policy).inc()

    def operation(self, decision: Load | Unload, event: OperationEnded, took_us: int) -> None:
        """Book the end of an operation."""
        if isinstance(decision, Load):
            self._load_duration.labels(self._name(decision), str(event.outcome)).observe(took_us / 1e6)

    def _name(self, decision: Load | Unload) -> str:
        return self.label(decision.name)


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


class _Collected(CollectorRegistry):
    """What was collected before, for the formatter."""

    def __init__(self, collected: Iterable[Metric]) -> None:
        super().__init__()
        self._collected = collected

    def collect(self) -> Iterator[Metric]:
        yield from self._collected


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
