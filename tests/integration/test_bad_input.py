"""What a client may get wrong is refused by the gateway, in the dialect of the path, and no worker hears of it."""

import asyncio
import json

import pytest
from rig import Gateway, Talk, open_talk

from bellmare.core.events import RequestArrived

MESSAGES = [{"role": "user", "content": "hi"}]
NATIVE = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")
CHAT = "/v1/chat/completions"
DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture
async def running(sim, gateway):
    """A gateway with a small limit on bodies; afterwards its worker has not been asked for anything."""
    worker = await sim()
    started = await gateway(worker.port, limits={"body": "64KiB"})
    yield started
    counters = await worker.counters()
    untouched = ("granted_total", "loads", "unloads_asked", "failed_total", "cancelled_total", "queued_total")
    assert {name: counters[name] for name in untouched} == dict.fromkeys(untouched, 0)
    assert started.driver.requests == 0


def body(path: str, **more) -> bytes:
    """A valid body for ``path``, with ``more``."""
    said = {"messages": MESSAGES} if "chat" in path else {"input": "x"} if path == "/api/embed" else {"prompt": "x"}
    return json.dumps({"model": "a:1", **said} | more).encode()


async def refused(running: Gateway, path: str, data: bytes, *, status: int = 400) -> str:
    """Send ``data``; demand ``status`` in the path's own shape, and return the text."""
    reply = await running.post(path, data)
    assert reply.status == status, (path, data[:200], reply.status, reply.body[:300])
    assert reply.headers["content-type"].startswith("application/json")
    error = reply.json["error"]
    if path.startswith("/v1"):
        kinds = {400: "invalid_request_error", 403: "permission_error", 404: "not_found_error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == kinds.get(status, "invalid_request_error")
        return error["message"]
    assert reply.json.keys() == {"error"}
    return error


@pytest.mark.parametrize("path", [*NATIVE, CHAT, "/api/show"])
@pytest.mark.parametrize(
    "data",
    [b"", b"   ", b"{", b"null", b"[]", b'"a"', b"{}{}", b'{"model":}', b"{'model':'a'}", b'{"model":"a:1"} x',
     b'{"model":NaN}', b'{"model":"\\ud800"}', b'{"model":"\xff"}', b"\xef\xbb\xbf{}", b"\x00", b'{"model":"a:1",}'],
)  # fmt: skip
async def test_what_is_no_json_object_is_refused(running, path, data):
    assert await refused(running, path, data)


@pytest.mark.parametrize("path", [*NATIVE, CHAT, "/api/show"])
async def test_a_body_without_a_model_is_refused(running, path):
    for data in (b"{}", body(path, model=""), body(path, model="  "), body(path, model=None)):
        status = 404 if path in ("/api/generate", "/api/embed") else 400  # as Ollama
        assert "model" in await refused(running, path, data, status=status)


@pytest.mark.parametrize("path", [*NATIVE, CHAT, "/api/show"])
async def test_a_model_that_is_no_name_is_refused(running, path):
    for name in (5, True, ["a:1"], {"name": "a:1"}):
        await refused(running, path, body(path, model=name))
    for name in ("a b", "../../etc/passwd", "a:1@sha256:00", "a\u212a:1", "x" * 5000, "a:1:2", "-a", "a//b"):
        assert await refused(running, path, body(path, model=name)) == "invalid model name"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/api/generate", {"prompt": 5}),
        ("/api/generate", {"stream": "yes"}),
        ("/api/generate", {"context": "x"}),
        ("/api/generate", {"images": ["not base64!"]}),
        ("/api/generate", {"format": "yaml"}),
        ("/api/generate", {"think": 5}),
        ("/api/generate", {"keep_alive": "300"}),
        ("/api/generate", {"keep_alive": True}),
        ("/api/chat", {"messages": "x"}),
        ("/api/chat", {"messages": ["x"]}),
        ("/api/chat", {"top_logprobs": 99, "logprobs": True}),
        ("/api/embed", {"input": 5}),
        ("/api/embed", {"input": [5]}),
        ("/api/embed", {"input": ["x"] * 10_001}),
        ("/api/embeddings", {"prompt": ["x"]}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": None}),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}),
        (CHAT, {"stream": "yes"}),
        (CHAT, {"max_tokens": "many"}),
        (CHAT, {"temperature": "hot"}),
        (CHAT, {"n": 2}),
        (CHAT, {"stream_options": 5}),
    ],
)
async def test_a_field_of_the_wrong_kind_is_refused(running, path, wrong):
    assert await refused(running, path, body(path, **wrong))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("value", ["8192", True, [], {}, 10**30])
async def test_a_num_ctx_of_the_wrong_kind_is_refused(running, path, value):
    text = await refused(running, path, body(path, options={"num_ctx": value}), status=500)  # Ollama's (ollama.md 1.4)
    assert "num_ctx" in text


@pytest.mark.parametrize("path", [*NATIVE, CHAT])
async def test_a_key_twice_or_in_another_case_is_refused(running, path):
    valid = body(path)
    for extra in (b'"model":"b:1"', b'"Model":"b:1"', b'"MODEL":"b:1"', b'"x":1,"X":2', b'"x":1,"x":2'):
        await refused(running, path, valid[:-1] + b"," + extra + b"}")
    if path != CHAT:
        await refused(running, path, valid[:-1] + ',"\u212aeep_alive":0}'.encode())


