"""The two wires, without an engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama import parse_chat, parse_generate
from bellmare.workers.embedded.completion import (
    AnswerWriter,
    Chunk,
    Clock,
    Timings,
    completion_body,
    decode_event,
    refuse_unsupported,
    template_messages,
)


def generate(**fields: Any) -> Any:
    return parse_generate(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def chat(*messages: dict[str, Any], **fields: Any) -> Any:
    return parse_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def test_ollamas_defaults_are_sent_and_not_the_engines() -> None:
    body = json.loads(completion_body(generate(), "P", num_ctx=512))
    assert body["prompt"] == "P"
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (0.8, 40, 0.9, 0.0)
    assert (body["repeat_penalty"], body["n_predict"], body["seed"]) == (1.0, 5120, -1), "ten contexts"
    assert body["stream"] is True
    assert "json_schema" not in body
    assert "n_probs" not in body


def test_options_are_mapped_and_unknown_ones_are_not_passed_on() -> None:
    options = {"num_predict": 5, "num_keep": 2, "temperature": 0, "stop": ["x"], "grammar": "root ::= x", "n_probs": 9}
    body = json.loads(completion_body(generate(stream=False, options=options), "P", num_ctx=512))
    assert (body["n_predict"], body["n_keep"], body["temperature"], body["stop"]) == (5, 2, 0, ["x"])
    assert body["stream"] is True, "the engine does not end an unstreamed answer whose client left"
    assert "grammar" not in body
    assert "n_probs" not in body


def test_formats_become_schemas() -> None:
    assert json.loads(completion_body(generate(format="json"), "P", num_ctx=512))["json_schema"] == {"type": "object"}
    assert json.loads(completion_body(generate(format={"type": "string"}), "P", num_ctx=512))["json_schema"] == {
        "type": "string"
    }


def test_probabilities_are_asked_for_even_without_alternatives() -> None:
    assert json.loads(completion_body(generate(logprobs=True), "P", num_ctx=512))["n_probs"] == 1
    assert json.loads(completion_body(generate(logprobs=True, top_logprobs=3), "P", num_ctx=512))["n_probs"] == 3


def test_a_prompt_becomes_messages() -> None:
    told = json.loads(template_messages(generate(system="S")))
    assert told == {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]}


def test_tool_results_and_calls_go_through_the_template() -> None:
    told = json.loads(
        template_messages(
            chat(
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                {"role": "tool", "content": "r", "tool_name": "f"},
            )
        )
    )["messages"]
    assert told[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert told[2] == {"role": "tool", "content": "r", "name": "f"}


@pytest.mark.parametrize("fields", [{"think": "high"}, {"suffix": "x"}, {"template": "x"}, {"images": ["aGk="]}])
def test_what_the_engine_cannot_do_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        refuse_unsupported(generate(**fields), name="m:latest", tools=True)


def test_events_are_read_and_pings_are_not() -> None:
    chunk = decode_event(b'data: {"content":"a","tokens":[5],"stop":false,"tokens_predicted":1}')
    assert chunk is not None
    assert (chunk.content, chunk.stop) == ("a", False)
    assert decode_event(b"") is None
    assert decode_event(b": ping") is None
    failed = decode_event(b'error: {"code":500}')
    assert failed is not None
    assert failed.error == {"code": 500}
    with pytest.raises(msgspec.DecodeError):
        decode_event(b"data: nonsense")


@pytest.mark.parametrize(("stop_type", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_the_last_line_counts_as_ollama_does(stop_type: str, reason: str) -> None:
    chunk = Chunk(
        stop=True,
        stop_type=stop_type,
        tokens_predicted=3,
        tokens_evaluated=9,
        timings=Timings(prompt_ms=1.5, predicted_ms=2.0),
    )
    final = json.loads(AnswerWriter(generate()).final(chunk, Clock(10, 4), created_at="T", text="abc", chunks=[]))
    assert final == {
        "model": "m",
        "created_at": "T",
        "response": "abc",
        "done": True,
        "done_reason": reason,
        "total_duration": 10,
        "load_duration": 4,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 1_500_000,
        "eval_count": 3,
        "eval_duration": 2_000_000,
    }
    told = json.loads(AnswerWriter(chat()).final(chunk, Clock(10, 4), created_at="T", chunks=[]))
    assert told["message"] == {"role": "assistant", "content": ""}
