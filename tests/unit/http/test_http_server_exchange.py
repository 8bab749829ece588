"""Answers: framing, keep-alive, HTTP/1.0, HEAD, pipelining, and that an exchange ends exactly once."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from http_peers import App, Listener, RawClient, happens

from bellmare.http.messages import Refusal

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_one_connection_serves_many_requests(serve) -> None:
    app = App()
    server = await serve(app)
    client = await RawClient.open(server.port)
    for n in range(5):
        client.send(b"POST /%d?q=1 HTTP/1.1\r\nHost: a\r\nX-A:  b \r\nContent-Length: 3\r\n\r\nabc" % n)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"abc")
        assert "connection" not in answer.headers
    request = app.requests[4]
    assert (request.method, request.target, request.path, request.query) == ("POST", "/4?q=1", "/4", "q=1")
    assert (request.header(b"x-a"), request.header(b"no"), request.body) == (b"b", None, b"abc")
    assert request.peer == "127.0.0.1"
    assert server.connections == 1
    await client.close()


async def test_a_request_may_be_split_at_every_byte(serve) -> None:
    app = App()
    server = await serve(app)
    plain = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    chunked = (
        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nbo\r\n2\r\ndy\r\n0\r\nt: u\r\n\r\n"
    )
    client = await RawClient.open(server.port)
    for request in (plain, chunked):
        for cut in range(1, len(request)):
            client.send(request[:cut])
            # A second connection's answer proves that the server has read the first part.
            probe = await RawClient.open(server.port)
            probe.send(GET % 0)
            await probe.answer()
            await probe.close()
            client.send(request[cut:])
            assert (await client.answer()).body == b"body"
    assert len([r for r in app.requests if r.method == "POST"]) == len(plain) + len(chunked) - 2
    await client.close()


async def test_a_request_may_come_byte_by_byte(serve) -> None:
    server = await serve(App())
    client = await RawClient.open(server.port)
    client.writer.transport.set_write_buffer_limits(0)
    for byte in b"\r\nPOST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n":
        client.send(bytes([byte]))
        await client.writer.drain()
    assert (await client.answer()).body == b"x"
    await client.close()


@pytest.mark.parametrize(
    ("version", "connection", "sent", "kept"),
    [
        (b"HTTP/1.1", b"", None, True),
        (b"HTTP/1.1", b"Connection: close\r\n", "close", False),
        (b"HTTP/1.1", b"Connection: Keep-Alive, CLOSE\r\n", "close", False),
        (b"HTTP/1.1", b"Connection: x\r\nConnection: close\r\n", "close", False),
        (b"HTTP/1.0", b"", "close", False),
        (b"HTTP/1.0", b"Connection: keep-alive\r\n", "keep-alive", True),
    ],
)
async def test_the_connection_header_says_what_happens(version, connection, sent, kept, serve) -> None:
    server = await serve(App())
    client = await RawClient.open(server.port)
    for _ in range(2 if kept else 1):
        client.send(b"GET / %b\r\nHost: a\r\n%b\r\n" % (version, connection))
        answer = await client.answer()
        assert answer.headers.get("connection") == sent
        assert answer.body == b"ok"
    if not kept:
        assert await client.rest() == b""
    await client.close()


async def test_a_stream_is_sent_chunk_by_chunk_in_order(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 1)
    exchange = await app.exchange()
    exchange.start(200, [(b"content-type", b"application/x-ndjson")])
    lines = [b'{"n":%d}\n' % n for n in range(200)]
    for line in lines:
        exchange.write(line)
        exchange.write(b"")
    assert (exchange.started, exchange.finished, exchange.paused) == (True, False, False)
    exchange.finish()
    assert exchange.finished
    answer = await client.answer()
    assert answer.chunks == lines
    assert answer.headers["content-type"] == "application/x-ndjson"
    client.send(GET % 2)
    (await app.exchange()).respond(204, [], b"")
    answer = await client.answer()
    assert (answer.status, list(answer.headers)) == (204, ["date"])
    await client.close()


async def test_a_stream_to_http_1_0_ends_with_the_connection(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    exchange = await app.exchange()
    exchange.start(200, [])
    exchange.write(b"a")
    exchange.write(b"b")
    exchange.finish()
    answer = await client.answer()
    assert (list(answer.headers), answer.headers["connection"]) == (["date", "connection"], "close")
    assert answer.body == b"ab"
    await client.close()


async def test_head_has_the_length_and_no_body(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + GET % 1)
    (await app.exchange()).respond(200, [], b"Ollama is running")
    streamed = await app.exchange()
    streamed.start(200, [])
    streamed.write(b"x")
    streamed.finish()
    (await app.exchange()).respond(200, [], b"ok")
    assert (await client.answer(head_only=True)).headers["content-length"] == "17"
    assert list((await client.answer(head_only=True)).headers) == ["transfer-encoding", "date"]
    assert (await client.answer()).body == b"ok"
    await client.close()


async def test_pipelined_requests_are_answered_one_at_a_time_and_in_order(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(b"".join(GET % n for n in range(50)))
    for n in range(50):
        exchange = await app.exchange()
        assert exchange.request.path == f"/{n}"
        assert app.exchanges.empty()
        exchange.respond(200, [], b"%d" % n)
    assert [(await client.answer()).body for _ in range(50)] == [b"%d" % n for n in range(50)]
    await client.close()


async def test_a_thousand_pipelined_requests_answered_at_once_need_no_deep_stack(serve) -> None:
    app = App()
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(b"".join(GET % n for n in range(1000)))
    for n in range(1000):
        assert (await client.answer()).headers["x-path"] == f"/{n}"
    await client.close()


async def test_pipelined_bytes_are_bounded(serve) -> None:
    app = App(auto=False)
    server = await serve(app, pipelined_bytes_max=4096)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    first = await app.exchange()
    body = bytes(30_000_000)
    app.verdict = len(body)
    client.send(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    # The server has read what it wants once a second connection, opened later, is served.
    for _ in range(3):
        probe = await RawClient.open(server.port)
        probe.send(GET % 9)
        (await app.exchange()).respond(200, [], b"")
        await probe.answer()
        await probe.close()
    assert client.writer.transport.get_write_buffer_size() > 15_000_000
    first.respond(200, [], b"")
    second = await app.exchange()
    assert second.request.body == body
    second.respond(200, [], b"")
    await client.close()


async def test_calls_after_the_end_do_nothing(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    exchange = await app.exchange()
    exchange.respond(200, [], b"one")
    exchange.respond(200, [], b"two")
    exchange.start(200, [])
    exchange.write(b"three")
    exchange.finish()
    exchange.abort()
    client.send(GET % 1)
    (await app.exchange()).respond(200, [], b"four")
    assert [(await client.answer()).body for _ in range(2)] == [b"one", b"four"]
    await client.close()


async def test_an_aborted_stream_has_no_last_chunk_and_no_callback(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    exchange.start(200, [])
    exchange.write(b"x")
    await client.reader.readuntil(b"x\r\n")
    exchange.abort()
    exchange.write(b"y")
    exchange.finish()
    assert await client.rest() == b""
    assert listener.events == []
    assert (exchange.finished, exchange.disconnected) == (True, False)
    await client.close()


@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
@pytest.mark.parametrize("started", [False, True])
async def test_a_client_that_leaves_is_noticed_while_its_request_runs(way: str, started: bool, serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    if started:
        exchange.start(200, [])
        exchange.write(b"x")
    if way == "close":
        await client.close()
    else:
        getattr(client, way)()
    await happens(listener.left)
    assert (exchange.disconnected, exchange.finished) == (True, False)
    exchange.write(b"late")
    exchange.respond(200, [], b"late")
    exchange.finish()
    exchange.abort()
    assert listener.events == ["disconnect"]
    await client.close()


async def test_a_header_with_a_line_break_is_our_bug_and_never_sent(serve, loop_errors) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    exchange = await app.exchange()
    with pytest.raises(AssertionError):
        exchange.start(200, [(b"x-id", b"a\r\nset-cookie: b")])
    exchange.abort()
    assert await client.rest() == b""
    await client.close()


async def test_an_application_that_raises_costs_one_request(serve, loop_errors) -> None:
    class Broken(App):
        def on_request(self, exchange) -> None:
            if exchange.request.path == "/1":
                exchange.start(200, [])
            raise RuntimeError("bug")

    server = await serve(Broken())
    for n, status in ((0, 500), (1, None)):
        client = await RawClient.open(server.port)
        client.send(GET % n)
        if status:
            assert (await client.answer()).status == status
        assert b"0\r\n\r\n" not in await client.rest()
        await client.close()
    assert [str(error["exception"]) for error in loop_errors] == ["bug", "bug"]
    loop_errors.clear()


async def test_a_refusal_keeps_the_connection_unless_a_body_would_follow(serve) -> None:
    app = App()
    app.verdict = Refusal(401, ((b"www-authenticate", b"Bearer"),), b"no key")
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET % 0 + b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.body, answer.headers["www-authenticate"]) == (401, b"no key", "Bearer")
    assert (await client.answer(head_only=True)).headers["content-length"] == "6"
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert await client.rest() == b""
    await client.close()

    app.verdict = Refusal(403, close=True)
    client = await RawClient.open(server.port)
    client.send(GET % 0)
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.rest() == b""
    await client.close()
    assert app.requests == []


async def test_every_answer_says_the_time(serve) -> None:
    """A server with a clock must (RFC 9110 6.6.1)."""
    server = await serve(App())
    for request in (GET % 1, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n"):
        client = await RawClient.open(server.port)
        before = datetime.now(UTC)
        client.send(request)
        said = parsedate_to_datetime((await client.answer(head_only=True)).headers["date"])
        assert abs(said - before) < timedelta(seconds=30)
        await client.close()
