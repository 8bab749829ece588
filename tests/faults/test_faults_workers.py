"""Part A of the fault catalogue: workers that are away, lie about what they hold, or are used by somebody else."""

from __future__ import annotations

import asyncio
import socket
from datetime import datetime, timedelta
from typing import Any

import pytest
from core_script import Script, loaded, stored
from rig import ask, at_most, begin, until

from bellmare.core import decisions as d
from bellmare.core.decisions import Load, LoadCause, Unload
from bellmare.core.events import DispatchFailed, FaultKind, LoadRequested
from bellmare.core.units import WorkerId
from bellmare.workers.sim import Fault

DAY = timedelta(days=1)

# ---------------------------------------------------------------------- away


async def test_a02_a_black_hole_costs_its_connect_timeout_and_then_runs_elsewhere(hostile, gateway):
    workers = [await hostile(), await hostile()]
    running = await gateway(*(worker.port for worker in workers), observe_every_s=30.0)
    for number in range(2):
        await _load(running, "a:1", f"w{number}")
    await workers[0].refuse()
    with socket.socket() as hole, socket.socket() as first, socket.socket() as second:
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind(("127.0.0.1", workers[0].port))
        hole.listen(0)  # once its backlog is full, the kernel drops further SYNs
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        async with at_most(15):
            replies = await asyncio.gather(*(running.chat() for _ in range(4)))
    assert [reply.status for reply in replies] == [200] * 4
    met = {event.fault for event in running.events(DispatchFailed)}
    assert met <= {FaultKind.unreachable, FaultKind.reset} and FaultKind.unreachable in met


async def test_a23_a_worker_that_restarts_empty_loads_once_for_all_who_wait(process, gateway):
    first, second = process(), process()
    running = await gateway(first.port, second.port)
    assert (await running.chat()).status == 200
    (held,) = [name for name, worker in running.state.workers.items() if worker.runners]
    old = first if held == "w0" else second
    old.kill()
    process(old.port)  # there again before anybody has noticed
    loads = len(running.decisions(Load))
    async with at_most(30):
        replies = await asyncio.gather(*(running.chat(options={"num_predict": 3}) for _ in range(8)))
    assert [reply.status for reply in replies] == [200] * 8
    fresh = running.decisions(Load)[loads:]
    places = [(one.worker, one.name) for one in fresh if one.cause is not LoadCause.adopt]
    assert len(places) == len(set(places)) <= 2
    await running.settled()


# ---------------------------------------------------------------------- what it holds


def test_a19_a_runner_that_is_stopping_for_ever_gets_no_request_and_keeps_its_memory_booked() -> None:
    script = Script(drain_after_us=0)
    names = (stored("a", 12), stored("b", 12))
    script.worker("w1", *names, parallel=1)
    script.resident("a", "w1")
    script.passes(60)
    booked = script.seen("w1").used_bytes
    script.worker("w2", *names, parallel=1)
    script.unreachable("w2")
    script.asks("r", "b", within=1000)
    script.shows("w2")
    for _ in range(3):  # so often it is asked to leave
        script.broken([one for one in script.all if isinstance(one, d.Unload)][-1], "timeout")
        script.shows("w1", loaded("a", 13.5, expired=True))
        assert script.seen("w1").used_bytes >= booked
    loads = [(one.worker, one.name) for one in script.all[-20:] if isinstance(one, d.Load)]
    assert loads[-1] == ("w2", "b")
    script.asks("s", "a")
    assert not [one for one in script.all if isinstance(one, d.Dispatch) and one.worker == "w1"]


def test_a20_memory_that_did_not_come_back_is_nobodys_to_load_into() -> None:
    script = Script()
    script.worker("w1", stored("a", 12), stored("b", 12), parallel=1)
    script.resident("a", "w1")
    script.passes(60)
    script.all.clear()
    script.shows("w1", foreign=13)  # the runner is gone from the list, and its memory is still in use
    assert script.seen("w1").free_bytes < 12 << 30
    script.asks("r", "b", within=1000)
    reject = script.one(d.Reject)
    assert (reject.refusal, reject.retry_after_us > 0) == (d.Refusal.model_does_not_fit, True)
    assert not [one for one in script.all if isinstance(one, d.Load)]
    script.shows("w1", foreign=0)
    script.asks("s", "b")
    assert script.one(d.Load).name == "b"


def test_a21_a_runner_partly_on_the_cpu_is_used_only_where_no_other_has_a_free_slot() -> None:
    script = Script()
    for worker, spilled in (("w1", 1 << 30), ("w2", 0)):
        script.worker(worker, stored("a"), holds=(loaded("a", spilled_bytes=spilled),), parallel=2)
    met = []
    for number in range(4):
        script.asks(f"r{number}", "a")
        met.append(script.one(d.Dispatch).worker)
    assert met == ["w2", "w2", "w1", "w1"]
    script.done("r2")
    script.done("r0")
    script.shows("w1", loaded("a"))  # loaded anew, wholly on the GPU
    script.asks("s0", "a")
    script.asks("s1", "a")
    assert {one.worker for one in script.all[-8:] if isinstance(one, d.Dispatch)} == {"w1", "w2"}


def test_a22_an_answer_that_omits_a_runner_once_unloads_nothing_and_stops_nobody() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a"), loaded("b")))
    script.asks("r", "a")
    for _ in range(4):
        script.passes(2)
        script.shows("w")
        script.passes(2)
        script.shows("w", loaded("a"), loaded("b"))
    script.done("r")
    script.asks("s", "a")
    assert script.one(d.Dispatch).cache is d.CacheState.hit
    assert not [one for one in script.all if isinstance(one, d.Load | d.Unload | d.Drain)]


