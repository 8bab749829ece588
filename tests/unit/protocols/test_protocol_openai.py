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
        ({"n": 1, "user": "u", "logit_bias": {}, "store": True, "metadata": {"a": 1}}, {}),
        ({"modalities": ["text"], "functions": [], "parallel_tool_calls": False, "verbosity": "low"}, {}),
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
        ({"reasoning_effort": "minimal"}, {"think": "low"}),
        ({"reasoning_effort": "xhigh"}, {"think": "max"}),
        ({"reasoning": {"effort": ""}, "reasoning_effort": "high"}, {"think": None}),
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


def test_each_part_of_a_message_is_one_as_in_ollama():
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG, "detail": "low"}},
        {"type": "text", "text": "and?"},
        {"type": "image_url", "image_url": "data:;base64," + PNG},
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
    ]
    assert native(messages=[{"role": "user", "content": parts}])["messages"] == [
        {"role": "user", "content": "what?"},
        {"role": "user", "images": [PNG]},
        {"role": "user", "content": "and?"},
        {"role": "user", "images": [PNG]},
        {"role": "user", "images": [PNG]},
    ]


def test_the_last_part_carries_what_belongs_to_the_message():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    first, second, result = native(
        messages=[
            {"role": "assistant", "content": parts, "reasoning": "r", "tool_calls": [call]},
            {"role": "tool", "content": parts[:1], "tool_call_id": "c1"},
        ]
    )["messages"]
    assert first == {"role": "assistant", "content": "a"}
    assert second == {
        "role": "assistant",
        "content": "b",
        "thinking": "r",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}, "id": "c1"}],
    }
    assert result == {"role": "tool", "content": "a", "tool_name": "f", "tool_call_id": "c1"}
    assert native(messages=[*USER, {"role": "user", "content": []}])["messages"] == USER
    assert native(messages=[*USER, {"role": "assistant", "content": [], "tool_calls": [call]}])["messages"][1][
        "tool_calls"
    ]


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
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "there are no tools"),
        ({"tool_choice": "any"}, 'tool_choice "any" is not supported'),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "is not supported"),
        ({"logit_bias": {"1": 2}}, "logit_bias is not supported"),
        ({"audio": {"voice": "x"}}, "audio is not supported"),
        ({"modalities": ["text", "audio"]}, "modalities is not supported"),
        ({"functions": [{"name": "f"}]}, "functions is not supported"),
        ({"function_call": "auto"}, "function_call is not supported"),
        ({"prediction": {"type": "content"}}, "prediction is not supported"),
        ({"web_search_options": {"a": 1}}, "web_search_options is not supported"),
        ({"stop": 7}, "invalid type for 'stop' field: float64"),
        ({"stop": ["x", 7]}, "invalid type for 'stop' field: float64"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "schema is required"),
        (
            {"reasoning_effort": "extreme"},
            'invalid reasoning value: \'extreme\' (must be "high", "medium", "low", "max", or "none")',
        ),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"stop": ["x"] * (STOPS_MAX + 1)}, "stop has more than"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid message role"),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
        ({"messages": [{"role": "user", "content": 7}]}, "invalid message content type: float64"),
        ({"messages": [{"role": "user", "content": {}}]}, "invalid message content type: map[string]interface {}"),
        ({"messages": [{"role": "user", "content": True}]}, "invalid message content type: bool"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "at `$.messages[0].content[0]`"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid message format"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "invalid message format"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "invalid input_audio format"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "missing data"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "!"}}]}]},
            "invalid input_audio base64 data",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid message format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://x/y.png"}]}]},
            "image URLs are not currently supported, please use base64 encoded data instead",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
            "invalid image input",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,!"}]}]},
            "invalid image input",
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


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fgh"]


def forced(choice) -> dict:
    written = native(tools=TOOLS, tool_choice=choice, response_format={"type": "json_object"}, logprobs=True)
    assert "tools" not in written and "logprobs" not in written
    assert written["messages"][0]["role"] == "system" and written["messages"][1:] == USER
    return written["format"]


def test_a_tool_that_must_be_called_binds_the_answer():
    assert forced({"type": "function", "function": {"name": "g"}}) == {"type": "object"}
    assert len(forced("required")["anyOf"]) == 3
    named = [{"type": "function", "function": {"name": name}} for name in "hf"]
    rules = {"mode": "required", "tools": named}
    branches = forced({"type": "allowed_tools", "allowed_tools": rules})["anyOf"]
    assert [branch["properties"]["name"]["const"] for branch in branches] == ["f", "h"]


def test_only_allowed_tools_are_offered():
    rules = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}
    written = native(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": rules})
    assert [tool["function"]["name"] for tool in written["tools"]] == ["g"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"type": "function", "function": {"name": "x"}}, "'x', which is not among the tools"),
        ({"type": "function"}, "named by its type and its name"),
        ({"type": "allowed_tools"}, "allowed_tools has a mode"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "never", "tools": []}}, "allowed_tools has a mode"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["x"]}}, "named by its type"),
        (
            {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "function", "function": {"name": "x"}}]}},
            "'x', which is not among the tools",
        ),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}, "there are no tools"),
    ],
)
def test_a_choice_of_tools_that_makes_no_sense_is_refused(choice, message):
    assert message in refusal(tools=TOOLS, tool_choice=choice)


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
