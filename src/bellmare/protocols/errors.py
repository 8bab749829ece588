"""What a client or a worker did wrong, in words, and how each dialect writes it down. Decides no status of its own."""

import re
from enum import StrEnum
from typing import Any

import msgspec

ERROR_TEXT_CHARS_MAX = 500
"""A worker's error text may carry old log lines of the same runner (ollama.md 12)."""
_UNWRAP_MAX = 4
"""Levels of JSON-in-a-string that are taken off an error text; Ollama makes one (ollama.md 1.6)."""
_BODY_BYTES_MAX = 64 * 1024
"""Of an error body only so much is looked at."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class InvalidRequest(Exception):  # noqa: N818 - named for whose error it is
    """The client's error: what it sent cannot be served. ``message`` is meant for the client."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ContextExceeded(InvalidRequest):
    """The prompt does not fit into the model's context, of which ``most`` tokens are for it."""

    def __init__(self, tokens: int, num_ctx: int, *, most: int) -> None:
        self.tokens = tokens
        self.num_ctx = num_ctx
        text = f"request ({tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
        if most < num_ctx - 1:
            text += f"; {most} tokens are for the prompt"
        super().__init__(text)

    def text(self, dialect: "Dialect") -> str:
        """In the words in which clients of each dialect look for it; Ollama's are llama-server's."""
        if dialect is Dialect.anthropic:
            return f"prompt is too long: {self.tokens} tokens > {self.num_ctx} maximum"
        if dialect is Dialect.openai:
            return (
                f"This model's maximum context length is {self.num_ctx} tokens. However, your messages resulted in "
                f"{self.tokens} tokens. Please reduce the length of the messages."
            )
        return self.message


CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""OpenAI's code for it."""


class BadAnswer(Exception):  # noqa: N818 - named for whose error it is
    """A worker's error: its answer is not what Ollama's routes return. For operators, not for tenants."""


class Dialect(StrEnum):
    """The language in which a client speaks, hence in which it is answered."""

    ollama = "ollama"
    openai = "openai"
    anthropic = "anthropic"


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""400 and 404 as Ollama writes them (ollama.md 1.6); the others, which a local Ollama never sends, as OpenAI does."""

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""As Ollama writes them, and 413 and 504, which a local Ollama never sends, as Anthropic does."""


def _error_object(
    dialect: Dialect, status: int, message: str, *, request_id: str = "", code: str | None = None
) -> dict[str, Any]:
    other = "invalid_request_error" if 400 <= status < 500 else "api_error"
    if dialect is Dialect.openai:
        kind = _OPENAI_TYPES.get(status, other)
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if dialect is Dialect.anthropic:
        kind = _ANTHROPIC_TYPES.get(status, other)
        error = {"type": "error", "error": {"type": kind, "message": message}}
        return {**error, "request_id": request_id} if request_id else error
    return {"error": message} if code is None else {"error": message, "code": code}


def render_error(
    dialect: Dialect, status: int, message: str, *, request_id: str = "", code: str | None = None
) -> bytes:
    """The JSON body of an answer with ``status``, which is 400 to 599 (ollama.md 1.6).

    ``request_id`` is shown in Anthropic's dialect only, where it is the same as in the header ``request-id``.
    ``code`` is for programs; Anthropic's dialect has no place for it.
    """
    return msgspec.json.encode(_error_object(dialect, status, message, request_id=request_id, code=code))


def stream_error(dialect: Dialect, message: str) -> bytes:
    """The one frame that ends a stream which failed after its first byte; nothing may follow it.

    NDJSON clients know a failure only by such a line: Python's and Go's take a silent cut for success (ollama.md 7).
    """
    body = msgspec.json.encode(_error_object(dialect, 500, message))
    if dialect is Dialect.openai:
        return b"data: " + body + b"\n\n"
    if dialect is Dialect.anthropic:
        return b"event: error\ndata: " + body + b"\n\n"
    return body + b"\n"


def _inner_text(value: object) -> str:
    """The text under ``error`` or ``message`` of a decoded error body; empty if there is none."""
    for _ in range(_UNWRAP_MAX):
        if not isinstance(value, dict):
            break
        value = value.get("error") or value.get("message") or ""
    return value if isinstance(value, str) else ""


def upstream_error_text(body: bytes) -> str:
    """What a worker's error body says, for people: one line, at most ``ERROR_TEXT_CHARS_MAX`` characters, never empty.

    llama-server's own JSON arrives as a string inside Ollama's (ollama.md 1.6) and is unwrapped. Not for tenants
    unfiltered: it may quote other requests (ollama.md 12).
    """
    text = body[:_BODY_BYTES_MAX].decode("utf-8", "replace")
    for _ in range(_UNWRAP_MAX):
        if not text.lstrip().startswith("{"):
            break
        try:
            inner = _inner_text(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError):
            break
        if not inner:
            break
        text = inner
    text = _CONTROL.sub(" ", text[: 4 * ERROR_TEXT_CHARS_MAX]).strip()
    return text[:ERROR_TEXT_CHARS_MAX] or "no error text"
