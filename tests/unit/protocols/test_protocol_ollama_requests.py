"""Native requests: what is refused, what a worker then sees. Sections are those of ollama.md."""

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import ollama
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import DEPTH_MAX
from bellmare.protocols.ollama_fields import OLD_RELOAD_OPTIONS
from bellmare.protocols.ollama_requests import EMBED_INPUTS_MAX

PARSERS = {
    "generate": ollama.parse_generate,
    "chat": ollama.parse_chat,
    "embed": ollama.parse_embed,
    "embeddings": ollama.parse_embeddings,
    "show": ollama.parse_show,
}
INFERENCE = sorted(PARSERS.keys() - {"show"})
PNG = base64.b64encode(b"\x89PNG\r\n").decode()


def body(**fields) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def refusal(parse, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    message = caught.value.message
    assert caught.value.status == (500 if message.startswith("option ") else 404 if "not found" in message else 400)
    return message


def sent(request, model="m:latest", num_ctx=8192) -> dict:
    return json.loads(ollama.encode_for_worker(request, model=model, num_ctx=num_ctx))


@pytest.mark.parametrize("route", sorted(PARSERS))
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "missing request body"),
        (b"{}", "model "),
        (b'{"model":""}', "model "),
        (b'{"model":null}', "model "),
        (b'{"model":7}', "Expected `str`, got `int` - at `$.model`"),
        (b'{"model":"a","MODEL":"b"}', 'field "MODEL" must be written "model"'),
        (b'{"model":"a","model":"b"}', "duplicate field"),
    ],
)
def test_every_route_refuses_a_bad_model(route, data, message):
    assert message in refusal(PARSERS[route], data)


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        # 1.6, the exact texts
        ("generate", {"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ("chat", {"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ("embed", {"input": 7}, "invalid input type"),
        ("embed", {"input": {"a": 1}}, "invalid input type"),
        ("embed", {"input": ["a", 1]}, "invalid input type"),
        ("generate", {"raw": True, "system": "s"}, "raw mode does not support template, system, or context"),
        ("generate", {"raw": True, "template": "s"}, "raw mode does not support template, system, or context"),
        ("generate", {"raw": True, "context": [1]}, "raw mode does not support template, system, or context"),
        # 1.4, options; Ollama answers 500
        ("generate", {"options": {"num_ctx": "8192"}}, 'option "num_ctx" must be of type integer'),
        ("chat", {"options": {"num_ctx": True}}, 'option "num_ctx" must be of type integer'),
        ("chat", {"options": {"num_ctx": 1e300}}, 'option "num_ctx" must be of type integer'),
        ("embed", {"options": {"temperature": "hot"}}, 'option "temperature" must be of type float32'),
        ("embed", {"options": {"top_p": False}}, 'option "top_p" must be of type float32'),
        ("embeddings", {"options": {"use_mmap": 1}}, 'option "use_mmap" must be of type boolean'),
        ("chat", {"options": {"stop": "x"}}, 'option "stop" must be of type array'),
        ("chat", {"options": {"stop": ["x", 1]}}, 'option "stop" must be of an array of strings'),
        # 2.2 and 12, keep_alive
        ("generate", {"keep_alive": "300"}, 'time: missing unit in duration "300"'),
        ("chat", {"keep_alive": "-1"}, 'time: missing unit in duration "-1"'),
        ("embed", {"keep_alive": True}, "Unsupported type: 'bool'"),
        ("embeddings", {"keep_alive": [1]}, "Unsupported type: '[]interface {}'"),
        ("generate", {"keep_alive": {}}, "Unsupported type: 'map[string]interface {}'"),
        # think and format
        ("chat", {"think": "very"}, 'invalid think value: "very" (must be "high", "medium", "low", "max", true, or'),
        ("chat", {"think": ""}, "invalid think value"),
        (
            "chat",
            {"messages": [{}], "format": "yaml"},
            'invalid format: "yaml"; expected "json" or a valid JSON Schema object',
        ),
        ("generate", {"prompt": "x", "format": 7}, "invalid format: 7"),
        ("generate", {"prompt": "x", "format": ["json"]}, "invalid format"),
        # types, with the path
        (
            "chat",
            {"messages": [{"role": "user"}, {"role": 1}]},
            "Expected `str | null`, got `int` - at `$.messages[1].role`",
        ),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "at `$.messages[0].content`"),
        ("chat", {"messages": "hi"}, "at `$.messages`"),
        ("chat", {"stream": "no"}, "at `$.stream`"),
        ("chat", {"think": 1}, "think must be a boolean or string"),
        (
            "chat",
            {"messages": [{"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "at `$.messages[0].tool_calls[0].function.arguments`",
        ),
        ("generate", {"prompt": ["a"]}, "at `$.prompt`"),
        ("generate", {"options": []}, "at `$.options`"),
        ("generate", {"images": [1]}, "at `$.images[0]`"),
        ("generate", {"images": ["not base64!"]}, "illegal base64 data at input byte 3"),
        ("generate", {"images": ["data:image/png;base64,AAAA"]}, "illegal base64 data at input byte 4"),
        ("generate", {"images": ["QUJ"]}, "illegal base64 data at input byte 0"),
        ("chat", {"messages": [{"role": "user", "images": ["\u00e4" * 4]}]}, "illegal base64 data at input byte 0"),
        ("embed", {"dimensions": "big"}, "at `$.dimensions`"),
        ("show", {"verbose": "yes"}, "at `$.verbose`"),
    ],
)
def test_refusals(route, fields, message):
    assert message in refusal(PARSERS[route], body(**fields))


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" * 400, b"1" * 50_000, b"NaN", b"Infinity"])
def test_numbers_out_of_range_are_refused(number):
    refusal(ollama.parse_chat, b'{"model":"m","options":{"seed":' + number + b"}}")


DEEP = json.loads("[" * 70 + "]" * 70)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": {"a": DEEP}},
        {"options": {"x": DEEP}},
        {"tools": [{"function": {"name": "f", "parameters": {"a": DEEP}}}]},
        {"tools": [{"items": DEEP, "function": {"name": "f"}}]},
        {"messages": [{"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"a": DEEP}}}]}]},
    ],
)
def test_what_is_passed_on_is_not_deep(fields):
    assert "nested deeper" in refusal(ollama.parse_chat, body(**fields))


def test_a_deep_unknown_field_is_kept_or_refused_never_our_error():
    for depth in range(50, 1000, 50):
        try:
            request = ollama.parse_chat(b'{"model":"m","x":' + b"[" * depth + b"]" * depth + b"}")
        except InvalidRequest:
            continue
        assert depth <= DEPTH_MAX
        assert set(sent(request)) == {"model", "x", "options"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        # 2.2
        (None, None),
        (300, 300),
        (0.5, 0.5),
        (-1, math.inf),
        (-1.5, math.inf),
        (1e30, math.inf),
        ("-1m", math.inf),
        ("-1ns", math.inf),
        ("10m", 600),
        ("1h30m", 5400),
        ("5m0s", 300),
        ("90s", 90),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+1s", 1),
        ("1us", 1e-6),
        ("1\u00b5s", 1e-6),
        (0, 0),
        (0.0, 0),
        (-0.0, 0),
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("0h0m", 0),
    ],
)
def test_keep_alive(value, seconds):
    assert ollama.keep_alive_seconds(value) == seconds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("m", 'time: invalid duration "m"'),
        (".s", 'time: invalid duration ".s"'),
        ("forever", 'time: invalid duration "forever"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("1h 30m", 'time: unknown unit "h " in duration "1h 30m"'),
        ("1.2.3s", 'time: missing unit in duration "1.2.3s"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        ("1" * 1000 + "s", "time: invalid duration"),
    ],
)
def test_keep_alive_refusals_are_gos(value, message):
    with pytest.raises(InvalidRequest) as caught:
        ollama.keep_alive_seconds(value)
    assert message in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("value", ["0", "0s", 0, 0.0])
def test_empty_with_keep_alive_zero_is_an_unload(value):
    for route in ("generate", "chat", "embeddings", "embed"):
        request = PARSERS[route](body(keep_alive=value))
        assert ollama.is_load(request) and ollama.is_unload(request)
    assert not ollama.is_unload(ollama.parse_generate(body(keep_alive=value, prompt="x")))


@pytest.mark.parametrize(
    ("route", "fields", "load"),
    [
        ("generate", {}, True),
        ("generate", {"prompt": "", "keep_alive": -1}, True),
        ("generate", {"prompt": "x"}, False),
        ("generate", {"images": [PNG]}, True),
        ("generate", {"suffix": "x"}, True),
        ("chat", {}, True),
        ("chat", {"messages": []}, True),
        ("chat", {"messages": [{"role": "user"}]}, False),
        ("embed", {}, True),
        ("embed", {"input": ""}, True),
        ("embed", {"input": []}, True),
        ("embed", {"input": "x"}, False),
        ("embeddings", {"prompt": "x"}, False),
    ],
)
def test_empty_requests_only_load(route, fields, load):
    request = PARSERS[route](body(**fields))
    assert ollama.is_load(request) is load
    assert not ollama.is_unload(request)


def test_generation_streams_unless_told_not_to():
    for route in ("generate", "chat"):
        assert ollama.stream_wanted(PARSERS[route](body()))
        assert ollama.stream_wanted(PARSERS[route](body(stream=None)))
        assert not ollama.stream_wanted(PARSERS[route](body(stream=False)))
    assert not ollama.stream_wanted(ollama.parse_embed(body(stream=True)))


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (b'{"name":"n"}', "n"),
        (b'{"name":"n","model":""}', "n"),
        (b'{"name":"n","model":"m"}', "m"),
        (b'{"name":null,"model":"m","verbose":true}', "m"),
    ],
)
def test_show_takes_model_before_name(data, model):
    request = ollama.parse_show(data)
    assert (request.model, request.name) == (model, None)
    written = json.loads(ollama.encode_show(request, model="canonical:latest"))
    assert written["model"] == "canonical:latest"
    assert "name" not in written


