"""Native chat answers in OpenAI's words: server-sent events for a stream, one object otherwise.

Never writes ``[DONE]`` or a finish reason that the worker did not give: a client must see that an answer was cut.
"""

from typing import Any

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import Dialect, stream_error, upstream_error_text
from bellmare.protocols.forced_tools import CallReader, ForcedCall
from bellmare.protocols.native_answers import (
    UNREADABLE,
    ChatAnswer,
    NativeCall,
    StreamState,
    arguments_text,
    chat_decoder,
    whole,
)
from bellmare.protocols.openai_answers import DONE, SYSTEM_FINGERPRINT, call_id, finish_reason, usage

_TEXT_END = b'},"finish_reason":null}]}\n\n'

_encode = msgspec.json.Encoder().encode


def _tool_call(call: NativeCall, *, index: int, completion_id: str) -> dict[str, Any]:
    return {
        "id": call_id(call, index=index, public_id=completion_id.removeprefix("chatcmpl-")),
        "index": index,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments_text(call)},
    }


def _forced_call(name: str, arguments: str, *, completion_id: str) -> dict[str, Any]:
    public_id = completion_id.removeprefix("chatcmpl-")
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{public_id}_0", "index": 0, "type": "function", "function": function}


class ChatStream(StreamState):
    """Turns native NDJSON lines into SSE, one at a time; all chunks have one id and one time.

    States: open, then ``finished`` (the last line came, ``[DONE]`` was written) or ``failed`` (an error frame was
    written); after either, lines give no bytes. If a worker's stream ends while it is open, the answer was cut and the
    caller ends it with ``cut``.
    """

    def __init__(
        self,
        *,
        completion_id: str,
        created_s: int,
        model: str,
        include_usage: bool,
        forced: ForcedCall | None = None,
    ) -> None:  # tidy: what stands in each chunk, and what was asked for
        super().__init__()
        self.prompt_tokens = 0
        self.output_tokens = 0
        """Both as the last line says; zero until then."""
        self._completion_id = completion_id
        self._include_usage = include_usage
        self._reader = CallReader(forced) if forced is not None else None
        self._begun = False
        self._tool_calls = 0
        head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._text_head = self._head + b',"choices":[{"index":0,"delta":{"content":'

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""
        if self.finished or self.failed or not native_line.strip():
            return b""
        try:
            answer = chat_decoder.decode(native_line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._fail(UNREADABLE)
        if self._begun and answer.is_text and self._reader is None:  # like most: only its text is written anew
            return b"".join((self._text_head, _encode(answer.message.content), _TEXT_END))
        if answer.failed:
            return self._fail(upstream_error_text(native_line))
        deltas = self._deltas(answer) if self._reader is None else self._forced_deltas(answer, self._reader)
        logprobs = answer.logprobs
        events = []
        for delta in deltas:
            events.append(self._chunk(delta, None, logprobs))
            logprobs = None  # they may belong to both parts of a line; a client adds up what it gets
        if answer.done:
            events.append(self._finish(answer))
        return b"".join(events)

    def cut(self, message: str) -> bytes:
        """One event; see the base."""
        return stream_error(Dialect.openai, message)

    def _first(self, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The role stands in the first chunk only."""
        if not self._begun and deltas:
            self._begun = True
            deltas[0] = {"role": "assistant", **deltas[0]}
        return deltas

    def _deltas(self, answer: ChatAnswer) -> list[dict[str, Any]]:
        """Reasoning first and by itself, as Ollama does: clients close the reasoning when other content comes.

        The last line is mostly empty: it gives no delta, unless nothing has come at all.
        """
        message = answer.message
        deltas: list[dict[str, Any]] = []
        if message.thinking:
            deltas.append({"content": "", "reasoning": message.thinking})
        if message.content or message.tool_calls:
            deltas.append({"content": message.content})
        if not deltas and (not answer.done or not self._begun or answer.logprobs):
            deltas.append({"content": ""})
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                calls.append(_tool_call(call, index=self._tool_calls, completion_id=self._completion_id))
                self._tool_calls += 1
            deltas[-1]["tool_calls"] = calls
        return self._first(deltas)

    def _forced_deltas(self, answer: ChatAnswer, reader: CallReader) -> list[dict[str, Any]]:
        """The content is a call: its name comes first, then its arguments as they come."""
        message = answer.message
        deltas: list[dict[str, Any]] = []
        if message.thinking:
            deltas.append({"content": "", "reasoning": message.thinking})
        known = bool(reader.name)
        text, arguments = reader.feed(message.content) if message.content else ("", "")
        if answer.done:
            text += reader.close()
        if reader.name and not known:
            call = _forced_call(reader.name, "", completion_id=self._completion_id)
            deltas.append({"content": "", "tool_calls": [call]})
        if arguments:
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})
        if text or (answer.done and not self._begun and not deltas):
            deltas.append({"content": text})
        return self._first(deltas)

    def _chunk(self, delta: dict[str, Any], finish: str | None, logprobs: list[Raw] | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        return b"".join((self._head, b',"choices":[', _encode(choice), b"]}\n\n"))

    def _finish(self, answer: ChatAnswer) -> bytes:
        self.finished = True
        self.prompt_tokens = answer.prompt_eval_count
        self.output_tokens = answer.eval_count
        called = self._tool_calls > 0 or (self._reader is not None and self._reader.complete)
        end = self._chunk({}, finish_reason(answer.done_reason, tool_calls=called))
        if self._include_usage:
            end += b"".join((self._head, b',"choices":[],"usage":', _encode(usage(answer)), b"}\n\n"))
        return end + DONE


def completion(
    native_body: bytes, *, completion_id: str, created_s: int, model: str, forced: ForcedCall | None = None
) -> bytes:  # tidy: what stands in the answer, and what was asked for
    """The unstreamed answer. Raises :class:`BadAnswer` if ``native_body`` is an error, unfinished or unreadable."""
    answer = whole(native_body, chat_decoder, "/api/chat")
    content = answer.message.content
    calls = [
        _tool_call(call, index=index, completion_id=completion_id)
        for index, call in enumerate(answer.message.tool_calls or ())
    ]
    called = bool(calls)
    if forced is not None:
        reader = CallReader(forced)
        content, arguments = reader.feed(content)
        content += reader.close()
        if reader.name:
            calls = [_forced_call(reader.name, arguments, completion_id=completion_id)]
        called = reader.complete
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if answer.message.thinking:
        message["reasoning"] = answer.message.thinking
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish_reason(answer.done_reason, tool_calls=called),
    }
    if answer.logprobs:
        choice["logprobs"] = {"content": answer.logprobs}
    body = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "choices": [choice],
        "usage": usage(answer),
    }
    return _encode(body)