@pytest.mark.parametrize("path", [*NATIVE, CHAT])
async def test_deep_nesting_is_refused_and_costs_nothing(running, path):
    valid = body(path)[:-1]
    for field in ("x", "options", "format", "tools", "model", "messages", "input"):
        data = valid + f',"{field}":{DEEP}}}'.encode()
        await refused(running, path, data)
    for field, value in (("options", '{"x":' * 100 + "1" + "}" * 100), ("format", '{"x":' * 100 + "1" + "}" * 100)):
        if path in ("/api/generate", "/api/chat"):
            await refused(running, path, valid + f',"{field}":{value}}}'.encode())


@pytest.mark.parametrize("path", [*NATIVE, CHAT])
async def test_a_body_over_the_limit_is_refused_before_it_is_read(running, path):
    assert await refused(running, path, body(path, system="x" * 70_000), status=413)
    talk = await open_talk(running.port, "POST", path, headers={"content-length": str(10**12)})
    assert await talk.head() == 413
    assert json.loads(await talk.rest())["error"]
    talk.leave()


async def test_a_route_that_is_not_served_is_a_404_in_its_dialect(running):
    for path in ("/api/abort", "/api/bellmare", "/api/chat/"):
        reply = await running.post(path, {})
        assert (reply.status, reply.json.keys()) == (404, {"error"}), path
    for path in ("/v1/images/generations", "/v1/x", "/v1/responses/resp_1"):
        reply = await running.post(path, {"model": "a:1"})
        assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error"), path
    for path in ("/index.html", "/sim/fault", "/metrics", "/api/v1"):
        reply = await running.ask("GET", path)
        plain = not path.startswith("/api/")
        assert (reply.status, reply.headers["content-type"].startswith("text/plain")) == (404, plain)


async def test_a_wrong_method_is_a_405_that_names_the_right_ones(running):
    for method, path, allowed in (
        ("GET", "/api/chat", "POST"),
        ("DELETE", "/api/generate", "POST"),
        ("PUT", CHAT, "POST"),
        ("POST", "/api/tags", "GET, HEAD"),
        ("POST", "/api/ps", "GET"),
        ("DELETE", "/v1/models/a:1", "GET"),
        ("POST", "/v1/models", "GET"),
        ("OPTIONS", "/api/chat", "POST"),
    ):
        reply = await running.ask(method, path)
        assert (reply.status, reply.headers["allow"]) == (405, allowed), (method, path)
        assert reply.json["error"]


@pytest.mark.parametrize("path", [*NATIVE, CHAT, "/api/show"])
async def test_an_unknown_model_is_a_404_with_close_names(running, path):
    text = await refused(running, path, body(path, model="a:2"), status=404)
    assert text.startswith('model "a:2" not found' if "embed" in path else "model 'a:2' not found")
    assert "'a:1'" in text
    assert "did you mean" not in await refused(running, path, body(path, model="zzzzzz:9"), status=404)


async def test_an_unknown_model_is_a_404_in_the_list_too(running):
    reply = await running.ask("GET", "/v1/models/a:2")
    assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error")
    assert "'a:1'" in reply.error
    assert (await running.ask("GET", "/v1/models/a:1")).json["id"] == "a:1"


@pytest.mark.parametrize("path", [*NATIVE, CHAT])
async def test_a_cloud_model_is_forbidden(running, path):
    for name in ("a:cloud", "gpt-oss:120b-cloud", "a:1:cloud", "A:CLOUD"):
        assert "ollama.com" in await refused(running, path, body(path, model=name), status=403)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("content-length: 5\r\ncontent-length: 6", 400),
        ("content-length: 5\r\ntransfer-encoding: chunked", 400),
        ("content-length: -1", 400),
        ("content-length: +5", 400),
        ("content-length: 5, 6", 400),
        ("content-length: 0x10", 400),
        ("transfer-encoding: gzip, chunked", 400),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", 400),
        ("transfer-encoding: gzip", 501),
        ("content-length: 5\r\ncontent-encoding: gzip", 415),
        ("content-length: 5\r\nhost: b", 400),
        ("content-length: 5\r\nx : y", 400),
        ("content-length: 5\r\nx: a\r\n b", 400),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", CHAT])
async def test_an_ambiguous_head_is_refused_and_the_connection_ends(running, path, headers, status):
    talk = await raw(running.port, f"POST {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n{{}}xyz")
    assert await talk.head() == status
    answer = await talk.rest()
    assert talk.complete
    assert talk.headers["connection"] == "close"
    assert json.loads(answer)["error"]
    talk.leave()


async def raw(port: int, text: str):
    """Bytes as they are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    return Talk(reader, writer)


async def test_nothing_of_it_reached_the_core_but_names_that_nobody_stores(running):
    for path in (*NATIVE, CHAT):
        for data in (b"{", body(path, model="a:cloud"), body(path, model="a b")):
            await running.post(path, data)
    assert running.events(RequestArrived) == []
    await running.post("/api/chat", body("/api/chat", model="nobody:1"))
    assert [event.name for event in running.events(RequestArrived)] == ["nobody:1"]


async def test_a_web_page_of_somebody_else_gets_nothing(sim, gateway):
    """DNS rebinding and foreign origins are refused as Ollama refuses them: 403, empty (ollama.md 1.7)."""
    worker = await sim()
    running = await gateway(worker.port)
    body = b'{"model":"a:1","messages":[]}'
    for lines in (b"host: evil.example", b"host: localhost\r\norigin: http://evil.example"):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = b"POST /api/chat HTTP/1.1\r\n" + lines + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        async with asyncio.timeout(5):
            answer = await reader.read(4096)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"content-length: 0" in answer
        writer.close()
        await writer.wait_closed()
