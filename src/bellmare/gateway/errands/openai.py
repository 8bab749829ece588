"""OpenAI's routes, served by native ones: /v1 carries no num_ctx and loses error texts (ollama.md 1.8)."""

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, Stamp, errand_for
from bellmare.gateway.translate import DialectBody, DialectStream, Translator
from bellmare.protocols.errors import Dialect
from bellmare.protocols.openai import parse_chat_completion, to_native
from bellmare.protocols.openai_stream import ChatStream, completion


def _chat_stream(stamp: Stamp, *, include_usage: bool = False) -> Translator:
    return DialectStream(
        ChatStream(
            completion_id=f"chatcmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
            include_usage=include_usage,
        )
    )


def _chat_stream_with_usage(stamp: Stamp) -> Translator:
    return _chat_stream(stamp, include_usage=True)


def _chat_body(stamp: Stamp) -> Translator:
    def write(native_body: bytes) -> bytes:
        return completion(
            native_body,
            completion_id=f"chatcmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
        )

    return DialectBody(write)


def chat_completions(body: bytes) -> Errand:
    """POST /v1/chat/completions, served by /api/chat."""
    wanted = parse_chat_completion(body)
    streamed = _chat_stream_with_usage if wanted.include_usage else _chat_stream
    translator = streamed if wanted.stream else _chat_body
    return errand_for(
        to_native(wanted),
        "/api/chat",
        RequestKind.generation,
        body=body,
        dialect=Dialect.openai,
        translator=translator,
    )
