"""OpenAI's routes, served by native ones: /v1 carries no num_ctx and loses error texts (ollama.md 1.8)."""

from functools import partial

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, Stamp, errand_for
from bellmare.gateway.translate import DialectBody, DialectStream, Translator
from bellmare.protocols.errors import Dialect
from bellmare.protocols.forced_tools import ForcedCall
from bellmare.protocols.openai import native_and_forced, parse_chat_completion
from bellmare.protocols.openai_stream import ChatStream, completion

_OPENAI = Dialect.openai


def _chat_stream(stamp: Stamp, *, include_usage: bool = False, forced: ForcedCall | None = None) -> Translator:
    return DialectStream(
        ChatStream(
            completion_id=f"chatcmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
            include_usage=include_usage,
            forced=forced,
        )
    )


def _chat_stream_with_usage(stamp: Stamp) -> Translator:
    return _chat_stream(stamp, include_usage=True)


def _chat_body(stamp: Stamp, *, forced: ForcedCall | None = None) -> Translator:
    return DialectBody(
        partial(
            completion,
            completion_id=f"chatcmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
            forced=forced,
        )
    )


def chat_completions(body: bytes) -> Errand:
    """POST /v1/chat/completions, served by /api/chat."""
    wanted = parse_chat_completion(body)
    native, forced = native_and_forced(wanted)
    streamed = _chat_stream_with_usage if wanted.include_usage else _chat_stream
    translator = streamed if wanted.stream else _chat_body
    if forced is not None:
        chosen = partial(_chat_stream, include_usage=wanted.include_usage) if wanted.stream else _chat_body
        translator = partial(chosen, forced=forced)
    return errand_for(
        native,
        "/api/chat",
        RequestKind.generation,
        body=body,
        dialect=_OPENAI,
        translator=translator,
    )
