"""A body that is handed on as it comes: whole, in order, bounded, paced by its taker, and lost at most once."""

import asyncio

import pytest

from bellmare.http.bodies import BodyFlow
from bellmare.http.exchange import Exchange
from bellmare.http.messages import Limits, Refusal, Request
from bellmare.http.server import listen

BYTES_MAX = 1 << 20


class Sink:
    def __init__(self) -> None:
        self.bytes_max = BYTES_MAX
        self.data = b""
        self.pieces = 0
        self.lost_count = 0
        self.flow: BodyFlow | None = None
        self.hold = False

    def begin(self, flow: BodyFlow) -> None:
        assert self.flow is None, "begun twice"
        self.flow = flow

    def take(self, data: bytes) -> None:
        assert data
        self.data += data
        self.pieces += 1
        if self.hold:
            assert self.flow is not None
            self.flow.pause_body()

    def lost(self) -> None:
        self.lost_count += 1


class App:
    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.hold = False
        self.requests: list[Request] = []

    def on_head(self, request: Request) -> Sink | int:
        if request.path != "/sink":
            return 100
        sink = Sink()
        sink.hold = self.hold
        self.sinks.append(sink)
        return sink

    def on_request(self, exchange: Exchange) -> None:
        self.requests.append(exchange.request)
        exchange.respond(200, (), b"%d" % len(exchange.request.body))

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        return Refusal(status=status, body=reason.encode())


LENGTH = b"POST /sink HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b"
CHUNKED = b"POST /sink HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
NEXT = b"POST /other HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi"


@pytest.fixture
async def app():
    application = App()
    application.server = await listen(  # type: ignore[attr-defined]
        application,
        "127.0.0.1",
        0,
        limits=Limits(body_first_byte_timeout_s=1, body_rate_window_s=1, sweep_interval_s=0.05),
    )
    yield application
    await application.server.close(0.0)  # type: ignore[attr-defined]


async def dial(app: App):
    return await asyncio.open_connection("127.0.0.1", app.server.port)  # type: ignore[attr-defined]


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head[9:12], await reader.readexactly(length)


@pytest.mark.parametrize("cut", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("chunked", [False, True])
async def test_it_comes_whole_and_the_next_request_is_as_ever(app: App, cut: int, chunked: bool) -> None:
    body = bytes(range(256)) * 20
    if chunked:
        message = CHUNKED + b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 999]), body[i : i + 999]) for i in range(0, 5120, 999)
        )
        message += b"0\r\n\r\n"
    else:
        message = LENGTH % (len(body), body)
    message += NEXT
    reader, writer = await dial(app)
    for start in range(0, len(message), cut):
        writer.write(message[start : start + cut])
        if cut < 100 and start % 700 == 0:
            await writer.drain()
    assert await answer(reader) == (b"200", b"0")
    assert await answer(reader) == (b"200", b"2")
    (sink,) = app.sinks
    assert sink.data == body
    assert sink.lost_count == 0
    writer.close()


async def test_an_empty_body_needs_no_sink(app: App) -> None:
    reader, writer = await dial(app)
    writer.write(LENGTH % (0, b""))
    assert await answer(reader) == (b"200", b"0")
    assert app.sinks[0].flow is None
    assert app.sinks[0].lost_count == 0
    writer.close()


@pytest.mark.parametrize("message", [LENGTH % (BYTES_MAX + 1, b""), CHUNKED + b"%x\r\n" % (BYTES_MAX + 1)])
async def test_a_longer_one_is_refused(app: App, message: bytes) -> None:
    reader, writer = await dial(app)
    writer.write(message)
    assert (await answer(reader))[0] == b"413"
    writer.close()
    assert app.sinks[0].lost_count == 1, "whoever was given for a body hears how it ended"
    assert not app.requests


async def test_a_client_that_leaves_loses_it_once(app: App) -> None:
    _, writer = await dial(app)
    writer.write(LENGTH % (1000, b"x" * 10))
    await writer.drain()
    for _ in range(100):
        if app.sinks and app.sinks[0].data:
            break
        await asyncio.sleep(0.01)
    writer.transport.abort()
    for _ in range(100):
        if app.sinks[0].lost_count:
            break
        await asyncio.sleep(0.01)
    assert app.sinks[0].lost_count == 1
    assert not app.requests


async def test_a_silent_client_is_cut_but_not_one_that_is_held_back(app: App) -> None:
    app.hold = True
    reader, writer = await dial(app)
    writer.write(LENGTH % (1000, b"x" * 10))
    await asyncio.sleep(2.5)  # two windows: nothing is expected of a client that is held back
    (sink,) = app.sinks
    assert (sink.data, sink.lost_count) == (b"x" * 10, 0)
    sink.hold = False
    assert sink.flow is not None
    sink.flow.resume_body()
    assert (await answer(reader))[0] == b"408"
    assert sink.lost_count == 1
    writer.close()


async def test_nothing_is_read_while_it_is_held_back(app: App) -> None:
    app.hold = True
    reader, writer = await dial(app)
    body = b"x" * BYTES_MAX
    writer.write(LENGTH % (len(body), body))
    await asyncio.sleep(0.3)
    (sink,) = app.sinks
    assert sink.pieces == 1
    sink.hold = False
    assert sink.flow is not None
    sink.flow.resume_body()
    assert (await answer(reader))[0] == b"200"
    assert sink.data == body
    writer.close()


async def test_a_taker_that_holds_back_at_the_last_piece_does_not_hold_the_connection(app: App) -> None:
    app.hold = True
    reader, writer = await dial(app)
    writer.write(LENGTH % (10, b"x" * 10))
    assert await answer(reader) == (b"200", b"0")
    writer.write(NEXT)
    assert await answer(reader) == (b"200", b"2")
    assert app.sinks[0].lost_count == 0
    writer.close()
