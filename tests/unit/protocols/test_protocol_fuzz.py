"""Whatever arrives, a parser ends with a request that can be written again, or with an InvalidRequest."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import ollama, openai_completions, openai_embeddings, openai_responses
from bellmare.protocols.errors import BadAnswer, InvalidRequest, upstream_error_text
from bellmare.protocols.forced_tools import forced_call
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    Tool,
    ToolFunction,
)
from bellmare.protocols.ollama_requests import known_fields as names_of
from bellmare.protocols.openai import OpenAIChat, parse_chat_completion, to_native
from bellmare.protocols.openai_completions import CompletionStream, text_completion
from bellmare.protocols.openai_embeddings import embedding_list
from bellmare.protocols.openai_responses_stream import ResponseHead, ResponseStream, response_object
from bellmare.protocols.openai_stream import ChatStream, completion


def response_to_native(body: bytes) -> ChatRequest:
    wanted = openai_responses.parse_response(body)
    native, _ = openai_responses.to_native(wanted)
    json.dumps(msgspec.to_builtins(openai_responses.echo(wanted)))
    return native


ROUTES = {
    "generate": (ollama.parse_generate, GenerateRequest),
    "chat": (ollama.parse_chat, ChatRequest),
    "embed": (ollama.parse_embed, EmbedRequest),
    "embeddings": (ollama.parse_embeddings, EmbeddingsRequest),
    "openai": (lambda body: to_native(parse_chat_completion(body)), OpenAIChat),
    "completions": (
        lambda body: openai_completions.to_native(openai_completions.parse_completion(body)),
        openai_completions.OpenAICompletion,
    ),
    "openai embeddings": (
        lambda body: openai_embeddings.to_native(openai_embeddings.parse_embedding(body)),
        openai_embeddings.OpenAIEmbedding,
    ),
    "responses": (response_to_native, openai_responses.OpenAIResponse),
}
INNER = (
    "input_text",
    "function_call",
    "call_id",
    "output",
    "required",
    "allowed_tools",
    "tools",
    "mode",
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "url",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
)
OPTIONS = (
    "num_ctx",
    "num_predict",
    "stop",
    "temperature",
    "use_mmap",
    "schema",
    "json_schema",
    "effort",
    "tool_choice",
)

pytestmark = pytest.mark.slow

GIANT = "@giant"

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**64), 10**40, GIANT, "json", "", "user", "tool", "5m", "data:;base64,QUJD"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(INNER + OPTIONS), children, max_size=4)
    ),
    max_leaves=12,
)


def encodable(value: object) -> str:
    """JSON in which a marker stands for an integer too long for Python to print."""
    return json.dumps(value).replace(f'"{GIANT}"', "1" * 5000)


def run(route: str, body: bytes) -> None:
    try:
        request = ROUTES[route][0](body)
    except InvalidRequest as refusal:
        # Ollama's status for an option of a wrong type is 500 (ollama.md 1.4)
        assert 400 <= refusal.status < 500 or (refusal.status == 500 and refusal.message.startswith("option "))
        assert refusal.message and len(refusal.message) < 1000
        return
    written = json.loads(ollama.encode_for_worker(request, model="m:latest", num_ctx=4096))
    assert written["model"] == "m:latest"
    assert isinstance(ollama.is_load(request), bool) and isinstance(ollama.is_unload(request), bool)


@pytest.mark.parametrize("route", sorted(ROUTES))
@given(data=st.data())
def test_any_json_in_known_fields(route, data):
    names = st.sampled_from(sorted(names_of(ROUTES[route][1])))
    fields = data.draw(st.dictionaries(names, values, max_size=5))
    fields.setdefault("model", "m")
    members = ",".join(f"{json.dumps(name)}:{encodable(value)}" for name, value in fields.items())
    run(route, f"{{{members}}}".encode())


@pytest.mark.parametrize("route", sorted(ROUTES))
@given(body=st.binary(max_size=60), tail=st.binary(max_size=20))
def test_any_bytes(route, body, tail):
    run(route, body)
    run(route, b'{"model":"m",' + body + b"}" + tail)
    run(route, b'{"model":"m","messages":[{"role":"user","content":"' + body + b'"}],"prompt":"' + tail + b'"}')


HEAD = ResponseHead(public_id="c", created_s=0, model="m", echo={})
FORCED = forced_call([Tool(function=ToolFunction(name=name)) for name in "fg"])


def codecs() -> list:
    stamp = {"completion_id": "c", "created_s": 0, "model": "m", "include_usage": True}
    chats = [ChatStream(**stamp), ChatStream(**stamp, forced=FORCED), CompletionStream(**stamp)]
    return [*chats, ResponseStream(HEAD), ResponseStream(HEAD, forced=FORCED)]


def bodies() -> list:
    stamp = {"completion_id": "c", "created_s": 0, "model": "m"}
    return [
        lambda body: completion(body, **stamp),
        lambda body: completion(body, **stamp, forced=FORCED),
        lambda body: text_completion(body, **stamp),
        lambda body: embedding_list(body, model="m", as_base64=False),
        lambda body: embedding_list(body, model="m", as_base64=True),
        lambda body: response_object(body, HEAD),
        lambda body: response_object(body, HEAD, forced=FORCED),
    ]


MESSAGE = ("content", "thinking", "tool_calls", "role")
LINE = ("message", "response", "done", "done_reason", "logprobs", "eval_count", "embeddings", "prompt_eval_count")


@given(st.dictionaries(st.sampled_from(MESSAGE), values), st.dictionaries(st.sampled_from(LINE), values), st.booleans())
def test_any_answer_of_the_right_fields(message, fields, done):
    line = encodable({"message": message, "embeddings": [], **fields, "done": done}).encode()
    for codec in codecs():
        codec.line(line)
        assert not (codec.finished and codec.failed)
    for write in bodies():
        try:
            json.loads(write(line))
        except BadAnswer as error:
            assert str(error)


@given(st.binary(max_size=80), values)
def test_any_answer_of_a_worker(body, value):
    assert upstream_error_text(body)
    for line in (body, encodable(value).encode(), b'{"error":' + encodable(value).encode() + b"}"):
        ollama.decode_final(line)
        ollama.first_error(line)
        for codec in codecs():
            assert codec.line(line).endswith((b"", b"\n\n"))
            assert not (codec.finished and codec.failed)
            assert codec.cut("x").endswith(b"\n\n")
        for write in bodies():
            try:
                json.loads(write(line))
            except BadAnswer as error:
                assert str(error)


@given(st.binary(max_size=80), st.dictionaries(st.sampled_from(["done", "error", "eval_count", "done_reason"]), values))
def test_a_closing_line_says_the_same_read_once_or_twice(body, fields):
    for line in (body, encodable(fields).encode(), encodable({"done": True, **fields}).encode()):
        assert ollama.decode_closing(line) == (ollama.first_error(line), ollama.decode_final(line))


@given(st.text(max_size=8), st.sampled_from([{}, {"logprobs": None}, {"error": None}, {"done": False}]))
def test_a_text_is_written_alike_on_the_short_and_the_long_way(text, more):
    line = json.dumps({"message": {"role": "assistant", "content": text}, **more}).encode()
    chat = ChatStream(completion_id="c", created_s=0, model="m", include_usage=True)
    chat.line(b'{"message":{"content":"first"}}')
    frames = chat.line(line)
    (choice,) = json.loads(frames.removeprefix(b"data: "))["choices"]
    assert choice == {"index": 0, "delta": {"content": text}, "finish_reason": None}
    assert frames == chat._chunk({"content": text}, None)
