"""Sizes, speeds and counts: every bound is met and answered with its status; a slow client costs little."""

import asyncio
import socket

import pytest
from http_peers import WAIT_S, App, Listener, RawClient, happens

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

TOO_LARGE = {
    "target": (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target, endless": (414, b"GET /" + b"a" * 9000),
    "header line": (431, b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 9000 + b"\r\n\r\n"),
    "head": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 3000 + b"\r\n"),
    "head, endless": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 3000),
    "header count": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + b"\r\n"),
    "body": (413, POST % 101),
    "body announced huge": (413, POST % 10**17),
    "chunked body": (413, CHUNKED + b"64\r\n" + b"a" * 100 + b"\r\n1\r\n"),
    "chunk announced huge": (413, CHUNKED + b"ffffffffffff\r\n"),
    "small chunks": (400, CHUNKED + b"1\r\nx\r\n" * 50),
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_what_is_too_large_is_refused_before_it_is_read(name: str, serve) -> None:
    status, request = TOO_LARGE[name]
    app = App(body_bytes_max=100)
    server = await serve(app, chunks_free=20)
    client = await RawClient.open(server.port)
    client.send(request)
    assert (await client.answer()).status == status
    assert app.requests == []
    assert await client.rest() == b""
    await client.close()


async def test_limits_are_inclusive(serve) -> None:
    app = App(body_bytes_max=100)
    server = await serve(app, chunks_free=20)
    client = await RawClient.open(server.port)
    client.send(POST % 100 + b"a" * 100)
    client.send(CHUNKED + b"5\r\nxxxxx\r\n" * 20 + b"0\r\n\r\n")
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 99 + b"\r\n")
    assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
    await client.close()


async def test_the_413_is_seen_by_a_client_that_sends_its_whole_body_first(serve) -> None:
    server = await serve(App(body_bytes_max=100))
    client = await RawClient.open(server.port)
    body = bytes(20_000_000)
    client.send(POST % len(body) + body)
    async with asyncio.timeout(WAIT_S):
        await client.writer.drain()
    assert (await client.answer()).status == 413
    await client.close()


async def test_a_client_that_never_stops_sending_is_cut_after_the_linger(serve) -> None:
    server = await serve(App(body_bytes_max=100), linger_timeout_s=0.05)
    client = await RawClient.open(server.port)
    client.send(POST % 1000)
    assert (await client.answer()).status == 413
    assert await client.rest() == b""
    async with asyncio.timeout(WAIT_S):
        while server.connections:
            client.send(b"x")
            await asyncio.sleep(0)
    await client.close()


async def test_100_comes_only_after_the_head_is_accepted(serve) -> None:
    app = App(body_bytes_max=100)
    server = await serve(app)
    client = await RawClient.open(server.port)
    expect = b"POST /p HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: %d\r\n\r\n"
    client.send(expect % 4)
    assert (await client.answer()).status == 100
    client.send(b"body")
    assert (await client.answer()).body == b"body"
    client.send(expect % 4 + b"body")  # did not wait: no 100
    assert (await client.answer()).body == b"body"
    client.send(expect % 0)
    assert (await client.answer()).status == 200
    client.send(expect % 101)
    assert (await client.answer()).status == 413
    assert await client.rest() == b""
    await client.close()


