"""OpenAI's older text completions over /api/generate: the request, the stream and the whole answer."""

from typing import Any

import msgspec

from bellmare.protocols.errors import BadAnswer, Dialect, InvalidRequest, stream_error, upstream_error_text
from bellmare.protocols.jsonbody import Gate
from bellmare.protocols.native_answers import UNREADABLE, StreamState, TextAnswer, text_decoder, whole
from bellmare.protocols.ollama_fields import check_top_logprobs
from bellmare.protocols.ollama_requests import GenerateRequest, known_fields
from bellmare.protocols.openai_answers import DONE, SYSTEM_FINGERPRINT, finish_reason, usage
from bellmare.protocols.openai_fields import (
    NO_WEIGHING,
    Sampled,
    check_limit,
    check_one,
    refuse,
    refuse_asked,
    stops_of,
)

_NO_USAGE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
"""In every chunk of a stream that ends with a usage, as Ollama writes it."""

_encode = msgspec.json.Encoder().encode


class OpenAICompletion(Sampled, frozen=True, kw_only=True):
    """Body of POST /v1/completions; fields that are not here are ignored, as Ollama does."""

    model: str = ""
    prompt: str | list[str] | None = None
    """A string, or a list of one."""
    suffix: str | None = None
    logprobs: int | None = None
    """How many alternatives for each token; zero asks for none at all, as in Ollama."""
    best_of: int | None = None
    echo: bool | None = None


_UNSUPPORTED = {"echo": "Ollama does not repeat the prompt", "logit_bias": NO_WEIGHING}
_gate = Gate(OpenAICompletion, known_fields(OpenAICompletion), ignored=frozenset({"user"}))


def parse_completion(body: bytes) -> OpenAICompletion:
    """POST /v1/completions. Raises :class:`InvalidRequest`."""
    wanted = _gate(body)
    if not wanted.model.strip():
        raise InvalidRequest("model '' not found", status=404)
    check_one("n", wanted.n)
    check_one("best_of", wanted.best_of)
    refuse_asked(wanted, _UNSUPPORTED)
    check_limit("max_tokens", wanted.max_tokens)
    check_top_logprobs(wanted.logprobs)
    return wanted


def _prompt(prompt: str | list[str] | None) -> str:
    if isinstance(prompt, list):
        if len(prompt) != 1:
            raise refuse("a list as prompt", "it must be one string; send one request for each")
        return prompt[0]
    return prompt or ""


def to_native(wanted: OpenAICompletion) -> GenerateRequest:
    """The same request for /api/generate; ``stream`` is always said. Raises :class:`InvalidRequest`."""
    options = {
        "temperature": 1.0 if wanted.temperature is None else wanted.temperature,
        "top_p": wanted.top_p or 1.0,
        "num_predict": wanted.max_tokens,
        "seed": wanted.seed,
        "frequency_penalty": wanted.frequency_penalty or 0.0,
        "presence_penalty": wanted.presence_penalty or 0.0,
        "stop": stops_of(wanted.stop),
    }
    return GenerateRequest(
        model=wanted.model,
        prompt=_prompt(wanted.prompt),
        suffix=wanted.suffix or None,
        stream=bool(wanted.stream),
        options={name: value for name, value in options.items() if value is not None},
        logprobs=True if wanted.logprobs else None,
        top_logprobs=wanted.logprobs or None,
    )


class _Alternative(msgspec.Struct, frozen=True):
    token: str = ""
    logprob: float = 0.0


class _Logprob(msgspec.Struct, frozen=True):
    token: str = ""
    logprob: float = 0.0
    top_logprobs: list[_Alternative] = []


_logprob_decoder = msgspec.json.Decoder(_Logprob)


def _logprobs(answer: TextAnswer, *, offset: int) -> tuple[dict[str, Any], int]:
    """The answer's tokens in the older shape, and the offset (characters of the answer) of the next one.

    Ollama's own /v1 computes them and then drops them. Raises DecodeError if they are not Ollama's.
    """
    shown: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for raw in answer.logprobs or ():
        one = _logprob_decoder.decode(raw)
        shown["tokens"].append(one.token)
        shown["token_logprobs"].append(one.logprob)
        shown["top_logprobs"].append({other.token: other.logprob for other in one.top_logprobs})
        shown["text_offset"].append(offset)
        offset += len(one.token)
    return shown, offset


class CompletionStream(StreamState):
    """As ``openai_stream.ChatStream``, for text: the last line's chunk carries the finish reason."""

    def __init__(self, *, completion_id: str, created_s: int, model: str, include_usage: bool) -> None:
        super().__init__()
        self._include_usage = include_usage
        self._offset = 0
        head = {"id": completion_id, "object": "text_completion", "created": created_s}
        tail = {"model": model, "system_fingerprint": SYSTEM_FINGERPRINT}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b"]," + _encode(tail)[1:-1]
        self._end = self._tail + (_NO_USAGE if include_usage else b"") + b"}\n\n"
        self._text_head = self._head + b'{"text":'
        self._text_end = b',"index":0,"finish_reason":null}' + self._end

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""
        if self.finished or self.failed or not native_line.strip():
            return b""
        try:
            answer = text_decoder.decode(native_line)
            if not (answer.done or answer.error or answer.logprobs):
                return b"".join((self._text_head, _encode(answer.response), self._text_end))
            if answer.failed:
                return self._fail(upstream_error_text(native_line))
            return self._chunk(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._fail(UNREADABLE)

    def cut(self, message: str) -> bytes:
        """One event; see the base."""
        return stream_error(Dialect.openai, message)

    def _chunk(self, answer: TextAnswer) -> bytes:
        choice, self._offset = _choice(answer, offset=self._offset)
        chunk = b"".join((self._head, _encode(choice), self._end))
        if not answer.done:
            return chunk
        self.finished = True
        if self._include_usage:
            chunk += b"".join((self._head, self._tail, b',"usage":', _encode(usage(answer)), b"}\n\n"))
        return chunk + DONE


def _choice(answer: TextAnswer, *, offset: int) -> tuple[dict[str, Any], int]:
    reason = finish_reason(answer.done_reason, tool_calls=False) if answer.done else None
    choice: dict[str, Any] = {"text": answer.response, "index": 0, "finish_reason": reason}
    if answer.logprobs:
        choice["logprobs"], offset = _logprobs(answer, offset=offset)
    return choice, offset


def text_completion(native_body: bytes, *, completion_id: str, created_s: int, model: str) -> bytes:
    """The unstreamed answer. Raises :class:`BadAnswer` if ``native_body`` is an error, unfinished or unreadable."""
    answer = whole(native_body, text_decoder, "/api/generate")
    try:
        choice, _ = _choice(answer, offset=0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("/api/generate: the logprobs could not be read") from None
    body = {
        "id": completion_id,
        "object": "text_completion",
        "created": created_s,
        "model": model,
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "choices": [choice],
        "usage": usage(answer),
    }
    return _encode(body)
