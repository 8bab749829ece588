"""Anthropic's messages to native ones as Ollama makes them; what cannot be served is refused by its name."""

import json

import msgspec
import pytest

from bellmare.protocols.anthropic import STOPS_MAX, parse_count_tokens, parse_messages
from bellmare.protocols.anthropic_counting import guessed_input_tokens, input_tokens_answer
from bellmare.protocols.anthropic_native import to_native
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import OBJECTS_MAX, SIZES_MAX
from bellmare.protocols.ollama_worker import encode_for_worker

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Of a city", "input_schema": SCHEMA}


def body(*messages, **more) -> bytes:
    said = [{"role": "user", "content": "hi"}] if not messages else list(messages)
    return json.dumps({"model": "m", "max_tokens": 10, "messages": said} | more).encode()


def native(*messages, **more):
    request, _ = to_native(parse_messages(body(*messages, **more)))
    return request


def sent(*messages, **more) -> dict:
    """What a worker is asked."""
    return json.loads(encode_for_worker(native(*messages, **more), model="m", num_ctx=4096))


def turns(*messages, **more) -> list[dict]:
    return sent(*messages, **more)["messages"]


def user(*blocks) -> dict:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks) -> dict:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def refusal(*messages, **more) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        native(*messages, **more)
    return caught.value


# ---------------------------------------------------------------------- the request as a whole


def test_the_least_request():
    assert sent() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "options": {"num_predict": 10, "num_ctx": 4096},
    }


def test_only_what_is_asked_becomes_an_option():
    asked = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["\n", "END"], "stream": True}
    request = sent(**asked)
    wanted = {"num_predict": 10, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop": ["\n", "END"], "num_ctx": 4096}
    assert request["options"] == wanted
    assert request["stream"] is True
    assert "stop" not in sent(stop_sequences=[])["options"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": ""}, "model is required"),
        ({"model": None, "max_tokens": 0}, "model is required"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": -1}, "max_tokens is required and must be positive"),
        ({"max_tokens": None, "messages": []}, "max_tokens is required and must be positive"),
        ({"messages": []}, "messages is required"),
        ({"messages": None}, "messages is required"),
    ],
)
def test_what_must_be_said_is_asked_for_in_ollamas_words_and_order(more, message):
    assert refusal(**more).message == message


def test_a_count_needs_no_limit_but_all_else():
    request = json.loads(body())
    del request["max_tokens"]
    wanted = parse_count_tokens(json.dumps(request).encode())
    assert to_native(wanted)[0].options == {}
    with pytest.raises(InvalidRequest, match="messages is required"):
        parse_count_tokens(b'{"model":"m","messages":[]}')
    with pytest.raises(InvalidRequest, match="model is required"):
        parse_count_tokens(b'{"messages":[{"role":"user","content":"x"}]}')


def test_what_tunes_anthropics_own_service_is_ignored():
    ignored = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "inference_geo": "eu",
        "not_known_yet": {"a": 1},
        "mcp_servers": [],
        "container": None,
    }
    assert sent(**ignored) == sent()
    cached = {"type": "ephemeral"}
    assert turns(user({**text("hi"), "cache_control": cached})) == turns()
    assert sent(tools=[{**WEATHER, "cache_control": cached}]) == sent(tools=[WEATHER])


@pytest.mark.parametrize("field", ["mcp_servers", "container"])
def test_what_would_have_to_run_here_is_refused_by_its_name(field):
    assert refusal(**{field: [{"id": "x"}]}).message.startswith(f"{field} is not supported")


def test_stop_sequences_are_bounded():
    assert len(native(stop_sequences=["x"] * STOPS_MAX).options["stop"]) == STOPS_MAX
    assert "stop_sequences" in refusal(stop_sequences=["x"] * (STOPS_MAX + 1)).message


@pytest.mark.parametrize("field", ["stop_sequences", "output_config", "output_format"])
def test_fields_that_become_many_objects_are_bounded(field):
    value = ["x" * SIZES_MAX[field]] if field == "stop_sequences" else {"type": "x" * SIZES_MAX[field]}
    assert refusal(**{field: value}).status == 413


