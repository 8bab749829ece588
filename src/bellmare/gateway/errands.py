"""What one inference request is, after parsing: who asks for what in which dialect, and how its answer is written.

One parser per route; all of them end in a native request, because a worker is only ever asked natively.
"""

import secrets
from collections.abc import Callable

import msgspec

from bellmare.core.events import RequestKind
from bellmare.gateway.translate import Native, OpenAIBody, OpenAIStream, Plain, Translator
from bellmare.protocols import ollama
from bellmare.protocols.errors import Dialect, InvalidRequest
from bellmare.protocols.names import named
from bellmare.protocols.openai import parse_chat_completion, to_native
from bellmare.protocols.tokens import estimate_prompt_tokens

_OLLAMA, _OPENAI = Dialect.ollama, Dialect.openai
_LOAD, _GENERATION = RequestKind.load, RequestKind.generation
"""A look-up in an enum takes 0.1 us, and there would be four for each request (measured)."""


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What an answer carries beside the worker's words."""

    public_id: str
    created_s: int
    model: str


class Errand(msgspec.Struct, frozen=True, gc=False):
    """A parsed request, ready to be admitted. It is part of no cycle, hence nothing to the garbage collector."""

    dialect: Dialect
    name: str
    """Canonical."""
    spelling: str
    """The name as the client wrote it: answers repeat it."""
    kind: RequestKind
    stream: bool
    native: ollama.InferenceRequest
    upstream_path: str
    prompt_tokens: int
    released: bool
    """The client only says that it needs the model no more."""
    translator: Callable[[Stamp], Translator]
    overridden: tuple[str, ...]
    """Runner options that the client sent and that were replaced by the model's own shape."""
    prepared: tuple[bytes, bytes] | None = None
    """Of a large request: what a worker is sent, before and behind the number of its ``num_ctx``."""

    def body(self, num_ctx: int) -> bytes | list[bytes]:
        """What a worker is sent, in one piece or in several."""
        if self.prepared is None:
            return ollama.encode_for_worker(self.native, model=self.spelling, num_ctx=num_ctx)
        return [self.prepared[0], b"%d" % num_ctx, self.prepared[1]]


def prepare(errand: Errand) -> Errand:
    """The errand with its body encoded ahead: 60 MiB take 40 ms, which must not be those of the event loop."""
    mark = secrets.randbits(48) | 1 << 48  # nothing that a client could have put into his own text
    body = ollama.encode_for_worker(errand.native, model=errand.spelling, num_ctx=mark)
    before, number, behind = body.partition(b"%d" % mark)
    assert number, "num_ctx is always sent"
    return msgspec.structs.replace(errand, prepared=(before, behind))


def _native(_: Stamp) -> Translator:
    return Native()


def _plain(_: Stamp) -> Translator:
    return Plain()


def _openai_stream(stamp: Stamp, *, include_usage: bool = False) -> Translator:
    return OpenAIStream(
        completion_id=f"chatcmpl-{stamp.public_id}",
        created_s=stamp.created_s,
        model=stamp.model,
        include_usage=include_usage,
    )


def _openai_stream_with_usage(stamp: Stamp) -> Translator:
    return _openai_stream(stamp, include_usage=True)


def _openai_body(stamp: Stamp) -> Translator:
    return OpenAIBody(completion_id=f"chatcmpl-{stamp.public_id}", created_s=stamp.created_s, model=stamp.model)


def _errand(
    native: ollama.InferenceRequest,
    path: str,
    kind: RequestKind,
    *,
    body: bytes,
    translator: Callable[[Stamp], Translator] | None = None,
) -> Errand:
    """``translator``: of an answer in OpenAI's words; without it the worker's own are passed on."""
    name = named(native.model)
    if name.cloud:
        raise InvalidRequest(f"'{native.model}' runs on ollama.com, which this gateway does not use", status=403)
    load = kind is _LOAD
    stream = not load and ollama.stream_wanted(native)
    dialect = _OPENAI
    if translator is None:
        dialect, translator = _OLLAMA, _native if stream else _plain
    return Errand(
        dialect=dialect,
        name=name.canonical,
        spelling=name.spelling,
        kind=kind,
        stream=stream,
        native=native,
        upstream_path=path,
        prompt_tokens=estimate_prompt_tokens(len(body)),
        released=load and ollama.is_unload(native),
        translator=translator,
        overridden=ollama.requested_reload_options(native),
    )


def generate(body: bytes) -> Errand:
    """POST /api/generate."""
    native = ollama.parse_generate(body)
    kind = _LOAD if ollama.is_load(native) else _GENERATION
    return _errand(native, "/api/generate", kind, body=body)


def chat(body: bytes) -> Errand:
    """POST /api/chat."""
    native = ollama.parse_chat(body)
    kind = _LOAD if ollama.is_load(native) else _GENERATION
    return _errand(native, "/api/chat", kind, body=body)


def embed(body: bytes) -> Errand:
    """POST /api/embed."""
    return _errand(ollama.parse_embed(body), "/api/embed", RequestKind.embedding, body=body)


def embeddings(body: bytes) -> Errand:
    """POST /api/embeddings."""
    return _errand(ollama.parse_embeddings(body), "/api/embeddings", RequestKind.embedding, body=body)


def chat_completions(body: bytes) -> Errand:
    """POST /v1/chat/completions, served by /api/chat: /v1 carries no num_ctx and loses error texts (ollama.md 1.8)."""
    wanted = parse_chat_completion(body)
    if not wanted.stream:
        translator = _openai_body
    else:
        translator = _openai_stream_with_usage if wanted.include_usage else _openai_stream
    return _errand(to_native(wanted), "/api/chat", _GENERATION, body=body, translator=translator)
