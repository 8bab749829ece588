"""Native chat answers in OpenAI's words: server-sent events for a stream, one object otherwise.

Never writes ``[DONE]`` or a finish reason that the worker did not give: a client must see that an answer was cut.
"""

from typing import Any

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import BadAnswer, Dialect, stream_error, upstream_error_text

_SYSTEM_FINGERPRINT = "fp_ollama"
_DONE = b"data: [DONE]\n\n"
_TEXT_END = b'},"finish_reason":null}]}\n\n'
_UNREADABLE = "the model's worker sent an answer that could not be read"

_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: Raw = Raw(b"{}")


class _ToolCall(msgspec.Struct, frozen=True):
    function: _Function = _Function()
    id: str = ""


class _Message(msgspec.Struct, frozen=True):
    content: str = ""
    thinking: str = ""
    tool_calls: list[_ToolCall] | None = None


class _NativeAnswer(msgspec.Struct, frozen=True):
    """One line of a stream, or the whole of an unstreamed answer (ollama.md 1.4)."""

    message: _Message = _Message()
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    logprobs: list[Raw] | None = None
    error: Raw = Raw(b"")

    @property
    def failed(self) -> bool:
        return bytes(self.error) not in (b"", b"null")

    @property
    def is_text(self) -> bool:
        """Whether there is nothing in it but ``message.content``."""
        message = self.message
        return not (self.done or self.error or message.thinking or message.tool_calls or self.logprobs)


_decoder = msgspec.json.Decoder(_NativeAnswer)


def _tool_call(call: _ToolCall, *, index: int, completion_id: str) -> dict[str, Any]:
    """OpenAI gives each call an id, to which the tool's result refers; where Ollama gave none it is made up."""
    arguments = bytes(call.function.arguments).decode(errors="replace")  # msgspec does not look into a Raw
    return {
        "id": call.id or f"call_{completion_id.removeprefix('chatcmpl-')}_{index}",
        "index": index,
        "type": "function",
        "function": {"name": call.function.name, "arguments": "{}" if arguments == "null" else arguments},
    }


def _finish_reason(done_reason: str, *, tool_calls: bool) -> str:
    """``load`` and a closed runner's empty reason are no words of OpenAI's."""
    if tool_calls:
        return "tool_calls"
    return "length" if done_reason == "length" else "stop"


def _usage(answer: _NativeAnswer) -> dict[str, int]:
    prompt, output = answer.prompt_eval_count, answer.eval_count
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


class ChatStream:
    """Turns native NDJSON lines into SSE, one at a time; all chunks have one id and one time.

    States: open, then ``finished`` (the last line came, ``[DONE]`` was written) or ``failed`` (an error frame was
    written); after either, lines give no bytes. If a worker's stream ends while it is open, the answer was cut and the
    caller ends it with ``errors.stream_error``.
    """

    def __init__(self, *, completion_id: str, created_s: int, model: str, include_usage: bool) -> None:
        self.finished = False
        self.failed = False
        self.error = ""
        """The worker's words if it failed, for the log."""
        self.prompt_tokens = 0
        self.output_tokens = 0
        """Both as the last line says; zero until then."""
        self._completion_id = completion_id
        self._include_usage = include_usage
        self._begun = False
        self._tool_calls = 0
        head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
            "system_fingerprint": _SYSTEM_FINGERPRINT,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._text_head = self._head + b',"choices":[{"index":0,"delta":{"content":'

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""
        if self.finished or self.failed or not native_line.strip():
            return b""
        try:
            answer = _decoder.decode(native_line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._fail(_UNREADABLE)
        message = answer.message
        if self._begun and message.content and answer.is_text:  # a token like most: only its text is written anew
            return b"".join((self._text_head, _encode(message.content), _TEXT_END))
        if answer.failed:
            return self._fail(upstream_error_text(native_line))
        events = self._deltas(answer)
        if answer.done:
            events.append(self._finish(answer))
        return b"".join(events)

    @staticmethod
    def cut(message: str) -> bytes:
        """The one event that ends a stream which failed after its first byte; nothing may follow it."""
        return stream_error(Dialect.openai, message)

    def _fail(self, text: str) -> bytes:
        self.failed = True
        self.error = text
        return stream_error(Dialect.openai, text)

    def _deltas(self, answer: _NativeAnswer) -> list[bytes]:
        """Reasoning first and by itself, as Ollama does: clients close the reasoning when other content comes."""
        message = answer.message
        deltas: list[dict[str, Any]] = []
        if message.thinking:
            deltas.append({"reasoning": message.thinking})
        calls = []
        for call in message.tool_calls or ():
            calls.append(_tool_call(call, index=self._tool_calls, completion_id=self._completion_id))
            self._tool_calls += 1
        if message.content or calls:
            deltas.append({"content": message.content} if message.content else {})
            if calls:
                deltas[-1]["tool_calls"] = calls
        if not deltas and not self._begun:
            deltas.append({})
        if not self._begun:
            self._begun = True
            deltas[0] = {"role": "assistant", "content": "", **deltas[0]}
        logprobs = answer.logprobs
        events = []
        for delta in deltas:
            events.append(self._chunk(delta, None, logprobs))
            logprobs = None
        return events

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None, logprobs: list[Raw] | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        return b"".join((self._head, b',"choices":[', _encode(choice), b"]}\n\n"))

    def _finish(self, answer: _NativeAnswer) -> bytes:
        self.finished = True
        self.prompt_tokens = answer.prompt_eval_count
        self.output_tokens = answer.eval_count
        end = self._chunk({}, _finish_reason(answer.done_reason, tool_calls=self._tool_calls > 0))
        if self._include_usage:
            end += b"".join((self._head, b',"choices":[],"usage":', _encode(_usage(answer)), b"}\n\n"))
        return end + _DONE


def completion(native_body: bytes, *, completion_id: str, created_s: int, model: str) -> bytes:
    """The unstreamed answer. Raises :class:`BadAnswer` if ``native_body`` is an error, unfinished or unreadable."""
    try:
        answer = _decoder.decode(native_body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"/api/chat: {str(error)[:200]}") from None
    if answer.failed:
        raise BadAnswer(upstream_error_text(native_body))
    if not answer.done:
        raise BadAnswer("/api/chat: the answer is unfinished")
    message: dict[str, Any] = {"role": "assistant", "content": answer.message.content}
    if answer.message.thinking:
        message["reasoning"] = answer.message.thinking
    calls = [
        _tool_call(call, index=index, completion_id=completion_id)
        for index, call in enumerate(answer.message.tool_calls or ())
    ]
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": _finish_reason(answer.done_reason, tool_calls=bool(calls)),
    }
    if answer.logprobs:
        choice["logprobs"] = {"content": answer.logprobs}
    body = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "system_fingerprint": _SYSTEM_FINGERPRINT,
        "choices": [choice],
        "usage": _usage(answer),
    }
    return _encode(body)
