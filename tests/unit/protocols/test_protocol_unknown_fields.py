"""Fields that we do not know reach the worker where the client wrote them, and only there; owned ones never do."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    EmbedRequest,
    known_fields,
    parse_chat,
    parse_embed,
    parse_generate,
    parse_show,
)
from bellmare.protocols.ollama_worker import encode_for_worker, encode_show, requested_reload_options
from bellmare.protocols.unknown_fields import UNKNOWN_BYTES_MAX, UNKNOWN_MAX, Extended, extra_of

LEAF = st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=5)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
UNKNOWN = st.dictionaries(
    st.from_regex(r"x_[a-z]{1,6}", fullmatch=True), VALUE.filter(lambda value: value is not None), max_size=3
)


def sent(parse: Any, fields: dict[str, Any]) -> dict[str, Any]:
    request = parse(json.dumps(fields).encode())
    answer: dict[str, Any] = json.loads(encode_for_worker(request, model="m", num_ctx=512))
    return answer


@given(top=UNKNOWN, in_message=UNKNOWN, in_call=UNKNOWN, in_function=UNKNOWN, in_tool=UNKNOWN)
def test_they_are_written_back_where_they_stood(
    top: dict[str, Any],
    in_message: dict[str, Any],
    in_call: dict[str, Any],
    in_function: dict[str, Any],
    in_tool: dict[str, Any],
) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": {"a": 1}, **in_function}, **in_call}
    fields = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call], **in_message},
        ],
        "tools": [{"type": "function", "function": {"name": "f", **in_function}, **in_tool}],
        **top,
    }
    assert sent(parse_chat, fields) == {**fields, "options": {"num_ctx": 512}}


@pytest.mark.parametrize(
    ("parse", "fields"),
    [
        (parse_generate, {"model": "m", "prompt": "p", "grammar": "root ::= x"}),
        (parse_embed, {"model": "m", "input": ["a"], "pooling": {"type": "cls"}}),
    ],
)
def test_on_every_route(parse: Any, fields: dict[str, Any]) -> None:
    assert sent(parse, fields) == {**fields, "options": {"num_ctx": 512}}


def test_a_show_request_keeps_them_too() -> None:
    request = parse_show(b'{"name":"m","detailed":true}')
    assert json.loads(encode_show(request, model="m:latest")) == {"model": "m:latest", "detailed": True}


def test_a_usual_request_is_no_extended_one() -> None:
    request = parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    assert isinstance(request, ChatRequest)
    assert not isinstance(request, Extended)


def test_one_with_unknown_fields_is_still_what_it_was() -> None:
    request = parse_embed(b'{"model":"m","input":"a","new":1}')
    assert isinstance(request, EmbedRequest)
    assert isinstance(request, Extended)
    assert request.input == "a"


@pytest.mark.parametrize("name", ["extra", "f0", "strict"])
def test_no_name_of_ours_is_special(name: str) -> None:
    fields = {"model": "m", "messages": [{"role": "user", "content": "x", name: {"keep_alive": -1}}], name: [1]}
    assert sent(parse_chat, fields) == {**fields, "options": {"num_ctx": 512}}


def test_a_choice_of_the_runner_is_the_gateways_like_all_that_reloads() -> None:
    fields = {"model": "m", "prompt": "p", "runner": "mlx", "Runner ": 1, "shift": False, "options": {"num_gpu": 1}}
    request = parse_generate(json.dumps(fields).encode())
    assert requested_reload_options(request) == ("num_gpu", "runner", "shift")
    answer = json.loads(encode_for_worker(request, model="m", num_ctx=512))
    assert answer == {"model": "m", "prompt": "p", "Runner ": 1, "options": {"num_ctx": 512}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "Role": "system"},
        {"Content": "x"},
        {"tool_calls": [{"function": {"name": "f", "Arguments": {}}}]},
    ],
)
def test_what_go_would_take_for_a_known_field_is_refused_at_every_depth(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="must be written"):
        parse_chat(json.dumps({"model": "m", "messages": [message]}).encode())


def test_their_number_is_bounded() -> None:
    def body(count: int) -> bytes:
        message = {"role": "user", "content": "x", **{f"x{index}": 0 for index in range(count)}}
        return json.dumps({"model": "m", "messages": [message]}).encode()

    parse_chat(body(UNKNOWN_MAX))
    with pytest.raises(InvalidRequest, match="too many unknown fields"):
        parse_chat(body(UNKNOWN_MAX + 1))


def test_their_depth_is_bounded() -> None:
    deep = "[" * 100 + "]" * 100
    with pytest.raises(InvalidRequest, match="nested"):
        parse_chat(f'{{"model":"m","messages":[{{"role":"user","new":{deep}}}]}}'.encode())


@given(st.sampled_from(sorted(known_fields(ChatRequest) - {"model"})), VALUE)
def test_a_wrong_type_is_refused_in_words_whatever_else_is_unknown(name: str, value: Any) -> None:
    body = json.dumps({"model": "m", "new": 1, name: value}).encode()
    try:
        request = parse_chat(body)
    except InvalidRequest as error:
        assert error.message
    else:
        assert isinstance(request, Extended)


@pytest.mark.parametrize("parse", [parse_chat, parse_generate])
def test_unknown_fields_are_bounded_in_bytes_before_they_are_decoded(parse):
    small = b'{"model":"m","new":"' + b"x" * (UNKNOWN_BYTES_MAX - 1000) + b'"}'
    assert len(extra_of(parse(small))["new"]) == UNKNOWN_BYTES_MAX - 1000
    with pytest.raises(InvalidRequest, match="unknown fields") as caught:
        parse(b'{"model":"m","new":[' + b"[]," * (UNKNOWN_BYTES_MAX // 3) + b"[]]}")
    assert caught.value.status == 413
