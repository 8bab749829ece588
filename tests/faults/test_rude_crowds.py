"""B8 to B12, B26 and cancel storms: crowds of slow, idle and rude clients against a gateway in its own process.

Small here; ``make rude`` runs the sizes and spans that docs/http.md promises, and prints the figures.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from collections.abc import Iterator

import pytest
from gateway_process import GatewayProcess
from raw_client import Rude, split_answers
from rig import Process, ask, begin
from test_disconnects import request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

FULL = os.environ.get("BELLMARE_RUDE") == "full"
IDLE, NEWCOMERS = (9_900, 2_000) if FULL else (400, 100)
DRIPS, SLOW_BODIES, STALLED = (1_000, 1_000, 200) if FULL else (40, 40, 10)
PIPELINED = 1_000
CANCELS, AT_ONCE = (100_000, 100) if FULL else (2_000, 50)
TIMEOUTS = {} if FULL else {"head_timeout_s": 1.0, "body_first_byte_timeout_s": 1.0, "write_stall_timeout_s": 2.0}
HEAD_S, BODY_S, STALL_S = (10, 10, 30) if FULL else (1, 1, 2)
LATE_S = 5.0
"""On top of a deadline: the sweep, and a machine that does much else."""
GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def process(tmp_path) -> Iterator[object]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started: list[GatewayProcess] = []

    async def start(*workers: int, **limits) -> GatewayProcess:
        started.append(await asyncio.to_thread(GatewayProcess, tmp_path / f"{len(started)}.log", *workers, **limits))
        return started[-1]

    yield start
    for one in started:
        assert one.stop() == 0
        assert [row for row in one.lines() if row["level"] == "error"] == []
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def busy_worker() -> Iterator[Process]:
    """In a process of its own, so that what it writes takes no time from the clients here."""
    worker = Process(time_scale=0.05 if FULL else 0.01, parallel=STALLED + 1)
    yield worker
    worker.kill()


def figure(text: str) -> None:
    print(f"\nfigure: {text}")


async def timed_get(port: int) -> float:
    """Seconds from connecting to the whole answer."""
    start = time.monotonic()
    client = await Rude.dial(port)
    await client.send(GET)
    await client.read_until(b"}")
    client.fin()
    return time.monotonic() - start


async def many(count: int, port: int, data: bytes = b"", *, window: int = 0) -> list[Rude]:
    clients = []
    for _ in range(count):
        clients.append(await Rude.dial(port, window=window))
        if data:
            await clients[-1].send(data)
    return clients


def rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def test_b12_idle_connections_cost_little_and_make_room_for_new_ones(sim, process):
    worker = await sim(time_scale=0.3)
    most = None if FULL else IDLE + 20
    running = await process(worker.port, **TIMEOUTS, **({} if most is None else {"connections_max": most}))
    assert (await ask(running.port, "POST", "/api/chat", {"model": "a:1", "stream": False})).status == 200
    stream = await Rude.dial(running.port)
    await stream.send(request("/api/chat", stream=True, tokens=80_000))
    await stream.read_until(b"\n{")
    before = running.rss()
    idle = []
    for _ in range(IDLE):  # one answered request each: a fresh connection would be cut as a slow head
        idle.append(await Rude.dial(running.port))
        await idle[-1].send(GET)
        await idle[-1].read_until(b"}")
    each = (running.rss() - before) / IDLE
    spans = await asyncio.gather(*(timed_get(running.port) for _ in range(NEWCOMERS)))
    figure(f"{IDLE} idle: {each / 1024:.1f} KiB each; {NEWCOMERS} new at once: p50 {rank(spans, 0.5) * 1000:.0f} ms, "
           f"max {max(spans) * 1000:.0f} ms")  # fmt: skip
    assert each < 32 * 1024
    assert max(spans) < 20
    closed = sum(client.sock.recv(1) == b"" for client in idle if _readable(client))
    assert (closed > 0) == (running.connections_max < IDLE + NEWCOMERS)
    assert await stream.read(), "who is being answered is never closed for a newcomer"
    stream.reset()
    for client in idle:
        client.fin()


def _readable(client: Rude) -> bool:
    try:
        client.sock.recv(1, 2)  # MSG_PEEK
    except BlockingIOError:
        return False
    except ConnectionError:
        return False
    return True


async def test_b09_to_b11_slow_clients_are_cut_in_time_and_cost_the_others_nothing(busy_worker, process):
    running = await process(busy_worker.port, **TIMEOUTS)
    assert (await ask(running.port, "POST", "/api/chat", {"model": "a:1", "stream": False})).status == 200
    calm = [await timed_get(running.port) for _ in range(50)]
    started = time.monotonic()
    silent = await many(DRIPS // 2, running.port)
    drips = await many(DRIPS // 2, running.port, b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX-A")
    bodies = await many(
        SLOW_BODIES, running.port, b"POST /api/chat HTTP/1.1\r\nHost: a.local\r\nContent-Length: 99\r\n\r\n"
    )
    before = running.rss()
    stalled = await many(STALLED, running.port, request("/api/chat", stream=True, tokens=80_000), window=4096)
    opened_s = time.monotonic() - started
    heads, slow = begin(all_gone(silent + drips, started)), begin(all_gone(bodies, started))
    spans: list[float] = []
    while time.monotonic() - started < STALL_S:
        for client in drips:
            try:
                client.sock.send(b"a")
            except OSError:
                pass  # cut already
        spans.append(await timed_get(running.port))
        await asyncio.sleep(STALL_S / 40)
    each = (running.rss() - before) / STALLED
    for name, (said, took) in [("heads", await heads), ("bodies", await slow)]:
        figure(f"{len(said)} slow {name}: all gone {took:.1f} s after the first ({opened_s:.1f} s to open them)")
        assert all(raw.startswith(b"HTTP/1.1 408 ") or raw == b"" for raw in said)
        assert sum(raw != b"" for raw in said) >= len(said) // 2
        assert took < max(HEAD_S, BODY_S) + LATE_S + opened_s
    while any(not _gone(client) for client in stalled):
        assert time.monotonic() - started < STALL_S * 6 + LATE_S + opened_s + 60, "a stalled reader is kept"
        await asyncio.sleep(0.05)
    figure(f"{STALLED} stalled readers: {each / 1024:.0f} KiB each, gone after {time.monotonic() - started:.1f} s")
    figure(f"others meanwhile: p50 {rank(spans, 0.5) * 1000:.1f} ms, p99 {rank(spans, 0.99) * 1000:.1f} ms; "
           f"before: p50 {rank(calm, 0.5) * 1000:.1f} ms, p99 {rank(calm, 0.99) * 1000:.1f} ms")  # fmt: skip
    assert each < (128 * 1024 if FULL else 1 << 20), "what one stalled reader costs us; a few say little"
    for client in (*silent, *drips, *bodies, *stalled):
        client.sock.close()
    assert (await ask(running.port, "POST", "/api/chat", {"model": "a:1", "stream": False})).status == 200


async def all_gone(crowd: list[Rude], started: float) -> tuple[list[bytes], float]:
    """What each of them was told, and after how many seconds the last one had been."""
    said = await asyncio.gather(*(client.rest() for client in crowd))
    return said, time.monotonic() - started


def _gone(client: Rude) -> bool:
    """Whether the server has cut it: what it does not read is never looked at."""
    try:
        client.sock.send(b"\r\n")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


async def test_b26_pipelined_requests_are_answered_in_order_one_at_a_time(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    client = await Rude.dial(running.port)
    paths = ["/api/version", "/api/tags", "/nowhere", "/"]
    flood = b"".join(
        b"%b %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"GET", paths[n % 4].encode()) for n in range(PIPELINED - 1)
    )
    sending = asyncio.ensure_future(client.send(flood + GET[:-2] + b"Connection: close\r\n\r\n"))  # noqa: TID251
    answers = split_answers(await client.rest())
    await sending
    client.fin()
    assert len(answers) == PIPELINED
    assert [answer.status for answer in answers[:4]] == [200, 200, 404, 200]
    assert all(answer.status == answers[number % 4].status for number, answer in enumerate(answers[:-1]))
    chats = await Rude.dial(running.port)
    await chats.send(request("/api/chat", stream=False) * 50)
    most = 0
    raw = b""
    while raw.count(b"HTTP/1.1 200") < 50:
        raw += await chats.read()
        most = max(most, running.driver.requests)
    assert most <= 1, "one connection has one request under way"
    chats.fin()


async def test_e04_cancel_storms_leave_nothing_behind(recorded, gateway):
    worker = await recorded(parallel=4)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    draw = random.Random(4)
    requests = [request(path, stream=stream, tokens=400) for path in ("/api/chat", "/v1/chat/completions")
                for stream in (True, False)]  # fmt: skip

    async def one() -> None:
        client = await Rude.dial(running.port)
        data = draw.choice(requests)
        await client.send(data if draw.random() < 0.9 else data[: draw.randrange(1, len(data))])
        for _ in range(draw.randrange(30)):
            await asyncio.sleep(0)
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.02)
        draw.choice((client.fin, client.reset))()

    started = time.monotonic()
    for _ in range(CANCELS // AT_ONCE):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    took = time.monotonic() - started
    await running.back_to_baseline()
    assert (await running.chat()).status == 200
    await running.back_to_baseline()
    port = next(iter(running.service.fleet.ports.values()))
    assert port.upstream.connections == port.upstream.idle
    figure(
        f"{CANCELS} requests left at random instants in {took:.1f} s ({CANCELS / took:.0f} a second): all given back"
    )
