"""What a browser is told: pages of this machine and those that the operator names may use the gateway, no others."""

from __future__ import annotations

import asyncio

import pytest

PAGE = "http://localhost:3000"
ASKING = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
PATHS = ["/api/chat", "/v1/chat/completions", "/v1/messages", "/api/tags", "/nowhere"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_browser_may_ask_before_it_sends(path, sim, gateway):
    running = await gateway((await sim()).port)
    reply = await running.ask("OPTIONS", path, None, **ASKING)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]
    allowed = reply.headers["access-control-allow-headers"].lower().split(",")
    assert {"authorization", "content-type", "x-api-key", "anthropic-version", "openai-beta"} <= set(allowed)


async def test_every_answer_may_be_read_by_its_page(sim, gateway):
    running = await gateway((await sim()).port)
    for stream in (True, False):
        reply = await running.chat("a:1", stream=stream)
        assert "access-control-allow-origin" not in reply.headers, "no page asked"
        body = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        for path in ("/api/chat", "/v1/chat/completions"):
            reply = await running.post(path, body, origin=PAGE)
            assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, PAGE)
            assert reply.headers["vary"] == "Origin"
    for method, path, sent in (("GET", "/api/tags", None), ("POST", "/api/chat", b"{"), ("GET", "/no", None)):
        reply = await running.ask(method, path, sent, origin=PAGE)
        assert reply.headers["access-control-allow-origin"] == PAGE, (reply.status, path)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://chat.example.com.evil.example"])
async def test_a_foreign_page_gets_nothing(origin, sim, gateway):
    running = await gateway((await sim()).port, origins=["https://chat.example.com", "https://*.corp.example"])
    for method, headers in (("OPTIONS", ASKING), ("POST", {})):
        reply = await running.ask(method, "/api/chat", None, **{**headers, "origin": origin})
        assert (reply.status, reply.body) == (403, b"")
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["https://chat.example.com", "https://a.b.corp.example"])
async def test_pages_that_the_operator_names_are_let_in(origin, sim, gateway):
    running = await gateway((await sim()).port, origins=["https://chat.example.com", "https://*.corp.example"])
    reply = await running.ask("OPTIONS", "/api/chat", None, **{**ASKING, "origin": origin})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, origin)


async def test_a_star_lets_all_in_as_at_ollama(sim, gateway):
    running = await gateway((await sim()).port, origins=["*"])
    reply = await running.ask("GET", "/api/version", None, origin="https://anybody.example")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://anybody.example")


async def test_an_origin_that_is_taken_away_is_out_at_once_also_on_a_connection_that_is_open(sim, gateway):
    running = await gateway((await sim()).port, origins=["https://chat.example.com"])
    body = b'{"model":"a:1","messages":[{"role":"user","content":"x"}],"stream":false}'
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

    async def again() -> bytes:
        writer.write(
            b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\norigin: https://chat.example.com\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return head

    assert b" 200 " in await again()
    assert b" 200 " in await again()
    running.service.gateway.guard.allow(())
    head = await again()
    assert b" 403 " in head
    assert b"allow-origin" not in head.lower()
    writer.close()


async def test_a_page_that_says_it_is_ours_may_not_change_models(sim, gateway):
    running = await gateway((await sim()).port, manage=["127.0.0.1"])
    running.service.gateway.guard._loopback = False  # as on a listener for all
    own = {"host": "rebound.example:80", "origin": "http://rebound.example:80"}
    chat = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": False}
    assert (await running.post("/api/chat", chat, **own)).status == 200, "as at Ollama"
    assert (await running.ask("DELETE", "/api/delete", {"model": "a:1"}, **own)).status == 403
    page = {"host": "rebound.example:80", "origin": PAGE}
    assert (await running.post("/api/copy", {"source": "a:1", "destination": "m"}, **page)).status == 200
