"""Error shapes and texts of ollama.md 1.6."""

import json

import pytest

from bellmare.protocols.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    ERROR_TEXT_CHARS_MAX,
    Dialect,
    InvalidRequest,
    render_error,
    stream_error,
    upstream_error_text,
)

NESTED = (  # ollama.md 1.6, "passthrough": llama-server's own JSON as a string
    rb'{"error":"{\"error\":{\"code\":400,\"message\":\"request (4551 tokens) exceeds the available context size '
    rb"(2048 tokens), try increasing it\",\"type\":\"exceed_context_size_error\",\"n_prompt_tokens\":4551,"
    rb'\"n_ctx\":2048}}"}'
)


def test_invalid_request_is_a_400_unless_said():
    assert InvalidRequest("x").status == 400
    assert InvalidRequest("x", status=404).status == 404
    assert str(InvalidRequest("x")) == InvalidRequest("x").message == "x"


def test_ollama_errors_have_one_field():
    assert render_error(Dialect.ollama, 404, "model 'm' not found") == b'{"error":"model \'m\' not found"}'


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (504, "api_error"),
    ],
)
def test_openai_errors_carry_the_type_of_their_status(status, kind):
    body = json.loads(render_error(Dialect.openai, status, "text"))
    assert body == {"error": {"message": "text", "type": kind, "param": None, "code": None}}


def test_a_code_for_programs_stands_where_the_dialect_has_a_place_for_it():
    body = json.loads(render_error(Dialect.openai, 400, "text", code=CONTEXT_LENGTH_EXCEEDED))
    assert body["error"]["code"] == "context_length_exceeded"
    body = json.loads(render_error(Dialect.ollama, 400, "text", code=CONTEXT_LENGTH_EXCEEDED))
    assert body == {"error": "text", "code": "context_length_exceeded"}, "Ollama's clients read only the error"
    assert json.loads(render_error(Dialect.ollama, 400, "text")) == {"error": "text"}
    assert b"exceeded" not in render_error(Dialect.anthropic, 400, "text", code=CONTEXT_LENGTH_EXCEEDED)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (503, "overloaded_error")]
)
def test_anthropic_errors_carry_the_type_of_their_status(status, kind):
    body = json.loads(render_error(Dialect.anthropic, status, "text"))
    assert body == {"type": "error", "error": {"type": kind, "message": "text"}}


def test_a_stream_error_is_one_well_formed_frame_whatever_the_text():
    text = 'a "quoted"\nline\r\n\r\ndata: [DONE]'
    ndjson = stream_error(Dialect.ollama, text)
    assert ndjson.count(b"\n") == 1
    assert json.loads(ndjson) == {"error": text}
    sse = stream_error(Dialect.openai, text)
    assert sse.startswith(b"data: {") and sse.endswith(b"}\n\n") and sse.count(b"\n") == 2
    assert json.loads(sse[6:])["error"]["message"] == text
    assert stream_error(Dialect.anthropic, text).startswith(b"event: error\ndata: {")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"plain"}', "plain"),
        (NESTED, "request (4551 tokens) exceeds the available context size (2048 tokens), try increasing it"),
        (b'{"error":{"message":"from v1","type":"api_error","param":null,"code":null}}', "from v1"),
        (b"404 page not found", "404 page not found"),
        (b"", "no error text"),
        (b"{}", "{}"),
        (b'{"error":null}', '{"error":null}'),
        (b'{"error":7}', '{"error":7}'),
        (b'{"error":"{not json"}', "{not json"),
        (b'{"error":"a\\u0000b\\u001b[31m\\nc"}', "a b [31m c"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error":' + b"[" * 5000, '{"error":' + "[" * (ERROR_TEXT_CHARS_MAX - 9)),
    ],
)
def test_upstream_error_text_finds_the_words(body, text):
    assert upstream_error_text(body) == text


def test_upstream_error_text_is_bounded():
    assert len(upstream_error_text(b"x" * 10_000_000)) == ERROR_TEXT_CHARS_MAX
    assert len(upstream_error_text(json.dumps({"error": "\0x" * 10_000}).encode())) <= ERROR_TEXT_CHARS_MAX
