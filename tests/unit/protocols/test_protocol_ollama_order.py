"""What Ollama says first of a native request, what it does not look at, and what it takes that is odd."""

import json

import pytest

from bellmare.protocols import ollama
from bellmare.protocols.errors import InvalidRequest

ROUTES = {
    "generate": ollama.parse_generate,
    "chat": ollama.parse_chat,
    "embed": ollama.parse_embed,
    "embeddings": ollama.parse_embeddings,
    "show": ollama.parse_show,
}


def body(**fields) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def refusal(parse, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    return caught.value.message


def sent(request, num_ctx=8192) -> dict:
    return json.loads(ollama.encode_for_worker(request, model="m:latest", num_ctx=num_ctx))


@pytest.mark.parametrize("data", [b"{}", b'{"model":""}', b'{"model":null}'])
def test_no_model_is_said_as_each_route_says_it(data):
    for route in ("generate", "embed"):
        assert refusal(ROUTES[route], data) == "model '' not found"
    for route in ("chat", "embeddings", "show"):
        assert refusal(ROUTES[route], data) == "model is required"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("generate", {"prompt": "x", "options": {"stop": "x"}}),
        ("generate", {"prompt": "x", "format": "xml"}),
        ("generate", {"prompt": "x", "raw": True, "system": "x"}),
        ("chat", {"messages": [{}], "options": {"seed": []}}),
        ("chat", {"messages": [{}], "format": 5}),
        ("embed", {"input": "x", "options": {"seed": []}}),
        ("embeddings", {"prompt": "x", "options": {"seed": []}}),
    ],
)
def test_what_ollama_finds_once_it_has_the_model_says_so(route, fields):
    with pytest.raises(ollama.FoundLater) as caught:
        ROUTES[route](body(**fields))
    assert caught.value.request.model == "m"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("generate", {"keep_alive": 0, "raw": True, "system": "x", "options": {"seed": []}, "format": "xml"}),
        ("chat", {"keep_alive": "0s", "options": {"seed": []}, "format": "xml"}),
    ],
)
def test_an_unload_is_one_whatever_else_it_says(route, fields):
    request = ROUTES[route](body(**fields))
    assert ollama.is_unload(request)
    assert sent(request, num_ctx=5)["options"] == {"num_ctx": 5}


def test_a_load_takes_any_format():
    for fields in ({"prompt": "", "format": "xml"}, {"format": [1]}):
        assert "format" not in sent(ollama.parse_generate(body(**fields)))


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, -(2**70), 1e30])
def test_a_number_out_of_gos_range_is_passed_on_as_a_float(seed):
    request = ollama.parse_generate(body(prompt="x", options={"seed": seed}))
    assert sent(request)["options"]["seed"] == float(seed)


def test_null_is_absent_or_empty_wherever_it_stands():
    request = ollama.parse_chat(
        body(
            messages=[None, {"role": None, "tool_calls": [None, {"function": None}]}],
            tools=[None, {"function": {"name": None}}],
        )
    )
    assert [message.role for message in request.messages] == [None, None]
    assert [call.function.name for call in request.messages[1].tool_calls] == ["", ""]
    assert [tool.function.name for tool in request.tools] == ["", ""]
