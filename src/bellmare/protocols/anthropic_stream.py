"""Native chat answers as Anthropic's messages: events with their names for a stream, one object otherwise.

Writes what Ollama itself would (fields, order, blocks). Never ends a message that the worker did not end.
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

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""Clients skip it wherever it comes. Ollama sends none, and neither does :class:`MessageStream`."""
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "": ""}
"""Any other, as ``load``, is Ollama's ``stop_sequence``. A stop sequence that was met is only ``stop`` to a worker."""
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_TEXT_END = b"}}\n\n"

_encode = msgspec.json.Encoder().encode


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))


def _made_up_id(message_id: str, index: int) -> str:
    """By it the tool's result refers to the call; older Ollamas give none."""
    return f"toolu_{message_id.removeprefix('msg_')}_{index}"


def _stop(done_reason: str, *, tool_calls: bool) -> dict[str, str]:
    """``stop_reason``, and no such field where the worker gave no reason, as when its runner closed."""
    reason = "tool_use" if tool_calls else _STOP_REASONS.get(done_reason, "stop_sequence")
    return {"stop_reason": reason} if reason else {}


def _delta_head(index: int, kind: str, field: str) -> bytes:
    """A delta's event up to its text."""
    head = f'{{"type":"content_block_delta","index":{index},"delta":{{"type":"{kind}","{field}":'
    return b"event: content_block_delta\ndata: " + head.encode()


def _usage(answer: ChatAnswer) -> dict[str, int]:
    return {"input_tokens": answer.prompt_eval_count, "output_tokens": answer.eval_count}


class MessageStream(StreamState):
    """Turns native NDJSON lines into events, one line at a time.

    States: open, then ``finished`` (the last line came, ``message_stop`` was written) or ``failed``; after either,
    lines give no bytes. If a worker's stream ends while it is open, the answer was cut and :meth:`cut` ends it.
    Blocks are numbered from 0 and at most one is open, whatever order a worker's thoughts, texts and calls come in.
    """

    def __init__(self, *, message_id: str, model: str, input_tokens: int, forced: ForcedCall | None = None) -> None:
        """``input_tokens``: an estimate, for ``message_start``, as the count is known at the end only.

        ``forced``: the call that the content is bound to be.
        """
        super().__init__()
        self._message_id = message_id
        self._model = model
        self._input_tokens = input_tokens
        self._begun = False
        self._index = 0
        """Of the open block, else of the next."""
        self._open = ""
        """The type of the open block; empty if none is."""
        self._delta_head = b""
        """Of the open block's deltas, up to the text."""
        self._calls: set[str] = set()
        self._reader = CallReader(forced) if forced is not None else None

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""
        if self.finished or self.failed or not native_line.strip():
            return b""
        try:
            answer = chat_decoder.decode(native_line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.failed, self.error = True, UNREADABLE
            return b""
        if answer.failed:
            self.failed, self.error = True, upstream_error_text(native_line)
            return b""
        message = answer.message
        plain = self._open == "text" and self._reader is None
        if message.content and plain and not (message.thinking or message.tool_calls or answer.done):
            return b"".join((self._delta_head, _encode(message.content), _TEXT_END))  # a token like most
        events: list[bytes] = []
        if not self._begun:
            self._begin(answer, events)
        if message.thinking:
            self._add("thinking", message.thinking, events)
        if message.content and self._reader is not None:
            self._forced(*self._reader.feed(message.content), events)
        elif message.content:
            self._add("text", message.content, events)
        for call in message.tool_calls or ():
            self._call(call, events)
        if answer.done:
            self._finish(answer, events)
        return b"".join(events)

    def cut(self, message: str) -> bytes:
        """One event; see the base."""
        return stream_error(Dialect.anthropic, message)

    def _begin(self, answer: ChatAnswer, events: list[bytes]) -> None:
        self._begun = True
        message = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "usage": {"input_tokens": answer.prompt_eval_count or self._input_tokens, "output_tokens": 0},
        }
        events.append(_event("message_start", {"message": message}))

    def _add(self, kind: str, text: str, events: list[bytes]) -> None:
        """To the open block if it is of this kind, else to a new one."""
        if self._open != kind:
            self._start({"type": kind, kind: ""}, events)
            self._delta_head = _delta_head(self._index, f"{kind}_delta", kind)
        events.append(b"".join((self._delta_head, _encode(text), _TEXT_END)))

    def _forced(self, text: str, arguments: str, events: list[bytes]) -> None:
        """What the reader gave of a call that had to come: one of both."""
        assert self._reader is not None
        if text:
            self._add("text", text, events)
        if arguments and self._open != "tool_use":
            call_id = _made_up_id(self._message_id, len(self._calls))
            self._calls.add(call_id)
            self._start({"type": "tool_use", "id": call_id, "name": self._reader.name, "input": {}}, events)
            self._delta_head = _delta_head(self._index, "input_json_delta", "partial_json")
        if arguments:
            events.append(b"".join((self._delta_head, _encode(arguments), _TEXT_END)))

    def _call(self, call: NativeCall, events: list[bytes]) -> None:
        """A block of its own, with the arguments in one piece. A call that comes again is the same call."""
        call_id = call.id or _made_up_id(self._message_id, len(self._calls))
        if call_id in self._calls:
            return
        self._calls.add(call_id)
        self._start({"type": "tool_use", "id": call_id, "name": call.function.name, "input": {}}, events)
        delta = {"type": "input_json_delta", "partial_json": arguments_text(call)}
        events.append(_event("content_block_delta", {"index": self._index, "delta": delta}))
        self._close(events)

    def _start(self, block: dict[str, Any], events: list[bytes]) -> None:
        self._close(events)
        self._open = block["type"]
        events.append(_event("content_block_start", {"index": self._index, "content_block": block}))

    def _close(self, events: list[bytes]) -> None:
        if self._open:
            events.append(_event("content_block_stop", {"index": self._index}))
            self._open = ""
            self._index += 1

    def _finish(self, answer: ChatAnswer, events: list[bytes]) -> None:
        self.finished = True
        reader = self._reader
        if reader is not None:
            self._forced(reader.close(), "", events)
        self._close(events)
        called = bool(self._calls) and (reader is None or reader.complete)
        stop = _stop(answer.done_reason, tool_calls=called)
        events.append(_event("message_delta", {"delta": stop, "usage": _usage(answer)}))
        events.append(_MESSAGE_STOP)


