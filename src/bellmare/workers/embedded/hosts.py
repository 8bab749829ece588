"""Refuses what a web page could send to a server on this machine, as Ollama does (ollama.md 1.7)."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from bellmare.http.messages import Request

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def is_foreign(request: Request, *, check_host: bool) -> bool:
    """Whether the Origin is another site's, or the Host is a public name (an attacker's name that resolves to us)."""
    origin = request.header(b"origin")
    if origin is not None and not _is_local_origin(origin.decode("latin-1")):
        return True
    host = request.header(b"host")
    return check_host and host is not None and not _is_local_host(host.decode("latin-1"))


def _is_local_origin(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_address(host, loopback_only=True)


def _is_local_host(authority: str) -> bool:
    try:
        host = urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return False
    if not host or host == "localhost" or "." not in host.rstrip("."):
        return True  # a bare machine name cannot be registered by anybody
    return host.endswith(_LOCAL_SUFFIXES) or _is_address(host, loopback_only=False)


def _is_address(host: str, *, loopback_only: bool) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or (address.is_private and not loopback_only)
