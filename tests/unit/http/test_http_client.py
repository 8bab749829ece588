"""The upstream side: reuse, order, retry, aborts, timeouts, and that a worker's wrong bytes stay in their call."""

import asyncio

import pytest
from http_peers import CLOSE, WAIT_S, App, Listener, Recorder, ScriptedUpstream, happens

from bellmare.http.client import Upstream, UpstreamError, UpstreamFailureKind

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def send(upstream: Upstream, recorder: Recorder, *, method: str = "GET", body: bytes = b"", **timeouts):
    timeouts = {"first_byte_timeout_s": WAIT_S, "idle_timeout_s": WAIT_S} | timeouts
    return upstream.send(method, "/api/x", body=body, receiver=recorder, **timeouts)


async def finished(recorder: Recorder) -> Recorder:
    await happens(recorder.ended)
    assert recorder.events.count("end") + recorder.events.count("failure") == 1
    assert recorder.events[-1] in ("end", "failure")
    return recorder


async def test_a_thousand_requests_need_one_connection(serve, dial) -> None:
    app = App()
    server = await serve(app)
    upstream = dial(server.port)
    for n in range(1000):
        response = await upstream.fetch("POST", f"/{n}", body=b"%d" % n, timeout_s=WAIT_S)
        assert (response.status, response.body) == (200, b"%d" % n)
    assert (upstream.dialled_total, upstream.idle, upstream.in_flight) == (1, 1, 0)


async def test_parallel_requests_dial_and_later_ones_reuse(serve, dial) -> None:
    server = await serve(App())
    upstream = dial(server.port, idle_max=3)
    await asyncio.gather(*[upstream.fetch("GET", "/", timeout_s=WAIT_S) for _ in range(5)])
    assert (upstream.dialled_total, upstream.idle) == (5, 3)
    await asyncio.gather(*[upstream.fetch("GET", "/", timeout_s=WAIT_S) for _ in range(3)])
    assert upstream.dialled_total == 5


async def test_the_head_is_our_own(dial, scripted) -> None:
    server: ScriptedUpstream = await scripted(OK, OK, OK)
    upstream = dial(server.port, base_path="/prefix/")
    await upstream.fetch("POST", "/api/chat", body=b"{}", timeout_s=WAIT_S)
    await upstream.fetch("GET", "/api/ps", timeout_s=WAIT_S)
    recorder = Recorder()
    upstream.send(
        "DELETE",
        "/api/delete",
        headers=[(b"x-request-id", b"1")],
        receiver=recorder,
        first_byte_timeout_s=None,
        idle_timeout_s=None,
    )
    await finished(recorder)
    host = b"host: 127.0.0.1:%d\r\naccept-encoding: identity\r\n" % server.port
    assert server.requests == [
        b"POST /prefix/api/chat HTTP/1.1\r\n" + host + b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        b"GET /prefix/api/ps HTTP/1.1\r\n" + host + b"\r\n",
        b"DELETE /prefix/api/delete HTTP/1.1\r\n" + host + b"x-request-id: 1\r\n\r\n",
    ]


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a\n", b"b")])
async def test_a_line_break_from_outside_never_reaches_a_worker(header, dial) -> None:
    with pytest.raises(AssertionError):
        dial(1).send("GET", "/", headers=[header], receiver=Recorder(), first_byte_timeout_s=None, idle_timeout_s=None)
    with pytest.raises(AssertionError):
        dial(1).send("GET", "/ HTTP/1.1\r\n", receiver=Recorder(), first_byte_timeout_s=None, idle_timeout_s=None)


