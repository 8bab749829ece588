"""OpenAI's responses over /api/chat: what is asked, and what the answer says."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import ollama, openai_responses_stream
from bellmare.protocols.errors import BadAnswer, InvalidRequest
from bellmare.protocols.forced_tools import forced_call
from bellmare.protocols.openai_responses import echo, parse_response, to_native
from bellmare.protocols.openai_responses_stream import ResponseHead, ResponseStream, response_object

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'}
NATIVE_CALL = {"function": {"name": "f", "arguments": {"a": 1}}, "id": "c1"}


def body(**fields) -> bytes:
    return json.dumps({"model": "m", "input": "hi", **fields}).encode()


def native(**fields) -> dict:
    """What the worker gets."""
    request, _ = to_native(parse_response(body(**fields)))
    return json.loads(ollama.encode_for_worker(request, model="m:latest", num_ctx=8192))


def refusal(**fields) -> str:
    with pytest.raises(InvalidRequest) as caught:
        to_native(parse_response(body(**fields)))
    assert caught.value.status == 400
    return caught.value.message


def test_a_plain_request():
    # as Ollama: temperature is said, top_p is left to the model
    assert native() == {
        "model": "m:latest",
        "messages": USER,
        "stream": False,
        "options": {"temperature": 1.0, "num_ctx": 8192},
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": True}, {"stream": True}),
        ({"instructions": "Be kind."}, {"messages": [{"role": "system", "content": "Be kind."}, *USER]}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"think": "high"}),
        ({"reasoning": {"effort": "none"}}, {"think": False}),
        ({"reasoning": {}}, {"think": None}),
        ({"text": {"format": {"type": "text"}}}, {"format": None}),
        ({"text": {"format": {"type": "json_object"}}}, {"format": "json"}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
            {"format": {"type": "object"}},
        ),
        (
            {"tools": [TOOL]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}},
                    }
                ]
            },
        ),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tools": None}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
            {"tools": None, "format": {"type": "object"}},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [TOOL]}},
            {"tools": None, "format": {"type": "object"}},
        ),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": None}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"], "store": True, "metadata": {"a": "b"}}, {"logprobs": None}),
    ],
)
def test_fields(fields, expected):
    written = native(**fields)
    assert {name: written.get(name) for name in expected} == expected


def test_limits_become_options():
    options = native(max_output_tokens=9, temperature=0, top_p=0.5)["options"]
    assert options == {"num_predict": 9, "temperature": 0, "top_p": 0.5, "num_ctx": 8192}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "hi"}], USER),
        ([{"type": "message", "role": "developer", "content": "x"}], [{"role": "system", "content": "x"}]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "input_image", "image_url": "data:image/png;base64," + PNG, "detail": "auto"},
                        {"type": "input_text", "text": "b"},
                    ],
                }
            ],
            [{"role": "user", "content": "ab", "images": [PNG]}],
        ),
        (
            [
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "x"}],
                }
            ],
            [{"role": "assistant", "content": "x"}],
        ),
        ([CALL], [{"role": "assistant", "tool_calls": [NATIVE_CALL]}]),
        (
            [{"role": "assistant", "content": "wait"}, CALL, CALL],
            [{"role": "assistant", "content": "wait", "tool_calls": [NATIVE_CALL, NATIVE_CALL]}],
        ),
        (
            [{"type": "function_call_output", "call_id": "c1", "output": "4"}],
            [{"role": "tool", "content": "4", "tool_call_id": "c1"}],
        ),
        (
            [{"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "4"}]}],
            [{"role": "tool", "content": "4", "tool_call_id": "c1"}],
        ),
        (
            [{"type": "reasoning", "summary": [], "encrypted_content": "hm"}, {"role": "assistant", "content": "x"}],
            [{"role": "assistant", "content": "x", "thinking": "hm"}],
        ),
        (
            [{"type": "reasoning", "encrypted_content": "hm"}, CALL],
            [{"role": "assistant", "thinking": "hm", "tool_calls": [NATIVE_CALL]}],
        ),
        (
            [{"role": "assistant", "content": "x"}, {"type": "reasoning", "encrypted_content": "hm"}, CALL],
            [{"role": "assistant", "content": "x", "thinking": "hm", "tool_calls": [NATIVE_CALL]}],
        ),
        ([{"type": "reasoning", "encrypted_content": "hm"}], [{"role": "assistant", "thinking": "hm"}]),
        ([*USER, {"type": "reasoning", "summary": []}], USER),
    ],
)
def test_items(items, messages):
    assert native(input=items)["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model is required"),
        ({"input": ""}, "input is required"),
        ({"input": []}, "input is required"),
        ({"input": [{}]}, "input[0]: input item missing required 'type' field"),
        ({"input": [*USER, {"type": "item_reference"}]}, 'input[1]: unknown input item type: "item_reference"'),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0]: unknown content type: x"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "file inputs are not currently supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "as a data: URI"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
            "image URLs are not currently supported",
        ),
        ({"input": [{"role": "wizard", "content": "x"}]}, "invalid message role"),
        ({"input": [{**CALL, "arguments": "{"}]}, "invalid tool call arguments"),
        ({"background": True}, "background is not supported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"conversation": {"id": "c"}}, "conversation is not supported"),
        ({"prompt": {"id": "p"}}, "prompt is not supported"),
        ({"tools": [{"type": "web_search"}]}, 'a tool of type "web_search" is not supported'),
        ({"tools": [{"type": "function"}]}, "a tool has no name"),
        ({"tool_choice": {"type": "web_search_preview"}}, "is not supported"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type must be"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema is required"),
        ({"reasoning": {"effort": "extreme"}}, "invalid reasoning value: 'extreme'"),
        ({"max_output_tokens": -2}, "max_output_tokens must not be negative"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
    ],
)
def test_refusals(fields, message):
    assert message in refusal(**fields)


def test_what_is_nested_too_deep_is_refused():
    deep = json.loads("[" * 80 + "]" * 80)
    assert "nested deeper" in refusal(tools=[{**TOOL, "parameters": {"a": deep}}])
    assert "nested deeper" in refusal(tools=[TOOL], tool_choice={"type": "function", "name": "f", "x": deep})
    assert "nested deeper" in refusal(text={"format": {"type": "json_schema", "schema": {"a": deep}}})


def test_the_answer_repeats_what_was_asked():
    wanted = parse_response(
        body(
            instructions="Be kind.",
            tools=[TOOL],
            tool_choice="auto",
            text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
            top_p=0.5,
            temperature=0,
            truncation="auto",
            max_output_tokens=9,
            reasoning={"effort": "low"},
        )
    )
    said = echo(wanted)
    assert said["instructions"] == "Be kind."
    assert said["tools"] == [TOOL]
    assert said["text"] == {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}}
    assert (said["top_p"], said["temperature"], said["max_output_tokens"], said["truncation"]) == (0.5, 0, 9, "auto")
    assert said["reasoning"] == {"effort": "low"}
    assert echo(parse_response(body(stream=True, reasoning={"effort": "low"})))["reasoning"] == {
        "effort": "low",
        "summary": None,
    }


# ---------------------------------------------------------------------- answers


def head() -> ResponseHead:
    return ResponseHead(public_id="7", created_s=99, model="m", echo=echo(parse_response(body())))


def line(done=False, **fields) -> bytes:
    message = {name: fields.pop(name) for name in ("content", "thinking", "tool_calls") if name in fields}
    return json.dumps({"model": "x", "message": {"role": "assistant", **message}, "done": done, **fields}).encode()


FINAL = {
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 3,
    "eval_count": 2,
    "total_duration": 2_500_000_000,
    "content": "",
}
LENGTH = {**FINAL, "done_reason": "length"}


def events(data: bytes) -> list[dict]:
    frames = data.split(b"\n\n")
    assert frames.pop() == b""
    found = []
    for frame in frames:
        name, _, rest = frame.partition(b"\n")
        assert rest.startswith(b"data: ") and b"\n" not in rest
        found.append(json.loads(rest[6:]))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def run(*lines: bytes, forced=None) -> list[dict]:
    stream = ResponseStream(head(), forced=forced)
    return events(b"".join(stream.line(one) for one in lines))


def answer(native_body: bytes, forced=None) -> dict:
    return json.loads(response_object(native_body, head(), forced=forced))


def test_events_are_numbered_and_end_with_the_whole():
    seen = run(line(thinking="hm"), line(content="he"), line(content="llo"), line(**FINAL))
    assert [one["sequence_number"] for one in seen] == list(range(len(seen)))
    assert seen[0]["type"] == "response.created" and seen[1]["type"] == "response.in_progress"
    last = seen[-1]["response"]
    assert (last["status"], last["completed_at"], last["incomplete_details"]) == ("completed", 101, None)
    assert last["usage"] == {
        "input_tokens": 3,
        "output_tokens": 2,
        "total_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
    assert last["output"][1]["content"][0]["text"] == "hello"


def test_every_item_has_an_index_and_an_id_of_its_own():
    call = {"function": {"name": "f", "arguments": {}}}
    seen = run(
        line(content="a"), line(tool_calls=[call, call]), line(content="b"), line(tool_calls=[call]), line(**FINAL)
    )
    added = [one for one in seen if one["type"] == "response.output_item.added"]
    done = [one for one in seen if one["type"] == "response.output_item.done"]
    assert [one["output_index"] for one in added] == [one["output_index"] for one in done] == list(range(5))
    ids = [one["item"]["id"] for one in added]
    assert ids == [one["item"]["id"] for one in done]
    assert len(set(ids)) == 5
    output = seen[-1]["response"]["output"]
    assert output == [one["item"] for one in done]
    calls = [item["call_id"] for item in output if item["type"] == "function_call"]
    assert len(set(calls)) == 3
    assert [item["type"] for item in output] == [
        "message",
        "function_call",
        "function_call",
        "message",
        "function_call",
    ]


def test_a_cut_answer_is_incomplete():
    (*_, last) = run(line(content="he"), line(**LENGTH))
    assert last["type"] == "response.incomplete"
    for response in (last["response"], answer(line(**{**LENGTH, "content": "he"}))):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["completed_at"] is None
        assert response["output"][-1]["status"] == "incomplete"


def test_the_end_of_a_failed_stream_is_the_same_when_it_is_asked_for_again():
    for begun in (b"", line(content="he")):
        stream = ResponseStream(head())
        stream.line(begun)
        failed = stream.line(b"{")
        assert stream.cut(stream.error) == failed != b""


def test_a_broken_stream_has_failed_with_what_there_was():
    stream = ResponseStream(head())
    begun = events(stream.line(line(content="he")))
    (failed,) = events(stream.cut("the model's worker failed"))
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == len(begun)
    response = failed["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "the model's worker failed"}
    assert response["output"][0]["content"][0]["text"] == "he"
    assert response["output"][0]["status"] == "incomplete"


def test_an_error_line_fails_the_response():
    seen = run(b'{"error":"broken"}', line(**FINAL))
    assert [one["type"] for one in seen] == ["response.created", "response.in_progress", "response.failed"]


@pytest.mark.parametrize("pieces", [["x" * 30], ["x"] * 30])
def test_an_answer_is_not_kept_without_bound(monkeypatch, pieces):
    monkeypatch.setattr(openai_responses_stream, "ANSWER_CHARS_MAX", 20)
    stream = ResponseStream(head())
    seen = events(b"".join(stream.line(line(content=piece)) for piece in pieces))
    assert stream.failed and stream.error == openai_responses_stream.TOO_LONG
    assert seen[-1]["type"] == "response.failed"


@pytest.mark.parametrize("item", [b"<html>", b'{"message":7}', b"\xff", b"[" * 99_999])
def test_a_line_that_is_no_answer_fails_the_response(item):
    stream = ResponseStream(head())
    assert events(stream.line(item))[-1]["type"] == "response.failed"
    assert stream.failed and stream.line(line(**FINAL)) == b""


def test_an_unstreamed_answer():
    whole = answer(line(**{**FINAL, "content": "hello", "thinking": "hm"}))
    assert list(whole)[:8] == [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "incomplete_details",
        "model",
        "previous_response_id",
    ]
    assert (whole["id"], whole["object"], whole["status"], whole["completed_at"]) == (
        "resp_7",
        "response",
        "completed",
        101,
    )
    assert whole["output"] == [
        {
            "id": "rs_7_0",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "hm",
        },
        {
            "id": "msg_7_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
        },
    ]


def test_an_empty_unstreamed_answer_has_an_empty_message():
    (item,) = answer(line(**FINAL))["output"]
    assert item["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("written", "message"),
    [(b'{"error":"broken"}', "^broken$"), (line(content="x"), "unfinished"), (b"x", "/api/chat")],
)
def test_a_bad_answer_is_the_workers_fault(written, message):
    with pytest.raises(BadAnswer, match=message):
        answer(written)


texts = st.text('a\n\r"\\: \u2028\u00e9\U0001f40e{}', max_size=6)
calls = st.lists(
    st.builds(lambda name: {"function": {"name": name, "arguments": {"a": 1}}}, st.sampled_from("fg")), max_size=2
)
lines = st.builds(line, content=texts, thinking=texts, tool_calls=calls)


@pytest.mark.slow
@given(st.lists(lines, max_size=6), st.sampled_from([FINAL, LENGTH]))
def test_a_stream_says_what_the_whole_answer_says(said, end):
    seen = run(*said, line(**end))
    messages = [json.loads(one)["message"] for one in said]
    output = seen[-1]["response"]["output"]
    text = "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])
    assert text == "".join(message["content"] for message in messages)
    deltas = "".join(one["delta"] for one in seen if one["type"] == "response.output_text.delta")
    assert deltas == text
    thinking = "".join(item["encrypted_content"] for item in output if item["type"] == "reasoning")
    assert thinking == "".join(message["thinking"] for message in messages)
    called = [item["name"] for item in output if item["type"] == "function_call"]
    assert called == [call["function"]["name"] for message in messages for call in message["tool_calls"]]
    assert seen[-1]["type"] == ("response.incomplete" if end is LENGTH else "response.completed")
    opened = [one["output_index"] for one in seen if one["type"] == "response.output_item.added"]
    assert opened == list(range(len(output)))


def test_a_forced_call_is_the_same_streamed_and_not():
    request, forced = to_native(
        parse_response(
            body(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice="required", text={"format": {"type": "json_object"}})
        )
    )
    assert forced == forced_call(list(to_native(parse_response(body(tools=[TOOL, {**TOOL, "name": "g"}])))[0].tools))
    assert request.tools is None
    content = '{"name": "g", "arguments": {"a": [1, "}"]}}'
    whole = answer(line(**{**FINAL, "content": content}), forced=forced)
    (item,) = whole["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "g", '{"a": [1, "}"]}')
    for cut in range(1, len(content)):
        seen = run(line(content=content[:cut]), line(content=content[cut:]), line(**FINAL), forced=forced)
        assert seen[-1]["response"]["output"] == whole["output"]
        pieces = [one["delta"] for one in seen if one["type"] == "response.function_call_arguments.delta"]
        assert "".join(pieces) == item["arguments"]


def test_a_forced_call_that_did_not_come_is_a_text():
    forced = forced_call(to_native(parse_response(body(tools=[TOOL])))[0].tools)
    (item,) = answer(line(**{**FINAL, "content": "No."}), forced=forced)["output"]
    assert item["content"][0]["text"] == "No."
    assert run(line(content="No."), line(**FINAL), forced=forced)[-1]["response"]["output"] == [item]