def test_show_refuses_a_folded_name():
    assert 'must be written "name"' in refusal(ollama.parse_show, b'{"model":"m","Name":"x"}')


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "$defs": {"x": {"type": ["string", "null"]}}, "required": ["x"]},
    },
}
FULL_CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "h\u00e9 \u0000 \U0001f40e", "images": [PNG]},
        {
            "role": "assistant",
            "content": "c",
            "thinking": "t",
            "tool_calls": [
                {"function": {"name": "f", "arguments": {"b": 1, "a": [1.5, None]}, "index": 0}, "id": "c1"}
            ],
        },
        {"role": "tool", "content": "r", "tool_name": "f", "tool_call_id": "c1"},
    ],
    "tools": [TOOL],
    "stream": False,
    "format": {"type": "object", "properties": {"z": {}, "a": {"minimum": 0.5}}},
    "options": {"temperature": 0, "made_up": {"x": [1]}, "stop": ["a"], "seed": 1},
    "think": False,
    "truncate": False,
    "_debug_render_only": True,
    "logprobs": True,
    "top_logprobs": 0,
}
FULL_GENERATE = {
    "model": "m",
    "prompt": "p",
    "suffix": "s",
    "system": "y",
    "template": "t",
    "context": [1, 2],
    "raw": False,
    "images": [PNG],
    "stream": True,
    "format": "json",
    "think": "max",
    "truncate": True,
    "options": {},
}


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", FULL_CHAT),
        ("generate", FULL_GENERATE),
        ("embed", {"model": "m", "input": ["a", ""], "truncate": False, "dimensions": 64, "options": {}}),
        ("embeddings", {"model": "m", "prompt": "x", "options": {"num_keep": 1}}),
    ],
)
def test_everything_else_reaches_the_worker_as_it_was_said(route, fields):
    request = PARSERS[route](json.dumps(fields).encode())
    expected = {**fields, "model": "m:latest", "options": {**fields["options"], "num_ctx": 8192}}
    assert sent(request) == expected
    if "format" in fields:  # a grammar follows the order of the schema's keys
        assert json.dumps(sent(request)["format"]) == json.dumps(fields["format"])


