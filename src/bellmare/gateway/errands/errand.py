"""A parsed request, ready to be admitted, and how its answer is written."""

import secrets
from collections.abc import Callable

import msgspec

from bellmare.context.counting import Count
from bellmare.core.events import RequestKind
from bellmare.gateway.translate import Translator
from bellmare.protocols import ollama
from bellmare.protocols.errors import Dialect
from bellmare.protocols.names import named
from bellmare.protocols.tokens import estimate_prompt_tokens


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What an answer carries beside the worker's words."""

    public_id: str
    created_s: int
    model: str
    """As the client wrote it: answers repeat it."""
    asked: str
    """What the worker was asked for, and calls it."""


class Guarded(msgspec.Struct, frozen=True, gc=False):
    """What the context guard found out about a request that it had to look at."""

    count: Count
    """Of the prompt as it is sent."""
    num_ctx: int
    """For which it was judged."""
    class_name: str
    """What the core is asked for in place of the model: one of its context classes. Empty: the model itself."""
    header: bytes
    """Of the answer, ``x-bellmare-context``; empty if nothing was cut or routed."""
    cut_tokens: int = 0
    """Of the messages that were left out."""


class Errand(msgspec.Struct, frozen=True, gc=False):
    """A parsed request, ready to be admitted. It is part of no cycle, hence nothing to the garbage collector."""

    dialect: Dialect
    name: str
    """Canonical, of the model that is to answer. Empty: ollama.com is to."""
    spelling: str
    """The name as the client wrote it: answers repeat it."""
    asked: str
    """What a worker is asked for."""
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
    redirected: bool = False
    """Another model than the one that the client named: an alias stands for it, or it falls back."""
    fallbacks: tuple[str, ...] = ()
    """Canonical names of models that may answer in its place, the first first."""
    prepared: tuple[bytes, bytes, bytes] | None = None
    """Of a large request: what a worker is sent, around the model's name and the number of its ``num_ctx``."""
    context: int = 0
    """Tokens per slot of the context that the client's ``num_ctx`` is mapped to; zero: it said none."""
    context_class: str = ""
    """What the core is asked for in place of the model: the context class that holds that. Empty: the model itself."""
    guarded: Guarded | None = None
    """Absent of nearly all: so short that nothing had to be counted."""
    thinks_if_it_can: bool = False
    """``think`` is set, and is left out for a model that cannot think instead of being refused."""

    def body(self, num_ctx: int) -> bytes | list[bytes]:
        """What a worker is sent, in one piece or in several."""
        if self.prepared is None:
            return ollama.encode_for_worker(self.native, model=self.asked, num_ctx=num_ctx)
        begin, middle, end = self.prepared
        return [begin, msgspec.json.encode(self.asked), middle, b"%d" % num_ctx, end]

    def for_model(self, name: str) -> "Errand":
        """The same, answered by the model of that canonical name."""
        return msgspec.structs.replace(
            self, name=name, asked=name, redirected=True, guarded=None, context=0, context_class=""
        )

    def fallen_back(self) -> "Errand":
        """The same for the first of its fallbacks."""
        return msgspec.structs.replace(self.for_model(self.fallbacks[0]), fallbacks=self.fallbacks[1:])


def prepare(errand: Errand) -> Errand:
    """The errand with its body encoded ahead: 60 MiB take 40 ms, which must not be those of the event loop."""
    mark = secrets.randbits(48) | 1 << 48  # nothing that a client could have put into his own text
    wish = b""
    native = errand.native
    if errand.thinks_if_it_can:
        wish = _wish(native)
        native = msgspec.structs.replace(native, think=None)
    body = ollama.encode_for_worker(native, model=f"{mark}-", num_ctx=mark)
    begin, name, rest = body.partition(b'"%d-"' % mark)
    middle, number, end = rest.partition(b"%d" % mark)
    assert name and number, "the model and num_ctx are always sent, in this order"
    begin = begin[:1] + wish + begin[1:]  # in front, where it costs nothing to take it out again
    return msgspec.structs.replace(errand, prepared=(begin, middle, end))


def _wish(native: ollama.InferenceRequest) -> bytes:
    """The member ``think`` of a request, as it stands behind the first brace."""
    assert isinstance(native, ollama.ChatRequest), "the only ones whose think is a wish"
    return b'"think":' + msgspec.json.encode(native.think) + b","


def without_thinking(errand: Errand) -> Errand:
    """For a model that cannot think, of an errand that :attr:`Errand.thinks_if_it_can`."""
    assert errand.thinks_if_it_can
    prepared = errand.prepared
    if prepared is not None:
        begin = prepared[0]
        prepared = (begin[:1] + begin[1 + len(_wish(errand.native)) :], *prepared[1:])
    native = msgspec.structs.replace(errand.native, think=None)
    return msgspec.structs.replace(errand, native=native, prepared=prepared, thinks_if_it_can=False)


def errand_for(
    native: ollama.InferenceRequest,
    path: str,
    kind: RequestKind,
    *,
    body: bytes,
    dialect: Dialect,
    translator: Callable[[Stamp], Translator],
) -> Errand:  # tidy: what a parser has found out
    """``path`` is the worker's route, ``body`` the client's, of which only the size counts. Raises InvalidRequest."""
    name = named(native.model)
    load = kind is RequestKind.load
    return Errand(
        dialect=dialect,
        name=name.canonical,
        spelling=name.spelling,
        asked=name.spelling,
        kind=kind,
        stream=not load and ollama.stream_wanted(native),
        native=native,
        upstream_path=path,
        prompt_tokens=estimate_prompt_tokens(len(body)),
        released=load and ollama.is_unload(native),
        translator=translator,
        overridden=ollama.requested_reload_options(native),
    )
