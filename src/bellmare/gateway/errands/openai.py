"""OpenAI's routes, served by native ones: /v1 carries no num_ctx and loses error texts (ollama.md 1.8)."""

from functools import partial
from typing import Any

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, Stamp, errand_for
from bellmare.gateway.translate import DialectBody, DialectStream, EventsBody, ReadBody, Translator
from bellmare.protocols import ollama, openai_completions, openai_embeddings, openai_responses
from bellmare.protocols.errors import Dialect
from bellmare.protocols.forced_tools import ForcedCall
from bellmare.protocols.openai import native_and_forced, parse_chat_completion
from bellmare.protocols.openai_completions import CompletionStream, text_completion
from bellmare.protocols.openai_embeddings import EmbeddingReader
from bellmare.protocols.openai_responses_stream import ResponseHead, ResponseStream, response_object
from bellmare.protocols.openai_stream import ChatStream, completion

_OPENAI = Dialect.openai


def _chat_stream(stamp: Stamp, *, include_usage: bool, forced: ForcedCall | None) -> Translator:
    return DialectStream(
        ChatStream(
            completion_id=f"chatcmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
            include_usage=include_usage,
            forced=forced,
        )
    )


def _chat_body(stamp: Stamp, *, forced: ForcedCall | None) -> Translator:
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
    streamed = partial(_chat_stream, include_usage=wanted.include_usage, forced=forced)
    return errand_for(
        native,
        "/api/chat",
        RequestKind.generation,
        body=body,
        dialect=_OPENAI,
        translator=streamed if wanted.stream else partial(_chat_body, forced=forced),
    )


def _completion_stream(stamp: Stamp, *, include_usage: bool, load: bool) -> Translator:
    codec = CompletionStream(
        completion_id=f"cmpl-{stamp.public_id}",
        created_s=stamp.created_s,
        model=stamp.model,
        include_usage=include_usage,
    )
    return EventsBody(codec.line) if load else DialectStream(codec)


def _completion_body(stamp: Stamp) -> Translator:
    return DialectBody(
        partial(
            text_completion,
            completion_id=f"cmpl-{stamp.public_id}",
            created_s=stamp.created_s,
            model=stamp.model,
        )
    )


def completions(body: bytes) -> Errand:
    """POST /v1/completions, served by /api/generate. Without a prompt it only loads the model, as in Ollama."""
    wanted = openai_completions.parse_completion(body)
    native = openai_completions.to_native(wanted)
    load = ollama.is_load(native)
    streamed = partial(_completion_stream, include_usage=wanted.include_usage, load=load)
    return errand_for(
        native,
        "/api/generate",
        RequestKind.load if load else RequestKind.generation,
        body=body,
        dialect=_OPENAI,
        translator=streamed if wanted.stream else _completion_body,
    )


def _embedding_body(stamp: Stamp, *, as_base64: bool) -> Translator:
    return ReadBody(EmbeddingReader(model=stamp.model, as_base64=as_base64))


def embeddings(body: bytes) -> Errand:
    """POST /v1/embeddings, served by /api/embed."""
    wanted = openai_embeddings.parse_embedding(body)
    return errand_for(
        openai_embeddings.to_native(wanted),
        "/api/embed",
        RequestKind.embedding,
        body=body,
        dialect=_OPENAI,
        translator=partial(_embedding_body, as_base64=wanted.as_base64),
    )


def _response_head(stamp: Stamp, echo: dict[str, Any]) -> ResponseHead:
    return ResponseHead(public_id=stamp.public_id, created_s=stamp.created_s, model=stamp.model, echo=echo)


def _response_stream(stamp: Stamp, *, echo: dict[str, Any], forced: ForcedCall | None) -> Translator:
    return DialectStream(ResponseStream(_response_head(stamp, echo), forced=forced))


def _response_body(stamp: Stamp, *, echo: dict[str, Any], forced: ForcedCall | None) -> Translator:
    return DialectBody(partial(response_object, head=_response_head(stamp, echo), forced=forced))


def responses(body: bytes) -> Errand:
    """POST /v1/responses, served by /api/chat."""
    wanted = openai_responses.parse_response(body)
    native, forced = openai_responses.to_native(wanted)
    write = _response_stream if wanted.stream else _response_body
    return errand_for(
        native,
        "/api/chat",
        RequestKind.generation,
        body=body,
        dialect=_OPENAI,
        translator=partial(write, echo=openai_responses.echo(wanted), forced=forced),
    )
