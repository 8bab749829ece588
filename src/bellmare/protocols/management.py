"""Requests that change what workers store: pull, push, create, copy, delete (ollama.md 1.4, 6).

Fields that we do not know pass through: what a Modelfile may say is Ollama's business. Names are checked here.
"""

import re
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import check_depth, check_object, decode_as
from bellmare.protocols.names import canonical_name, is_cloud_name

DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_DROPPED = frozenset({"name", "stream", "username", "password"})
"""``name`` is the old word for ``model``; whether the client wants a stream is ours to serve; the others are ignored
by Ollama, and nobody's password need go to a worker."""
_KNOWN = _DROPPED | {"model", "source", "destination", "insecure", "from", "files", "adapters"}
_decoder = msgspec.json.Decoder(dict[str, Any])


class Change(msgspec.Struct, frozen=True):
    """One checked request."""

    name: str
    """Canonical: the model that comes, leaves or is copied to; of a push the one that is read."""
    spelling: str
    """As the client wrote it."""
    fields: dict[str, Any]
    """What a worker is sent."""
    stream: bool = True
    source: str = ""
    """Canonical, of a copy."""

    def body(self, **fields: Any) -> bytes:
        """For a worker."""
        return msgspec.json.encode({**self.fields, **fields})


def _fields(body: bytes) -> dict[str, Any]:
    check_object(body, known=_KNOWN)
    fields = decode_as(body, _decoder)
    check_depth(fields, "the request")
    return fields


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"invalid request: {name} must be a string")
    return value or ""


def _canonical(spelling: str, invalid: str) -> str:
    if is_cloud_name(spelling):
        raise InvalidRequest(f"'{spelling[:200]}' runs on ollama.com, which this gateway does not use", status=403)
    try:
        return canonical_name(spelling)
    except InvalidRequest:
        raise InvalidRequest(invalid) from None


def parse_change(body: bytes) -> Change:
    """POST /api/pull, /api/push and /api/create, DELETE /api/delete. Raises :class:`InvalidRequest`."""
    fields = _fields(body)
    spelling = _text(fields, "model") or _text(fields, "name")
    if not spelling.strip():
        raise InvalidRequest("model is required")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("invalid request: stream must be a boolean")
    kept = {name: value for name, value in fields.items() if name not in _DROPPED}
    kept["model"] = spelling
    name = _canonical(spelling, "invalid model name")
    return Change(name=name, spelling=spelling, fields=kept, stream=stream is not False)


def parse_copy(body: bytes) -> Change:
    """POST /api/copy. Raises :class:`InvalidRequest`."""
    fields = _fields(body)
    source, destination = _text(fields, "source"), _text(fields, "destination")
    found = _canonical(source, f'source "{source[:200]}" is invalid')
    name = _canonical(destination, f'destination "{destination[:200]}" is invalid')
    return Change(name=name, spelling=source, fields={"source": source, "destination": destination}, source=found)


def parse_digest(text: str) -> str:
    """The digest of a blob's path, with a colon. Raises :class:`InvalidRequest`."""
    if not DIGEST.fullmatch(text):
        raise InvalidRequest("invalid digest format")
    return text.replace("-", ":", 1)
