"""The text of the metrics is what ``prometheus_client`` itself writes of the same events."""

import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import (
    Decision,
    Drain,
    HealthChange,
    Load,
    LoadCause,
    PolicySwitch,
    Refusal,
    Reject,
    Unload,
    UnloadCause,
)
from bellmare.core.engine import Engine
from bellmare.core.events import DispatchFailed, FaultKind, OperationEnded, OperationOutcome, TimePassed
from bellmare.core.units import Bytes, InstantUs, ModelId, OperationId, RequestId, SpanUs, WorkerId
from bellmare.observability import metrics as metrics_module
from bellmare.observability.exposition import Buckets, Histograms, metric_lines, number
from bellmare.observability.metrics import LOAD_SECONDS, SECONDS, Metrics

EDGES_S = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300)
LOAD_EDGES_S = (0.25, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
MODELS = ("a:1", "b:1", 'q"uote\\:1', "")
EIGHTH_US = 125_000
"""Spans in eighths of a second add up without rounding, whatever the order and the unit."""


@pytest.fixture(autouse=True, scope="module")
def _no_created_series() -> None:
    disable_created_metrics()


class Reference:
    """The same families, kept by ``prometheus_client``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by model and status", "model", "status")
        self.bad = self._counter("bad_requests", "Requests refused before they were parsed", "status")
        self.duration = self._histogram(
            "request_duration_seconds", "From arrival to the end of the answer", ["model"], EDGES_S
        )
        self.first = self._histogram(
            "first_token_seconds", "From arrival to the first byte of the answer", ["model"], EDGES_S
        )
        self.queue = self._histogram("queue_wait_seconds", "From arrival to dispatch, loading included", [], EDGES_S)
        self.tokens = self._counter("tokens", "Tokens by model and direction", "model", "direction")
        self.refusals = self._counter("refusals", "Requests that the core refused", "refusal")
        self.retries = self._counter("retries", "Dispatches that failed before the first byte", "fault")
        self.loads = self._counter("model_loads", "Loads begun", "model", "cause")
        self.load_duration = self._histogram(
            "model_load_duration_seconds", "From the load call to a ready runner", ["model", "outcome"], LOAD_EDGES_S
        )
        self.unloads = self._counter("model_unloads", "Unloads begun", "model", "cause")
        self.evictions = self._counter("evictions", "Unloads to make room for another model", "model")
        self.drains = self._counter("drains", "Busy or idle runners taken out of service", "cause")
        self.health = self._counter(
            "worker_health_changes", "Workers going out of and into routing", "worker", "healthy"
        )
        self.switches = self._counter("policy_switches", "Changes of the eviction policy by its shadows", "to")
        self.steps = self._counter("core_steps", "Events taken in by the core")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"bellmare_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: list[str], edges: tuple[float, ...]) -> Histogram:
        return Histogram(f"bellmare_{name}", text, labels, buckets=edges, registry=self.registry)

    def families(self) -> dict[str, list[str]]:
        return families(generate_latest(self.registry).decode())


def families(text: str) -> dict[str, list[str]]:
    """Lines by family, each family's in alphabetical order; its two comments first."""
    found: dict[str, list[str]] = {}
    for block in text.split("# HELP ")[1:]:
        head, kind, *lines = block.splitlines()
        found[head.split(" ")[0]] = [head, kind, *sorted(lines)]
    return found


def book_requests(metrics: Metrics, reference: Reference, draw: random.Random) -> None:
    for _ in range(300):
        model, status = draw.choice(MODELS), draw.choice((200, 404, 499))
        total_us, first_us, queued_us = (draw.choice((1, 2, 8, 20, 79, 5000)) * EIGHTH_US for _ in range(3))
        told = draw.random() < 0.8
        metrics.request(
            model=model,
            status=status,
            total_us=total_us,
            first_token_us=first_us if told else None,
            queued_us=queued_us if told else None,
        )
        label = model or "unknown"
        reference.requests.labels(label, str(status)).inc()
        reference.duration.labels(label).observe(total_us / 1e6)
        if told:
            reference.first.labels(label).observe(first_us / 1e6)
            reference.queue.observe(queued_us / 1e6)
            prompt, output = draw.choice((0, 7, 999_999, 12_345_678)), draw.choice((0, 3))
            metrics.tokens(model, prompt, output)
            reference.tokens.labels(label, "prompt").inc(prompt)
            reference.tokens.labels(label, "output").inc(output)
    metrics.bad_request(400)
    reference.bad.labels("400").inc()


def load(name: str) -> Load:
    return Load(
        operation=OperationId(1),
        worker=WorkerId("w0"),
        model=ModelId("m"),
        name=name,
        num_ctx=1,
        cause=LoadCause.hint,
        reserved_bytes=Bytes(1),
        expected_us=SpanUs(1),
        timeout_us=SpanUs(1),
    )


def unload(name: str, cause: UnloadCause) -> Unload:
    return Unload(
        operation=OperationId(2),
        worker=WorkerId("w0"),
        model=ModelId("m"),
        name=name,
        cause=cause,
        timeout_us=SpanUs(1),
    )


def book_steps(metrics: Metrics, reference: Reference) -> None:
    decisions: list[Decision] = [
        Reject(request=RequestId("r"), refusal=Refusal.queue_full),
        load("a:1"),
        unload("a:1", UnloadCause.room),
        unload("b:1", UnloadCause.operator),
        Drain(worker=WorkerId("w0"), model=ModelId("m"), cause=UnloadCause.shape),
        HealthChange(worker=WorkerId("w0"), healthy=False, reason="gone"),
        PolicySwitch(policy="lru", before="hv", saved_percent=9, loads=3),
    ]
    metrics.step(InstantUs(1), TimePassed(), decisions)
    metrics.step(InstantUs(2), DispatchFailed(request=RequestId("r"), worker=WorkerId("w"), fault=FaultKind.reset), [])
    reference.steps.inc(2)
    reference.retries.labels("reset").inc()
    reference.refusals.labels("queue_full").inc()
    reference.loads.labels("a:1", "hint").inc()
    reference.unloads.labels("a:1", "room").inc()
    reference.unloads.labels("b:1", "operator").inc()
    reference.evictions.labels("a:1").inc()
    reference.drains.labels("shape").inc()
    reference.health.labels("w0", "false").inc()
    reference.switches.labels("lru").inc()
    for span_us in (EIGHTH_US, 9_000_000, 700_000_000):
        ended = OperationEnded(operation=OperationId(1), outcome=OperationOutcome.done)
        metrics.operation(load("a:1"), ended, span_us)
        reference.load_duration.labels("a:1", "done").observe(span_us / 1e6)
    metrics.operation(
        unload("a:1", UnloadCause.room), OperationEnded(operation=OperationId(2), outcome=OperationOutcome.done), 1
    )


@pytest.mark.parametrize("busy", [False, True])
def test_every_family_is_written_as_prometheus_client_writes_it(busy: bool) -> None:
    metrics, reference = Metrics(Engine(CoreConfig())), Reference()
    if busy:
        book_requests(metrics, reference, random.Random(4))
        book_steps(metrics, reference)
    ours, theirs = families(metrics.render().decode()), reference.families()
    assert {name: ours[name] for name in theirs} == theirs
    assert sum(map(len, theirs.values())) > (150 if busy else 32)


def test_gauges_and_counters_of_collectors_are_written_as_prometheus_client_writes_them() -> None:
    class Odd(Collector):
        def collect(self) -> Any:
            gauge = GaugeMetricFamily("odd", 'back\\slash\nand "quotes"', labels=["z", "a"])
            for number_, value in enumerate((0, -1.5, 1e6, 123456789, 1e22, 0.1 + 0.2, float("inf"), float("nan"))):
                gauge.add_metric([f'v"{number_}\\', "line\nbreak"], value)
            yield gauge
            yield CounterMetricFamily("told", "Told", value=7)

    registry = CollectorRegistry()
    registry.register(Odd())
    ours = "".join(line for metric in Odd().collect() for line in metric_lines(metric))
    assert ours == generate_latest(registry).decode()


def test_what_a_scrape_gives_can_be_read_again() -> None:
    metrics = Metrics(Engine(CoreConfig()))
    book_requests(metrics, Reference(), random.Random(5))
    read = list(text_string_to_metric_families(metrics.render().decode()))
    assert {
        sample.labels["model"] for family in read if family.name == "bellmare_requests" for sample in family.samples
    } == {model or "unknown" for model in MODELS}
    assert len({family.name for family in read}) == len(read)


@pytest.mark.parametrize(("buckets", "edges"), [(SECONDS, EDGES_S), (LOAD_SECONDS, LOAD_EDGES_S)])
def test_a_span_belongs_to_the_bucket_whose_bound_it_reaches(buckets: Buckets, edges: tuple[float, ...]) -> None:
    for index, edge in enumerate(edges):
        for over_us in (0, 1):
            family = Histograms("x", "X", buckets)
            family.series().add(round(edge * 1e6) + over_us)
            assert family.series().counts.index(1) == index + over_us


def test_numbers_have_an_exponent_where_others_give_them_one() -> None:
    assert [number(value) for value in (0, 999_999, 1_000_000, 2.5)] == ["0.0", "999999.0", "1e+06", "2.5"]


def test_models_past_the_bound_are_one_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MODELS_MAX", 2)
    metrics = Metrics(Engine(CoreConfig()))
    for number_ in range(9):
        metrics.request(model=f"m{number_}", status=200, total_us=1, first_token_us=None, queued_us=None)
        metrics.tokens(f"m{number_}", 1, 2)
    lines = metrics.render().decode().splitlines()
    assert 'bellmare_requests_total{model="other",status="200"} 7.0' in lines
    assert 'bellmare_tokens_total{direction="output",model="other"} 14.0' in lines
    assert sum(line.startswith("bellmare_requests_total{") for line in lines) == 3


class Clock:
    """Each reading is ``cost_s`` later than the last."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cost_s = 0.001

    def __call__(self) -> float:
        self.now_s += self.cost_s
        return self.now_s


def test_scrapes_share_a_text_so_that_they_take_a_hundredth_of_the_time() -> None:
    clock = Clock()
    metrics = Metrics(Engine(CoreConfig()), clock_s=clock)
    written = 0
    begun_s, text = clock.now_s, b""
    while clock.now_s < begun_s + 10:
        metrics.steps += 1
        before, text = text, metrics.scrape()
        written += text != before
    assert 80 <= written <= 100  # of thousands, 1 ms each


def test_a_text_is_never_older_than_a_second() -> None:
    clock = Clock()
    metrics = Metrics(Engine(CoreConfig()), clock_s=clock)
    clock.cost_s = 5.0
    first = metrics.scrape()
    clock.cost_s = 0.0
    metrics.steps += 1
    clock.now_s += 0.9
    assert metrics.scrape() == first
    clock.now_s += 0.2
    assert b"bellmare_core_steps_total 1.0" in metrics.scrape()
