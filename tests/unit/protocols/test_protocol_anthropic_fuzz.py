"""Whatever arrives at Anthropic's routes, a parser ends with a native request, or with an InvalidRequest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.gateway.errands import anthropic
from bellmare.protocols.anthropic import MessagesRequest, parse_count_tokens
from bellmare.protocols.anthropic_counting import guessed_input_tokens
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama_requests import ChatRequest, known_fields
from bellmare.protocols.tokens import estimate_chat_tokens

pytestmark = pytest.mark.slow

GIANT = "@giant"
KINDS = (
    "text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use",
    "web_search_tool_result", "document", "base64", "json_schema", "any", "tool", "auto", "none", "enabled",
)  # fmt: skip
INNER = (
    "type", "text", "thinking", "source", "data", "id", "name", "input", "tool_use_id", "content", "is_error",
    "role", "input_schema", "format", "schema", "effort", "budget_tokens", "title", "url", "error_code", "$ref",
)  # fmt: skip

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**64), GIANT, "", "user", "assistant", "QUJD", *KINDS])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(INNER), children, max_size=5),
    max_leaves=14,
)
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)}, optional={name: values for name in INNER if name != "type"}
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=4) | st.lists(blocks, max_size=3)}
    ),
    max_size=3,
)


def encodable(value: object) -> str:
    """JSON in which a marker stands for an integer too long for Python to print."""
    return json.dumps(value).replace(f'"{GIANT}"', "1" * 5000)


def run(body: bytes) -> None:
    for parse in (anthropic.messages, anthropic.count_tokens):
        try:
            errand = parse(body)
        except InvalidRequest as refusal:
            assert 400 <= refusal.status < 500
            assert refusal.message and len(refusal.message) < 1000
            continue
        written = json.loads(b"".join([errand.body(4096)]))
        assert written["options"]["num_ctx"] == 4096
        assert isinstance(errand.native, ChatRequest)
        assert estimate_chat_tokens(errand.native) >= 0
        assert guessed_input_tokens(parse_count_tokens(body)) > 0


@given(st.dictionaries(st.sampled_from(sorted(known_fields(MessagesRequest))), values, max_size=5), messages)
def test_any_json_in_known_fields(fields, said):
    whole = {"model": "m", "max_tokens": 5, "messages": said, **fields}
    run(f"{{{','.join(f'{json.dumps(name)}:{encodable(value)}' for name, value in whole.items())}}}".encode())


@given(messages, st.lists(st.fixed_dictionaries({"name": st.text(max_size=3), "input_schema": values}), max_size=2))
def test_any_conversation(said, tools):
    for choice in ({"type": "any"}, {"type": "auto"}):
        run(
            encodable({"model": "m", "max_tokens": 5, "messages": said, "tools": tools, "tool_choice": choice}).encode()
        )


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_any_bytes(inner, tail):
    run(inner)
    run(b'{"model":"m","max_tokens":1,' + inner + b"}" + tail)
    run(
        b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"' + inner + b'"}],"system":"' + tail + b'"}'
    )
