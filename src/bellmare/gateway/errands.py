"""What one inference request is, after parsing: who asks for what in which dialect, and how its answer is written.

One parser per route; all of them end in a native request, because a worker is only ever asked natively.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from bellmare.core.events import RequestKind
from bellmare.gateway.translate import Native, OpenAIBody, OpenAIStream, Plain, Translator
from bellmare.protocols import ollama
from bellmare.protocols.errors import Dialect, InvalidRequest
from bellmare.protocols.names import canonical_name, is_cloud_name
from bellmare.protocols.openai import parse_chat_completion, to_native
from bellmare.protocols.tokens import estimate_prompt_tokens


@dataclass(slots=True, frozen=True)
class Errand:
    """A parsed request, ready to be admitted."""

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
    translator: Callable[["Stamp"], Translator]
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
    return replace(errand, prepared=(before, behind))


@dataclass(slots=True, frozen=True)
class Stamp:
    """What an answer carries beside the worker's words."""

    public_id: str
    created_s: int
    model: str


def _errand(
    native: ollama.InferenceRequest,
    path: str,
    *,
    body: bytes,
    dialect: Dialect,
    translator: Callable[[Stamp], Translator],
) -> Errand:
    if is_cloud_name(native.model):
        raise InvalidRequest(f"'{native.model}' runs on ollama.com, which this gateway does not use", status=403)
    name = canonical_name(native.model)
    embedding = isinstance(native, ollama.EmbedRequest | ollama.EmbeddingsRequest)
    load = not embedding and ollama.is_load(native)
    kind = RequestKind.embedding if embedding else RequestKind.load if load else RequestKind.generation
    return Errand(
        dialect=dialect,
        name=name,
        spelling=native.model if "://" not in native.model else name,
        kind=kind,
        stream=ollama.stream_wanted(native) and not load,
        native=native,
        upstream_path=path,
        prompt_tokens=estimate_prompt_tokens(len(body)),
        released=load and ollama.is_unload(native),
        translator=translator,
        overridden=ollama.requested_reload_options(native),
    )


def _native(native: ollama.InferenceRequest, path: str, body: bytes) -> Errand:
    stream = ollama.stream_wanted(native) and not ollama.is_load(native)

    def translator(_: Stamp) -> Translator:
        return Native() if stream else Plain()

    return _errand(native, path, body=body, dialect=Dialect.ollama, translator=translator)


def generate(body: bytes) -> Errand:
    """POST /api/generate."""
    return _native(ollama.parse_generate(body), "/api/generate", body)


def chat(body: bytes) -> Errand:
    """POST /api/chat."""
    return _native(ollama.parse_chat(body), "/api/chat", body)


def embed(body: bytes) -> Errand:
    """POST /api/embed."""
    return _native(ollama.parse_embed(body), "/api/embed", body)


def embeddings(body: bytes) -> Errand:
    """POST /api/embeddings."""
    return _native(ollama.parse_embeddings(body), "/api/embeddings", body)


def chat_completions(body: bytes) -> Errand:
    """POST /v1/chat/completions, served by /api/chat: /v1 carries no num_ctx and loses error texts (ollama.md 1.8)."""
    wanted = parse_chat_completion(body)

    def translator(stamp: Stamp) -> Translator:
        completion_id = f"chatcmpl-{stamp.public_id}"
        if wanted.stream:
            return OpenAIStream(
                completion_id=completion_id,
                created_s=stamp.created_s,
                model=stamp.model,
                include_usage=wanted.include_usage,
            )
        return OpenAIBody(completion_id=completion_id, created_s=stamp.created_s, model=stamp.model)

    return _errand(to_native(wanted), "/api/chat", body=body, dialect=Dialect.openai, translator=translator)
