"""Large bodies: refused before they are read where they may be, bounded all together, and parsed beside the loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
from raw_client import Rude, split_answers
from rig import Gateway, begin, until

from bellmare.core.events import RequestArrived
from bellmare.gateway.errands import native, openai
from bellmare.gateway.errands.errand import prepare
from bellmare.gateway.parsing import INLINE_BYTES_MAX
from bellmare.protocols.jsonbody import ESCAPES_MAX

pytestmark = pytest.mark.slow

MIB = 1 << 20
STALL_MAX_S = 0.5
"""Of a shared machine; what was measured stands in docs/http.md."""


def chat(size: int) -> bytes:
    """A whole request of about ``size`` bytes."""
    said = {"model": "a:1", "messages": [{"role": "user", "content": "x" * size}], "options": {"num_predict": 1}}
    body = json.dumps(said | {"stream": False}).encode()
    return b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def held(running: Gateway) -> int:
    return running.service._server.held_bytes


async def status_of(client: Rude) -> int:
    return int((await client.read_until(b"\r\n\r\n"))[9:12])


async def test_b28_a_413_is_seen_although_the_client_goes_on_sending(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    client = await Rude.dial(running.port)
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
    answer = begin(client.rest())
    sent = 0
    started = time.monotonic()
    try:
        while time.monotonic() - started < 20:
            await client.send(b"x" * 65_536)
            sent += 65_536
    except ConnectionError:
        pass
    assert [one.status for one in split_answers(await answer)] == [413]
    assert time.monotonic() - started < 20, "it is cut when the linger is over"
    assert sent > MIB, "what it sent was taken and thrown away"
    client.fin()
    assert worker.requests() and running.events(RequestArrived) == []


async def test_b17_a_million_chunks_of_one_byte_end_early_and_stop_nobody(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    client = await Rude.dial(running.port)
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = begin(client.rest())
    chunks = b"1\r\nx\r\n" * 10_000
    sent = 0
    try:
        while sent < 100 and not answer.done():
            await client.send(chunks)
            sent += 1
            assert (await running.ask("GET", "/api/version")).status == 200
    except ConnectionError:
        pass
    assert [one.status for one in split_answers(await answer)] == [400]
    client.fin()
    assert running.events(RequestArrived) == []


async def test_bodies_of_all_clients_together_are_bounded_and_the_largest_makes_room(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port, limits={"body": "1MiB", "bodies": "2MiB"})
    assert (await running.chat()).status == 200
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
    clients = [await Rude.dial(running.port) for _ in range(4)]
    sizes = [900_000, 500_000, 600_000]
    for client, size in zip(clients, sizes, strict=False):
        await client.send(head + b" " * size)
    await until(lambda: held(running) == sum(sizes), "all of it arrived")
    await clients[3].send(head + b" " * 400_000)
    raw = await clients[0].rest()
    (answer,) = split_answers(raw)
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
    assert answer.body == b'{"error":"too many large requests at once"}'
    await until(lambda: held(running) == 500_000 + 600_000 + 400_000, "only the largest went")
    assert (await running.chat()).status == 200, "small requests are served all the while"
    await clients[1].send(b" " * (1_048_576 - 500_000))
    assert await status_of(clients[1]) == 400, "and so is who stayed: blanks are no JSON"
    for client in clients:
        client.reset()
    await until(lambda: held(running) == 0, "nothing is held any more")


async def test_a_body_counts_until_its_request_has_ended(recorded, gateway):
    worker = await recorded(parallel=1)
    running = await gateway(worker.port, limits={"body": "1MiB", "bodies": "1MiB"})
    holder = await running.open_chat(options={"num_predict": 80_000})
    assert await holder.head() == 200
    waiting = await Rude.dial(running.port)
    await waiting.send(chat(700_000))
    await until(lambda: running.state.waiting == 1, "it waits for its turn")
    assert held(running) > 700_000
    late = await Rude.dial(running.port)
    await late.send(chat(600_000))
    assert await status_of(late) == 503, "nobody who is still sending could make room"
    late.fin()
    holder.leave()
    assert await status_of(waiting) == 200
    waiting.fin()
    await until(lambda: held(running) == 0, "nothing is held any more")
    assert [request.status for request in [await running.chat()]] == [200]


async def test_a_large_request_is_served_like_a_small_one(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    text = "word " * (INLINE_BYTES_MAX // 5 + 10)
    reply = await running.chat(messages=[{"role": "user", "content": text}], options={"num_predict": 1})
    assert (reply.status, reply.json["done"]) == (200, True)
    body = worker.requests()[-1][1] or next(b for _, b in reversed(worker.requests()) if b)
    assert json.loads(body)["messages"][0]["content"] == text
    unknown = json.dumps({"model": "zz", "prompt": text}).encode()
    for data, status in ((b"{" + b" " * INLINE_BYTES_MAX, 400), (unknown, 404)):
        reply = await running.post("/api/generate", data)
        assert (reply.status, reply.json.keys()) == (status, {"error"})
    reply = await running.post("/api/chat", b" " * INLINE_BYTES_MAX + b"{}", x_bellmare_priority="urgent")
    assert reply.status == 400
    assert running.service.gateway.large_bodies.waiting == 0


@pytest.mark.parametrize("parse", [native.chat, openai.chat_completions])
def test_a_body_encoded_ahead_is_what_would_be_encoded_at_dispatch(parse):
    message = {"role": "user", "content": '"num_ctx":1,\\"num_ctx\\":2 \u00e4'}
    errand = parse(json.dumps({"model": "a:1", "messages": [message], "options": {"num_ctx": 5}}).encode())
    prepared = prepare(errand)
    for num_ctx in (1, 4096, 1_000_000):
        assert b"".join(prepared.body(num_ctx)) == errand.body(num_ctx)
        assert json.loads(errand.body(num_ctx))["options"]["num_ctx"] == num_ctx


async def test_texts_that_no_model_reads_are_refused(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    before = len(worker.requests())
    for data in (
        json.dumps({"model": "a:1", "prompt": "x" * (16 * MIB + 1)}).encode(),
        json.dumps({"model": "a:1", "prompt": "x", "system": "x" * (16 * MIB + 1)}).encode(),
        json.dumps({"model": "a:1", "prompt": "\n" * (ESCAPES_MAX + 1) + "x" * MIB}).encode(),
    ):
        assert (await running.post("/api/generate", data)).status == 413
    assert len([1 for _, body in worker.requests()[before:] if len(body) > MIB]) == 0


async def test_b06_who_leaves_while_his_body_is_parsed_leaves_nothing(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    large = running.service.gateway.large_bodies
    assert (await running.chat(messages=[{"role": "user", "content": "x" * INLINE_BYTES_MAX}])).status == 200
    arrived = len(running.events(RequestArrived))
    busy = threading.Event()
    large._thread.submit(busy.wait, 60)
    try:
        clients = [await Rude.dial(running.port) for _ in range(9)]
        for client in clients:
            await client.send(chat(MIB))
        await until(lambda: large.waiting == 9, "all wait for the thread")
        for client in clients[:8]:
            client.reset()
        await until(lambda: large.waiting == 1, "who left waits no more")
        assert (await running.chat()).status == 200, "small requests pass by"
    finally:
        busy.set()
    assert await status_of(clients[8]) == 200
    clients[8].fin()
    await until(lambda: held(running) == 0 and not running.driver.requests, "nothing is left")
    assert len(running.events(RequestArrived)) == arrived + 2


async def test_too_many_bodies_that_wait_to_be_parsed_are_refused(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    large = running.service.gateway.large_bodies
    large._waiting_max = 0
    reply = await running.chat(messages=[{"role": "user", "content": "x" * INLINE_BYTES_MAX}])
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    large._waiting_max = 1
    assert (await running.chat(messages=[{"role": "user", "content": "x" * INLINE_BYTES_MAX}])).status == 200


async def test_bodies_being_parsed_at_the_end_of_the_grace_get_their_503(recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    client = await Rude.dial(running.port)
    request = chat(24 * MIB)
    sending = begin(client.send(request))
    await until(lambda: running.service.gateway.large_bodies.waiting == 1, "it is being parsed")
    running.service.cut()
    await running.close()
    answers = split_answers(await client.rest())
    await sending
    assert [answer.status for answer in answers] == [503]
    client.fin()


async def test_the_loop_goes_on_while_large_bodies_are_parsed(recorded, gateway, capsys):
    """Text full of escapes is the slowest to decode."""
    worker = await recorded()
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    text = b"hello: world \\n\\u00e9 " * (15 * MIB // 21)
    body = b'{"model":"nobody:1","prompt":"' + text + b'"}'
    request = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    large = running.service.gateway.large_bodies
    loop = asyncio.get_running_loop()
    client = await Rude.dial(running.port)
    sending = begin(client.send(request))
    await until(lambda: large.waiting == 1, "it is being parsed")
    turns, stall, last = 0, 0.0, loop.time()
    while large.waiting:
        await asyncio.sleep(0)
        now = loop.time()
        turns, stall, last = turns + 1, max(stall, now - last), now
    await sending
    assert await status_of(client) == 404
    client.fin()
    with capsys.disabled():
        print(f"\nlongest stall while {len(body) / MIB:.0f} MiB were parsed: {stall * 1000:.0f} ms, {turns} turns")
    assert turns > 5
    assert stall < STALL_MAX_S