@pytest.mark.parametrize("route", INFERENCE)
def test_absent_and_null_fields_stay_absent(route):
    names = ("stream", "prompt", "messages", "input", "think", "format", "keep_alive", "options")
    request = PARSERS[route](body(**dict.fromkeys(names)))
    assert sent(request) == {"model": "m:latest", "options": {"num_ctx": 8192}}


def test_an_empty_format_is_none():
    assert "format" not in sent(ollama.parse_chat(body(format="")))


def test_known_options_come_in_ollamas_types_and_nulls_go():
    request = ollama.parse_chat(body(options={"num_predict": 100.7, "top_k": 40.0, "temperature": 1, "seed": None}))
    assert sent(request)["options"] == {"num_predict": 100, "top_k": 40, "temperature": 1, "num_ctx": 8192}


def test_the_client_learns_which_reload_fields_it_sent():
    request = ollama.parse_chat(body(shift=False, options={"num_gpu": 1, "num_ctx": 1, "temperature": 1}))
    assert ollama.requested_reload_options(request) == ("num_ctx", "num_gpu", "shift")
    assert ollama.requested_reload_options(ollama.parse_embed(body(input="x"))) == ()
    assert ollama.requested_reload_options(ollama.parse_embed(body(options={"num_thread": 2}))) == ("num_thread",)


