"""Who asks, and how urgently: a pseudonym that is stable for this process, and the priority that a header names.

There are no keys of our own yet. What clients send as one is hashed with a secret of this process and never kept,
logged or passed on; only the pseudonym reaches the core and its event log.
"""

import hashlib
import os
from collections.abc import Container

from bellmare.core.events import Priority
from bellmare.http.messages import Request
from bellmare.protocols.errors import InvalidRequest

KEY_HEADERS = (b"authorization", b"x-api-key")
PRIORITY_HEADER = b"x-bellmare-priority"
PSEUDONYM_BYTES = 6
"""12 hex digits: among a thousand tenants two are taken for one with a chance of one in half a billion."""


class Tenants:
    """Names whoever sends a request. ``named``: client addresses for which the operator set a weight."""

    __slots__ = ("_named", "_secret")

    def __init__(self, named: Container[str], secret: bytes | None = None) -> None:
        self._named = named
        self._secret = os.urandom(32) if secret is None else secret

    def name(self, named: Container[str]) -> None:
        """These client addresses have a weight from now on."""
        self._named = named

    def of(self, request: Request) -> str:
        """By the key that the client sent, else by its address; an address that has a weight is called by itself."""
        for header in KEY_HEADERS:
            key = request.header(header)
            if key:
                return self._pseudonym(b"key", key)
        return request.peer if request.peer in self._named else self._pseudonym(b"address", request.peer.encode())

    def _pseudonym(self, kind: bytes, value: bytes) -> str:
        return hashlib.blake2s(value, key=self._secret, person=kind, digest_size=PSEUDONYM_BYTES).hexdigest()


def priority_of(request: Request) -> Priority:
    """What ``X-Bellmare-Priority`` says; normal without it. Raises ``InvalidRequest``."""
    said = request.header(PRIORITY_HEADER)
    if said is None:
        return Priority.normal
    try:
        return Priority(said.decode("latin-1").strip().lower())
    except ValueError:
        raise InvalidRequest("X-Bellmare-Priority must be high, normal or low") from None