def test_a22_a_stale_answer_never_contradicts_a_younger_change() -> None:
    script = Script()
    script.worker("w", stored("a"))
    asked = script.now + 1
    script.passes(1)
    script.asks("r", "a")
    script.ends(script.one(d.Load))
    script.shows("w", asked=asked)  # asked five seconds ago, when nothing was loaded
    assert script.runner("a", "w").residency == "resident"


def test_a24_a_worker_whose_name_means_another_blob_gets_no_request_for_it() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), holds=(loaded("a"),))
    script.worker("w3", stored("a", model="blob-other"), holds=(loaded("a", model="blob-other"),), parallel=9)
    for number in range(4):
        script.asks(f"r{number}", "a")
        assert script.one(d.Dispatch).worker in ("w1", "w2")
    script.asks("r4", "a")
    assert script.none(d.Dispatch)


@pytest.mark.parametrize("shift", [DAY, -DAY])
async def test_a25_a_workers_clock_a_day_off_changes_nothing(hostile, gateway, shift):
    worker = await hostile()

    def moved(answer: Any) -> Any:
        for row in answer["models"]:
            at = datetime.fromisoformat(row["expires_at"][:19])
            if at.year < 2100:
                row["expires_at"] = (at + shift).isoformat() + "Z"
        return answer

    worker.edits["/api/ps"] = moved
    running = await gateway(worker.port, drain_after="50ms")
    for _ in range(2):
        for model in ("a:1", "b:1", "c:1"):  # two fit
            assert (await running.chat(model)).status == 200
    await running.settled()
    served = (await ask(worker.behind, "GET", "/api/bellmare")).json["counters"]
    assert (served["own_evictions"], served["reloads"]) == (0, 0)
    assert len([one for one in running.decisions(Load) if one.cause is LoadCause.demand]) <= 6


def test_a26_a_gpu_that_is_lost_shows_as_runners_on_the_cpu_and_they_come_last() -> None:
    """Without an agent on the worker its GPU is not seen; what is seen is where the layers are."""
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), holds=(loaded("a"),), parallel=4)
    script.shows("w1", loaded("a", spilled_bytes=int(1.4 * (1 << 30))))
    for number in range(4):
        script.asks(f"r{number}", "a")
        assert script.one(d.Dispatch).worker == "w2"


@pytest.mark.slow
async def test_a27_a_worker_ten_times_slower_is_not_ejected_and_gets_less(sim, gateway):
    slow, quick = await sim(time_scale=0.05), await sim(time_scale=0.05)
    running = await gateway(slow.port, quick.port)
    for number in range(2):
        await _load(running, "a:1", f"w{number}")
    slow.faults.set(Fault("slow", percent=1000))

    async def client() -> list[str]:
        return [(await running.chat(options={"num_predict": 20})).headers["x-bellmare-worker"] for _ in range(10)]

    served = [worker for found in await asyncio.gather(*(client() for _ in range(6))) for worker in found]
    assert served.count("w1") > 2 * served.count("w0") > 0
    assert not [one for one in running.decisions(d.HealthChange) if not one.healthy]


async def test_a29_fields_that_are_missing_or_new_are_borne(hostile, gateway):
    old, new = await hostile(), await hostile()

    def without(*fields: str) -> Any:
        return lambda answer: {
            "models": [{k: v for k, v in row.items() if k not in fields} for row in answer["models"]]
        }

    def more(answer: Any) -> Any:
        return {"models": [row | {"novelty": {"x": [1]}} for row in answer["models"]], "page": 1}

    old.edits |= {"/api/tags": without("details", "modified_at", "capabilities"), "/api/ps": without("context_length")}
    new.edits |= {"/api/tags": more, "/api/ps": more}
    running = await gateway(old.port, new.port)
    for model in ("a:1", "b:1"):
        assert (await running.chat(model)).status == 200
    for number in range(2):
        await _load(running, "c:1", f"w{number}")
    await running.settled()
    assert all(worker.healthy for worker in running.state.workers.values())


async def test_a30_what_somebody_else_loads_is_seen_used_and_not_thrown_out(sim, gateway):
    worker = await sim(time_scale=0.05)
    running = await gateway(worker.port)
    said = {"model": "b:1", "prompt": "mine", "stream": False, "options": {"num_predict": 200, "num_ctx": 8192}}
    stranger = begin(ask(worker.port, "POST", "/api/generate", said))
    await until(lambda: "b:1" in worker.loaded(), "the stranger's load")
    await until(lambda: any(r.name == "b:1" for r in running.state.workers["w0"].runners.values()), "its discovery")
    reply = await running.chat("b:1", options={"num_predict": 2})
    assert (reply.status, reply.headers["x-bellmare-cache"]) == (200, "hit")
    assert (await stranger).status == 200
    assert running.state.counters["adopted"] == 1
    assert running.decisions(Unload) == []
    assert worker.twin.counters.reloads == 0


async def _load(running: Any, model: str, worker: str) -> None:
    answer = await running.driver.ask(LoadRequested(ticket=f"{model}@{worker}", name=model, worker=WorkerId(worker)))
    assert answer.accepted, answer.text

    def there() -> bool:
        runners = running.state.workers[worker].runners.values()
        return any(runner.name == model and runner.residency == "resident" for runner in runners)

    await until(there, f"{model} on {worker}")
