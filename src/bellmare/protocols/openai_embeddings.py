"""OpenAI's embeddings over /api/embed: the request and the answer, as numbers or as base64."""

import array
import binascii
import sys

import msgspec

from bellmare.protocols.errors import BadAnswer, InvalidRequest, upstream_error_text
from bellmare.protocols.jsonbody import Gate
from bellmare.protocols.ollama_requests import EMBED_INPUTS_MAX, EmbedRequest, known_fields
from bellmare.protocols.openai_answers import EmbedAnswer
from bellmare.protocols.openai_fields import Received

_encode = msgspec.json.Encoder().encode
_answer_decoder = msgspec.json.Decoder(EmbedAnswer)
_vector_decoder = msgspec.json.Decoder(list[float])


class OpenAIEmbedding(Received, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings; fields that are not here are ignored, as Ollama does."""

    model: str = ""
    input: str | list[str] | None = None
    dimensions: int | None = None
    encoding_format: str | None = None

    @property
    def as_base64(self) -> bool:
        """Whether vectors are wanted as base64 of little-endian float32."""
        return (self.encoding_format or "").lower() == "base64"


_gate = Gate(OpenAIEmbedding, known_fields(OpenAIEmbedding), ignored=frozenset({"user"}))


def parse_embedding(body: bytes) -> OpenAIEmbedding:
    """POST /v1/embeddings. Raises :class:`InvalidRequest`, in Ollama's words."""
    try:
        wanted = _gate(body)
    except InvalidRequest as error:
        if " at `$.input" in error.message:  # tokens, say: only the model's own tokenizer knows them
            raise InvalidRequest("invalid input type") from None
        raise
    if not wanted.model.strip():
        raise InvalidRequest("model is required")
    encoding = wanted.encoding_format
    if encoding and encoding.lower() not in ("float", "base64"):
        text = f"Invalid value for 'encoding_format' = {encoding[:64]}. Supported values: ['float', 'base64']."
        raise InvalidRequest(text)
    given = wanted.input
    if given is None or given == []:
        raise InvalidRequest("invalid input")
    if isinstance(given, list) and len(given) > EMBED_INPUTS_MAX:
        raise InvalidRequest(f"more than {EMBED_INPUTS_MAX} inputs")
    return wanted


def to_native(wanted: OpenAIEmbedding) -> EmbedRequest:
    """The same request for /api/embed. An empty text is one to embed, not a request to load, as in Ollama."""
    given = [""] if wanted.input == "" else wanted.input
    return EmbedRequest(model=wanted.model, input=given, dimensions=wanted.dimensions or None)


def embedding_list(native_body: bytes, *, model: str, as_base64: bool) -> bytes:
    """The answer. Raises :class:`BadAnswer` if ``native_body`` is none of /api/embed.

    Numbers are passed on as the worker wrote them. Base64 costs 20 ms for a million of them (measured).
    """
    try:
        answer = _answer_decoder.decode(native_body)
        vectors = [_as_base64(raw) if as_base64 else raw for raw in answer.embeddings]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        if b'"error"' in native_body[:64]:
            raise BadAnswer(upstream_error_text(native_body)) from None
        raise BadAnswer(f"/api/embed: {str(error)[:200]}") from None
    count = answer.prompt_eval_count
    body = {
        "object": "list",
        "data": [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return _encode(body)


def _as_base64(raw: msgspec.Raw) -> str:
    numbers = array.array("f", _vector_decoder.decode(raw))
    if sys.byteorder == "big":
        numbers.byteswap()
    return binascii.b2a_base64(numbers.tobytes(), newline=False).decode()
