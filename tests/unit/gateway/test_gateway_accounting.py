"""What is booked of an ended request: the line's fields, rounded and in order, and the counts of its model."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import CacheState, Dispatch
from bellmare.core.engine import Engine
from bellmare.core.events import StoredModel, WorkerAdded, WorkerKind, WorkerObserved
from bellmare.core.units import Bytes, InstantUs, ModelId, RequestId, SpanUs, WorkerId
from bellmare.gateway.accounting import Accounts
from bellmare.observability.logs import open_logs
from bellmare.observability.metrics import Metrics
from bellmare.protocols.errors import Dialect

DISPATCH = Dispatch(
    request=RequestId("r1"),
    worker=WorkerId("w0"),
    model=ModelId("blob"),
    num_ctx=8192,
    cache=CacheState.cold,
    queued_us=SpanUs(3_000_149),
    load_us=SpanUs(2_500_050),
)


def ended(**changes: Any) -> Any:
    """What is left of a conversation at its end; by default all went well."""
    whole = {
        "errand": SimpleNamespace(name="m:latest", dialect=Dialect.openai),
        "exchange": SimpleNamespace(request=SimpleNamespace(path="/v1/chat/completions")),
        "dispatched": DISPATCH,
        "translator": SimpleNamespace(final=SimpleNamespace(prompt_eval_count=26, eval_count=298)),
        "arrived_us": 1_000_000,
        "first_byte_us": 4_123_449,
        "status": 200,
        "outcome": "completed",
        "refusal": "",
        "detail": "",
        "attempts": 1,
        "public_id": "their-own_1",
        "request": RequestId("r1"),
    }
    return SimpleNamespace(**whole | changes)


def booked(*conversations: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines, and the metrics of requests."""
    engine = Engine(CoreConfig())
    engine.step(InstantUs(1), WorkerAdded(worker=WorkerId("w0"), kind=WorkerKind.sim, capacity_bytes=Bytes(1)))
    stored = StoredModel(name="m:latest", model=ModelId("blob"), digest="d", weights_bytes=Bytes(1))
    engine.step(
        InstantUs(2), WorkerObserved(worker=WorkerId("w0"), started_us=InstantUs(2), loaded=(), stored=(stored,))
    )
    stream = io.StringIO()
    logs, metrics = open_logs(stream=stream), Metrics(engine)
    accounts = Accounts(metrics, logs)
    for conversation in conversations:
        accounts.ended(conversation, InstantUs(6_000_000))
    logs.close(timeout_s=30)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return lines, [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]


def test_a_served_request_is_one_line_with_all_its_fields_in_order() -> None:
    (line,), _ = booked(ended())
    del line["time"]
    assert list(line.items()) == [
        ("level", "info"),
        ("event", "request"),
        ("id", "their-own_1"),
        ("request", "r1"),
        ("model", "m:latest"),
        ("worker", "w0"),
        ("dialect", "openai"),
        ("route", "/v1/chat/completions"),
        ("status", 200),
        ("outcome", "completed"),
        ("cache", "cold"),
        ("queue_ms", 500.1),
        ("load_ms", 2500.1),
        ("first_token_ms", 3123.4),
        ("total_ms", 5000.0),
        ("prompt_tokens", 26),
        ("output_tokens", 298),
        ("attempts", 1),
    ]


def test_of_a_refused_request_only_what_there_was_is_told() -> None:
    refused = ended(
        errand=SimpleNamespace(name="nobody:latest", dialect=Dialect.ollama),
        dispatched=None,
        translator=None,
        first_byte_us=-1,
        status=404,
        outcome="refused",
        refusal="unknown_model",
        attempts=0,
    )
    (line,), metrics = booked(refused)
    assert list(line)[3:] == [
        "id", "request", "model", "dialect", "route", "status", "outcome", "refusal", "total_ms", "attempts",
    ]  # fmt: skip
    assert (line["model"], line["refusal"], line["attempts"]) == ("nobody:latest", "unknown_model", 0)
    assert 'bellmare_requests_total{model="unknown",status="404"} 1.0' in metrics
    assert not any("nobody" in row or "first_token_seconds_count{" in row or "tokens_total{" in row for row in metrics)
    assert "bellmare_queue_wait_seconds_count 0.0" in metrics


def test_a_known_model_that_refuses_is_booked_under_its_name() -> None:
    _, metrics = booked(ended(dispatched=None, translator=None, first_byte_us=-1, status=429, outcome="refused"))
    assert 'bellmare_requests_total{model="m:latest",status="429"} 1.0' in metrics


def test_a_model_that_left_the_disks_while_it_answered_keeps_its_name() -> None:
    _, metrics = booked(ended(errand=SimpleNamespace(name="gone:latest", dialect=Dialect.ollama)))
    assert 'bellmare_requests_total{model="gone:latest",status="200"} 1.0' in metrics
    assert 'bellmare_tokens_total{direction="output",model="gone:latest"} 298.0' in metrics


def test_a_broken_answer_has_the_workers_words_and_no_tokens() -> None:
    broken = ended(translator=SimpleNamespace(final=None), outcome="failed", detail="reset\nby peer", attempts=2)
    (line,), metrics = booked(broken)
    assert (line["error"], line["attempts"], line["outcome"]) == ("reset\\nby peer", 2, "failed")
    assert "prompt_tokens" not in line
    assert not any(row.startswith("bellmare_tokens_total{") for row in metrics)


def test_requests_of_one_model_add_up() -> None:
    lines, metrics = booked(*[ended() for _ in range(5)])
    assert len(lines) == 5
    for row in (
        'bellmare_requests_total{model="m:latest",status="200"} 5.0',
        'bellmare_request_duration_seconds_bucket{le="2.5",model="m:latest"} 0.0',
        'bellmare_request_duration_seconds_bucket{le="5.0",model="m:latest"} 5.0',
        'bellmare_request_duration_seconds_sum{model="m:latest"} 25.0',
        'bellmare_first_token_seconds_count{model="m:latest"} 5.0',
        "bellmare_queue_wait_seconds_count 5.0",
        "bellmare_queue_wait_seconds_sum 15.000745",
        'bellmare_tokens_total{direction="prompt",model="m:latest"} 130.0',
    ):
        assert row in metrics