async def test_chunks_come_in_order_and_one_call_per_read(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    recorder = Recorder()
    call = send(upstream, recorder, method="POST", body=b"{}")
    assert not call.connected
    exchange = await app.exchange()
    assert call.connected
    exchange.start(200, [(b"X-Name", b"v")])
    for n in range(50):
        recorder.fed.clear()
        exchange.write(b"%d\n" % n)
        await happens(recorder.fed)
    exchange.finish()
    await finished(recorder)
    assert recorder.parts == [b"%d\n" % n for n in range(50)]
    assert (recorder.status, recorder.headers[0]) == (200, (b"x-name", b"v"))
    assert (upstream.in_flight, upstream.idle) == (0, 1)


RESPONSES = {
    "length": (OK, True),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\no\r\n1\r\nk\r\n0\r\nTrailer: x\r\n\r\n",
        True,
    ),
    "interim first": (b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + OK, True),
    "told to close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
    "http 1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
    "until eof": (b"HTTP/1.1 200 OK\r\n\r\nok", False),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", True),
    "identity": (b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", True),
}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", RESPONSES)
async def test_an_answer_is_the_same_however_it_is_framed_and_split(name: str, split: bool, dial, scripted) -> None:
    answer, kept = RESPONSES[name]

    async def drip(_reader, writer) -> None:
        for byte in answer:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        if b"ontent-" not in answer and b"chunked" not in answer:
            writer.close()

    server = await scripted(drip if split else answer, OK)
    upstream = dial(server.port)
    recorder = Recorder()
    send(upstream, recorder)
    await finished(recorder)
    assert recorder.failure is None
    assert recorder.status == 200
    assert recorder.body == (b"" if name == "empty" else b"ok")
    assert upstream.idle == (1 if kept else 0)
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).body == b"ok"