def test_blocks_of_the_system_text_are_bounded():
    assert refusal(system=[text("")] * (OBJECTS_MAX + 1)).status == 413


# ---------------------------------------------------------------------- conversation


def test_a_system_text_stands_first_and_blocks_are_joined():
    assert turns(system="be brief")[0] == {"role": "system", "content": "be brief"}
    assert turns(system=[text("be"), text(" brief")])[0] == {"role": "system", "content": "be brief"}
    assert [turn["role"] for turn in turns(system="")] == ["user"]
    assert [turn["role"] for turn in turns(system=[])] == ["user"]
    assert turns(system=None) == turns()


def test_texts_of_a_turn_are_joined_without_a_separator():
    assert turns(user(text("a"), text("b"))) == [{"role": "user", "content": "ab"}]


def test_roles_are_passed_on_in_lower_case():
    said = ({"role": "User", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    assert [turn["role"] for turn in turns(*said)] == ["user", "assistant", "user"]


def test_images_go_beside_their_text():
    assert turns(user(text("what?"), IMAGE)) == [{"role": "user", "content": "what?", "images": [PIXEL]}]
    assert turns(user(IMAGE)) == [{"role": "user", "content": "", "images": [PIXEL]}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"type": "url", "url": "http://x/y.png"}, "invalid image source type: url. Only base64 images are supported."),
        ({"type": "file", "file_id": "f"}, "invalid image source type: file. Only base64 images are supported."),
        (None, "invalid image source"),
        ({"type": "base64", "data": "%%%"}, "invalid base64 image data: illegal base64 data"),
        ({"type": "base64", "data": "QUI"}, "invalid base64 image data: illegal base64 data"),
    ],
)
def test_only_images_that_are_there_are_taken(source, message):
    assert refusal(user({"type": "image", "source": source})).message == message
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    assert refusal(user(nested)).message == message.replace("image source", "tool_result image source", source is None)


def test_a_tools_call_and_its_result():
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
    assert turns(user(text("?")), assistant(text("let me see"), call), user(result))[1:] == [
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}, "id": "toolu_1"}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "toolu_1"},
    ]


def test_results_come_before_the_text_of_a_users_turn_and_after_any_others():
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
    assert [turn["role"] for turn in turns(user(text("next"), result, result))] == ["tool", "tool", "user"]
    assert [turn["role"] for turn in turns(assistant(result, text("x")))] == ["assistant", "tool"]


def test_a_result_may_have_blocks_images_or_nothing():
    blocks = [text("a"), text("b"), IMAGE]
    result = {"type": "tool_result", "tool_use_id": "t", "content": blocks, "is_error": True}
    assert turns(user(result)) == [{"role": "tool", "content": "ab", "images": [PIXEL], "tool_call_id": "t"}]
    for nothing in ({}, {"content": None}, {"content": []}, {"content": ""}):
        (turn,) = turns(user({"type": "tool_result", "tool_use_id": "t", **nothing}))
        assert turn == {"role": "tool", "content": "", "tool_call_id": "t"}


def test_a_call_without_input_has_no_arguments():
    for nothing in ({}, {"input": None}, {"input": {}}):
        (turn,) = turns(assistant({"type": "tool_use", "id": "t", "name": "f", **nothing}))
        assert turn["tool_calls"] == [{"function": {"name": "f", "arguments": {}}, "id": "t"}]


@pytest.mark.parametrize("field", ["id", "name"])
def test_a_call_must_say_who_it_is(field):
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    del call[field]
    assert refusal(assistant(call)).message == f"tool_use block missing required '{field}' field"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "tool_use", "id": "t", "name": "f", "input": [1]}, "messages.0.content.0.input must be an object"),
        ({"type": "tool_result", "content": 5}, "messages.0.content.0.content must be a string or a list of blocks"),
        ({"type": "tool_result", "content": [5]}, "messages.0.content.0.content must be a string or a list of blocks"),
    ],
)
def test_what_is_nested_must_be_of_its_type(block, message):
    assert refusal(assistant(block)).message == message


