"""A tool call by JSON schema, where a client insists on one."""

import json

import pytest
from chunked import chunked
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import forced_tools
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.forced_tools import CallReader, ForcedCall, bound, forced_call
from bellmare.protocols.ollama_requests import ChatRequest, Message, Tool, ToolFunction

PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, parameters: dict | None = None, description: str | None = None) -> Tool:
    return Tool(type="function", function=ToolFunction(name=name, parameters=parameters, description=description))


WEATHER, CLOCK = tool("weather", PLACE, "Looks up the weather."), tool("clock")
ONE, SEVERAL = forced_call([WEATHER, CLOCK], name="weather"), forced_call([WEATHER, CLOCK])


def read(forced: ForcedCall, pieces: list[str]) -> tuple[CallReader, str, str]:
    reader = CallReader(forced)
    given = [reader.feed(piece) for piece in pieces]
    text = "".join(text for text, _ in given) + reader.close()
    return reader, text, "".join(arguments for _, arguments in given)


def test_one_tool_binds_the_answer_to_its_parameters():
    assert ONE.names == ("weather",)
    assert ONE.format == PLACE
    assert "'weather'" in ONE.instruction and "Looks up the weather." in ONE.instruction
    assert "clock" not in ONE.instruction
    assert forced_call([WEATHER]).format == PLACE


def test_several_tools_bind_it_to_a_name_and_the_arguments_that_belong_to_it():
    first, second = SEVERAL.format["anyOf"]
    assert list(first["properties"]) == ["name", "arguments"]  # a stream has the name first
    assert first["properties"] == {"name": {"const": "weather"}, "arguments": PLACE}
    assert second["properties"]["name"] == {"const": "clock"}
    assert second["properties"]["arguments"] == {"type": "object", "properties": {}, "additionalProperties": False}
    assert first["required"] == ["name", "arguments"]
    assert '"clock"' in SEVERAL.instruction and '"weather"' in SEVERAL.instruction


def test_parameters_without_a_type_are_an_object():
    assert forced_call([tool("f", {"properties": {}})]).format == {"type": "object", "properties": {}}


def test_references_go_on_pointing_at_what_they_pointed_at():
    parameters = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array", "items": {"$ref": "#/$defs/A"}}},
        "$defs": {"A": {"type": "string"}},
    }
    assert forced_call([tool("f", parameters)]).format == parameters
    schema = forced_call([tool("f", parameters), CLOCK]).format
    assert schema["anyOf"][0]["properties"]["arguments"] == {"$ref": "#/$defs/tool0"}
    moved = schema["$defs"]["tool0"]
    for reference in (moved["properties"]["a"]["$ref"], moved["properties"]["b"]["items"]["$ref"]):
        target = schema
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]
        assert target == {"type": "string"}


@pytest.mark.parametrize(("tools", "name"), [(None, None), ([], None), ([WEATHER], "clock"), (None, "weather")])
def test_a_tool_that_is_not_there_cannot_be_forced(tools, name):
    with pytest.raises(InvalidRequest, match="tool_choice"):
        forced_call(tools, name=name)


def test_the_worker_gets_the_schema_and_the_instruction_in_place_of_the_tools():
    user = Message(role="user", content="hi")
    asked = bound(ChatRequest(model="m", messages=[user], tools=[WEATHER], format="json"), ONE)
    assert (asked.tools, asked.format) == (None, PLACE)
    assert asked.messages == [Message(role="system", content=ONE.instruction), user]


def test_the_instruction_joins_a_system_text():
    asked = bound(ChatRequest(messages=[Message(role="system", content="Be kind.")]), ONE)
    assert asked.messages == [Message(role="system", content=f"Be kind.\n\n{ONE.instruction}")]


def test_of_one_tool_the_answer_is_the_arguments():
    reader, text, arguments = read(ONE, ["\n ", '{"city"', ': "Pa"}', "\n"])
    assert (reader.name, text, arguments, reader.complete) == ("weather", "", '{"city": "Pa"}', True)


