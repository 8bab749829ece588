"""OpenAI's embeddings over /api/embed: the request and the answer, as numbers or as base64."""

import array
import binascii
import re
import sys

import msgspec

from bellmare.protocols.errors import BadAnswer, InvalidRequest, upstream_error_text
from bellmare.protocols.jsonbody import Gate
from bellmare.protocols.native_answers import EmbedAnswer
from bellmare.protocols.ollama_requests import EMBED_INPUTS_MAX, EmbedRequest, known_fields
from bellmare.protocols.openai_fields import Received

_encode = msgspec.json.Encoder().encode
_answer_decoder = msgspec.json.Decoder(EmbedAnswer)
_vector_decoder = msgspec.json.Decoder(list[float])
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_VECTORS = re.compile(rb'"embeddings"\s*:\s*\[')
"""Never within a string of JSON: there the quotes would have backslashes."""

HEAD_BYTES_MAX = 64 << 10
"""Of what stands before the vectors and behind them: a name and some counters."""
VECTOR_BYTES_MAX = 1 << 20
"""Of one: some 65,000 numbers, where models have a few thousand."""


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
        raise InvalidRequest("model '' not found", status=404)
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


class EmbeddingReader:
    """The answer of /api/embed, turned into OpenAI's as it comes: a million numbers at once take 0.1 s (measured).

    States: *head*, up to the list of vectors; *vectors*, each written as soon as it is whole; *tail*, the rest.
    Numbers are passed on as the worker wrote them.
    """

    def __init__(self, *, model: str, as_base64: bool) -> None:
        self._model = model
        self._as_base64 = as_base64
        self._head = b""
        self._in_vectors = False
        self._buffer = bytearray()
        """What is not yet taken apart: of the head, of a vector, or of the tail."""
        self._searched = 0
        self._entries: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Raises :class:`BadAnswer`."""
        self._buffer += data
        if not self._head:
            found = _VECTORS.search(self._buffer)
            if found is None:
                if len(self._buffer) > HEAD_BYTES_MAX:
                    raise BadAnswer("/api/embed: there are no embeddings in the answer")
                return
            self._head = bytes(self._buffer[: found.end()])
            self._in_vectors = True
            del self._buffer[: found.end()]
        if self._in_vectors:
            self._take_vectors()
        if not self._in_vectors and len(self._buffer) > HEAD_BYTES_MAX:
            raise BadAnswer("/api/embed: something long follows the embeddings")

    def native(self) -> bytes:
        """The worker's answer without its vectors, once it has all come."""
        if self._in_vectors:
            raise BadAnswer("/api/embed: the answer is unfinished")
        return self._head + bytes(self._buffer)

    def written(self) -> bytes:
        """OpenAI's answer. Raises :class:`BadAnswer` if the worker's was no answer, or an error."""
        native = self.native()
        try:
            count = _answer_decoder.decode(native).prompt_eval_count
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if b'"error"' in native[:64]:
                raise BadAnswer(upstream_error_text(native)) from None
            raise BadAnswer(f"/api/embed: {str(error)[:200]}") from None
        rest = _encode({"model": self._model, "usage": {"prompt_tokens": count, "total_tokens": count}})
        return b'{"object":"list","data":[' + b",".join(self._entries) + b"]," + rest[1:]

    def _take_vectors(self) -> None:
        buffer, position = self._buffer, 0
        while True:
            end = buffer.find(b"]", max(position, self._searched))
            if end < 0:
                break
            vector = bytes(buffer[position : end + 1]).lstrip(b", \t\r\n")
            if vector == b"]":  # of the list
                self._in_vectors = False
                del buffer[:end]
                return
            self._entries.append(self._entry(vector))
            position = end + 1
            self._searched = position
        del buffer[:position]
        self._searched = len(buffer)
        if len(buffer) > VECTOR_BYTES_MAX:
            raise BadAnswer(f"/api/embed: a vector is longer than {VECTOR_BYTES_MAX} bytes")

    def _entry(self, vector: bytes) -> bytes:
        try:
            shown = _as_base64(vector) if self._as_base64 else bytes(_raw_decoder.decode(vector))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise BadAnswer(f"/api/embed: {str(error)[:200]}") from None
        return b'{"object":"embedding","embedding":%b,"index":%d}' % (shown, len(self._entries))


def embedding_list(native_body: bytes, *, model: str, as_base64: bool) -> bytes:
    """A whole answer at once. Raises :class:`BadAnswer`."""
    reader = EmbeddingReader(model=model, as_base64=as_base64)
    reader.feed(native_body)
    return reader.written()


def _as_base64(vector: bytes) -> bytes:
    """A string of JSON."""
    numbers = array.array("f", _vector_decoder.decode(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return b'"' + binascii.b2a_base64(numbers.tobytes(), newline=False) + b'"'
