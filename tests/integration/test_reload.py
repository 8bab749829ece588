"""Settings are read again as a whole or not at all; no request fails and nothing is unloaded because of it."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from lifecycle_rig import GatewayProcess, Load, loads_and_unloads, warm
from rig import open_talk, replayed, until

pytestmark = pytest.mark.slow
RELOADS = int(os.environ.get("BELLMARE_RELOADS", "100"))
STORM = 300


async def reload(gateway: GatewayProcess, *, force: bool = False) -> dict[str, object]:
    answer = await gateway.admin("POST", "/api/v1/reload", {"force": force})
    assert answer.status == (200 if answer.json["accepted"] else 409)
    said: dict[str, object] = answer.json
    return said


@pytest.mark.timeout(600)
async def test_reloads_in_a_row_under_load_fail_nothing_and_unload_nothing(sim, served):
    """Limits, weights, contexts, policy, log level and a worker that comes and goes; every tenth file is bad."""
    workers = [await sim(time_scale=0.02) for _ in range(3)]
    gateway = await served(*workers[:2])
    entries = list(gateway.entries)
    third = {"url": f"http://127.0.0.1:{workers[2].port}", "name": "w2", "parallel": 4}
    await warm(gateway, "a:1", "b:1")
    load = Load(gateway.port)
    load.start(tokens=400)
    policies = ("lru", "gdsf", "hv", "histogram", "lhd")
    for number in range(RELOADS):
        gateway.entries = entries + ([third] if number % 4 < 2 else [])
        gateway.write(
            eviction="none such" if number % 10 == 9 else policies[number % 5],
            queue={"per_model": 100 + number % 7},
            num_ctx=8192 if number % 2 else 4096,
            drain_after=f"{1 + number % 5}s",
            limits={"body": f"{1 + number % 3}MiB", "token_timeout": f"{60 + number % 3}s"},
            tenants={"127.0.0.1": {"weight": 1 + number % 9}},
            log={"level": ("info", "debug", "warning")[number % 3]},
        )
        answer = await reload(gateway)
        assert answer["accepted"] is (number % 10 != 9), answer
    await load.stop()
    assert load.bad == []
    assert min(load.outcomes[f"{kind} good"] for kind in ("stream", "short", "kept")) >= 1
    assert loads_and_unloads(*workers)[1] == 0
    metrics = await gateway.metrics()
    refused = RELOADS // 10
    assert metrics['bellmare_config_reloads_total{outcome="applied"}'] == RELOADS - refused
    assert metrics['bellmare_config_reloads_total{outcome="refused"}'] == refused
    assert (await gateway.admin("GET", "/api/v1/check")).json == {"problems": []}
    await gateway.stop()
    assert replayed(gateway.home / "state" / "bellmare" / "events").difference is None


async def test_a_bad_file_changes_nothing_and_is_told_once(sim, served):
    gateway = await served(await sim())
    before = await gateway.metrics()
    for text in ("workers: [", "listen: {}\nnonsense: 1\n", "\0", "queue: {total: 0}"):
        gateway.file.write_text(text)
        answer = await reload(gateway)
        assert not answer["accepted"] and answer["problems"], text
    gateway.file.unlink()
    os.kill(gateway.process.pid, signal.SIGHUP)
    await until(lambda: len(gateway.lines("settings not reloaded; the old ones hold")) == 5, "a line for each")
    await asyncio.sleep(1.1)  # a scrape may be as old as a second
    metrics = await gateway.metrics()
    stamp = "bellmare_config_reload_success_timestamp_seconds"
    assert metrics["bellmare_config_reload_success"] == 0
    assert metrics[stamp] == before[stamp]
    await warm(gateway, "a:1")
    gateway.write()
    assert (await reload(gateway))["text"] == "nothing has changed"
    await asyncio.sleep(1.1)
    metrics = await gateway.metrics()
    assert metrics["bellmare_config_reload_success"] == 1
    assert metrics[stamp] > before[stamp]
    await gateway.stop()
    folder = gateway.home / "state" / "bellmare" / "events"
    assert not any(b"ConfigChanged" in file.read_bytes() for file in folder.glob("events-*.jsonl"))


async def test_a_storm_of_signals_reloads_a_few_times_and_ends_with_the_newest_file(sim, served):
    gateway = await served(await sim())
    for number in range(STORM):
        if number == STORM // 2:
            gateway.write(limits={"body": "2KiB"})
        os.kill(gateway.process.pid, signal.SIGHUP)
    body = {"model": "a:1", "prompt": "x" * 4096, "stream": False}
    talk = None

    async def refused() -> bool:
        nonlocal talk
        talk = await open_talk(gateway.port, "POST", "/api/generate", body)
        status = await talk.head()
        await talk.rest()
        await talk.close()
        return status == 413

    await until(lambda: gateway.lines("settings reloaded"))
    while not await refused():
        pass
    assert 1 <= len(gateway.lines("settings reloaded")) < STORM / 3
    assert gateway.process.poll() is None
    await gateway.stop()


async def test_a_worker_that_is_removed_ends_its_answers_and_one_that_replaces_it_leaves_no_gap(sim, served):
    old, new = await sim(time_scale=0.1), await sim(time_scale=0.1)
    gateway = await served(old)
    await warm(gateway, "a:1")
    stream = await open_talk(
        gateway.port, "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 2000}}
    )
    assert await stream.head() == 200
    load = Load(gateway.port, ("a:1",))
    load.start(streams=1, short=2, kept=1, tokens=50)
    gateway.entries = [{"url": f"http://127.0.0.1:{new.port}", "name": "new", "parallel": 4}]
    gateway.write()
    refused = await reload(gateway)
    assert not refused["accepted"] and "--force" in str(refused["text"])
    answer = await reload(gateway, force=True)
    assert (answer["added"], answer["removed"]) == (["new"], ["w0"])
    done = load.outcomes.total()
    await until(lambda: load.outcomes.total() > done + 10, "traffic on the new one")
    await load.stop()
    assert load.bad == []
    assert (await stream.rest()).count(b"\n") == 2001
    assert stream.complete
    await stream.close()
    rows = (await gateway.admin("GET", "/api/v1/workers")).json
    assert [row["worker"] for row in rows] == ["new"]
    assert old.loaded() == ["a:1"], "it keeps what it holds"
    assert old.twin.counters.unloads_asked == 0
    await until(lambda: not old.busy())
    await gateway.stop()


async def test_what_holds_after_a_restart_only_is_told_and_stays_as_it_is(sim, served, unused_port):
    gateway = await served(await sim())
    gateway.entries[0]["parallel"] = 2
    gateway.entries.append({"sim": {}, "name": "own"})
    gateway.write(
        listen=f"127.0.0.1:{unused_port}", headroom="2GiB", shadows=False, record={"keep": 3}, log={"format": "text"}
    )
    answer = await reload(gateway)
    restart = ["listen", "headroom", "shadows", "record.keep", "log.format", "workers (w0)", "workers (own)"]
    assert (answer["accepted"], sorted(answer["restart"])) == (True, sorted(restart))  # type: ignore[call-overload]
    assert answer["changed"] == answer["added"] == answer["removed"] == []
    again = await reload(gateway)
    assert again["restart"] == answer["restart"], "it is told until it holds"
    await warm(gateway, "a:1")
    gateway.entries = gateway.entries[:1]
    gateway.write(listen=f"127.0.0.1:{gateway.port}")
    await gateway.restart()
    assert (await reload(gateway))["restart"] == []
    assert (await gateway.admin("GET", "/api/v1/shadows")).json["shadows"] == []
    await gateway.stop()


async def _command(gateway: GatewayProcess, *arguments: str) -> tuple[int, str]:
    admin = f"http://127.0.0.1:{gateway.admin_port}"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bellmare", *arguments, "--admin-url", admin,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode is not None
    return child.returncode, out.decode()


async def test_the_commands_tell_what_became_of_it(sim, served):
    gateway = await served(await sim())
    gateway.write(queue={"per_model": 77}, headroom="2GiB")
    assert await _command(gateway, "reload") == (
        0,
        "some keys hold after a restart only\nhold now: queue.per_model\nhold after the next restart: headroom\n",
    )
    gateway.write(queue={"per_model": 0})
    status, said = await _command(gateway, "reload")
    assert status == 1
    assert "queue.per_model" in said
    status, said = await _command(gateway, "restart")
    assert (status, "could not start" in said) == (1, True)
    gateway.write(queue={"per_model": 77})
    status, said = await _command(gateway, "restart")
    assert status == 0
    gateway.pids.append(int(said.split()[1]))
    assert said == f"process {gateway.pids[-1]} serves now\n"
    await gateway.stop()


def test_a_terminal_that_is_gone_stops_the_gateway_and_one_that_is_there_does_not(tmp_path: Path):
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    log = tmp_path / "log"
    (tmp_path / "bellmare.yaml").write_text("{listen: 127.0.0.1:0, admin: off, workers: [{sim: {}, name: own}]}")
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "bellmare", "serve", "--quiet"], stdin=theirs, stdout=output, stderr=output,
            cwd=tmp_path, start_new_session=True, preexec_fn=take_terminal,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        )  # fmt: skip
    os.close(theirs)

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    try:
        wait_for("listening")
        child.send_signal(signal.SIGHUP)
        wait_for("settings reloaded")
        os.close(ours)
        assert child.wait(30) == 0
        assert "stopping" in log.read_text()
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