def message(native_body: bytes, *, message_id: str, model: str, forced: ForcedCall | None = None) -> bytes:
    """The unstreamed answer. Raises :class:`BadAnswer` if ``native_body`` is an error, unfinished or unreadable.

    An empty answer has ``"content":[]``: Ollama writes ``null``, over which Anthropic's clients stumble.
    """
    answer = whole(native_body, chat_decoder, "/api/chat")
    content, called = _content(answer, message_id=message_id, forced=forced)
    body = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **_stop(answer.done_reason, tool_calls=called),
        "usage": _usage(answer),
    }
    return _encode(body)


def _content(answer: ChatAnswer, *, message_id: str, forced: ForcedCall | None) -> tuple[list[dict[str, Any]], bool]:
    """The blocks of a whole answer, and whether tools are called in it."""
    content: list[dict[str, Any]] = []
    if answer.message.thinking:
        content.append({"type": "thinking", "thinking": answer.message.thinking})
    text = answer.message.content
    calls = [(call.id, call.function.name, arguments_text(call)) for call in answer.message.tool_calls or ()]
    if forced is not None:
        reader = CallReader(forced)
        text, arguments = reader.feed(text)
        text += reader.close()
        if reader.complete:
            calls.insert(0, ("", reader.name, arguments))
        elif arguments:  # an unfinished object cannot be put into JSON: the client gets the model's words
            text = answer.message.content
    if text:
        content.append({"type": "text", "text": text})
    for index, (call_id, name, arguments) in enumerate(calls):
        block = {"type": "tool_use", "id": call_id or _made_up_id(message_id, index), "name": name}
        content.append({**block, "input": Raw(arguments)})
    return content, bool(calls)
