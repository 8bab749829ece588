"""SIGTERM: not ready at once, clients let in for a while, answers end within the grace, then one error for each."""

import asyncio
import json

import pytest
from rig import at_most, begin, open_talk, until

from bellmare.settings import SettingsError, load_settings

CLIENTS = 12


async def test_a_lame_duck_is_not_ready_and_still_lets_clients_in_for_its_span(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, admin="127.0.0.1:0", limits={"grace": "20s", "lame_duck": "2s"})
    assert (await running.chat()).status == 200
    idle = await open_talk(running.port, "GET", "/api/version", headers={"connection": "keep-alive"})
    assert await idle.head() == 200
    await idle.rest()
    closing = begin(running.service.close())
    await asyncio.sleep(0)
    assert (await running.admin("GET", "/readyz")).body == b"draining\n"
    late = await running.chat()
    assert (late.status, late.headers["connection"]) == (200, "close")
    assert not idle._reader.at_eof(), "who is idle may still send"
    async with at_most(15):
        await closing
    with pytest.raises(ConnectionError):
        await running.chat()
    await idle.close()
    running.closed = True


async def test_a_second_signal_ends_the_lame_duck_too(sim, gateway):
    running = await gateway((await sim()).port, limits={"grace": "60s", "lame_duck": "60s"})
    closing = begin(running.service.close())
    await asyncio.sleep(0)
    running.service.cut()
    async with at_most(5):
        await closing
    running.closed = True


async def test_within_the_grace_no_stream_is_cut_and_the_end_comes_with_the_last_one(sim, gateway):
    worker = await sim(parallel=4, time_scale=0.02)
    running = await gateway({"url": f"http://127.0.0.1:{worker.port}", "name": "w0", "parallel": 4})
    talks = [await running.open_chat(options={"num_predict": 100 + 20 * number}) for number in range(CLIENTS)]
    await until(lambda: len(running.service.gateway._open) == CLIENTS)
    closing = begin(running.service.close(grace_s=25.0))
    for number, talk in enumerate(talks):
        assert await talk.head() == 200
        lines = (await talk.rest()).splitlines()
        assert talk.complete and json.loads(lines[-1])["done"] and len(lines) == 101 + 20 * number
        await talk.close()
    async with at_most(5):
        await closing
    running.closed = True


async def test_after_the_grace_each_client_gets_one_error_in_its_dialect_and_no_good_end(sim, gateway):
    worker = await sim(parallel=4, time_scale=0.3)
    running = await gateway({"url": f"http://127.0.0.1:{worker.port}", "name": "w0", "parallel": 4})
    endless = {"options": {"num_predict": 80_000}, "max_tokens": 80_000}
    talks = []
    for number in range(CLIENTS):
        if number % 3 == 0:
            talks.append((number, await running.open_completion(**endless)))
        else:
            talks.append((number, await running.open_chat(stream=number % 3 == 1, **endless)))
    await until(lambda: len(running.service.gateway._open) == CLIENTS)
    await until(lambda: sum(one.first_byte_us >= 0 for one in running.service.gateway._open.values()) >= 2)
    async with at_most(10):
        await running.close()
    errors = 0
    for number, talk in talks:
        status = await talk.head()
        body = (await talk.rest()).decode()
        assert talk.complete and '"done":true' not in body and "[DONE]" not in body
        parts = body.removesuffix("\n\n").split("\n\n") if number % 3 == 0 and status == 200 else body.splitlines()
        documents = [json.loads(part.removeprefix("data: ")) for part in parts]
        assert status in (200, 503)
        assert ["error" in document for document in documents] == [False] * (len(documents) - 1) + [True]
        assert "shutting down" in json.dumps(documents[-1])
        errors += 1
        await talk.close()
    assert errors == CLIENTS
    await until(lambda: not worker.busy(), "the worker's slots")
    assert worker.twin.counters.unloads_asked == 0


def test_the_lame_duck_is_a_part_of_the_grace_and_none_on_loopback():
    def settings(**chosen):
        return load_settings(None, environment={}, overrides=chosen)

    assert settings().lame_duck_s == 0
    assert settings(listen="0.0.0.0:11435", insecure=True).lame_duck_s == 5
    assert settings(listen="0.0.0.0:11435", insecure=True, limits={"grace": "2s"}).lame_duck_s == 2
    assert settings(limits={"lame_duck": "3s"}).lame_duck_s == 3
    with pytest.raises(SettingsError, match=r"40s is more than `limits.grace` \(30s\)"):
        settings(limits={"lame_duck": "40s"})
