"""Native lines to server-sent events; ollama.md 1.5, 1.6 and 12."""

import json

import pytest
from chunked import written
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.errors import BadAnswer
from bellmare.protocols.openai_stream import ChatStream, completion


def stream(*, include_usage=False) -> ChatStream:
    return ChatStream(completion_id="chatcmpl-7", created_s=99, model="m", include_usage=include_usage)


def native(done=False, **fields) -> bytes:
    message = {name: fields.pop(name) for name in ("content", "thinking", "tool_calls") if name in fields}
    return json.dumps({"model": "x", "message": {"role": "assistant", **message}, "done": done, **fields}).encode()


FINAL = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2, "content": ""}
CALL = {"function": {"index": 0, "name": "f", "arguments": {"a": [1, "\u00e9"]}}}


def events(data: bytes) -> list:
    frames = data.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
    return [frame[6:].decode() if frame == b"data: [DONE]" else json.loads(frame[6:]) for frame in frames]


def deltas(data: bytes) -> list[tuple[dict, str | None]]:
    chunks = [event for event in events(data) if event != "[DONE]" and event["choices"]]
    return [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]


def test_a_stream_has_a_role_texts_a_finish_usage_and_an_end():
    chat = stream(include_usage=True)
    data = chat.line(native(content="he")) + chat.line(native(content="llo")) + chat.line(native(**FINAL))
    *chunks, done = events(data)
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "he"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "llo"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        [],
    ]
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    for chunk in chunks:
        head = {name: chunk[name] for name in ("id", "object", "created", "model", "system_fingerprint")}
        assert head == {
            "id": "chatcmpl-7",
            "object": "chat.completion.chunk",
            "created": 99,
            "model": "m",
            "system_fingerprint": "fp_ollama",
        }
    assert chat.finished and not chat.failed
    assert (chat.prompt_tokens, chat.output_tokens) == (3, 2)


def test_no_usage_chunk_unless_asked():
    assert b"usage" not in stream().line(native(**FINAL))


def test_nothing_comes_after_the_end():
    chat = stream()
    chat.line(native(**FINAL))
    assert chat.line(native(content="x")) == b""
    assert chat.line(b'{"error":"x"}') == b""
    assert not chat.failed


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"done_reason": "length"}, "length"),
        ({"done_reason": ""}, "stop"),
        ({"done_reason": "load"}, "load"),
        ({}, "stop"),
        ({"done_reason": "stop", "tool_calls": [CALL]}, "tool_calls"),
        ({"done_reason": "length", "tool_calls": [CALL]}, "length"),  # the last call may be cut
    ],
)
def test_the_finish_reason_is_ollamas(fields, reason):
    assert deltas(stream().line(native(done=True, **fields)))[-1] == ({}, reason)
    (choice,) = answer(native(done=True, **fields))["choices"]
    assert choice["finish_reason"] == reason


def test_an_answer_without_text_still_has_a_role():
    assert deltas(stream().line(native(**FINAL))) == [({"role": "assistant", "content": ""}, None), ({}, "stop")]


def test_an_empty_line_before_the_end_is_a_chunk_as_ollamas():
    chat = stream()
    assert deltas(chat.line(native(content=""))) == [({"role": "assistant", "content": ""}, None)]
    assert deltas(chat.line(native(content=""))) == [({"content": ""}, None)]
    assert deltas(chat.line(native(**FINAL))) == [({}, "stop")]


def test_cached_tokens_are_told_where_the_worker_tells_them():
    data = stream(include_usage=True).line(native(**FINAL, prompt_eval_cached_count=2))
    assert events(data)[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert answer(native(**FINAL, prompt_eval_cached_count=0))["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_a_last_line_with_text_loses_none():
    assert deltas(stream().line(native(done=True, done_reason="stop", content="x"))) == [
        ({"role": "assistant", "content": "x"}, None),
        ({}, "stop"),
    ]


def test_reasoning_goes_before_and_apart():
    chat = stream()
    assert deltas(chat.line(native(thinking="hm", content=""))) == [
        ({"role": "assistant", "content": "", "reasoning": "hm"}, None)
    ]
    assert deltas(chat.line(native(thinking="so", content="4"))) == [
        ({"content": "", "reasoning": "so"}, None),
        ({"content": "4"}, None),
    ]


def test_tool_calls_are_numbered_over_the_whole_stream_and_have_ids():
    chat = stream()
    data = chat.line(native(tool_calls=[CALL, {**CALL, "id": "call_own"}])) + chat.line(native(tool_calls=[CALL]))
    calls = [call for delta, _ in deltas(data) for call in delta["tool_calls"]]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "call_7_0"), (1, "call_own"), (2, "call_7_2")]
    assert calls[0]["type"] == "function"
    assert calls[0]["function"]["name"] == "f"
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": [1, "\u00e9"]}
    assert deltas(chat.line(native(**FINAL)))[-1] == ({}, "tool_calls")


