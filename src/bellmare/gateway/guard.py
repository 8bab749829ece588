"""Keeps web pages out: what Ollama itself does with Host and Origin (ollama.md 1.7), so that a gateway on loopback is
not easier to reach from a browser than the server behind it."""

import ipaddress
import re
import socket
from collections.abc import Sequence

from bellmare.http.messages import Request

_ORIGINS = re.compile(
    rb"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d{1,5})?"
    rb"|(app|file|tauri|vscode-webview|vscode-file)://[^\s]*",
    re.IGNORECASE,
)
_BLANK = re.compile(rb"\s")
_LOCAL_ENDINGS = (".localhost", ".local", ".internal")


class Guard:
    """Judges a head. ``loopback``: the listener is reached from this machine only, so foreign Hosts are rebinding.

    ``origins``: let in beside Ollama's own, with ``*`` for any part, as in OLLAMA_ORIGINS.
    """

    def __init__(self, *, loopback: bool, origins: Sequence[str] = ()) -> None:
        self._loopback = loopback
        self._origins: list[list[bytes]] = []
        """What stands between the ``*`` of each."""
        self.allow(origins)
        self._hostname = socket.gethostname().lower()
        self._known: dict[bytes, bool] = {}
        """Hosts judged before; the newest ``KNOWN_MAX``."""

    def allow(self, origins: Sequence[str]) -> None:
        """These origins are let in from now on, beside Ollama's own."""
        self._origins = [origin.lower().encode().split(b"*") for origin in origins]

    def lets_pass(self, request: Request) -> bool:
        """Whether neither Host nor Origin speaks of a foreign page."""
        origin = request.header(b"origin")
        if origin is not None and not self._own_origin(origin, request.header(b"host") or b""):
            return False
        return not self._loopback or self._local(request.header(b"host") or b"")

    def _own_origin(self, origin: bytes, host: bytes) -> bool:
        """An allowed origin, or the page's own server: ours."""
        return origin.partition(b"://")[2] == host != b"" or self.names(origin)

    def names(self, origin: bytes) -> bool:
        """Whether the origin is one of Ollama's own or was named by the operator.

        That a page's origin equals Host says nothing: we serve no pages, and a page whose name was bound to our
        address a moment ago (DNS rebinding) says so, too.
        """
        if _ORIGINS.fullmatch(origin) is not None:
            return True
        if not self._origins or _BLANK.search(origin) is not None:
            return False
        return any(_holds_in_order(origin.lower(), parts) for parts in self._origins)

    def _local(self, host: bytes) -> bool:
        verdict = self._known.get(host)
        if verdict is None:
            verdict = self._known[host] = self._judge(host.decode("latin-1").lower())
            if len(self._known) > KNOWN_MAX:
                del self._known[next(iter(self._known))]
        return verdict

    def _judge(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name in ("", "localhost", self._hostname) or name.endswith(_LOCAL_ENDINGS):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_private or address.is_unspecified


def _holds_in_order(text: bytes, parts: list[bytes]) -> bool:
    """Whether ``text`` is these parts with anything between them.

    In one go: a regular expression tries all combinations, minutes for an origin of 8 KiB and five ``*``.
    """
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return text == first
    at, end = len(first), len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last) or at > end:
        return False
    for part in parts[1:-1]:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


KNOWN_MAX = 1000
LOOPBACK_GUARD = Guard(loopback=True)