def test_the_input_of_a_call_is_bounded():
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "x" * (4 << 20)}}
    assert refusal(assistant(call)).status == 413


def test_thoughts_of_an_earlier_turn_go_on_the_message():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    assert turns(user(text("?")), assistant(thought, text("!")))[1] == {
        "role": "assistant",
        "content": "!",
        "thinking": "hm",
    }
    (turn,) = turns(assistant(thought))
    assert turn == {"role": "assistant", "content": "", "thinking": "hm"}


def test_thoughts_that_only_anthropic_can_read_are_left_out():
    assert turns(assistant({"type": "redacted_thinking", "data": "x"}, text("!"))) == turns(assistant(text("!")))


def test_searches_of_earlier_turns_read_as_calls_and_their_results():
    call = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}}
    found = [{"type": "web_search_result", "title": "T", "url": "http://t", "encrypted_content": "x"}]
    result = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": found}
    assert turns(assistant(call, result, text("so"))) == [
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [{"function": {"name": "web_search", "arguments": {"query": "q"}}, "id": "s1"}],
        },
        {"role": "tool", "content": "- T: http://t\n", "tool_call_id": "s1"},
    ]
    error = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    (turn,) = turns(assistant({**result, "content": error}))
    assert turn["content"] == "web_search_tool_result_error: unavailable"


@pytest.mark.parametrize("kind", ["document", "search_result", "container_upload", "never_heard_of"])
def test_blocks_whose_content_no_model_would_see_are_refused_by_their_place(kind):
    refused = refusal(user(text("a")), user(text("b"), {"type": kind}))
    assert refused.message == f'messages.1.content.1.type: blocks of type "{kind}" are not supported'
    inner = refusal(user({"type": "tool_result", "tool_use_id": "t", "content": [text("a"), {"type": kind}]}))
    assert inner.message == f'messages.0.content.0.content.1.type: blocks of type "{kind}" are not supported'


@pytest.mark.parametrize("empty", ["", [], [text("")], None])
def test_a_conversation_without_anything_in_it_only_loads_the_model(empty):
    assert native({"role": "user", "content": empty}, tool_choice={"type": "any"}, tools=[WEATHER]).messages == []


# ---------------------------------------------------------------------- tools, thinking, form


def test_tools_are_passed_on_with_their_schema():
    (tool,) = sent(tools=[WEATHER])["tools"]
    function = {"name": "get_weather", "description": "Of a city", "parameters": SCHEMA}
    assert tool == {"type": "function", "function": function}
    assert sent(tools=[{**WEATHER, "type": "custom"}])["tools"] == [tool]
    (bare,) = sent(tools=[{"name": "f"}])["tools"]
    assert bare == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "kind", ["web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "bash_20250124", "computer_x"]
)
def test_tools_that_anthropic_runs_or_knows_are_refused_by_their_place(kind):
    refused = refusal(tools=[WEATHER, {"type": kind, "name": "x"}])
    assert refused.message.startswith(f'tools.1.type: "{kind}" is not supported')


@pytest.mark.parametrize("schema", ["x", [], 5])
def test_a_schema_must_be_an_object(schema):
    refused = refusal(tools=[{"name": "bad", "input_schema": schema}])
    assert refused.message.startswith('invalid input_schema for tool "bad"')


def test_tool_choice_auto_is_the_default_and_none_takes_the_tools_away():
    assert sent(tools=[WEATHER], tool_choice={"type": "auto"}) == sent(tools=[WEATHER])
    assert sent(tools=[WEATHER], tool_choice={"type": "none"}) == sent()


