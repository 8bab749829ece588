"""Of several things that are wrong with a request, the one that Ollama would say."""

from collections.abc import Container, Iterable
from typing import Protocol

import msgspec

from bellmare.gateway.errands import native
from bellmare.gateway.naming import Naming
from bellmare.gateway.replies import not_found_text
from bellmare.protocols import ollama
from bellmare.protocols.errors import InvalidRequest


class Names(Iterable[str], Container[str], Protocol):
    """Canonical names of what the fleet stores."""


def first_refusal(error: InvalidRequest, naming: Naming, known: Names) -> InvalidRequest:
    """``error``, or what is wrong with the request's model where Ollama looks at that before."""
    if not isinstance(error, ollama.FoundLater):
        return error
    request = error.request
    try:
        errand = native.errand_of(msgspec.structs.replace(request, options=None))
        if errand.name and naming.meant(errand.name) not in known:
            embedding = isinstance(request, ollama.EmbedRequest | ollama.EmbeddingsRequest)
            text = not_found_text(errand.spelling, errand.name, known, embedding=embedding)
            return InvalidRequest(text, status=404)
        if error.able:
            naming.address(errand)
    except InvalidRequest as first:
        return first
    return error