def test_of_several_the_answer_has_the_name_and_the_arguments():
    reader, text, arguments = read(SEVERAL, ['{ "na', 'me" :"weather" , "argu', 'ments": ', '{"city":"}{"}', " }"])
    assert (reader.name, text, arguments, reader.complete) == ("weather", "", '{"city":"}{"}', True)


def test_the_name_is_known_before_the_arguments_come():
    assert CallReader(ONE).name == ""
    reader = CallReader(ONE)
    reader.feed("{")
    assert reader.name == "weather"
    reader = CallReader(SEVERAL)
    reader.feed('{"name":"clock","arguments":')
    assert reader.name == ""
    assert reader.feed("{") == ("", "{")
    assert reader.name == "clock"


@pytest.mark.parametrize("forced", [ONE, SEVERAL])
@pytest.mark.parametrize("answer", ["Sorry, no.", "", "  ", '["a"]', '"x"', "7"])
def test_what_is_no_call_is_text(forced, answer):
    reader, text, arguments = read(forced, list(answer))
    assert (reader.name, text, arguments, reader.is_text) == ("", answer, "", True)


@pytest.mark.parametrize(
    "answer", ['{"name":"other","arguments":{}}', '{"city":"x"}', '{"name":"weather","arguments":7}']
)
def test_what_is_no_call_of_any_of_the_tools_is_text(answer):
    assert read(SEVERAL, [answer])[1] == answer


def test_a_head_without_end_is_not_kept_for_ever():
    reader = CallReader(SEVERAL)
    text, _ = reader.feed('{"name":"' + "x" * forced_tools.HEAD_CHARS_MAX)
    assert reader.is_text and text
    reader = CallReader(ONE)
    assert reader.feed(" " * (forced_tools.HEAD_CHARS_MAX + 1))[0]


@pytest.mark.parametrize("answer", ['{"city":"Pa', '{"city"', "{", '{"city":"\\', '{"city":[{}]'])
def test_a_cut_call_is_not_complete(answer):
    reader, text, arguments = read(ONE, [answer])
    assert (reader.name, text, arguments, reader.complete) == ("weather", "", answer, False)


def test_braces_alone_make_no_object():
    assert not read(ONE, ["{city}"])[0].complete
    assert not read(ONE, ["{]"])[0].complete


def test_a_call_longer_than_is_checked_is_passed_on(monkeypatch):
    monkeypatch.setattr(forced_tools, "ARGUMENTS_CHARS_MAX", 20)
    answer = json.dumps({"city": "x" * 40})
    reader, _, arguments = read(ONE, [answer[:10], answer[10:30], answer[30:]])
    assert (arguments, reader.complete) == (answer, True)
    assert not reader._arguments


objects = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        st.none() | st.text('"\\{}[]a\u00e9', max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@pytest.mark.slow
@given(objects, st.sampled_from([ONE, SEVERAL]), st.lists(st.integers(0, 500), max_size=9), st.sampled_from([None, 2]))
def test_any_chunking_gives_the_same_call(arguments, forced, cuts, indent):
    written = json.dumps(arguments, indent=indent)
    answer = written if forced is ONE else f'{{"name": "weather", "arguments": {written}\n}}\n'
    reader, text, got = read(forced, chunked(answer, cuts))
    assert (reader.name, text, got, reader.complete) == ("weather", "", written, True)


@pytest.mark.slow
@given(st.text('{}[]"\\:, \nnameargumts', max_size=40), st.sampled_from([ONE, SEVERAL]), st.integers(0, 40))
def test_garbage_is_passed_on_as_it_came(answer, forced, cut):
    whole, parts = read(forced, [answer]), read(forced, [answer[:cut], answer[cut:]])
    assert whole[1:] == parts[1:]
    assert whole[0].complete == parts[0].complete
    assert whole[1] == answer or whole[2] in answer
