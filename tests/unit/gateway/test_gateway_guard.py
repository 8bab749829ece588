"""Web pages do not get in: Host and Origin as Ollama judges them (ollama.md 1.7)."""

import socket
import time

import pytest

from bellmare.gateway.guard import KNOWN_MAX, Guard
from bellmare.http.messages import Request


def request(host: str, origin: str | None = None) -> Request:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    return Request("POST", "/api/chat", headers=headers, peer="127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:11435",
        "127.0.0.1:1",
        "[::1]:11435",
        "192.168.1.4",
        "10.0.0.1:80",
        "gw.local",
        "x.internal",
    ],
)
def test_hosts_of_this_machine_and_network_pass(host: str) -> None:
    assert Guard(loopback=True).lets_pass(request(host))
    assert Guard(loopback=True).lets_pass(request(socket.gethostname()))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:11435", "8.8.8.8", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_foreign_hosts_are_rebinding_on_loopback_and_nobodys_business_elsewhere(host: str) -> None:
    assert not Guard(loopback=True).lets_pass(request(host))
    assert Guard(loopback=False).lets_pass(request(host))


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://127.0.0.1", "http://0.0.0.0:8", "app://obsidian.md", "tauri://localhost"],
)
def test_origins_that_ollama_allows_pass(origin: str) -> None:
    assert Guard(loopback=True).lets_pass(request("localhost", origin))


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://localhost.evil.example", "null", "http://localhost@evil.example", ""]
)
def test_foreign_origins_do_not(origin: str) -> None:
    assert not Guard(loopback=True).lets_pass(request("localhost", origin))
    assert not Guard(loopback=False).lets_pass(request("gw.example", origin))


def test_a_page_of_the_gateways_own_host_passes() -> None:
    assert Guard(loopback=False).lets_pass(request("gw.example:8443", "https://gw.example:8443"))


def test_the_memory_of_judged_hosts_is_bounded() -> None:
    guard = Guard(loopback=True)
    for number in range(KNOWN_MAX + 50):
        guard.lets_pass(request(f"h{number}.example"))
    assert len(guard._known) == KNOWN_MAX


@pytest.mark.parametrize(
    ("pattern", "origin", "passes"),
    [
        ("https://*.example", "https://a.example", True),
        ("https://*.example", "https://.example", True),
        ("https://*.example", "https://example", False),
        ("https://*.Example", "HTTPS://A.EXAMPLE", True),
        ("https://*.a.*.b", "https://x.a.y.b", True),
        ("https://*.a.*.b", "https://x.a.b", False),
        ("https://a*a", "https://a", False),
        ("*", "anything://at.all", True),
        ("*", "two words", False),
        ("https://*", "https://a b", False),
        ("https://fixed", "https://fixed", True),
        ("https://fixed", "https://fixed.evil", False),
        ("https://a.b", "https://aXb", False),
        ("*.b", "x.b.c", False),
    ],
)
def test_a_star_is_anything_but_blanks(pattern: str, origin: str, passes: bool) -> None:
    guard = Guard(loopback=False, origins=[pattern])
    assert guard.lets_pass(request("gw.example", origin)) is passes


def test_no_origin_costs_more_than_its_length() -> None:
    guard = Guard(loopback=False, origins=["https://*.*.*.*.*x"])
    began = time.perf_counter()
    assert not guard.lets_pass(request("gw.example", "https://" + "." * 8000))
    assert time.perf_counter() - began < 1, "minutes, if all combinations were tried"