RELOAD_VALUES = {
    "num_ctx": st.integers(0, 1 << 40),
    "num_batch": st.integers(0, 4096),
    "num_gpu": st.integers(-1, 99),
    "main_gpu": st.integers(0, 9),
    "use_mmap": st.booleans(),
    "num_thread": st.integers(0, 128),
    "draft_num_predict": st.integers(0, 9),
    "NUM_CTX": st.integers(0, 9),
    "num_\u212athread": st.integers(0, 9),
    "keep_alive": st.integers(-1, 9),
    "shift": st.booleans(),
    "temperature": st.floats(0, 2),
    "made_up": st.text(),
    **dict.fromkeys(sorted(OLD_RELOAD_OPTIONS), st.booleans()),
}
OWNED = set(ollama.RELOAD_OPTIONS) | {"shift", "keep_alive"}


@given(
    st.sampled_from(INFERENCE),
    st.fixed_dictionaries({}, optional=RELOAD_VALUES),
    st.none() | st.integers(-5, 5) | st.sampled_from(["5m", "0s", "-1m"]),
    st.none() | st.booleans(),
)
def test_no_reload_field_ever_reaches_a_worker(route, options, keep_alive, shift):
    asked = {"prompt": "x"} if route in ("generate", "embeddings") else {"messages": [{}]} if route == "chat" else {}
    request = PARSERS[route](body(options=options, keep_alive=keep_alive, shift=shift, **asked))
    written = sent(request, num_ctx=4096)
    assert not {key.casefold() for key in written} & (OWNED - {"num_ctx"})
    assert not {key.casefold() for key in written["options"]} & (OWNED - {"num_ctx"} | OLD_RELOAD_OPTIONS)
    assert [key for key in written["options"] if key.casefold() == "num_ctx"] == ["num_ctx"]
    assert written["options"]["num_ctx"] == 4096
    assert ("temperature" in written["options"]) == ("temperature" in options)


def test_the_canonical_body_passes_our_own_gate_unchanged():
    once = ollama.encode_for_worker(ollama.parse_chat(json.dumps(FULL_CHAT).encode()), model="m:1", num_ctx=5)
    assert ollama.encode_for_worker(ollama.parse_chat(once), model="m:1", num_ctx=5) == once


@pytest.mark.parametrize("inputs", [EMBED_INPUTS_MAX, EMBED_INPUTS_MAX + 1])
def test_embedding_inputs_are_bounded(inputs):
    data = body(input=["x"] * inputs)
    if inputs <= EMBED_INPUTS_MAX:
        assert len(ollama.parse_embed(data).input) == inputs
    else:
        assert refusal(ollama.parse_embed, data) == f"more than {EMBED_INPUTS_MAX} inputs"


def test_load_and_unload_bodies():
    # 2.1: embedding models refuse generate and are loaded by an embed without input
    path, data = ollama.load_body("m:latest", 4096, embedding=False)
    assert path == "/api/generate"
    assert json.loads(data) == {"model": "m:latest", "keep_alive": -1, "options": {"num_ctx": 4096}, "stream": False}
    path, data = ollama.load_body("e:latest", 512, embedding=True)
    assert path == "/api/embed"
    assert json.loads(data) == {"model": "e:latest", "keep_alive": -1, "options": {"num_ctx": 512}}
    # 2.3: generate unloads embedding models too
    path, data = ollama.unload_body("m:latest")
    assert path == "/api/generate"
    assert json.loads(data) == {"model": "m:latest", "keep_alive": 0, "stream": False}


@pytest.mark.slow
def test_big_bodies_do_not_hold_the_loop():
    image = base64.b64encode(b"x" * 6_000_000).decode()
    request = ollama.parse_chat(body(messages=[{"role": "user", "content": "x", "images": [image]}]))
    assert request.messages[0].images[0] == image
    many = ollama.parse_chat(body(messages=[{"role": "user", "content": "x"}] * 30_000))
    assert len(many.messages) == 30_000
    escapes = ollama.parse_generate(body(prompt="\n" * 1_000_000))
    assert len(escapes.prompt) == 1_000_000
