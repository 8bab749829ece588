"""Translates between two wires: Ollama's requests into llama.cpp's ``/completion``, its chunks into Ollama's lines.

Pure. ``/completion`` with a prompt from ``/apply-template`` and not the engine's own chat route: its counts are exact,
and nothing tries to parse the text, which a random model's cannot stand (ecosystem.md 4.4).
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message, Tool
from bellmare.workers.embedded.toolcalls import ToolReader

_encoder = msgspec.json.Encoder()

_DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
    "num_predict": -1,
    "num_keep": 4,
    "stop": [],
}
"""Ollama's own (ollama.md 1.4); the engine's differ."""
OUTPUT_CONTEXTS_MAX = 10
_RENAMED = {"num_predict": "n_predict", "num_keep": "n_keep"}
_ANY_OBJECT = {"type": "object"}


class TokenProbability(msgspec.Struct, frozen=True):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] = []
    top_logprobs: list[TokenProbability] = []


class Timings(msgspec.Struct, frozen=True):
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class Chunk(msgspec.Struct, frozen=True):
    """One event of the engine's stream. Counts are so far; ``tokens_evaluated``: the prompt with its cached tokens."""

    content: str = ""
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: Timings = Timings()
    completion_probabilities: list[TokenProbability] = []
    error: Any = None
    """The engine's error object; None while all is well."""


_chunk_decoder = msgspec.json.Decoder(Chunk)


def decode_event(line: bytes) -> Chunk | None:
    """The chunk of one line of server-sent events; None for blank lines and pings.

    An ``error:`` line becomes a chunk with ``error``. Raises ``msgspec.DecodeError`` for what is neither.
    """
    if line.startswith(b"data: "):
        return _chunk_decoder.decode(line[6:])
    if line.startswith(b"error: "):
        return Chunk(error=msgspec.json.decode(line[7:]))
    return None


def refuse_unsupported(request: GenerateRequest | ChatRequest, *, name: str, tools: bool) -> None:
    """Raise :class:`InvalidRequest` for what this worker cannot do, in Ollama's words where it has any."""
    full_name = f"registry.ollama.ai/library/{name}"
    if request.think:
        raise InvalidRequest(f'"{request.model}" does not support thinking')
    if isinstance(request, ChatRequest):
        if request.tools and not tools:
            raise InvalidRequest(f"{full_name} does not support tools")
        images = any(message.images for message in request.messages or ())
    else:
        if request.suffix:
            raise InvalidRequest(f"{full_name} does not support insert")
        if request.template:
            raise InvalidRequest("the embedded engine does not support template")
        images = bool(request.images)
    if images:
        raise InvalidRequest("this model is missing data required for image input")


def template_messages(request: GenerateRequest | ChatRequest) -> bytes:
    """The body for ``/apply-template``."""
    if isinstance(request, ChatRequest):
        messages = [_message(message) for message in request.messages or ()]
    else:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": request.prompt or ""})
    tools = request.tools if isinstance(request, ChatRequest) else None
    return _encoder.encode({"messages": messages} | ({"tools": [_tool(tool) for tool in tools]} if tools else {}))


