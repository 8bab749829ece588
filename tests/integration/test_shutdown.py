"""A gateway that stops lets answers end within its grace, cuts the rest, unloads nothing and leaves nothing behind."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from rig import ask, at_most, begin, replayed, start_gateway, until

from bellmare.cli import service as service_module
from bellmare.cli.service import CannotListen
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


async def test_what_lasts_longer_than_the_grace_is_told_so_and_ended_on_both_sides(sim, gateway):
    worker = await sim(parallel=1, time_scale=0.2)
    running = await gateway(worker.port)
    stream = await running.open_chat(options={"num_predict": 80_000})
    assert await stream.head() == 200
    waiting = await running.open_chat()
    await until(lambda: running.state.waiting == 1)
    async with at_most(5):
        await running.close()
    last = json.loads((await stream.rest()).splitlines()[-1])
    assert "error" in last, "no good end was pretended"
    assert await waiting.head() == 503
    assert "error" in json.loads(await waiting.rest())
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
            with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
                await start_gateway(worker.port, **{key: f"127.0.0.1:{port}"})


async def test_readiness_ends_when_the_shutdown_begins_and_not_with_it(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, admin="127.0.0.1:0")
    stream = await running.open_chat(options={"num_predict": 1_000})
    assert await stream.head() == 200
    closing = begin(running.service.close(grace_s=20.0))
    await asyncio.sleep(0)
    ready = await running.admin("GET", "/readyz")
    assert (ready.status, ready.body) == (503, b"draining\n")
    await stream.rest()
    assert stream.complete
    await stream.close()
    async with at_most(5):
        await closing


@pytest.mark.parametrize("early", [False, True], ids=["during the grace", "before it"])
async def test_a_grace_that_is_cut_short_ends_at_once_and_in_words(sim, gateway, early):
    worker = await sim(parallel=1, time_scale=0.2)
    running = await gateway(worker.port)
    stream = await running.open_chat(options={"num_predict": 80_000})
    assert await stream.head() == 200
    async with at_most(5):
        if early:
            running.service.cut()
        closing = begin(running.service.close(grace_s=60.0))
        await asyncio.sleep(0)
        running.service.cut()
        running.service.cut()
        await closing
    assert "error" in json.loads((await stream.rest()).splitlines()[-1])
    await stream.close()


async def test_a_client_that_does_not_read_its_last_words_is_cut(sim, gateway):
    worker = await sim(parallel=1, time_scale=0.001)
    running = await gateway(worker.port)
    stuck = await running.open_chat(options={"num_predict": 80_000}, window=4096)
    server = running.service._server
    assert server is not None
    await until(lambda: any(one.write_paused for one in server._connections), "full buffers on the way to the client")
    async with at_most(5):
        await running.close()
    stuck.leave()


async def test_no_step_of_the_end_is_skipped_because_of_another_one(sim, gateway, monkeypatch, tmp_path):
    """Each of them fails or hangs, and the log's end is on disk."""
    monkeypatch.setattr(service_module, "STEP_TIMEOUT_S", 0.2)
    worker = await sim()
    running = await gateway(worker.port, admin="127.0.0.1:0", record={"path": str(tmp_path / "log")})
    assert (await running.chat()).status == 200
    service, ended = running.service, []
    assert service._server is not None
    assert service._admin is not None

    def broken(name, close):
        async def step(*arguments, **more):
            await close(*arguments, **more)
            ended.append(name)
            if name == "admin":
                await asyncio.Event().wait()
            raise RuntimeError(name)

        return step

    service._server.close = broken("gateway", service._server.close)
    service._admin.close = broken("admin", service._admin.close)
    service.tasks.close = broken("tasks", service.tasks.close)
    service.fleet.close = broken("workers", service.fleet.close)

    async def nothing() -> None:
        pass

    service._own_workers = [broken(name, nothing) for name in ("one", "two")]
    running.errors_expected = 6
    async with at_most(10):
        await running.close()
    assert ended == ["gateway", "admin", "tasks", "workers", "two", "one"]
    assert len(running.lines("closing: admin failed")) == 1
    report = replayed(tmp_path / "log")
    assert (report.difference, report.steps) == (None, len(running.steps))


async def test_a_close_that_is_cancelled_still_ends_the_log(sim, gateway, tmp_path):
    worker = await sim(parallel=1, time_scale=0.2)
    running = await gateway(worker.port, record={"path": str(tmp_path / "log")})
    stream = await running.open_chat(options={"num_predict": 80_000})
    assert await stream.head() == 200
    closing = begin(running.service.close(grace_s=60.0))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    report = replayed(tmp_path / "log")
    assert (report.difference, report.steps) == (None, len(running.steps))
    await running.close()
    await stream.close()


async def test_while_it_starts_a_gateway_is_alive_not_ready_and_lets_nobody_in(sim, unused_port):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        admin = f"127.0.0.1:{unused_port}"
        starting = begin(start_gateway(silent.getsockname()[1], admin=admin))
        ready = None
        while ready is None:
            await asyncio.sleep(0)
            assert not starting.done()
            try:
                ready = await ask(unused_port, "GET", "/readyz")
            except ConnectionError:
                pass  # not bound yet
        assert (ready.status, ready.body) == (503, b"starting\n")
        assert (await ask(unused_port, "GET", "/healthz")).status == 200
    running = await starting  # the silent one is gone, which is an answer
    assert (await running.admin("GET", "/readyz")).body == b"no healthy worker\n"
    await running.close()


async def test_a_start_in_vain_leaves_the_event_log_as_it_was(sim, tmp_path: Path):
    worker = await sim()
    log = tmp_path / "log"
    log.mkdir()
    for number in (1, 2, 3):
        (log / f"events-{number:06d}.jsonl").write_text("old\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key in ("listen", "admin"):
            with pytest.raises(CannotListen):
                await start_gateway(worker.port, **{key: f"127.0.0.1:{port}"}, record={"path": str(log), "keep": 2})
    assert sorted(path.name for path in log.iterdir()) == [f"events-{number:06d}.jsonl" for number in (1, 2, 3)]


async def test_a_log_that_cannot_be_written_is_told_and_done_without(sim, gateway, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    running = await gateway((await sim()).port, record={"path": str(tmp_path / "file" / "log")})
    assert (await running.chat()).status == 200
    await running.close()
    warned = [line for line in running.log.getvalue().splitlines() if "no event log" in line]
    assert len(warned) == 1
    assert '"level":"warning"' in warned[0]


async def test_workers_that_share_a_machine_do_not_each_get_all_of_it(sim, gateway, monkeypatch):
    monkeypatch.setattr(service_module, "local_capacity_bytes", lambda: 80 * 10**9)
    one, two = await sim(extension=False), await sim(extension=False)
    alone = await gateway(one.port)
    assert alone.state.workers["w0"].capacity_bytes == 80 * 10**9
    await alone.close()
    assert "workers[].vram" not in alone.log.getvalue()
    both = await gateway(one.port, {"url": f"http://127.0.0.1:{two.port}", "name": "w1", "vram": "24GB"})
    assert both.state.workers["w0"].capacity_bytes < 24 * 10**9
    assert both.state.workers["w1"].capacity_bytes == 24 * 10**9
    await both.close()
    (warned,) = [line for line in both.log.getvalue().splitlines() if "workers[].vram" in line]
    assert '"workers":"w0"' in warned