def test_a_tool_that_must_be_called_binds_the_answer_to_its_schema():
    other = {"name": "other", "input_schema": {"type": "object"}}
    wanted = parse_messages(body(tools=[other, WEATHER], tool_choice={"type": "tool", "name": "get_weather"}))
    request, forced = to_native(wanted)
    assert forced is not None and forced.names == ("get_weather",)
    assert request.format == SCHEMA
    assert request.tools is None
    assert request.messages[0].role == "system"
    request, forced = to_native(parse_messages(body(tools=[other, WEATHER], tool_choice={"type": "any"})))
    assert forced is not None and forced.names == ("other", "get_weather")
    assert request.format == forced.format


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"type": "tool", "name": "nobody"}, "nobody"),
        ({"type": "tool"}, "tool_choice.name is required"),
        ({"type": "maybe"}, "tool_choice.type must be one of"),
        ({}, "tool_choice.type must be one of"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(choice, message):
    assert message in refusal(tools=[WEATHER], tool_choice=choice).message


def test_any_tool_of_none_is_refused():
    assert "tool_choice" in refusal(tool_choice={"type": "any"}).message


@pytest.mark.parametrize(
    ("more", "think"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}}, "max"),
        ({"output_config": {"effort": "xhigh"}}, "high"),
        ({"output_config": {"effort": " HIGH "}}, "high"),
        ({"output_config": {"effort": "none"}}, None),
        ({"output_config": {"effort": ""}}, None),
        ({"thinking": {"type": "enabled"}, "output_config": {"effort": "low"}}, True),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "xhigh"}}, False),
    ],
)
def test_thinking_and_effort_become_think(more, think):
    assert native(**more).think == think


def test_a_form_is_bound_to_its_schema():
    form = {"type": "json_schema", "schema": SCHEMA}
    assert sent(output_config={"format": form})["format"] == SCHEMA
    assert sent(output_format=form)["format"] == SCHEMA
    assert "format" not in sent(output_config={"effort": "low"})


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "text"}, "output_config.format.type must be"),
        ({"type": "json_schema"}, "output_config.format.schema is required"),
        ({"type": "json_schema", "schema": "x"}, "invalid request"),
    ],
)
def test_a_form_must_be_a_schema(form, message):
    assert message in refusal(output_config={"format": form}).message


# ---------------------------------------------------------------------- counting


def test_a_count_is_one_number():
    assert json.loads(input_tokens_answer(7)) == {"input_tokens": 7}


def guess(*messages, **more) -> int:
    return guessed_input_tokens(parse_messages(body(*messages, **more)))


def quarter_of(*texts: str) -> int:
    return sum(len(one.encode()) for one in texts) // 4


def test_the_guess_is_a_quarter_of_the_bytes_of_roles_texts_and_tools():
    assert guess({"role": "user", "content": "x" * 96}) == 25
    assert guess({"role": "user", "content": "\u00e9" * 48}, system="y" * 40) == 35
    assert guess(user(text("x" * 48), text("y" * 48)), system=[text("z" * 40)]) == 35
    assert guess(assistant({"type": "thinking", "thinking": "x" * 91})) == 25
    schema = msgspec.json.encode(SCHEMA).decode()
    raw = json.dumps({"model": "m", "max_tokens": 1, "messages": [user(text("x"))], "tools": [WEATHER]})
    compact = raw.replace(json.dumps(SCHEMA), schema).encode()
    assert guessed_input_tokens(parse_messages(compact)) == quarter_of("user", "x", "get_weather", "Of a city", schema)


def test_the_guess_measures_calls_and_results_as_go_writes_them():
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "<b>", "c": [1, 2]}}
    written = r'{"type":"tool_use","id":"t1","name":"f","input":{"a":"\u003cb\u003e","c":[1,2]}}'
    assert guess(assistant(call)) == quarter_of("assistant", written)
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [text("r & s")], "is_error": True}
    written = (
        r'{"type":"tool_result","tool_use_id":"t1","content":[{"text":"r \u0026 s","type":"text"}],"is_error":true}'
    )
    assert guess(user(result)) == quarter_of("user", written)


def test_the_guess_is_never_zero():
    assert guess({"role": "", "content": ""}) == 1
