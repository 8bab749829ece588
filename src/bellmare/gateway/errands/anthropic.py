"""Anthropic's routes, served by native ones, which alone carry num_ctx, formats and error texts (ollama.md 1.8)."""

from collections.abc import Callable
from functools import partial

import msgspec

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, Stamp, errand_for
from bellmare.gateway.replies import anthropic_request_id
from bellmare.gateway.translate import DialectBody, DialectStream, Translator
from bellmare.http.messages import HeaderLines
from bellmare.protocols.anthropic import MessagesRequest, parse_count_tokens, parse_messages
from bellmare.protocols.anthropic_counting import guessed_input_tokens
from bellmare.protocols.anthropic_native import to_native
from bellmare.protocols.anthropic_stream import MessageStream, message
from bellmare.protocols.errors import BadAnswer, Dialect
from bellmare.protocols.forced_tools import ForcedCall
from bellmare.protocols.ollama import ChatRequest
from bellmare.protocols.tokens import estimate_chat_tokens


def _headers(first: HeaderLines, stamp: Stamp) -> HeaderLines:
    """With the id under which the SDK shows a request; the same as in an error's body."""
    return HeaderLines(b"%brequest-id: %b\r\n" % (first, anthropic_request_id(stamp.public_id).encode("ascii")))


def _codec(stamp: Stamp, input_tokens: int, forced: ForcedCall | None) -> MessageStream:
    return MessageStream(
        message_id=f"msg_{stamp.public_id}", model=stamp.model, input_tokens=input_tokens, forced=forced
    )


def _stream(stamp: Stamp, *, input_tokens: int, forced: ForcedCall | None) -> Translator:
    stream = DialectStream(_codec(stamp, input_tokens, forced))
    stream.headers = _headers(stream.headers, stamp)
    return stream


def _loaded(stamp: Stamp, *, input_tokens: int) -> Translator:
    """A worker that only loads its model answers with one object, also to who wanted a stream."""
    codec = _codec(stamp, input_tokens, None)

    def write(native_body: bytes) -> bytes:
        events = codec.line(native_body)
        if not codec.finished:
            raise BadAnswer(codec.error or "/api/chat: the answer is unfinished")
        return events

    body = DialectBody(write)
    body.headers = _headers(DialectStream.headers, stamp)
    return body


def _body(stamp: Stamp, *, forced: ForcedCall | None) -> Translator:
    write = partial(message, message_id=f"msg_{stamp.public_id}", model=stamp.model, forced=forced)
    body = DialectBody(write)
    body.headers = _headers(body.headers, stamp)
    return body


def _translator(wanted: MessagesRequest, forced: ForcedCall | None, *, load: bool) -> Callable[[Stamp], Translator]:
    if not wanted.stream:
        return partial(_body, forced=forced)
    input_tokens = guessed_input_tokens(wanted)
    if load:
        return partial(_loaded, input_tokens=input_tokens)
    return partial(_stream, input_tokens=input_tokens, forced=forced)


def _errand(wanted: MessagesRequest, body: bytes) -> Errand:
    native, forced = to_native(wanted)
    load = not native.messages
    errand = errand_for(
        native,
        "/api/chat",
        RequestKind.load if load else RequestKind.generation,
        body=body,
        dialect=Dialect.anthropic,
        translator=_translator(wanted, forced, load=load),
    )
    return msgspec.structs.replace(errand, thinks_if_it_can=True) if native.think else errand


def messages(body: bytes) -> Errand:
    """POST /v1/messages, served by /api/chat."""
    return _errand(parse_messages(body), body)


def count_tokens(body: bytes) -> Errand:
    """POST /v1/messages/count_tokens: what would be asked, with a better estimate of its tokens than by its bytes."""
    errand = _errand(parse_count_tokens(body), body)
    assert isinstance(errand.native, ChatRequest)
    return msgspec.structs.replace(errand, prompt_tokens=estimate_chat_tokens(errand.native))
