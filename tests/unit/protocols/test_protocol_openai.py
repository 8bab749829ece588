"""OpenAI's chat completions in native words: ollama.md 1.8, ecosystem.md 0."""

import base64
import json

import pytest

from bellmare.protocols import ollama
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.openai import STOPS_MAX, models_list, parse_chat_completion, to_native

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
USER = [{"role": "user", "content": "hi"}]


def body(**fields) -> bytes:
    return json.dumps({"model": "m", "messages": USER, **fields}).encode()


def native(**fields) -> dict:
    """What the worker gets."""
    chat = to_native(parse_chat_completion(body(**fields)))
    return json.loads(ollama.encode_for_worker(chat, model="m:latest", num_ctx=8192))


def refusal(**fields) -> str:
    with pytest.raises(InvalidRequest) as caught:
        to_native(parse_chat_completion(body(**fields)))
    assert caught.value.status == 400
    return caught.value.message


def test_a_plain_request():
    # 1.8: temperature and top_p are 1.0 when absent; the native defaults differ
    assert native() == {
        "model": "m:latest",
        "messages": USER,
        "stream": False,
        "options": {"temperature": 1.0, "top_p": 1.0, "num_ctx": 8192},
    }


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 4}, {"num_predict": 4}),
        ({"max_completion_tokens": 4}, {"num_predict": 4}),  # ecosystem.md 0: Ollama ignores it
        ({"max_completion_tokens": 4, "max_tokens": 9}, {"num_predict": 4}),
        ({"max_tokens": -1}, {"num_predict": -1}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"seed": 7}, {"seed": 7}),
        ({"frequency_penalty": 0.5, "presence_penalty": -1}, {"frequency_penalty": 0.5, "presence_penalty": -1}),
        ({"temperature": None, "stop": None, "seed": None, "max_tokens": None, "n": None}, {}),
        ({"n": 1, "user": "u", "logit_bias": {"1": 2}, "store": True, "metadata": {"a": 1}}, {}),
        ({"options": {"num_ctx": 1}, "keep_alive": 0, "num_ctx": 1, "shift": False}, {}),
    ],
)
def test_sampling_fields_become_options(fields, options):
    assert native(**fields)["options"] == {"temperature": 1.0, "top_p": 1.0, "num_ctx": 8192, **options}
    assert not native(**fields).keys() - {"model", "messages", "stream", "options"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": True}, {"stream": True}),
        ({"response_format": {"type": "text"}}, {"format": None}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"format": {"type": "object"}},
        ),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "high"}, {"think": "high"}),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, {"think": "low"}),
        ({"reasoning_effort": ""}, {"think": None}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}], "tool_choice": "auto"},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, {"tools": None}),
        ({"tools": []}, {"tools": None}),
    ],
)
def test_other_fields(fields, expected):
    written = native(**fields)
    assert {name: written.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "User", "content": ""}, {"role": "user", "content": ""}),
        (
            {"role": "assistant", "content": "x", "reasoning": "r"},
            {"role": "assistant", "content": "x", "thinking": "r"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\n\nb"},
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG, "detail": "low"}},
                    {"type": "image_url", "image_url": "data:;base64," + PNG},
                ],
            },
            {"role": "user", "content": "what?", "images": [PNG, PNG]},
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}],
            },
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}, "id": "c1"}]},
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ),
        (
            {"role": "tool", "content": "r", "name": "g", "tool_call_id": "c9"},
            {"role": "tool", "content": "r", "tool_name": "g", "tool_call_id": "c9"},
        ),
    ],
)
def test_messages(message, expected):
    assert native(messages=[message])["messages"] == [expected]


def test_a_tool_result_finds_its_tools_name():
    call = {"id": "c1", "function": {"name": "weather", "arguments": "{}"}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "4", "tool_call_id": "c1"}]
    assert native(messages=messages)["messages"][1]["tool_name"] == "weather"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model is required"),
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"n": 2}, "n must be 1"),
        ({"n": 0}, "n must be 1"),
        ({"max_tokens": -2}, "max_tokens must not be negative"),
        ({"max_completion_tokens": "4"}, "at `$.max_completion_tokens`"),
        ({"temperature": "hot"}, "at `$.temperature`"),
        ({"tool_choice": "required"}, "tool_choice required is not supported"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice a named tool is not supported"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "schema is required"),
        (
            {"reasoning_effort": "extreme"},
            'invalid reasoning value: \'extreme\' (must be "high", "medium", "low", or "none")',
        ),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"stop": ["x"] * (STOPS_MAX + 1)}, "stop has more than"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid message role"),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
        ({"messages": [{"role": "user", "content": 7}]}, "at `$.messages[0].content`"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "invalid message format"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid message format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://x/y.png"}]}]},
            "addresses are not fetched",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
            "invalid image input",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,!"}]}]},
            "illegal base64 data in images",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "invalid tool call arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "invalid tool call arguments",
        ),
        (
            {
                "messages": [
                    {"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":' + "[" * 9999}}]}
                ]
            },
            "invalid",
        ),
        ({"Model": "x"}, 'must be written "model"'),
    ],
)
def test_refusals(fields, message):
    assert message in refusal(**fields)


def test_deep_arguments_are_refused():
    call = {"function": {"name": "f", "arguments": '{"a":' + "[" * 80 + "]" * 80 + "}"}}
    assert "nested deeper" in refusal(messages=[{"role": "assistant", "tool_calls": [call]}])
    deep = json.loads("[" * 80 + "]" * 80)
    schema = {"type": "json_schema", "json_schema": {"schema": {"a": deep}}}
    assert "nested deeper" in refusal(response_format=schema)


def test_include_usage_is_asked_for():
    assert parse_chat_completion(body(stream_options={"include_usage": True})).include_usage
    assert not parse_chat_completion(body(stream_options={})).include_usage
    assert not parse_chat_completion(body()).include_usage


def test_models_list():
    listed = json.loads(models_list([("m:latest", 5), ("user/m:1", 6), ("hf.co/owner/m:q4", 7)]))
    assert listed["object"] == "list"
    assert listed["data"][0] == {"id": "m:latest", "object": "model", "created": 5, "owned_by": "library"}
    assert [model["owned_by"] for model in listed["data"]] == ["library", "user", "owner"]
    assert models_list([]) == b'{"object":"list","data":[]}'  # 1.5: Ollama says null