SLOW = {
    "no byte": (None, b""),
    "half a head": (408, b"GET / HTTP/1.1\r\nHos"),
    "only an empty line": (408, b"\r\n"),
    "no body": (408, POST % 10),
    "half a body": (408, POST % 10 + b"abc"),
    "half a chunked body": (408, CHUNKED + b"5\r\nabc"),
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_client_that_stops_sending_is_cut(name: str, serve) -> None:
    status, request = SLOW[name]
    app = App()
    server = await serve(
        app,
        head_timeout_s=0.05,
        body_first_byte_timeout_s=0.05,
        body_timeout_s=0.15,
        body_rate_window_s=0.03,
        keep_alive_timeout_s=WAIT_S,
    )
    client = await RawClient.open(server.port)
    client.send(request)
    if status is not None:
        assert (await client.answer()).status == status
    assert await client.rest() == b""
    assert app.requests == []
    await client.close()


async def test_a_dripping_body_is_cut_by_its_rate(serve) -> None:
    app = App()
    server = await serve(app, body_first_byte_timeout_s=0.05, body_rate_window_s=0.05, body_rate_min_bytes_per_s=10_000)
    client = await RawClient.open(server.port)
    client.send(POST % 1_000_000)
    answer = asyncio.ensure_future(client.answer())  # noqa: TID251  # awaited below
    while not answer.done():
        client.send(b"x")
        await asyncio.sleep(0.005)
    assert (await answer).status == 408
    assert app.bad == [(408, "request body took too long", "/p")]
    await client.close()


async def test_an_idle_connection_is_closed_without_a_word(serve) -> None:
    server = await serve(App(), keep_alive_timeout_s=0.05)
    client = await RawClient.open(server.port)
    client.send(GET)
    assert (await client.answer()).status == 200
    assert await client.rest() == b""
    await client.close()


async def test_a_reader_that_is_slow_pauses_the_writer_and_memory_stays_bounded(serve) -> None:
    app = App(auto=False)
    server = await serve(app, write_buffer_high_bytes=65536)
    client = await RawClient.open(server.port)
    client.reader._transport.pause_reading()
    client.send(GET)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    exchange.start(200, [])
    written = 0
    chunk = bytes(16384)
    async with asyncio.timeout(WAIT_S):
        while not exchange.paused:
            exchange.write(chunk)
            written += len(chunk)
            await asyncio.sleep(0)
    assert listener.events == ["pause"]
    (connection,) = server._connections
    assert connection._transport.get_write_buffer_size() < 65536 + 2 * 16384
    client.reader._transport.resume_reading()
    reading = asyncio.ensure_future(client.answer())  # noqa: TID251  # awaited below
    await happens(listener.resumed)
    assert not exchange.paused
    exchange.finish()
    assert len((await reading).body) == written
    assert listener.events == ["pause", "resume"]
    await client.close()


@pytest.mark.parametrize("way", ["stream", "respond"])
async def test_a_reader_that_stopped_is_cut(way: str, serve) -> None:
    app = App(auto=False)
    server = await serve(app, write_stall_timeout_s=0.1, keep_alive_timeout_s=0.1)
    client = await RawClient.open(server.port)
    client.reader._transport.pause_reading()
    client.send(GET)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    if way == "respond":
        exchange.respond(200, [], bytes(30_000_000))
    else:
        exchange.start(200, [])
        exchange.write(bytes(30_000_000))
        await happens(listener.left)
        assert listener.events == ["pause", "disconnect"]
    async with asyncio.timeout(WAIT_S):
        while server.connections:
            await asyncio.sleep(0.01)
    client.reset()


async def test_what_the_kernel_keeps_for_a_client_is_bounded(serve) -> None:
    server = await serve(App(auto=False), socket_send_bytes=65_536)
    client = await RawClient.open(server.port)
    async with asyncio.timeout(WAIT_S):
        while not server._connections:
            await asyncio.sleep(0)
    (connection,) = server._connections
    accepted = connection._transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65_536
    await client.close()


async def test_pipelined_requests_wait_until_the_answer_before_them_is_taken(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.reader._transport.pause_reading()
    client.send(GET + GET)
    (await app.exchange()).respond(200, [], bytes(30_000_000))
    await asyncio.sleep(0.05)
    assert app.exchanges.empty()
    client.reader._transport.resume_reading()
    assert len((await client.answer()).body) == 30_000_000
    (await app.exchange()).respond(200, [], b"second")
    assert (await client.answer()).body == b"second"
    await client.close()


async def test_at_the_limit_the_oldest_idle_connection_makes_room_and_a_busy_one_never(serve) -> None:
    app = App(auto=False)
    server = await serve(app, connections_max=3)
    clients = [await RawClient.open(server.port) for _ in range(3)]
    for client in clients[:1]:
        client.send(GET)
    busy = [await app.exchange()]
    clients[2].send(GET)
    (await app.exchange()).respond(200, [], b"")
    await clients[2].answer()
    newcomer = await RawClient.open(server.port)  # clients[1] is idle longest
    assert await clients[1].rest() == b""
    for client in (newcomer, clients[2]):
        client.send(GET)
        busy.append(await app.exchange())
    refused = await RawClient.open(server.port)
    assert (await refused.answer()).status == 503
    assert await refused.rest() == b""
    for exchange in busy:
        exchange.respond(200, [], b"")
    for client in (clients[0], newcomer, clients[2]):
        assert (await client.answer()).status == 200
    for client in (*clients, newcomer, refused):
        await client.close()


async def test_closing_lets_running_exchanges_end_and_says_so(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    idle, running = await RawClient.open(server.port), await RawClient.open(server.port)
    running.send(GET + GET)
    exchange = await app.exchange()
    closing = asyncio.ensure_future(server.close(WAIT_S))  # noqa: TID251  # awaited below
    assert await idle.rest() == b""
    with pytest.raises(OSError):
        await RawClient.open(server.port)
    exchange.respond(200, [], b"done")
    answer = await running.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")
    await closing
    assert app.exchanges.empty()
    assert server.connections == 0
    await idle.close()
    await running.close()


async def test_closing_cuts_what_outlasts_the_grace(serve) -> None:
    app = App(auto=False)
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(GET)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    await server.close(0.05)
    assert listener.events == ["disconnect"]
    assert await client.rest() == b""
    await client.close()