async def test_an_answer_without_a_body_ends_with_its_head(dial, scripted) -> None:
    server = await scripted(
        b"HTTP/1.1 204 No Content\r\nX: content-length\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    )
    upstream = dial(server.port)
    for method, status in (("GET", 204), ("GET", 304), ("HEAD", 200)):
        response = await upstream.fetch(method, "/", timeout_s=WAIT_S)
        assert (response.status, response.body) == (status, b"")


HEAD = b"HTTP/1.1 200 OK\r\n"
BAD = {
    "not http": b"SSH-2.0-OpenSSH\r\n",
    "html": b"<html>content-length",
    "http 2": b"HTTP/2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "length twice": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 1\r\n\r\nok",
    "length and coding": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "length odd": HEAD + b"Content-Length: +2\r\n\r\nok",
    "length list": HEAD + b"Content-Length: 2, 2\r\n\r\nok",
    "length empty": HEAD + b"Content-Length:\r\n\r\nok",
    "coding unknown": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxx\r\n",
    "chunk cut": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nokay\r\n",
    "bare lf": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "cr in value": HEAD + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "nul in value": HEAD + b"A: b\x00c\r\nContent-Length: 0\r\n\r\n",
    "folded": HEAD + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "blank before colon": HEAD + b"Content-Length : 0\r\n\r\n",
    "gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nX: content-length\r\n\r\n",
    "status odd": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "interim flood": b"HTTP/1.1 102 Processing\r\nx: content-length\r\n\r\n" * 8,
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_response_is_one_failure_and_its_connection_is_dropped(name: str, dial, scripted) -> None:
    server = await scripted(BAD[name], OK)
    upstream = dial(server.port)
    recorder = Recorder()
    send(upstream, recorder)
    await finished(recorder)
    assert recorder.failure is not None
    assert (recorder.failure.kind, recorder.failure.received) == (UpstreamFailureKind.bad_response, True)
    assert upstream.idle == 0
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).body == b"ok"
    assert upstream.dialled_total == 2


async def test_an_endless_head_is_too_large(dial, scripted) -> None:
    server = await scripted(HEAD + b"content-length: 0\r\n" + b"A: b\r\n" * 20_000)
    recorder = Recorder()
    send(dial(server.port), recorder)
    assert (await finished(recorder)).failure.kind == UpstreamFailureKind.too_large


@pytest.mark.parametrize("poison", [OK, b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"])
async def test_two_responses_to_one_request_poison_nobody(poison: bytes, dial, scripted) -> None:
    server = await scripted(OK + poison, OK)
    upstream = dial(server.port)
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).body == b"ok"
    assert upstream.idle == 0
    response = await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    assert (response.headers, response.body) == ([(b"content-length", b"2")], b"ok")
    assert upstream.dialled_total == 2


async def test_an_idle_connection_that_receives_bytes_is_dropped(dial, scripted) -> None:
    released = asyncio.Event()

    async def late(_reader, writer) -> None:
        writer.write(OK)
        await released.wait()
        writer.write(OK)

    server = await scripted(late, OK)
    upstream = dial(server.port)
    await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    assert upstream.idle == 1
    released.set()
    await happens(server.lost)
    assert upstream.idle == 0
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).body == b"ok"


async def test_a_stale_connection_is_retried_once_on_a_fresh_one(dial, scripted) -> None:
    server = await scripted(OK, CLOSE, OK)
    upstream = dial(server.port)
    for _ in range(2):
        assert (await upstream.fetch("POST", "/", body=b"{}", timeout_s=WAIT_S)).body == b"ok"
    assert upstream.dialled_total == 2
    assert [request[-2:] for request in server.requests] == [b"{}"] * 3


async def test_a_retry_is_not_retried(dial, scripted) -> None:
    server = await scripted(OK, CLOSE, CLOSE, OK)
    upstream = dial(server.port)
    await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    with pytest.raises(UpstreamError) as error:
        await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    assert error.value.failure.kind == UpstreamFailureKind.closed_early
    assert len(server.requests) == 3


@pytest.mark.parametrize("first", [b"H", HEAD + b"content-length: 9\r\n\r\nhalf"])
async def test_a_request_whose_answer_began_is_never_retried(first: bytes, dial, scripted) -> None:
    async def half(_reader, writer) -> None:
        writer.write(first)
        await writer.drain()
        writer.close()

    server = await scripted(OK, half, OK)
    upstream = dial(server.port)
    await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    recorder = Recorder()
    send(upstream, recorder)
    await finished(recorder)
    assert (recorder.failure.kind, recorder.failure.received) == (UpstreamFailureKind.closed_early, True)
    assert len(server.requests) == 2


async def test_a_fresh_connection_that_is_reset_is_reported(dial, scripted) -> None:
    async def reset(_reader, writer) -> None:
        sock = writer.get_extra_info("socket")
        import socket
        import struct

        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await scripted(reset)
    recorder = Recorder()
    send(dial(server.port), recorder)
    await finished(recorder)
    assert (recorder.failure.kind, recorder.failure.received) == (UpstreamFailureKind.reset, False)


async def test_nobody_listening_is_refused(dial, scripted) -> None:
    server = await scripted()
    await server.close()
    recorder = Recorder()
    send(dial(server.port), recorder)
    assert recorder.events == []
    await finished(recorder)
    assert recorder.failure.kind == UpstreamFailureKind.refused


async def test_an_address_that_does_not_answer_is_a_connect_timeout(dial) -> None:
    import socket

    # A listener whose backlog is full drops further SYNs.
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        upstream = dial(listener.getsockname()[1], connect_timeout_s=0.1)
        recorder = Recorder()
        send(upstream, recorder)
        await finished(recorder)
        assert recorder.failure.kind == UpstreamFailureKind.connect_timeout
        gone = Recorder()
        call = send(upstream, gone)
        assert upstream.in_flight == 1
        call.abort()
        assert upstream.in_flight == 0
        assert gone.events == []


@pytest.mark.parametrize("phase", ["dialling", "before head", "streaming"])
async def test_an_abort_frees_the_worker_and_nothing_is_heard_after_it(phase: str, serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    recorder = Recorder()
    call = send(upstream, recorder, method="POST", body=b"{}")
    if phase != "dialling":
        exchange = await app.exchange()
        listener = exchange.listener = Listener()
        if phase == "streaming":
            exchange.start(200, [])
            exchange.write(b"x")
            await happens(recorder.fed)
    heard = list(recorder.events)
    call.abort()
    call.abort()
    assert upstream.in_flight == 0
    if phase != "dialling":
        await happens(listener.left)
    app.auto = True
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).status == 200
    assert recorder.events == heard


async def test_an_abort_from_within_a_callback_is_the_last_word(serve, dial) -> None:
    class Impatient(Recorder):
        def on_response(self, status, headers) -> None:
            super().on_response(status, headers)
            self.call.abort()

    server = await serve(App())
    upstream = dial(server.port)
    recorder = Impatient()
    recorder.call = send(upstream, recorder)
    await happens(recorder.headed)
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).status == 200
    assert recorder.events == ["response"]


