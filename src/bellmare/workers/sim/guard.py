"""Ollama's Host and Origin rule (ollama.md 1.7): who may speak to a server on a loopback address."""

import ipaddress
from urllib.parse import urlsplit

_HOST_SUFFIXES = (".localhost", ".local", ".internal")
_ORIGIN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")


def host_allowed(value: bytes | None) -> bool:
    """A loopback, private or unspecified address, nothing, or a local name."""
    host = (value or b"").decode("latin-1")
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    host = host.lower()
    if host in ("", "localhost") or host.endswith(_HOST_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def origin_allowed(value: bytes | None) -> bool:
    """Pages of this machine and applications; no browser extension, no other site."""
    if not value:
        return True
    origin = urlsplit(value.decode("latin-1"))
    if origin.scheme in _ORIGIN_SCHEMES:
        return True
    return origin.scheme in ("http", "https") and origin.hostname in ("localhost", "127.0.0.1", "0.0.0.0")
