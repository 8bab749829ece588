"""B1 to B8: a client may leave in any phase and in any way; it takes nothing with it and delays nobody else."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from raw_client import Rude
from rig import Gateway, until

from bellmare.core.decisions import Dispatch, Load
from bellmare.core.events import RequestArrived, RequestCancelled, RequestFinished
from bellmare.workers.sim import Fault, SimModel

pytestmark = pytest.mark.slow

WAYS = ("fin", "reset", "half_close")
MODELS = tuple(SimModel(f"{letter}:1") for letter in "abcd")
ROOMY = {"models": MODELS, "vram_bytes": 60 * 10**9}
VARIANTS = [(path, stream) for path in ("/api/chat", "/v1/chat/completions") for stream in (True, False)]
MANY = 80_000


def request(path: str, *, stream: bool, model: str = "a:1", text: str = "hello", tokens: int = 50) -> bytes:
    said: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    said |= {"options": {"num_predict": tokens}} if path.startswith("/api") else {"max_tokens": tokens}
    body = json.dumps(said).encode()
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


async def leave(client: Rude, way: str) -> None:
    """In one of the three ways; a half-close must be answered by the end of the connection."""
    getattr(client, way)()
    if way == "half_close":
        await client.rest()
        client.fin()


async def nothing_is_left(running: Gateway, worker) -> None:
    """Everything is given back and each request has ended exactly once."""
    await until(lambda: not worker.sim.busy(), "the worker's slot")
    await running.back_to_baseline()
    arrived = [event.request for event in running.events(RequestArrived)]
    ended = [event.request for kind in (RequestCancelled, RequestFinished) for event in running.events(kind)]
    assert len(arrived) == len(set(arrived)) and sorted(arrived) == sorted(ended)
    worker.requests()


def cancelled(running: Gateway) -> int:
    return len(running.events(RequestCancelled))


@pytest.mark.parametrize("way", WAYS)
async def test_b01_a_client_that_leaves_while_it_waits_gives_up_its_place(way, recorded, gateway):
    worker = await recorded(parallel=1)
    running = await gateway(worker.port)
    holder = await running.open_chat(options={"num_predict": 3_000})
    assert await holder.head() == 200
    before = len(running.decisions(Dispatch))
    for path, stream in VARIANTS:
        client = await Rude.dial(running.port)
        await client.send(request(path, stream=stream))
        await until(lambda: running.state.waiting == 1, "it waits")
        await leave(client, way)
        await until(lambda: running.state.waiting == 0, "its place")
    assert len(running.decisions(Dispatch)) == before
    assert (await holder.rest()).count(b"\n") == 3_001, "who runs is not disturbed"
    await holder.close()
    await nothing_is_left(running, worker)
    assert cancelled(running) == len(VARIANTS)


@pytest.mark.parametrize("way", WAYS)
async def test_b02_a_client_that_leaves_during_a_load_leaves_the_load_alone(way, recorded, gateway):
    worker = await recorded(time_scale=0.05, **ROOMY)
    running = await gateway(worker.port)
    for (path, stream), model in zip(VARIANTS, MODELS, strict=True):
        loads = len(running.decisions(Load))
        client = await Rude.dial(running.port)
        await client.send(request(path, stream=stream, model=model.name))
        await until(lambda loads=loads: len(running.decisions(Load)) > loads, "the load")
        await leave(client, way)
        await running.settled()
    assert cancelled(running) == len(VARIANTS)
    assert running.decisions(Dispatch) == []
    assert len(running.decisions(Load)) == len(MODELS)
    assert worker.sim.twin.counters.loads_aborted == 0
    await nothing_is_left(running, worker)


@pytest.mark.parametrize("way", WAYS)
async def test_b03_a_client_that_leaves_during_prefill_closes_the_upstream(way, recorded, gateway):
    worker = await recorded(parallel=4)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    for number, (path, stream) in enumerate(VARIANTS):
        worker.sim.faults.set(Fault("slow", percent=30_000))
        client = await Rude.dial(running.port)
        await client.send(request(path, stream=stream, text="hello " * 300))
        await until(lambda: worker.sim.busy() == 1, "the prefill")
        worker.sim.faults.set(Fault("clear"))
        await leave(client, way)
        await until(lambda n=number: worker.sim.twin.counters.cancelled_total == n + 1, "the upstream's close")
    await until(lambda: cancelled(running) == len(VARIANTS), "all cancelled")
    assert (await running.chat()).status == 200
    await nothing_is_left(running, worker)


@pytest.mark.parametrize("lines", [0, 1, 20])
@pytest.mark.parametrize("way", WAYS)
async def test_b04_a_client_that_leaves_in_mid_stream_frees_its_slot_at_once(way, lines, recorded, gateway):
    worker = await recorded(parallel=1)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    for path, _ in VARIANTS[::2]:
        client = await Rude.dial(running.port)
        await client.send(request(path, stream=True, tokens=MANY))
        raw = await client.read_until(b"\r\n\r\n")
        while raw.count(b"\n") < lines:
            raw += await client.read()
        await leave(client, way)
        assert (await running.chat()).headers["x-bellmare-cache"] in ("hit", "queued")
    await nothing_is_left(running, worker)
    assert cancelled(running) == 2
    assert worker.sim.twin.counters.cancelled_total == 2


@pytest.mark.parametrize("way", WAYS)
async def test_b05_a_client_that_leaves_before_the_last_line_is_counted_once(way, recorded, gateway):
    worker = await recorded(parallel=4)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    worker.hold = asyncio.Event()
    for number, (path, stream) in enumerate(VARIANTS):
        client = await Rude.dial(running.port)
        await client.send(request(path, stream=stream, tokens=3))
        await until(lambda n=number: worker.held == n + 1, "the last line")
        if stream:
            await client.read_until(b"\r\n\r\n")
        await leave(client, way)
        await until(lambda n=number: cancelled(running) == n + 1, "its end")
    worker.hold.set()
    worker.hold = None
    assert (await running.chat()).status == 200
    await nothing_is_left(running, worker)
    await running.close()
    assert len(running.lines("request")) == len(VARIANTS) + 2, "one line for each request"


@pytest.mark.parametrize("sent", [0, 1, -1])
@pytest.mark.parametrize("way", WAYS)
async def test_b06_a_client_that_leaves_while_it_sends_dispatches_nothing(way, sent, recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    for path, stream in VARIANTS:
        data = request(path, stream=stream)
        head = data.index(b"\r\n\r\n") + 4
        client = await Rude.dial(running.port)
        await client.send(data[: head + sent if sent >= 0 else sent])
        await until(lambda: running.service._server.connections == 1)
        await leave(client, way)
        await until(lambda: running.service._server.connections == 0, "the connection")
    assert running.events(RequestArrived) == []
    await nothing_is_left(running, worker)


@pytest.mark.parametrize("way", WAYS)
async def test_b08_a_client_that_leaves_while_its_answer_is_written_frees_everything(way, recorded, gateway):
    """Its window is full: the answer waits with us, and a stream's worker is held back."""
    worker = await recorded(parallel=1)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    server = running.service._server
    for path, stream in VARIANTS:
        client = await Rude.dial(running.port, window=4096)
        await until(lambda: server.connections == 1)
        (connection,) = server._connections
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(request(path, stream=stream, tokens=MANY // 2))
        await client.read_until(b"\r\n\r\n")
        await until(lambda: any(one.write_paused for one in server._connections), "a full window")
        await leave(client, way)
    await nothing_is_left(running, worker)


@pytest.mark.parametrize("way", WAYS)
async def test_b07_a_client_that_half_closes_or_leaves_between_requests_costs_nothing(way, recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    for data in (b"", b"GET /", b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        client = await Rude.dial(running.port)
        await client.send(data)
        if len(data) > 10:
            await client.read_until(b"}")
        await leave(client, way)
    await nothing_is_left(running, worker)
