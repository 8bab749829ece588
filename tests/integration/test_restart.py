"""A restart hands over: no request fails, no stream is cut, nothing is unloaded, and one process decides at a time."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from lifecycle_rig import GatewayProcess, Load, alive, loads_and_unloads, warm
from rig import at_most, begin, open_talk, replayed, until

from bellmare.cli import handover

pytestmark = pytest.mark.slow
RESTARTS = int(os.environ.get("BELLMARE_RESTARTS", "3"))


@pytest.mark.timeout(240)
async def test_restarts_in_a_row_under_load_fail_nothing_and_unload_nothing(sim, served):
    workers = [await sim(time_scale=0.05), await sim(time_scale=0.05)]
    gateway = await served(*workers)
    await warm(gateway, "a:1", "b:1")
    before = loads_and_unloads(*workers)
    load = Load(gateway.port)
    load.start()
    for _ in range(RESTARTS):
        done = load.outcomes.total()
        await gateway.restart()
        await until(lambda done=done: load.outcomes.total() > done + 20, "traffic through the new process")
    await load.stop()
    assert load.bad == []
    assert min(load.outcomes[f"{kind} good"] for kind in ("stream", "short", "kept")) >= RESTARTS
    after = loads_and_unloads(*workers)
    assert after[1] == before[1] == 0
    assert len(set(gateway.pids)) == RESTARTS + 1
    for pid in gateway.pids[:-1]:
        await gateway.gone(pid)
    await gateway.stop()
    assert not [row for row in gateway.text().splitlines() if '"level":"error"' in row or "Traceback" in row]
    report = replayed(gateway.home / "state" / "bellmare" / "events")
    assert report.difference is None
    assert report.files >= RESTARTS + 1


async def test_what_waits_for_a_slot_or_for_a_load_is_answered_by_the_new_process(sim, served):
    worker = await sim(time_scale=0.05, parallel=1)
    gateway = await served(worker)
    gateway.entries[0]["parallel"] = 1
    await warm(gateway, "a:1")
    holding = await open_talk(
        gateway.port, "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 3000}}
    )
    assert await holding.head() == 200
    waiting = []
    for number in range(12):
        model = ("a:1", "b:1", "c:1")[number % 3]
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": number % 2 == 0}
        path = "/v1/chat/completions" if number % 4 < 2 else "/api/chat"
        talk = await open_talk(gateway.port, "POST", path, body, headers={"x-request-id": f"mine-{number}"})
        waiting.append((number, talk))
    await gateway.restart()
    for number, talk in waiting:
        assert await talk.head() == 200, (number, await talk.rest())
        assert talk.headers["x-request-id"] == f"mine-{number}"
        rest = await talk.rest()
        assert talk.complete and rest
        await talk.close()
    assert (await holding.rest()).count(b"\n") > 2900
    assert holding.complete
    await holding.close()
    await gateway.stop()
    booked = [row["id"] for row in gateway.lines("request") if row["id"].startswith("mine")]
    assert sorted(booked) == sorted(f"mine-{number}" for number in range(12)), "each is accounted for once"
    assert worker.twin.counters.own_evictions == 0


@pytest.mark.parametrize("damage", ["settings", "listen"])
async def test_a_new_process_that_cannot_start_leaves_the_old_one_as_it_was(sim, served, damage, unused_port):
    worker = await sim(time_scale=0.02)
    gateway = await served(worker)
    await warm(gateway, "a:1")
    if damage == "settings":
        gateway.write(eviction="no-such-policy")
    else:
        gateway.write(listen=f"127.0.0.1:{unused_port}")
    load = Load(gateway.port, ("a:1",))
    load.start(streams=1, short=2, kept=1)
    os.kill(gateway.process.pid, signal.SIGUSR2)
    await until(lambda: gateway.lines("restart given up; this process goes on"))
    answer = await gateway.admin("POST", "/api/v1/restart", {})
    assert (answer.status, answer.json["accepted"]) == (409, False)
    assert "could not start" in answer.json["text"]
    done = load.outcomes.total()
    await until(lambda: load.outcomes.total() > done + 10)
    await load.stop()
    assert load.bad == []
    await warm(gateway, "b:1")  # it decides again
    metrics = await gateway.metrics()
    assert (metrics["bellmare_standby"], metrics["bellmare_process_id"]) == (0, gateway.process.pid)
    assert (await gateway.admin("GET", "/readyz")).status == 200
    await gateway.stop()


async def test_a_new_process_that_dies_while_it_takes_over_is_made_up_for(sim, served, tmp_path: Path):
    """It says that it is prepared and no more: everything goes back to the old one."""
    worker = await sim(time_scale=0.02)
    gateway = await served(worker)
    await warm(gateway, "a:1")
    answers = []
    for _ in range(2):
        asked = begin(gateway.admin("POST", "/api/v1/restart", {}))
        children: list[int] = []
        await until(lambda children=children: children.extend(_children(gateway.process.pid)) or children)
        await until(lambda child=children[0]: _connected(child), "its imports")
        os.kill(children[0], signal.SIGKILL)
        answers.append(await asked)
    assert [answer.status for answer in answers] == [409, 409]
    await warm(gateway, "a:1", "b:1")
    assert worker.twin.counters.unloads_asked == 0
    await gateway.stop()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _connected(pid: int) -> bool:
    """Whether the child has come so far as to have a loop; before its exec it shares its parent's."""
    try:
        if b"BELLMARE_HANDED_FDS" not in Path(f"/proc/{pid}/environ").read_bytes():
            return False
        return any("anon_inode:[eventpoll]" in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True


async def test_workers_of_our_own_keep_a_process_from_handing_over(served):
    gateway = await served(entries=[{"sim": {"speed": 100}, "name": "own"}])
    answer = await gateway.admin("POST", "/api/v1/restart", {})
    assert answer.status == 409
    assert "started itself" in answer.json["text"]
    assert _children(gateway.process.pid) == []
    await gateway.stop()


async def test_sockets_that_systemd_opened_are_served_and_handed_on(sim, tmp_path: Path):
    worker = await sim(time_scale=0.02)
    with socket.create_server(("127.0.0.1", 0)) as data, socket.create_server(("127.0.0.1", 0)) as admin:
        early = await open_talk(data.getsockname()[1], "GET", "/api/version")  # waits in the kernel until it starts
        gateway = GatewayProcess(tmp_path, [worker], activated=(admin, data), names="admin:gateway")
        try:
            await gateway.started()
            assert (gateway.port, gateway.admin_port) == (data.getsockname()[1], admin.getsockname()[1])
            assert await early.head() == 200
            await early.close()
            await warm(gateway, "a:1")
            await gateway.restart()
            await warm(gateway, "a:1")
            await gateway.stop()
        finally:
            gateway.kill()


async def test_after_a_hand_over_only_the_new_process_writes_what_was_learned(sim, served):
    worker = await sim(time_scale=0.02)
    gateway = await served(worker)
    await warm(gateway, "a:1", "b:1")
    learned = gateway.home / "state" / "bellmare" / "events" / "learned.json"
    holding = await open_talk(
        gateway.port, "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 5000}}
    )
    assert await holding.head() == 200
    await gateway.restart()
    assert gateway.lines("remembered what was learned earlier"), "the new one has read it"
    written = learned.stat().st_mtime_ns
    await holding.rest()
    assert holding.complete
    await holding.close()
    await gateway.gone(gateway.process.pid)
    assert learned.stat().st_mtime_ns == written
    await gateway.stop()
    assert learned.stat().st_mtime_ns > written


def _pending(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


async def test_the_second_signal_cuts_what_an_old_process_still_answers(sim, served):
    worker = await sim(time_scale=1.0)
    gateway = await served(worker)
    stream = await open_talk(
        gateway.port, "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 50_000}}
    )
    assert await stream.head() == 200
    await gateway.restart()
    assert alive(gateway.process.pid)
    os.kill(gateway.process.pid, signal.SIGTERM)
    await until(lambda: not _pending(gateway.process.pid, signal.SIGTERM), "its receipt: two at once are one")
    assert await stream.line()
    os.kill(gateway.process.pid, signal.SIGTERM)
    async with at_most(10):
        last = (await stream.rest()).splitlines()[-1]
    assert "error" in json.loads(last)
    assert stream.complete
    await stream.close()
    await gateway.gone(gateway.process.pid)
    await warm(gateway, "a:1")
    assert worker.twin.counters.unloads_asked == 0
    await gateway.stop()


def test_the_command_of_this_process_is_found_again():
    command = handover.same_command()
    assert command[0] == sys.executable
    assert command[1:] == sys.orig_argv[1:]
