"""Anthropic's requests between client, core and worker: ids, wishes to think, loads, errors and ends in its dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_gateway_conversation import FINAL, SECRET, Client, Desk, over, talk, token

from bellmare.core.config import CoreConfig
from bellmare.core.events import RequestKind
from bellmare.gateway import replies
from bellmare.gateway.counting import answer_count
from bellmare.gateway.errands import anthropic
from bellmare.gateway.errands.errand import prepare, without_thinking
from bellmare.protocols.errors import Dialect

CANNOT_THINK = b'{"error":"\\"m\\" does not support thinking"}'
LOADED = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'


def ask(desk: Desk, **fields: Any) -> Any:
    return talk(desk, anthropic.messages, max_tokens=5, **fields)


def errand(**fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **fields}
    return anthropic.messages(json.dumps(body).encode())


def asked(written: bytes | list[bytes]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(b"".join([written] if isinstance(written, bytes) else written))
    return body


def frames(body: bytes) -> list[tuple[str, Any]]:
    parts = [frame.split("\n") for frame in body.decode().split("\n\n")[:-1]]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


async def test_a_stream_and_its_headers() -> None:
    desk = Desk()
    client, _, worker = ask(desk, stream=True)
    worker.answers(token("a"), FINAL)
    assert (client.status, client.finished) == (200, True)
    assert client.headers[b"content-type"] == b"text/event-stream"
    assert client.headers[b"cache-control"] == b"no-cache"
    assert client.headers[b"request-id"] == b"req_r1"
    names = [name for name, _ in frames(client.body)]
    block = ("content_block_start", "content_block_delta", "content_block_stop")
    assert names == ["message_start", *block, "message_delta", "message_stop"]
    assert frames(client.body)[0][1]["message"]["id"] == "msg_r1"
    over(desk, "completed")


async def test_an_unstreamed_answer_and_its_headers() -> None:
    desk = Desk()
    client, _, worker = ask(desk)
    worker.answers(FINAL.replace(b'"content":""', b'"content":"hello"'))
    assert client.headers[b"request-id"] == b"req_r1"
    answer = json.loads(client.body)
    assert (answer["id"], answer["content"]) == ("msg_r1", [{"type": "text", "text": "hello"}])
    over(desk, "completed")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_conversation_loads_the_model(stream: bool) -> None:
    desk = Desk()
    client, conversation, worker = ask(desk, stream=stream, messages=[{"role": "user", "content": ""}])
    assert conversation.errand.kind is RequestKind.load
    worker.answers(LOADED)
    assert (client.status, client.finished) == (200, True)
    assert client.headers[b"request-id"] == b"req_r1"
    if stream:
        assert client.headers[b"content-type"] == b"text/event-stream"
        assert [name for name, _ in frames(client.body)] == ["message_start", "message_delta", "message_stop"]
    else:
        assert json.loads(client.body)["stop_reason"] == "stop_sequence"
    over(desk, "completed")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_load_that_cannot_be_read_is_no_answer(stream: bool) -> None:
    desk = Desk()
    client, _, worker = ask(desk, stream=stream, messages=[{"role": "user", "content": ""}])
    for _ in range(CoreConfig().attempts_max):
        worker.answers(b'{"model":"m","message":5,"done":true}')
    assert client.status == 502
    assert json.loads(client.body)["type"] == "error"


# ---------------------------------------------------------------------- thinking, where a model can


async def test_a_wish_to_think_is_dropped_for_a_model_that_cannot() -> None:
    desk = Desk()
    client, conversation, worker = ask(desk, thinking={"type": "enabled", "budget_tokens": 1024})
    worker.answers(CANNOT_THINK, status=400)
    assert not client.started
    first, second = (call["body"] for call in worker.calls)
    assert first.pop("think") is True
    assert first == second
    worker.answers(FINAL)
    assert client.status == 200
    assert conversation.attempts == 1
    over(desk, "completed")


async def test_a_model_that_still_cannot_is_not_asked_for_ever() -> None:
    desk = Desk()
    client, _, worker = ask(desk, output_config={"effort": "low"})
    worker.answers(CANNOT_THINK, status=400)
    worker.answers(CANNOT_THINK, status=400)
    assert len(worker.calls) == 2
    assert client.status == 400
    over(desk, "failed")


async def test_who_leaves_while_it_is_asked_again_frees_the_worker() -> None:
    desk = Desk()
    _, conversation, worker = ask(desk, thinking={"type": "enabled"})
    worker.answers(CANNOT_THINK, status=400)
    conversation.on_disconnect()
    assert worker.aborted == 1
    over(desk, "cancelled")


@pytest.mark.parametrize("thinking", [{"type": "enabled"}, {"type": "adaptive"}, {"type": "disabled"}])
def test_a_large_request_is_the_same_with_and_without_its_wish(thinking: dict[str, str]) -> None:
    """The body of a large one is encoded ahead, beside the loop: the wish must come out without encoding it again."""
    plain = errand(thinking=thinking, output_config={"effort": "low"})
    large = prepare(plain)
    assert asked(large.body(77)) == asked(plain.body(77))
    if plain.thinks_if_it_can:
        assert asked(large.body(77))["think"] in (True, "low")
        without = without_thinking(large)
        assert without.prepared is not None
        assert asked(without.body(77)) == asked(without_thinking(plain).body(77))
        assert "think" not in asked(without.body(77))
        assert without.prepared[-1] is large.prepared[-1], "the long part is not copied"


def test_only_a_wish_can_be_dropped() -> None:
    assert errand(thinking={"type": "enabled"}).thinks_if_it_can
    assert not errand(thinking={"type": "disabled"}).thinks_if_it_can
    assert not errand().thinks_if_it_can


# ---------------------------------------------------------------------- errors


async def test_a_failed_stream_ends_in_one_error_event() -> None:
    desk = Desk()
    client, _, worker = ask(desk, stream=True)
    worker.answers(token("a"), json.dumps({"error": SECRET}).encode() + b"\n")
    name, event = frames(client.body)[-1]
    assert name == "error"
    assert event == {"type": "error", "error": {"type": "api_error", "message": "the model's worker failed"}}
    assert client.finished
    over(desk, "failed")


@pytest.mark.parametrize("ending", [b"", b'{"half', b"nonsense\n"])
async def test_a_stream_that_just_ends_does_not_just_end_here(ending: bytes) -> None:
    desk = Desk()
    client, _, worker = ask(desk, stream=True)
    worker.answers(token("a") + ending)
    assert [name for name, _ in frames(client.body)][-1] == "error"
    assert "message_stop" not in client.body.decode()
    over(desk, "failed")


async def test_a_workers_error_comes_with_the_id_of_its_header() -> None:
    desk = Desk()
    client, _, worker = ask(desk)
    worker.answers(b'{"error":"registry.ollama.ai/library/m:latest does not support tools"}', status=400)
    assert client.status == 400
    assert client.headers[b"request-id"] == b"req_r1"
    assert json.loads(client.body) == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "registry.ollama.ai/library/m:latest does not support tools",
        },
        "request_id": "req_r1",
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors_carry_the_type_of_their_status_and_a_fresh_id(status: int, kind: str) -> None:
    headers, body = replies.error_answer(Dialect.anthropic, status, "no")
    error = json.loads(body)
    assert error["error"] == {"type": kind, "message": "no"}
    assert error["request_id"].encode() == dict(headers)[b"request-id"]
    other, _ = replies.error_answer(Dialect.anthropic, status, "no")
    assert dict(headers)[b"request-id"] != dict(other)[b"request-id"]


def test_errors_before_a_body_have_the_id_too() -> None:
    refusal = replies.http_refusal(413, "too large", "/v1/messages")
    error = json.loads(refusal.body)
    assert error["error"]["type"] == "request_too_large"
    assert dict(refusal.headers)[b"request-id"].decode() == error["request_id"]
    assert replies.error_answer(Dialect.openai, 413, "x")[0] == [replies.JSON]


# ---------------------------------------------------------------------- counts


class Count:
    tokens = 42
    method = "exact"


class LateCounter:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = 0

    def count(self, name: str, request: Any, done: Any) -> Any:
        self.asked.append(name)
        self.done = done
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class QuickCounter(LateCounter):
    def count(self, name: str, request: Any, done: Any) -> Any:
        done(Count())


def counted(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return anthropic.count_tokens(json.dumps(body).encode())


def test_a_count_may_come_later() -> None:
    client, counter = Client(), LateCounter()
    answer_count(client, counted(), counter)  # type: ignore[arg-type]
    assert counter.asked == ["m:latest"]
    assert not client.started
    counter.done(Count())
    assert (client.status, client.body) == (200, b'{"input_tokens":42}')
    assert client.headers[b"request-id"].startswith(b"req_")
    assert client.headers[b"x-bellmare-count"] == b"exact"
    assert client.listener is None


def test_a_count_may_come_at_once() -> None:
    client = Client()
    answer_count(client, counted(), QuickCounter())  # type: ignore[arg-type]
    assert client.body == b'{"input_tokens":42}'
    assert client.listener is None


def test_who_leaves_is_not_counted_for() -> None:
    client, counter = Client(), LateCounter()
    answer_count(client, counted(), counter)  # type: ignore[arg-type]
    client.listener.on_disconnect()
    assert counter.cancelled == 1


def test_the_estimate_counts_all_that_becomes_a_prompt() -> None:
    def tokens(**fields: Any) -> int:
        client = Client()
        answer_count(client, counted(**fields), None)  # type: ignore[arg-type]
        assert client.headers[b"x-bellmare-count"] == b"estimated"
        return int(json.loads(client.body)["input_tokens"])

    least = tokens()
    assert 0 < least < 20
    image = {"type": "image", "source": {"type": "base64", "data": "QUJD"}}
    tool = {"name": "f", "description": "d" * 400, "input_schema": {"type": "object"}}
    assert tokens(system="x" * 400) >= least + 100
    assert tokens(tools=[tool]) >= least + 100
    assert tokens(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}]) >= least + 768
