"""The relay between real sockets: a small server plays the engine, so that each event comes when the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.messages import Refusal, Request
from bellmare.http.server import Server, listen
from bellmare.protocols.ollama import parse_generate
from bellmare.workers.embedded.completion import AnswerWriter
from bellmare.workers.embedded.relay import RUNNER_DIED, Relay, rfc3339

PIECE = b'data: {"content":"a"}\n\n'
LAST = b'data: {"content":"","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":2}\n\n'
HEADERS = ((b"content-type", b"text/event-stream"),)


class Seen:
    """An exchange's client, as the relay sees it: what was written, and the relay as its listener."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.started = self.finished = self.disconnected = False
        self.listener: Relay | None = None

    def start(self, status: int, headers: object) -> None:
        self.status, self.started = status, True

    def write(self, data: bytes) -> None:
        self.body += data

    def finish(self) -> None:
        self.finished = True

    def respond(self, status: int, headers: object, body: bytes) -> None:
        self.status, self.body, self.started, self.finished = status, body, True, True


class Engine:
    """The http server's application: ``play`` answers."""

    def __init__(self) -> None:
        self.play: Callable[[Exchange], None] = lambda exchange: None
        self.left = asyncio.Event()

    def on_head(self, request: Request) -> int:
        return 1_000_000

    def on_request(self, exchange: Exchange) -> None:
        exchange.listener = self
        self.play(exchange)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        return Refusal(status)

    def on_disconnect(self) -> None:
        self.left.set()

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Engine, Upstream]]:
    played = Engine()
    server: Server = await listen(played, "127.0.0.1", 0)
    upstream = Upstream("127.0.0.1", server.port)
    yield played, upstream
    await upstream.close()
    await server.close(0)


def relay_to(seen: Seen, *, stream: bool) -> Relay:
    writer = AnswerWriter(parse_generate(b'{"model":"m","prompt":"x"}'))
    return Relay(seen, writer, stream=stream, started_ns=0, load_ns=0)  # type: ignore[arg-type]


def answering(*parts: bytes, end: str = "finish") -> Callable[[Exchange], None]:
    def play(exchange: Exchange) -> None:
        exchange.start(200, HEADERS)
        for part in parts:
            exchange.write(part)
        getattr(exchange, end)()

    return play


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_complete_however_it_is_cut_up(engine: tuple[Engine, Upstream], stream: bool) -> None:
    played, upstream = engine
    whole = PIECE + b": ping\n\n" + PIECE + LAST
    played.play = answering(*(whole[start : start + 7] for start in range(0, len(whole), 7)))
    seen = Seen()
    await relay_to(seen, stream=stream).run(upstream, b"{}")
    lines = [json.loads(line) for line in seen.body.splitlines()]
    assert seen.finished
    assert "".join(line["response"] for line in lines) == "aa"
    assert [line["done"] for line in lines] == ([False, False, True] if stream else [True])
    assert upstream.idle == 1, "the engine's connection is used again"


@pytest.mark.parametrize("end", ["finish", "abort"])
async def test_an_answer_without_an_end_is_an_error(engine: tuple[Engine, Upstream], end: str) -> None:
    played, upstream = engine
    played.play = answering(PIECE, end=end)
    seen = Seen()
    await relay_to(seen, stream=False).run(upstream, b"{}")
    assert (seen.status, json.loads(seen.body)) == (500, {"error": RUNNER_DIED})


@pytest.mark.parametrize(
    "bad", [b'error: {"code":500,"message":"oops"}\n\n', b'data: {"error":{"message":"oops"}}\n\n', b"data: oops\n\n"]
)
async def test_the_engines_error_in_a_stream_is_the_last_line(engine: tuple[Engine, Upstream], bad: bytes) -> None:
    played, upstream = engine
    played.play = answering(PIECE, bad)
    seen = Seen()
    await relay_to(seen, stream=True).run(upstream, b"{}")
    first, last = [json.loads(line) for line in seen.body.splitlines()]
    assert first["response"] == "a"
    assert "oops" in last["error"] or "malformed" in last["error"]
    assert seen.finished


async def test_the_engines_status_and_json_are_passed_on_as_text(engine: tuple[Engine, Upstream]) -> None:
    played, upstream = engine
    played.play = lambda exchange: exchange.respond(400, HEADERS, b'{"error":{"code":400}}')
    seen = Seen()
    await relay_to(seen, stream=True).run(upstream, b"{}")
    assert (seen.status, json.loads(seen.body)) == (400, {"error": '{"error":{"code":400}}'})


async def test_a_client_that_leaves_ends_the_engines_work(engine: tuple[Engine, Upstream]) -> None:
    played, upstream = engine
    seen = Seen()

    def play(exchange: Exchange) -> None:
        assert seen.listener is not None
        seen.listener.on_disconnect()

    played.play = play
    await asyncio.wait_for(relay_to(seen, stream=True).run(upstream, b"{}"), 5)
    await asyncio.wait_for(played.left.wait(), 5)
    assert upstream.in_flight == 0


async def test_a_slow_client_stops_the_engines_stream(engine: tuple[Engine, Upstream]) -> None:
    played, upstream = engine
    seen = Seen()
    paused = asyncio.Event()
    told: list[str] = []

    def play(exchange: Exchange) -> None:
        exchange.start(200, HEADERS)
        assert seen.listener is not None
        seen.listener.on_pause()
        assert seen.listener._call is not None
        told.append("paused" if seen.listener._call.paused else "running")
        exchange.write(PIECE + LAST)
        exchange.finish()
        paused.set()

    played.play = play
    async with asyncio.timeout(5):
        running = asyncio.gather(relay_to(seen, stream=True).run(upstream, b"{}"))
        await paused.wait()
        assert seen.listener is not None
        seen.listener.on_resume()
        await running
    assert told == ["paused"]
    assert seen.finished


def test_instants_have_nanoseconds() -> None:
    assert rfc3339(1_000_000_000_000_000_001) == "2001-09-09T01:46:40.000000001Z"
