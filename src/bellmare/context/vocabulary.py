"""A model's vocabulary as POST /api/show with ``verbose`` gives it (the GGUF's own keys), decoded in small steps.

Megabytes in one call into C would keep every other thread waiting: whoever decodes calls :func:`decoding` step by step.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import BadAnswer

SLICE_BYTES = 128 << 10
"""Of an array that is decoded at once: 1 ms (measured: 8 ms for each MiB of short strings)."""
TOKENS_MAX = 1 << 20
"""The largest known vocabularies have 262,144 tokens and twice as many merges."""

_T = TypeVar("_T")
_PREFIX = "tokenizer.ggml."


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how a text becomes tokens. ``None``: the file does not say, and the tokeniser's default holds."""

    model: str
    """``gpt2``, ``llama``, ``bert`` and so on: which kind of tokeniser."""
    pre: str = ""
    """How texts are split into words before."""
    architecture: str = ""
    tokens: list[str] = []
    merges: list[str] = []
    """Pairs with one space between, best first."""
    scores: list[float] = []
    kinds: list[int] = []
    """Of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    bos: int | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_space_prefix: bool | None = None
    lowercase: bool | None = None
    strip_accents: bool | None = None


class Shown(msgspec.Struct, frozen=True):
    """What /api/show says of how a model reads a prompt. ``vocabulary`` is None if it tells none."""

    template: str = ""
    """Ollama's Go template; from the embedded worker the file's own, in Jinja."""
    system: str = ""
    """What is said as system message where a conversation has none."""
    vocabulary: Vocabulary | None = None


class _Body(msgspec.Struct, frozen=True):
    template: str = ""
    system: str = ""
    model_info: dict[str, Raw] | None = None


_body = msgspec.json.Decoder(_Body)


def decoding(body: bytes) -> Iterator[Shown | None]:
    """Decode an answer of /api/show: yields None after each small step, and at last what it says. Raises BadAnswer."""
    try:
        shown = _body.decode(body)
        info = shown.model_info or {}
        fields: dict[str, Any] = {}
        for name, kind in (("tokens", str), ("merges", str), ("scores", float), ("token_type", int)):
            values: list[Any] = []
            for piece in _slices(info.get(_PREFIX + name), kind):
                values += piece
                if len(values) > 2 * TOKENS_MAX:
                    raise BadAnswer(f"/api/show: more than {2 * TOKENS_MAX} {name}")
                yield None
            fields[name] = values
        model = _scalar(info, "model", str)
        if not model or not fields["tokens"]:
            yield Shown(shown.template, shown.system)
            return
        vocabulary = Vocabulary(
            model=model,
            pre=_scalar(info, "pre", str) or "",
            architecture=_scalar(info, "general.architecture", str, prefix="") or "",
            tokens=fields["tokens"],
            merges=fields["merges"],
            scores=fields["scores"],
            kinds=fields["token_type"],
            bos=_scalar(info, "bos_token_id", int),
            add_bos=_scalar(info, "add_bos_token", bool),
            add_eos=_scalar(info, "add_eos_token", bool),
            add_space_prefix=_scalar(info, "add_space_prefix", bool),
            lowercase=_scalar(info, "normalizer.lowercase", bool),
            strip_accents=_scalar(info, "normalizer.strip_accents", bool),
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"/api/show: {str(error)[:200]}") from None
    yield Shown(shown.template, shown.system, vocabulary)


def decode_shown(body: bytes) -> Shown:
    """All steps of :func:`decoding` at once."""
    *_, shown = decoding(body)
    assert shown is not None, "the last step has the result"
    return shown


def _scalar(info: dict[str, Raw], key: str, kind: type[_T], *, prefix: str = _PREFIX) -> _T | None:
    raw = info.get(prefix + key)
    return None if raw is None else msgspec.json.decode(raw, type=kind | None)


def _slices(raw: Raw | None, kind: type) -> Iterator[list[Any]]:
    """The elements of a JSON array in order, some thousands at a time; nothing for null."""
    if raw is None:
        return
    data = bytes(raw).strip()
    if data == b"null":
        return
    if not data.startswith(b"["):
        raise BadAnswer("/api/show: a vocabulary that is no array")
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    between = b'","' if kind is str else b","
    at = 1
    while len(data) - at > SLICE_BYTES:
        cut = at + SLICE_BYTES
        while True:
            cut = data.find(between, cut)
            if cut < 0:
                break
            end = cut + len(between) // 2
            try:
                piece = decoder.decode(b"[" + data[at:end] + b"]")
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:  # three characters that stand within a string
                cut += 1
                continue
            yield piece
            at = end + 1
            break
        if cut < 0:
            break
    yield decoder.decode(b"[" + data[at:])
