"""The fault proxy does what its toxics say, on either side of the gateway, and the gateway bears it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fault_proxy import FaultProxy
from hostile_worker import CHUNKED, chunk, done, lines, raw, token
from rig import Reply, ask, at_most, open_talk, until

from bellmare.core.decisions import HealthChange
from bellmare.core.events import DispatchFailed, FaultKind, LoadRequested
from bellmare.core.units import WorkerId

CHAT = {"model": "a:1", "messages": [{"role": "user", "content": "hello"}]}


class Echo:
    """Sends back what it gets; knows how connections ended."""

    def __init__(self) -> None:
        self.server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo(_gate):
    server = Echo()
    await server.open()
    yield server
    assert server.server is not None
    server.server.close()


async def send(proxy: FaultProxy, data: bytes) -> tuple[bytes, str]:
    """What comes back, and how it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    got = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(2):
            while piece := await reader.read(4096):
                got += piece
        return got, "end"
    except TimeoutError:
        return got, "silence"
    except ConnectionError:
        return got, "reset"
    finally:
        writer.transport.abort()


async def test_without_toxics_everything_passes_and_ends_in_order(echo, proxy):
    between = await proxy(echo.port)
    assert await send(between, b"x" * 100_000) == (b"x" * 100_000, "end")
    assert (between.up.passed, between.down.passed, between.connections) == (100_000, 100_000, 1)


async def test_each_toxic_does_its_harm_and_can_be_changed_while_running(echo, proxy):
    between = await proxy(echo.port)
    between.down.reset_after = 10
    assert (await send(between, b"x" * 100))[1] == "reset"
    between.down.reset_after, between.down.limit_bytes = -1, 10
    assert await send(between, b"x" * 100) == (b"x" * 10, "end")
    between.down.limit_bytes, between.down.stall_after = -1, 10
    assert await send(between, b"x" * 100) == (b"x" * 10, "silence")
    between.down.stall_after, between.up.corrupt_every = -1, 4
    assert (await send(between, b"aaaaaaaa"))[0] == b"aaa4aaa4"
    between.up.corrupt_every, between.up.slice_bytes = 0, 3
    assert await send(between, b"y" * 10) == (b"y" * 10, "end")
    for toxic, value in (("latency_s", 0.1), ("slow_close_s", 0.1), ("bytes_per_s", 10_000)):
        setattr(between.down, toxic, value)
        began = time.monotonic()
        assert (await send(between, b"z" * 1000))[1] == "end"
        assert time.monotonic() - began >= 0.09
        setattr(between.down, toxic, 0)
    between.refusing = True
    assert (await send(between, b"x"))[1] == "reset"


async def test_a11_an_answer_in_one_byte_pieces_between_worker_and_gateway_is_the_same(hostile, proxy, gateway):
    worker = await hostile()
    between = await proxy(worker.port)
    running = await gateway(between.port)
    assert (await running.chat()).status == 200
    between.down.slice_bytes = 1
    worker.script(lines(token("grüße"), done()))
    reply = await ask(running.port, "POST", "/api/chat", CHAT)
    assert [row["message"]["content"] for row in reply.lines] == ["grüße", ""]


@pytest.mark.parametrize(("toxic", "value"), [("reset_after", 300), ("limit_bytes", 300)])
async def test_a04_a_cut_on_the_way_is_an_error_frame_or_a_retry_and_never_half_an_answer(
    hostile, proxy, gateway, toxic, value
):
    worker = await hostile()
    between = await proxy(worker.port)
    running = await gateway(between.port)
    assert (await running.chat()).status == 200
    setattr(between.down, toxic, value)  # the head, and a part of the second line
    await between.cut_all()
    worker.always = (raw(CHUNKED), *(chunk(json.dumps(token(f"{n}" * 40)).encode() + b"\n") for n in range(3)))
    talk = await open_talk(running.port, "POST", "/api/chat", CHAT)
    code = await talk.head()
    reply = Reply(talk, await talk.rest())
    await talk.close()
    if code == 200:
        assert reply.complete and reply.lines[-1].keys() == {"error"}
    else:
        assert code in (502, 503)


async def test_a05_a_stall_on_the_way_ends_as_one_of_the_worker_does(hostile, proxy, gateway):
    worker = await hostile()
    between = await proxy(worker.port)
    running = await gateway(between.port, limits={"token_timeout": "1s", "first_token_timeout": "1s"})
    assert (await running.chat()).status == 200
    await between.cut_all()
    between.down.stall_after = 350
    worker.always = (raw(CHUNKED), *(chunk(json.dumps(token(f"{n}")).encode() + b"\n") for n in range(9)))
    async with at_most(20):
        reply = await ask(running.port, "POST", "/api/chat", CHAT)
    assert reply.status == 200
    assert reply.lines[-1].keys() == {"error"}
    between.down.stall_after = -1


async def test_a27_a_slow_way_to_one_worker_ejects_nobody_and_the_other_gets_more(hostile, proxy, gateway):
    near, far = await hostile(), await hostile()
    between = await proxy(far.port)
    running = await gateway(near.port, between.port, drain_after="100ms")
    await load_everywhere(running)
    between.down.latency_s = 0.1
    await asyncio.gather(*(client(running, 12) for _ in range(5)))
    assert running.decisions(HealthChange)[2:] == []
    assert running.events(DispatchFailed) == []
    assert len(near.served) > len(far.served) > 0


async def test_a28_a_fifth_of_all_packets_lost_ejects_nobody(hostile, proxy, gateway):
    workers = [await hostile(), await hostile()]
    ways = [await proxy(worker.port, seed=number) for number, worker in enumerate(workers)]
    running = await gateway(*(way.port for way in ways), drain_after="100ms")
    await load_everywhere(running)
    for way in ways:
        way.up.lost_percent = way.down.lost_percent = 20
    statuses = [status for found in await asyncio.gather(*(client(running, 10) for _ in range(4))) for status in found]
    assert set(statuses) == {200}
    assert running.decisions(HealthChange)[2:] == []


async def load_everywhere(running) -> None:
    for number in range(2):
        assert (await running.driver.ask(_load(number))).accepted
    await until(
        lambda: all(w.runners for w in running.state.workers.values()) and not running.state.operations, "loads"
    )


def _load(number: int) -> LoadRequested:
    return LoadRequested(ticket=f"t{number}", name="a:1", worker=WorkerId(f"w{number}"))


async def client(running, requests: int) -> list[int]:
    return [(await running.chat(options={"num_predict": 5})).status for _ in range(requests)]


async def test_a_bad_way_between_client_and_gateway_costs_only_that_client(hostile, proxy, gateway):
    running = await gateway((await hostile()).port)
    assert (await running.chat()).status == 200
    between = await proxy(running.port)
    between.down.reset_after = 200
    talk = await open_talk(between.port, "POST", "/api/chat", CHAT)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await talk.head()
    await talk.close()
    between.down.reset_after, between.up.slice_bytes, between.down.slice_bytes = -1, 1, 1
    reply = await ask(between.port, "POST", "/api/chat", CHAT)
    assert (reply.status, reply.lines[-1]["done"]) == (200, True)
    await running.settled()
    assert FaultKind.reset not in [event.fault for event in running.events(DispatchFailed)]
