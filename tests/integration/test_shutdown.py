"""A gateway that stops lets answers end within its grace, cuts the rest, unloads nothing and leaves nothing behind."""

import socket

import pytest
from rig import at_most, begin, start_gateway, until

from bellmare.core.decisions import Dispatch, Load


async def test_answers_under_way_and_waiting_end_within_the_grace(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    streams = [await running.open_chat(options={"num_predict": 1_000}) for _ in range(2)]
    await until(lambda: len(running.decisions(Dispatch)) == 1 and running.state.waiting == 1)
    closing = begin(running.service.close(grace_s=20.0))
    for talk in streams:
        assert await talk.head() == 200
        assert (await talk.rest()).count(b"\n") == 1_001
        assert talk.complete
        await talk.close()
    async with at_most(5):
        await closing
    assert worker.loaded() == ["a:1"]


async def test_what_lasts_longer_than_the_grace_is_cut_on_both_sides(sim, gateway):
    worker = await sim(parallel=1, time_scale=0.2)
    running = await gateway(worker.port)
    stream = await running.open_chat(options={"num_predict": 80_000})
    assert await stream.head() == 200
    waiting = await running.open_chat()
    async with at_most(5):
        await running.close()
    await stream.rest()
    assert not stream.complete, "no good end was pretended"
    await waiting.rest()
    await until(lambda: not worker.busy(), "the worker's slot")
    assert (worker.loaded(), worker.twin.counters.unloads_asked) == (["a:1"], 0)
    for talk in (stream, waiting):
        await talk.close()


async def test_a_load_under_way_is_given_up_with_the_gateway(sim, gateway):
    """The request that loads must stay open (ollama.md 2.1), so a stopped gateway's load is aborted by the worker."""
    worker = await sim(time_scale=1.0)
    running = await gateway(worker.port)
    talk = await running.open_chat()
    await until(lambda: running.decisions(Load))
    async with at_most(5):
        await running.close()
    await until(lambda: worker.twin.counters.loads_aborted == 1, "the abort")
    talk.leave()


async def test_a_port_that_is_taken_is_told_and_nothing_is_left(sim):
    worker = await sim()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key in ("listen", "admin"):
            with pytest.raises(OSError, match="in use"):
                await start_gateway(worker.port, **{key: f"127.0.0.1:{port}"})
