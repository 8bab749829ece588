"""What a simulated model says: tools by rule, JSON that a schema allows, thoughts, stop sequences, probabilities."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_client import Worker

from bellmare.workers.sim import SimModel
from bellmare.workers.sim.pattern import matching
from bellmare.workers.sim.schema import Hints, instance
from bellmare.workers.sim.speech import STOP_SEARCH_TOKENS, Asked, speech
from bellmare.workers.sim.tools import TOOL_MARKER, calls_for

ADDER = {
    "type": "function",
    "function": {
        "name": "my_adder",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}
BOTH = [ADDER, WEATHER]


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


# ---------------------------------------------------------------------- schemas

_leaves = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": "string", "format": "date-time"},
        {"type": "string", "pattern": "^[A-Z]{3}-\\d{2,4}(x|y)?$"},
        {"type": "integer", "minimum": 7},
        {"type": "integer", "exclusiveMaximum": -3},
        {"type": "integer", "multipleOf": 5, "minimum": 11},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": ["null", "number"]},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", 2, None]},
        {"const": {"x": [1]}},
        {"$ref": "#/$defs/leaf"},
        {"$ref": "#/$defs/tree"},
        {"anyOf": [{"type": "null"}, {"type": "string"}]},
        {"allOf": [{"$ref": "#/$defs/leaf"}, {"properties": {"more": {"type": "integer"}}, "required": ["more"]}]},
        {},
        True,
    ]
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
    objects = st.builds(
        lambda keys, parts, needed: {
            "type": "object",
            "properties": dict(zip(keys, parts, strict=False)),
            "required": [key for key in keys[: len(parts)] if needed],
            "additionalProperties": False,
        },
        names,
        st.lists(inner, max_size=4),
        st.booleans(),
    )
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 1},
        inner,
        st.integers(0, 3),
    )
    unique = st.just({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3})
    tuples = st.builds(
        lambda parts: {"type": "array", "prefixItems": parts, "items": False}, st.lists(inner, max_size=3)
    )
    maps = st.builds(lambda items: {"type": "object", "additionalProperties": items}, inner)
    return st.one_of(objects, arrays, unique, tuples, maps, st.builds(lambda one: {"oneOf": [one]}, inner))


_DEFS = {
    "leaf": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
        },
        "required": ["value", "children"],
    },
}


@given(st.recursive(_leaves, _nested, max_leaves=8), st.text(max_size=60))
def test_an_instance_is_valid_under_its_schema(schema: Any, text: str) -> None:
    whole = {"$defs": _DEFS, "allOf": [schema]} if schema is True else {"$defs": _DEFS} | schema
    made = instance(whole, Hints(text))
    jsonschema.Draft202012Validator(whole).validate(made)
    assert made == instance(whole, Hints(text))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["object", "array", "#/x", "["]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "enum",
                    "anyOf",
                    "allOf",
                    "$ref",
                    "required",
                    "pattern",
                    "minimum",
                    "maxItems",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_a_schema_that_means_nothing_gives_something_that_is_json(schema: Any) -> None:
    json.dumps(instance(schema, Hints("")))


@given(st.text(max_size=20))
def test_any_pattern_gives_a_match_or_nothing(pattern: str) -> None:
    import re

    found = matching(pattern)
    assert found is None or re.search(pattern, found)


def test_values_of_the_prompt_are_preferred() -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer"},
            "name": {"type": "string"},
            "colour": {"enum": ["red", "green"]},
            "born": {"type": "integer", "minimum": 1900},
        },
        "required": ["age", "name", "colour", "born"],
    }
    made = instance(schema, Hints("'你好' is 42, likes Green, and was born in 1984"))
    assert made == {"age": 42, "name": "你好", "colour": "green", "born": 1984}


# ---------------------------------------------------------------------- tools


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("hello", []),
        (TOOL_MARKER, [("my_adder", {"a": 1, "b": 1})]),
        ("What is 3 + 4?", [("my_adder", {"a": 3, "b": 4})]),
        ("Use get_weather for Paris", [("get_weather", {"location": "Paris", "unit": "celsius"})]),
        (
            "what is the weather in San Francisco, CA, in fahrenheit?",
            [("get_weather", {"location": "San Francisco, CA", "unit": "fahrenheit"})],
        ),
        (
            "get weather in 'Oslo' and then my_adder of 1 and 2",
            [("get_weather", {"location": "Oslo", "unit": "celsius"}), ("my_adder", {"a": 1, "b": 2})],
        ),
    ],
)
def test_the_last_user_message_decides_which_tools_are_called(text: str, called: list[Any]) -> None:
    assert [(call.name, call.arguments) for call in calls_for(BOTH, user(text))] == called


async def test_a_result_of_a_tool_is_quoted_in_the_answer(worker: Worker) -> None:
    asked = [*user("What is 3 + 4?"), {"role": "assistant", "content": ""}, {"role": "tool", "content": "7"}]
    body = {"model": "a:1", "messages": asked, "tools": BOTH}
    whole = (await worker.post("/api/chat", body | {"stream": False})).json
    assert (whole["message"], whole["done_reason"]) == ({"role": "assistant", "content": "The result is 7."}, "stop")
    lines = (await worker.post("/api/chat", body)).lines
    assert "".join(line["message"]["content"] for line in lines) == "The result is 7."
    assert whole["eval_count"] == lines[-1]["eval_count"] == len(lines) - 1


async def test_calls_come_one_by_one_and_equal_requests_give_equal_calls(worker: Worker) -> None:
    body = {"model": "a:1", "messages": user("my_adder of 1 and 2, then get_weather for Oslo"), "tools": BOTH}
    first, second, last = (await worker.post("/api/chat", body)).lines
    (one,), (two,) = first["message"]["tool_calls"], second["message"]["tool_calls"]
    assert [one["function"]["index"], two["function"]["index"]] == [0, 1]
    assert "tool_calls" not in last["message"] and last["done_reason"] == "stop"
    whole = (await worker.post("/api/chat", body | {"stream": False})).json
    assert whole["message"] == {"role": "assistant", "content": "", "tool_calls": [one, two]}


# ---------------------------------------------------------------------- format


async def test_a_schema_is_obeyed_and_cut_by_the_limit(worker: Worker) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    body = {"model": "a:1", "prompt": "give me 12", "format": schema, "stream": False}
    assert json.loads((await worker.post("/api/generate", body)).json["response"]) == {"n": 12}
    cut = (await worker.post("/api/generate", body | {"options": {"num_predict": 1}})).json
    assert (cut["response"], cut["done_reason"], cut["eval_count"]) == ('{"n"', "length", 1)
    bad = await worker.post("/api/generate", body | {"format": "xml"})
    assert (bad.status, "invalid format" in bad.error) == (400, True)


async def test_json_has_the_keys_that_the_prompt_names(worker: Worker) -> None:
    asked = "A joke, please. Return the result as JSON with the keys 'setup' and 'punchline'."
    answer = (
        await worker.post("/api/generate", {"model": "a:1", "prompt": asked, "format": "json", "stream": False})
    ).json
    assert list(json.loads(answer["response"])) == ["setup", "punchline"]


# ---------------------------------------------------------------------- thinking


async def test_a_model_that_can_think_does_unless_told_not_to(worker: Worker) -> None:
    body = {"model": "r:1", "messages": user("hello"), "options": {"num_predict": 12}}
    *tokens, last = (await worker.post("/api/chat", body)).lines
    kinds = ["thinking" in line["message"] for line in tokens]
    assert kinds == [True] * 3 + [False] * 9
    assert all(line["message"]["content"] == "" for line in tokens[:3])
    assert (last["eval_count"], last["done_reason"]) == (12, "length")
    whole = (await worker.post("/api/chat", body | {"stream": False, "think": True})).json
    assert whole["message"]["thinking"] == "".join(line["message"].get("thinking", "") for line in tokens)
    assert whole["message"]["content"] == "".join(line["message"]["content"] for line in tokens)
    silent = (await worker.post("/api/chat", body | {"stream": False, "think": False})).json
    assert "thinking" not in silent["message"]
    spoken = (
        await worker.post("/api/generate", {"model": "r:1", "prompt": "x", "stream": False, "think": "high"})
    ).json
    assert spoken["thinking"] and spoken["response"]


# ---------------------------------------------------------------------- stop, probabilities, raw, images, debug


async def test_a_stop_sequence_ends_the_answer_before_it(worker: Worker) -> None:
    free = (await worker.generate(stream=False)).json["response"]
    stop = free.split(" ")[9]
    cut = (await worker.generate(stream=False, options={"stop": [stop, "never"]})).json
    assert cut["response"] == free[: free.index(stop)]
    assert cut["done_reason"] == "stop"
    lines = (await worker.generate(options={"stop": [stop]})).lines
    assert "".join(line["response"] for line in lines) == cut["response"]
    assert lines[-1]["eval_count"] == cut["eval_count"]


def test_a_stop_sequence_is_looked_for_within_a_bound() -> None:
    made = speech(Asked(seed=1, text="x", limit=10 * STOP_SEARCH_TOKENS, stops=("never said",)))
    assert (made.length, made.cut) == (10 * STOP_SEARCH_TOKENS, True)


async def test_probabilities_come_with_each_token(worker: Worker) -> None:
    body = {"model": "a:1", "prompt": "x", "logprobs": True, "top_logprobs": 2, "options": {"num_predict": 3}}
    *tokens, last = (await worker.post("/api/generate", body)).lines
    found = [one for line in tokens for one in line["logprobs"]]
    assert [one["token"] for one in found] == [line["response"] for line in tokens]
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in found)
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in found)
    assert "logprobs" not in last
    assert (await worker.post("/api/generate", body | {"stream": False})).json["logprobs"] == found
    bare = (await worker.post("/api/generate", body | {"stream": False, "top_logprobs": 0})).json["logprobs"]
    assert all("top_logprobs" not in one for one in bare)
    refused = await worker.post("/api/generate", body | {"top_logprobs": 21, "model": "nobody:1"})
    assert (refused.status, refused.error) == (400, "top_logprobs must be between 0 and 20")


async def test_raw_has_no_context_and_refuses_what_it_cannot_mix_with(worker: Worker) -> None:
    body = {"model": "a:1", "prompt": "x", "raw": True, "stream": False}
    assert "context" not in (await worker.post("/api/generate", body)).json
    for more in ({"system": "s"}, {"template": "t"}, {"context": [1]}):
        refused = await worker.post("/api/generate", body | more)
        assert (refused.status, refused.error) == (400, "raw mode does not support template, system, or context")


async def test_what_a_model_cannot_do_is_refused(start_worker: Any) -> None:
    worker = await start_worker(
        models=(SimModel("a:1"), SimModel("v:1", capabilities=("completion", "vision", "insert")))
    )
    image = "iVBORw0KGgo="
    ask = {"model": "a:1", "prompt": "x", "stream": False}
    refused = await worker.post("/api/generate", ask | {"images": [image]})
    assert (refused.status, refused.error) == (400, "this model is missing data required for image input")
    refused = await worker.post("/api/generate", ask | {"suffix": "y"})
    assert (refused.status, refused.error) == (400, "registry.ollama.ai/library/a:1 does not support insert")
    for more in ({"images": [image]}, {"suffix": "y"}):
        assert (await worker.post("/api/generate", ask | {"model": "v:1"} | more)).status == 200


async def test_debug_render_only_loads_and_gives_the_prompt(worker: Worker) -> None:
    body = {
        "model": "a:1",
        "messages": [{"role": "system", "content": "be"}, *user("hello")],
        "_debug_render_only": True,
    }
    told = (await worker.post("/api/chat", body)).json
    assert told["done"] is False
    prompt = told["_debug_info"]["rendered_template"]
    assert prompt == "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert await worker.loaded() == ["a:1"]
    same = {"model": "a:1", "prompt": "hello", "system": "be", "_debug_render_only": True}
    assert (await worker.post("/api/generate", same)).json["_debug_info"]["rendered_template"] == prompt