async def test_a_paused_call_holds_the_worker_back_and_is_not_stalled(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    recorder = Recorder()
    call = send(upstream, recorder, idle_timeout_s=0.1)
    exchange = await app.exchange()
    listener = exchange.listener = Listener()
    exchange.start(200, [])
    exchange.write(b"x")
    await happens(recorder.fed)
    call.pause()
    written = 1
    async with asyncio.timeout(WAIT_S):
        while not exchange.paused:
            exchange.write(bytes(65536))
            written += 65536
            await asyncio.sleep(0)
    await asyncio.sleep(0.25)
    assert len(recorder.body) < written
    assert recorder.failure is None
    call.resume()
    await happens(listener.resumed)
    exchange.finish()
    await finished(recorder)
    assert len(recorder.body) == written
    assert upstream.idle == 1


async def test_a_connection_paused_at_the_end_of_its_call_serves_the_next_one(serve, dial) -> None:
    class Pausing(Recorder):
        def on_response(self, status, headers) -> None:
            super().on_response(status, headers)
            self.call.pause()

    server = await serve(App())
    upstream = dial(server.port)
    recorder = Pausing()
    recorder.call = send(upstream, recorder)
    await finished(recorder)
    assert recorder.body == b"ok"
    assert (await upstream.fetch("GET", "/", timeout_s=WAIT_S)).body == b"ok"
    assert upstream.dialled_total == 1


async def test_no_head_in_time_is_a_timeout_and_silence_after_it_a_stall(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    silent, stalled = Recorder(), Recorder()
    send(upstream, silent, first_byte_timeout_s=0.1)
    first = await app.exchange()
    assert (await finished(silent)).failure.kind == UpstreamFailureKind.timeout
    send(upstream, stalled, idle_timeout_s=0.1)
    second = await app.exchange()
    second.start(200, [])
    second.write(b"x")
    await finished(stalled)
    assert (stalled.failure.kind, stalled.failure.received) == (UpstreamFailureKind.stalled, True)
    for exchange in (first, second):
        exchange.abort()


async def test_fetch_is_bounded_in_time_and_size(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    with pytest.raises(UpstreamError) as error:
        await upstream.fetch("GET", "/", timeout_s=0.05)
    assert error.value.failure.kind == UpstreamFailureKind.timeout
    app.auto = True
    with pytest.raises(UpstreamError) as error:
        await upstream.fetch("POST", "/", body=b"12345", timeout_s=WAIT_S, body_max_bytes=4)
    assert error.value.failure.kind == UpstreamFailureKind.too_large
    response = await upstream.fetch("POST", "/", body=b"1234", timeout_s=WAIT_S, body_max_bytes=4)
    assert response.header(b"content-length") == b"4"
    assert upstream.in_flight == 0


async def test_old_idle_connections_are_closed_by_us(serve, dial) -> None:
    server = await serve(App())
    upstream = dial(server.port, idle_timeout_s=0.05)
    await upstream.fetch("GET", "/", timeout_s=WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while upstream.idle or server.connections:
            await asyncio.sleep(0.01)


async def test_closing_the_client_fails_what_is_in_flight(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    running, dialling, late = Recorder(), Recorder(), Recorder()
    send(upstream, first := Recorder())
    (await app.exchange()).respond(200, [], b"")
    await finished(first)
    send(upstream, running)  # on a used connection and without an answer: closing is no reason to retry
    await app.exchange()
    assert upstream.dialled_total == 1
    send(upstream, dialling)
    await upstream.close()
    assert running.events == dialling.events == ["failure"]
    assert running.failure.kind == dialling.failure.kind == UpstreamFailureKind.reset
    send(upstream, late)
    assert (await finished(late)).failure.kind == UpstreamFailureKind.refused


async def test_a_thousand_aborts_at_any_phase_leave_nothing(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    upstream = dial(server.port)
    for n in range(1000):
        call = send(upstream, Recorder(), method="POST", body=b"{}")
        for _ in range(n % 7):
            await asyncio.sleep(0)
        call.abort()
    assert upstream.in_flight == 0
    async with asyncio.timeout(WAIT_S):
        while upstream.connections or upstream._dials or server.connections:
            await asyncio.sleep(0.01)


async def test_a_flood_from_a_worker_is_delivered_in_few_calls(serve, dial) -> None:
    app = App(auto=False)
    server = await serve(app)
    recorder = Recorder()
    send(dial(server.port), recorder)
    exchange = await app.exchange()
    exchange.start(200, [])
    for _ in range(5000):
        exchange.write(b"0123456789")
    exchange.finish()
    await finished(recorder)
    assert len(recorder.body) == 50_000
    assert len(recorder.parts) < 50
