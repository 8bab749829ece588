"""Ollama's own routes: the worker's words are passed on."""

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, Stamp, errand_for
from bellmare.gateway.translate import Native, Plain, RenamedNative, RenamedPlain, Translator
from bellmare.protocols import ollama
from bellmare.protocols.errors import Dialect

_OLLAMA = Dialect.ollama
_LOAD, _GENERATION = RequestKind.load, RequestKind.generation
"""A look-up in an enum takes 0.1 us, and there would be four for each request (measured)."""


def _native(stamp: Stamp) -> Translator:
    return Native() if stamp.asked == stamp.model else RenamedNative(stamp.asked, stamp.model)


def _plain(stamp: Stamp) -> Translator:
    return Plain() if stamp.asked == stamp.model else RenamedPlain(stamp.asked, stamp.model)


def _errand(native: ollama.InferenceRequest, path: str, kind: RequestKind, *, body: bytes) -> Errand:
    streams = kind is not _LOAD and ollama.stream_wanted(native)
    return errand_for(native, path, kind, body=body, dialect=_OLLAMA, translator=_native if streams else _plain)


def errand_of(native: ollama.InferenceRequest) -> Errand:
    """Of a request that is not to be run as it stands: what it is for."""
    kind = _GENERATION if isinstance(native, ollama.GenerateRequest | ollama.ChatRequest) else RequestKind.embedding
    return _errand(native, "", kind, body=b"")


def generate(body: bytes) -> Errand:
    """POST /api/generate."""
    native = ollama.parse_generate(body)
    return _errand(native, "/api/generate", _LOAD if ollama.is_load(native) else _GENERATION, body=body)


def chat(body: bytes) -> Errand:
    """POST /api/chat."""
    native = ollama.parse_chat(body)
    return _errand(native, "/api/chat", _LOAD if ollama.is_load(native) else _GENERATION, body=body)


def embed(body: bytes) -> Errand:
    """POST /api/embed."""
    return _errand(ollama.parse_embed(body), "/api/embed", RequestKind.embedding, body=body)


def embeddings(body: bytes) -> Errand:
    """POST /api/embeddings."""
    return _errand(ollama.parse_embeddings(body), "/api/embeddings", RequestKind.embedding, body=body)
