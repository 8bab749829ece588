"""Native chat answers as OpenAI's response objects and events. Every stream ends with one of the three terminal events.

Order and fields are Ollama's, with what its own stream lacks: an answer that was cut is incomplete, a broken one has
failed, no two items share an index, and a text is closed before a call begins.
"""

from typing import Any

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import upstream_error_text
from bellmare.protocols.forced_tools import CallReader, ForcedCall
from bellmare.protocols.native_answers import (
    UNREADABLE,
    ChatAnswer,
    NativeAnswer,
    StreamState,
    arguments_text,
    chat_decoder,
    whole,
)
from bellmare.protocols.openai_answers import call_id

ANSWER_CHARS_MAX = 16 << 20
"""Of one answer, which its last events repeat: four million tokens, more than any model writes."""
TOO_LONG = "the answer became too long"

_encode = msgspec.json.Encoder(order="sorted").encode
"""Go writes the keys of its maps in this order, and Ollama makes its events of maps."""
_encode_plain = msgspec.json.Encoder().encode


class ResponseHead(msgspec.Struct, frozen=True):
    """What the response object of one answer begins with."""

    public_id: str
    created_s: int
    model: str
    echo: dict[str, Any]
    """See ``openai_responses.echo``."""

    def object(self, status: str, **fields: Any) -> dict[str, Any]:
        """The response object in a state."""
        return {
            "id": f"resp_{self.public_id}",
            "object": "response",
            "created_at": self.created_s,
            "completed_at": None,
            "status": status,
            "incomplete_details": None,
            "model": self.model,
            **self.echo,
            **fields,
        }

    def ended(self, answer: NativeAnswer, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The response object of a whole answer: completed, or incomplete if it was cut."""
        usage = _usage(answer)
        if answer.done_reason == "length":
            details = {"reason": "max_output_tokens"}
            return self.object("incomplete", incomplete_details=details, output=output, usage=usage)
        completed_s = self.created_s + answer.total_duration // 1_000_000_000
        return self.object("completed", completed_at=completed_s, output=output, usage=usage)


def _usage(answer: NativeAnswer) -> dict[str, Any]:
    prompt, output = answer.prompt_eval_count, answer.eval_count
    return {
        "input_tokens": prompt,
        "output_tokens": output,
        "total_tokens": prompt + output,
        "input_tokens_details": {"cached_tokens": answer.prompt_eval_cached_count or 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _part(text: str, logprobs: list[Raw]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _message(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _reasoning(item_id: str, text: str) -> dict[str, Any]:
    """``encrypted_content`` is plain text, as Ollama's: a client sends it back with the conversation."""
    summary = [{"type": "summary_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": text}


def _call(item_id: str, status: str, *, named: tuple[str, str], arguments: str) -> dict[str, Any]:
    """``named``: the call's id and the function's name."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": named[0],
        "name": named[1],
        "arguments": arguments,
    }


class _Open:
    """The item that is being written."""

    __slots__ = ("chars", "item_id", "kind", "logprobs", "named", "pieces")

    def __init__(self, kind: str, item_id: str, named: tuple[str, str] = ("", "")) -> None:
        self.kind = kind
        self.item_id = item_id
        self.named = named
        self.pieces: list[str] = []
        self.logprobs: list[Raw] = []

    def item(self, status: str) -> dict[str, Any]:
        """As it stands."""
        text = "".join(self.pieces)
        if self.kind == "reasoning":
            return _reasoning(self.item_id, text)
        if self.kind == "message":
            return _message(self.item_id, status, [_part(text, self.logprobs)])
        return _call(self.item_id, status, named=self.named, arguments=text)


class ResponseStream(StreamState):
    """Turns native NDJSON lines into the events of a response, one line at a time.

    States: open, then ``finished`` (``response.completed`` or ``response.incomplete`` was written) or ``failed``
    (``response.failed`` was); after either, lines give no bytes.
    """

    def __init__(self, head: ResponseHead, *, forced: ForcedCall | None = None) -> None:
        super().__init__()
        self._response = head
        self._reader = CallReader(forced) if forced is not None else None
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._calls = 0
        self._chars = 0
        self._text_head = b""
        """Of a delta, while a message is open."""

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""
        if self.finished or self.failed or not native_line.strip():
            return b""
        try:
            answer = chat_decoder.decode(native_line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._fail(UNREADABLE)
        if self._text_head and answer.is_text and answer.message.content and self._reader is None:
            return self._text(answer.message.content)
        if answer.failed:
            return self._fail(upstream_error_text(native_line))
        events = [] if self._sequence else self._begin()
        message = answer.message
        if message.thinking:
            events += self._reasoned(message.thinking)
        if self._reader is not None:
            events += self._forced(answer, self._reader)
        elif message.content:
            events += self._said(message.content, answer.logprobs or [])
        for call in message.tool_calls or ():
            named = (call_id(call, index=self._calls, public_id=self._response.public_id), call.function.name)
            events += [*self._call_begins(named), *self._argued(arguments_text(call)), *self._close("completed")]
        if self._chars > ANSWER_CHARS_MAX:
            return b"".join(events) + self._fail(TOO_LONG)
        if answer.done:
            events += self._end(answer)
        return b"".join(events)

    def cut(self, message: str) -> bytes:
        """The events that end a stream which failed after its first byte; nothing may follow them.

        Asked again, as whoever drops what a failed line gave does, it gives the same.
        """
        sequence = self._sequence
        events = [] if sequence else self._begin()
        output = [*self._output, self._open.item("incomplete")] if self._open is not None else self._output
        error = {"code": "server_error", "message": message}
        response = self._response.object("failed", output=output, error=error)
        events.append(self._event("response.failed", response=response))
        self._sequence = sequence
        return b"".join(events)

    # ------------------------------------------------------------------ events

    def _event(self, kind: str, **fields: Any) -> bytes:
        fields |= {"type": kind, "sequence_number": self._sequence}
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(fields))

    def _begin(self) -> list[bytes]:
        response = self._response.object("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def _end(self, answer: ChatAnswer) -> list[bytes]:
        self.finished = True
        cut = answer.done_reason == "length"
        events = self._close("incomplete" if cut else "completed")
        response = self._response.ended(answer, self._output)
        return [*events, self._event("response.incomplete" if cut else "response.completed", response=response)]

    @property
    def _index(self) -> int:
        return len(self._output)

    def _opens(self, kind: str, prefix: str, named: tuple[str, str] = ("", "")) -> _Open:
        self._open = _Open(kind, f"{prefix}_{self._response.public_id}_{self._index}", named)
        return self._open

    def _reasoned(self, text: str) -> list[bytes]:
        events, item = [], self._open
        if item is None or item.kind != "reasoning":
            events = self._close("completed")
            item = self._opens("reasoning", "rs")
            added = {"id": item.item_id, "type": "reasoning", "summary": []}
            events.append(self._event("response.output_item.added", output_index=self._index, item=added))
        self._keep(item, text)
        delta = self._event(
            "response.reasoning_summary_text.delta",
            item_id=item.item_id,
            output_index=self._index,
            summary_index=0,
            delta=text,
        )
        return [*events, delta]

    def _said(self, text: str, logprobs: list[Raw]) -> list[bytes]:
        events, item = [], self._open
        if item is None or item.kind != "message":
            events = self._close("completed")
            item = self._opens("message", "msg")
            place = {"item_id": item.item_id, "output_index": self._index, "content_index": 0}
            added = _message(item.item_id, "in_progress", [])
            events.append(self._event("response.output_item.added", output_index=self._index, item=added))
            events.append(self._event("response.content_part.added", **place, part=_part("", [])))
            self._text_head = b'event: response.output_text.delta\ndata: {"content_index":0,"delta":'
            fixed = {"item_id": item.item_id, "logprobs": [], "output_index": self._index}
            self._text_tail = b"," + _encode(fixed)[1:-1] + b',"sequence_number":'
        if not logprobs:
            return [*events, self._text(text)]
        self._keep(item, text)
        item.logprobs += logprobs
        place = {"item_id": item.item_id, "output_index": self._index, "content_index": 0}
        return [*events, self._event("response.output_text.delta", **place, delta=text, logprobs=logprobs)]

    def _text(self, text: str) -> bytes:
        """A token like most, written without a detour over a dictionary."""
        assert self._open is not None
        self._keep(self._open, text)
        if self._chars > ANSWER_CHARS_MAX:
            return self._fail(TOO_LONG)
        number = self._sequence
        self._sequence += 1
        return b'%b%b%b%d,"type":"response.output_text.delta"}\n\n' % (
            self._text_head,
            _encode_plain(text),
            self._text_tail,
            number,
        )

    def _call_begins(self, named: tuple[str, str]) -> list[bytes]:
        events = self._close("completed")
        item = self._opens("function_call", "fc", named)
        self._calls += 1
        added = _call(item.item_id, "in_progress", named=named, arguments="")
        return [*events, self._event("response.output_item.added", output_index=self._index, item=added)]

    def _argued(self, arguments: str) -> list[bytes]:
        if not arguments:
            return []
        assert self._open is not None
        self._keep(self._open, arguments)
        kind, item_id = "response.function_call_arguments.delta", self._open.item_id
        return [self._event(kind, item_id=item_id, output_index=self._index, delta=arguments)]

    def _forced(self, answer: ChatAnswer, reader: CallReader) -> list[bytes]:
        """The content is a call, or turns out to be a text after all."""
        known, content = bool(reader.name), answer.message.content
        text, arguments = reader.feed(content) if content else ("", "")
        if answer.done:
            text += reader.close()
        if text:
            return self._said(text, [])
        events = []
        if reader.name and not known:
            events = self._call_begins((f"call_{self._response.public_id}_0", reader.name))
        return [*events, *self._argued(arguments)]

    def _keep(self, item: _Open, text: str) -> None:
        item.pieces.append(text)
        self._chars += len(text)

    def _close(self, status: str) -> list[bytes]:
        """What ends the open item, if there is one."""
        item = self._open
        if item is None:
            return []
        whole_item = item.item(status)
        place = {"item_id": item.item_id, "output_index": self._index}
        events = []
        if item.kind == "reasoning":
            text = whole_item["summary"][0]["text"]
            events = [self._event("response.reasoning_summary_text.done", **place, summary_index=0, text=text)]
        elif item.kind == "message":
            (part,) = whole_item["content"]
            said = {"text": part["text"], "logprobs": item.logprobs}
            events = [
                self._event("response.output_text.done", **place, content_index=0, **said),
                self._event("response.content_part.done", **place, content_index=0, part=part),
            ]
        else:
            arguments = whole_item["arguments"]
            events = [self._event("response.function_call_arguments.done", **place, arguments=arguments)]
        events.append(self._event("response.output_item.done", output_index=self._index, item=whole_item))
        self._output.append(whole_item)
        self._open = None
        self._text_head = b""
        return events


def response_object(native_body: bytes, head: ResponseHead, *, forced: ForcedCall | None = None) -> bytes:
    """The unstreamed answer. Raises :class:`BadAnswer` if ``native_body`` is an error, unfinished or unreadable."""
    answer = whole(native_body, chat_decoder, "/api/chat")
    message, public_id = answer.message, head.public_id
    status = "incomplete" if answer.done_reason == "length" else "completed"
    content = message.content
    calls = [
        ((call_id(call, index=index, public_id=public_id), call.function.name), arguments_text(call))
        for index, call in enumerate(message.tool_calls or ())
    ]
    if forced is not None:
        reader = CallReader(forced)
        content, arguments = reader.feed(content)
        content += reader.close()
        calls = [((f"call_{public_id}_0", reader.name), arguments)] if reader.name else []
    output: list[dict[str, Any]] = []
    if message.thinking:
        output.append(_reasoning(f"rs_{public_id}_0", message.thinking))
    if content or not calls:
        part = _part(content, answer.logprobs or [])
        output.append(_message(f"msg_{public_id}_{len(output)}", "completed" if calls else status, [part]))
    for named, arguments in calls:
        last = status if forced is not None else "completed"
        output.append(_call(f"fc_{public_id}_{len(output)}", last, named=named, arguments=arguments))
    return _encode_plain(head.ended(answer, output))
