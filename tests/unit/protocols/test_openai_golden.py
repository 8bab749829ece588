"""Golden streams of OpenAI's routes: native NDJSON in, exactly these bytes out, however the input is cut.

``golden/openai/NAME.ndjson`` is what a worker said and ``NAME.sse`` what the client gets. Chunks of chat completions
are as captured from Ollama 0.33 and later (ids and times aside); what goes beyond it is said in docs/apis.md.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chunked import chunked
from hypothesis import given
from hypothesis import strategies as st

from bellmare.gateway.errands import openai
from bellmare.gateway.errands.errand import Stamp
from bellmare.gateway.translate import DialectStream

FOLDER = Path(__file__).with_name("golden") / "openai"
STAMP = Stamp(public_id="7f-1", created_s=1_790_000_000, model="llama3.2", asked="llama3.2")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Looks up the weather.", "parameters": CITY}
CLOCK = {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": one} for one in (WEATHER, CLOCK)]
RESPONSE_TOOLS = [{"type": "function", **one} for one in (WEATHER, CLOCK)]
USAGE = {"stream_options": {"include_usage": True}}

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"prompt": "hi"}
RESPONSE: dict[str, Any] = {"input": "hi"}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat_text": CHAT,
    "chat_usage": {**CHAT, **USAGE},
    "chat_length": {**CHAT, **USAGE},
    "chat_empty": CHAT,
    "chat_thinking": CHAT,
    "chat_tools": {**CHAT, "tools": TOOLS},
    "chat_logprobs": {**CHAT, "logprobs": True, "top_logprobs": 1},
    "chat_forced": {**CHAT, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "chat_forced_any": {**CHAT, **USAGE, "tools": TOOLS, "tool_choice": "required"},
    "chat_forced_cut": {**CHAT, "tools": TOOLS, "tool_choice": "required"},
    "chat_forced_text": {**CHAT, "tools": TOOLS, "tool_choice": "required"},
    "completion_text": COMPLETION,
    "completion_usage": {**COMPLETION, **USAGE},
    "completion_logprobs": {**COMPLETION, "logprobs": 1},
    "response_text": {**RESPONSE, "instructions": "Be brief.", "reasoning": {"effort": "low"}},
    "response_length": {**RESPONSE, "max_output_tokens": 2},
    "response_empty": RESPONSE,
    "response_thinking": RESPONSE,
    "response_tools": {**RESPONSE, "tools": RESPONSE_TOOLS},
    "response_logprobs": {**RESPONSE, "top_logprobs": 1},
    "response_forced": {**RESPONSE, "tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "weather"}},
    "response_forced_any": {**RESPONSE, "tools": RESPONSE_TOOLS, "tool_choice": "required"},
}
PARSERS: dict[str, Callable[[bytes], Any]] = {
    "chat": openai.chat_completions,
    "completion": openai.completions,
    "response": openai.responses,
}


def translator(name: str) -> DialectStream:
    parse = PARSERS[name.split("_", maxsplit=1)[0]]
    body = json.dumps({"model": "llama3.2", "stream": True, **REQUESTS[name]}).encode()
    made = parse(body).translator(STAMP)
    assert isinstance(made, DialectStream)
    return made


def native(name: str) -> bytes:
    return (FOLDER / f"{name}.ndjson").read_bytes()


def expected(name: str) -> bytes:
    return (FOLDER / f"{name}.sse").read_bytes()


def test_each_golden_stream_is_used():
    assert {path.stem for path in FOLDER.iterdir()} == REQUESTS.keys()


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_golden(name):
    stream = translator(name)
    assert stream.feed(native(name)).decode().split("\n\n") == expected(name).decode().split("\n\n")
    assert stream.final is not None and stream.error is None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REQUESTS))
@given(cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_golden_however_it_is_cut(name, cuts):
    data, stream = native(name), translator(name)
    assert b"".join(map(stream.feed, chunked(data, cuts))) == expected(name)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_a_stream_that_breaks_after_any_line_ends_with_one_event_that_says_so(name):
    lines = native(name).splitlines(keepends=True)
    for count in range(1, len(lines)):
        stream = translator(name)
        stream.feed(b"".join(lines[:count]))
        assert stream.final is None
        last = stream.cut("it broke")
        assert last.endswith(b"\n\n") and last.count(b"\n\n") == 1
        kind = b'"type":"response.failed"' if name.startswith("response") else b'"type":"api_error"'
        assert kind in last and b"it broke" in last