def _tool(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.function}


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "type": "function",
                "id": call.id or "",
                "function": {
                    "name": call.function.name,
                    "arguments": _encoder.encode(call.function.arguments or {}).decode(),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        told["name"] = message.tool_name
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def completion_body(request: GenerateRequest | ChatRequest, prompt: str | list[int], *, num_ctx: int) -> bytes:
    """The body for ``/completion``. Always streamed: the engine never ends an unstreamed one early (ollama.md 2.4).

    An answer has at most ten contexts (ollama.md 5); without that bound a shifting one would never end.
    """
    options = request.options or {}
    body: dict[str, Any] = {_RENAMED.get(key, key): options.get(key, value) for key, value in _DEFAULTS.items()}
    most = OUTPUT_CONTEXTS_MAX * num_ctx
    body["n_predict"] = most if body["n_predict"] < 0 else min(body["n_predict"], most)
    body.update(prompt=prompt, stream=True, cache_prompt=True)
    if request.logprobs:
        body["n_probs"] = max(1, request.top_logprobs or 0)
    if request.format is not None:
        body["json_schema"] = _ANY_OBJECT if request.format == "json" else request.format
    return _encoder.encode(body)


class Clock(msgspec.Struct, frozen=True):
    """Durations of one request, in nanoseconds, as Ollama reports them."""

    total_ns: int
    load_ns: int


class AnswerWriter:
    """Writes the lines of one answer. ``created_at`` is RFC 3339."""

    def __init__(self, request: GenerateRequest | ChatRequest) -> None:
        self._model = request.model
        self._is_chat = isinstance(request, ChatRequest)
        self._top_logprobs = request.top_logprobs or 0
        self._tools = ToolReader() if isinstance(request, ChatRequest) and request.tools else None

    def piece(self, chunk: Chunk, *, created_at: str) -> bytes:
        """One line of a stream, with its newline; empty while it may be part of a call."""
        text, calls = self._read(chunk.content)
        logprobs = self._logprobs(chunk)
        if not text and not calls and not logprobs and self._tools is not None:
            return b""
        return _encoder.encode(self._object(text, created_at, calls) | logprobs) + b"\n"

    def final(self, chunk: Chunk, clock: Clock, *, created_at: str, text: str = "", chunks: list[Chunk]) -> bytes:
        """The last line, without newline. ``text`` and ``chunks``: everything, if nothing was streamed before."""
        text, calls = self._read(text)
        if self._tools is not None:
            rest, more = self._tools.finish()
            text, calls = text + rest, calls + self._numbered(more)
        answer = self._object(text, created_at, calls)
        answer["done"] = True
        answer["done_reason"] = "length" if chunk.stop_type == "limit" else "stop"
        probabilities = [one for piece in chunks for one in self._logprobs(piece).get("logprobs", ())]
        if probabilities:
            answer["logprobs"] = probabilities
        answer["total_duration"] = clock.total_ns
        answer["load_duration"] = clock.load_ns
        answer["prompt_eval_count"] = chunk.tokens_evaluated
        answer["prompt_eval_duration"] = int(chunk.timings.prompt_ms * 1e6)
        answer["eval_count"] = chunk.tokens_predicted
        answer["eval_duration"] = int(chunk.timings.predicted_ms * 1e6)
        return _encoder.encode(answer)

    def _read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        if self._tools is None:
            return text, []
        content, calls = self._tools.feed(text)
        return content, self._numbered(calls)

    def _numbered(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As Ollama tells calls: with an id and their number within the answer."""
        assert self._tools is not None
        first = self._tools.calls - len(calls)
        return [
            {"id": f"call_{secrets.token_hex(4)}", "function": {"index": first + number} | call}
            for number, call in enumerate(calls)
        ]

    def rendered(self, prompt: str, *, created_at: str) -> bytes:
        """The answer to ``_debug_render_only``."""
        answer: dict[str, Any] = {"model": self._model, "created_at": created_at}
        answer |= {"message": {"role": "", "content": ""}} if self._is_chat else {"response": ""}
        return _encoder.encode(answer | {"done": False, "_debug_info": {"rendered_template": prompt}})

    def empty(self, done_reason: str, *, created_at: str) -> bytes:
        """The answer to a request that only loads or unloads: ``done_reason`` is ``load`` or ``unload``."""
        return _encoder.encode(self._object("", created_at) | {"done": True, "done_reason": done_reason})

    def _object(self, text: str, created_at: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = {"model": self._model, "created_at": created_at}
        if self._is_chat:
            answer["message"] = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
        else:
            answer["response"] = text
        answer["done"] = False
        return answer

    def _logprobs(self, chunk: Chunk) -> dict[str, Any]:
        if not chunk.completion_probabilities:
            return {}
        return {"logprobs": [self._logprob(one) for one in chunk.completion_probabilities]}

    def _logprob(self, one: TokenProbability) -> dict[str, Any]:
        told: dict[str, Any] = {"token": one.token, "logprob": one.logprob, "bytes": one.bytes}
        if self._top_logprobs:
            told["top_logprobs"] = [
                {"token": top.token, "logprob": top.logprob, "bytes": top.bytes}
                for top in one.top_logprobs[: self._top_logprobs]
            ]
        return told