@pytest.mark.parametrize("function", [{"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": {}}])
def test_a_tool_call_without_arguments_has_an_empty_object(function):
    ((delta, _),) = deltas(stream().line(native(tool_calls=[{"function": function}])))
    assert delta["tool_calls"][0]["function"]["arguments"] == "{}"


def test_logprobs_ride_once():
    logprobs = [{"token": "a", "logprob": -1.5}]
    chunks = events(stream().line(native(thinking="x", content="a", logprobs=logprobs)))
    assert [chunk["choices"][0].get("logprobs") for chunk in chunks] == [{"content": logprobs}, None]


def test_an_error_line_becomes_one_error_frame_and_no_end():
    chat = stream()
    chat.line(native(content="x"))
    text = "an error was encountered while running the model: unexpected EOF"  # 12
    (frame,) = events(chat.line(json.dumps({"error": text}).encode()))
    assert frame == {"error": {"message": text, "type": "api_error", "param": None, "code": None}}
    assert chat.failed and not chat.finished and chat.error == text
    assert chat.line(native(**FINAL)) == b""


@pytest.mark.parametrize("line", [b"<html>", b"[]", b'{"message":7}', b"\xff", b"[" * 99_999, b'{"done":"yes"}'])
def test_a_line_that_is_no_answer_fails_the_stream(line):
    chat = stream()
    (frame,) = events(chat.line(line))
    assert "could not be read" in frame["error"]["message"]
    assert chat.failed


@pytest.mark.parametrize("line", [b"", b"   ", b"\r"])
def test_blank_lines_and_heartbeats_give_nothing(line):
    chat = stream()
    assert chat.line(line) == b""
    assert not chat.failed


texts = st.text('a\n\r"\\: \u2028\u00e9\U0001f40e', max_size=6)
lines = st.builds(native, content=texts, thinking=texts) | st.builds(lambda: native(tool_calls=[CALL]))


@given(st.lists(lines, max_size=6), st.booleans(), st.lists(st.integers(0, 5000), max_size=12), st.booleans())
def test_any_chunking_gives_the_same_events(body, ends, cuts, crlf):
    terminator = b"\r\n" if crlf else b"\n"
    data = b"".join(line + terminator for line in [*body, *([native(**FINAL)] if ends else [])])
    whole, parts = stream(include_usage=True), stream(include_usage=True)
    expected = b"".join(whole.line(line) for line in data.split(terminator))
    got = written(parts, data, cuts)
    assert got == expected
    assert whole.finished == parts.finished == ends
    said = [json.loads(line)["message"] for line in body]
    shown = [delta for delta, _ in deltas(got)]
    assert "".join(delta.get("content", "") for delta in shown) == "".join(m.get("content", "") for m in said)
    assert "".join(delta.get("reasoning", "") for delta in shown) == "".join(m.get("thinking", "") for m in said)
    assert [delta.get("role") for delta in shown] == (["assistant"] + [None] * len(shown))[: len(shown)]
    assert got.endswith(b"data: [DONE]\n\n") == ends


def answer(body: bytes) -> dict:
    return json.loads(completion(body, completion_id="chatcmpl-7", created_s=99, model="m"))


def test_an_unstreamed_answer():
    assert answer(native(**{**FINAL, "content": "hello"})) == {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 99,
        "model": "m",
        "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_an_unstreamed_answer_with_reasoning_tools_and_logprobs():
    body = native(**{**FINAL, "thinking": "hm", "tool_calls": [CALL], "logprobs": [{"token": "a", "logprob": 0}]})
    (choice,) = answer(body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning"] == "hm"
    assert choice["message"]["tool_calls"][0]["id"] == "call_7_0"
    assert choice["logprobs"] == {"content": [{"token": "a", "logprob": 0}]}


@pytest.mark.parametrize(
    ("body", "message"),
    [(b'{"error":"broken"}', "^broken$"), (native(content="x"), "unfinished"), (b"", "/api/chat"), (b"x", "/api/chat")],
)
def test_a_bad_answer_is_the_workers_fault(body, message):
    with pytest.raises(BadAnswer, match=message):
        answer(body)
