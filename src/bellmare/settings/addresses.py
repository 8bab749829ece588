"""Addresses: where we listen, and where workers are. Names are never resolved here: settings do no I/O."""

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bellmare.settings.problems import quoted
from bellmare.settings.quantities import Parsed

OLLAMA_PORT = 11434
ADDRESS_MAX = 300
"""Longer than any DNS name with a port."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_UNSPECIFIED = {"0.0.0.0", "::"}


class Address(msgspec.Struct, frozen=True):
    """A host without brackets and a port; port 0 is any free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach ``host``. A name other than localhost counts as reachable from outside."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.casefold().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def parse_address(value: object, *, default_port: int) -> Address:
    """``host:port``, ``[v6]:port``, a bare host or IPv6, or a bare port on 127.0.0.1. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Address("127.0.0.1", _port(str(value)))
    text = value.strip() if isinstance(value, str) else ""
    if not text or len(text) > ADDRESS_MAX:
        raise ValueError(f"{quoted(value)} is not an address; say for example 127.0.0.1:{default_port}")
    if _PORT.fullmatch(text):
        return Address("127.0.0.1", _port(text))
    if text.startswith(":"):
        if _is_v6(text):
            _refuse_ambiguous(text)
            return Address(text, default_port)
        raise ValueError(
            f"{quoted(value)} names no host; say 127.0.0.1{text[:7]}, or 0.0.0.0{text[:7]} for all interfaces"
        )
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_v6(host) or (rest and not rest.startswith(":")):
            raise ValueError(f"{quoted(value)} is not an address; an IPv6 address with a port is [::1]:{default_port}")
        return Address(host, _port(rest[1:]) if rest else default_port)
    if text.count(":") > 1:
        if not _is_v6(text):
            raise ValueError(f"{quoted(value)} is not an address; an IPv6 address with a port is [::1]:{default_port}")
        _refuse_ambiguous(text)
        return Address(text, default_port)
    host, colon, port = text.partition(":")
    if "/" in text:
        raise ValueError(f"{quoted(value)} is a URL; an address is host:port")
    _check_host(host, value)
    return Address(host, _port(port) if colon else default_port)


def _refuse_ambiguous(text: str) -> None:
    """``::1:8080`` is a valid IPv6 address, and nobody means it."""
    host, _, last = text.rpartition(":")
    if len(last) == 4 and last.isdigit() and _is_v6(host):
        raise ValueError(f"{quoted(text)} is ambiguous; with a port it is [{host}]:{last}, without one [{text}]")


def _check_host(host: str, value: object) -> None:
    numeric = re.fullmatch(r"[0-9.]+", host, re.ASCII) is not None
    if not _HOST.fullmatch(host) or (numeric and not _is_v4(host)):
        raise ValueError(f"{quoted(value)} has no valid host; say a name, 127.0.0.1 or [::1]")


def _is_v4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _is_v6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError(f"{quoted(text)} is not a port; 0 to 65535")
    return int(text)


class WorkerUrl(msgspec.Struct, frozen=True):
    """Where a worker answers. ``path`` is a prefix without trailing slash, often empty."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"


def parse_worker_url(value: object) -> WorkerUrl:
    """A URL or what OLLAMA_HOST may hold, by Ollama's rules: ``http://h`` is port 80, ``h`` 11434; no TLS.

    A server that listens on all interfaces (0.0.0.0, ::) is reached over loopback. Raises ValueError.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text or len(text) > ADDRESS_MAX:
        raise ValueError(f"{quoted(value)} is not the URL of a worker; say for example http://127.0.0.1:{OLLAMA_PORT}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest, default_port = "http", text, OLLAMA_PORT
    elif scheme.casefold() == "http":
        scheme, default_port = "http", 80
    elif scheme.casefold() == "https":
        raise ValueError(f"{quoted(value)} wants TLS, which is not spoken to workers yet; use http")
    else:
        raise ValueError(f"{quoted(value)} has the scheme {quoted(scheme)}; workers speak http")
    parts = urlsplit(f"//{rest}")
    if "@" in parts.netloc:
        raise ValueError("a worker's URL holds no user or password: settings are shown in logs and reports")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", rest):
        raise ValueError(f"{quoted(value)} is not the URL of a worker: no query, fragment or white space")
    host_and_port = f"127.0.0.1{parts.netloc}" if re.fullmatch(r":[0-9]+", parts.netloc) else parts.netloc
    address = parse_address(
        f"{host_and_port}:{default_port}" if host_and_port.isdigit() else host_and_port, default_port=default_port
    )
    if address.port == 0:
        raise ValueError(f"{quoted(value)} has port 0; a worker is at a definite port")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return WorkerUrl(scheme, host.casefold(), address.port, parts.path.rstrip("/"))


class AddressKind(Parsed, msgspec.Struct, frozen=True):
    default_port: int

    def parse(self, value: object) -> Address:
        return value if isinstance(value, Address) else parse_address(value, default_port=self.default_port)

    def show(self, value: Address) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {
            "description": "host:port, [v6]:port, a host, or a port on 127.0.0.1",
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": ADDRESS_MAX},
                {"type": "integer", "minimum": 0, "maximum": 65535},
            ],
        }


class WorkerUrlKind(Parsed, msgspec.Struct, frozen=True):
    def parse(self, value: object) -> WorkerUrl:
        return value if isinstance(value, WorkerUrl) else parse_worker_url(value)

    def show(self, value: WorkerUrl) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {
            "description": "http://host:port, host:port or a host (port 11434)",
            "type": "string",
            "minLength": 1,
            "maxLength": ADDRESS_MAX,
        }
