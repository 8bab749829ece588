"""Workers that crash, hang, refuse, fail loads and break streams, while impatient clients come and go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from rig import Gateway, Sim, at_most, begin, replayed, until

from bellmare.core.decisions import Load, Reject, Unload, UnloadCause
from bellmare.core.events import (
    DispatchFailed,
    FaultKind,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    WorkerUnreachable,
)
from bellmare.core.units import WorkerId
from bellmare.runtime import observer
from bellmare.workers.sim import Fault

MODELS = ("a:1", "b:1", "c:1")
SECONDS = 6.0
CLIENTS = 24
HONEST = {200, 429, 500, 502, 503, 504}


async def test_a_request_whose_runner_died_before_its_first_byte_runs_elsewhere(sim, gateway):
    workers = [await sim(), await sim()]
    running = await gateway(*(worker.port for worker in workers))
    assert (await running.chat()).status == 200
    (dead,) = [worker for worker in workers if worker.loaded()]
    dead.faults.set(Fault("crash", model="a:1"))
    dead.faults.set(Fault("fail_load", model="a:1"))
    reply = await running.chat()
    assert (reply.status, reply.json["done"]) == (200, True)
    await running.settled()


async def test_a_worker_that_cuts_every_request_is_left_alone(sim, gateway):
    bad, good = await sim(), await sim()
    running = await gateway(bad.port, good.port)
    bad.faults.set(Fault("refuse"))
    for _ in range(20):
        assert (await running.chat()).status == 200
    await until(lambda: not running.state.workers["w0"].healthy, "its loss")
    assert (await running.chat()).status == 200
    bad.faults.set(Fault("clear"))
    await until(lambda: running.state.workers["w0"].healthy, "its return")


async def test_a_model_that_no_worker_can_load_is_refused_with_the_reason(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    for _ in range(3):
        worker.faults.set(Fault("fail_load", model="a:1"))
    async with at_most(10):
        reply = await running.chat()
    assert (reply.status, reply.headers["x-should-retry"]) == (502, "false")
    assert "terminated" in reply.error
    assert (await running.chat("b:1")).status == 200


async def test_a_request_that_takes_its_runner_down_each_time_is_not_tried_for_ever(sim, gateway):
    workers = [await sim(), await sim()]
    running = await gateway(*(worker.port for worker in workers))
    for worker in workers:
        worker.faults.set(Fault("error_after", tokens=0, count=100))
    reply = await running.chat()
    assert reply.status == 502
    assert 2 <= sum(event.fault is FaultKind.crashed for event in running.events(DispatchFailed)) <= 3
    await running.settled()


async def test_a_request_to_a_frozen_worker_runs_elsewhere_after_its_timeout(sim, gateway, monkeypatch):
    monkeypatch.setattr(observer, "TIMEOUT_S", 0.3)
    workers = [await sim(), await sim()]
    running = await gateway(*(worker.port for worker in workers), limits={"first_token_timeout": "1s"})
    assert (await running.chat()).status == 200
    (frozen,) = [worker for worker in workers if worker.loaded()]
    frozen.faults.set(Fault("freeze"))
    async with at_most(10):
        replies = await asyncio.gather(*(running.chat(stream=True) for _ in range(6)))
    assert all(reply.status == 200 and reply.lines[-1]["done"] for reply in replies)
    assert {event.fault for event in running.events(DispatchFailed)} == {FaultKind.timeout}
    frozen.faults.set(Fault("clear"))
    await until(lambda: all(worker.healthy for worker in running.state.workers.values()), "its return")


async def test_a_model_whose_load_hangs_on_a_frozen_worker_is_loaded_elsewhere(sim, gateway, monkeypatch):
    monkeypatch.setattr(observer, "TIMEOUT_S", 0.5)  # long enough for the loads to begin on a busy machine
    frozen, good = await sim(), await sim()
    running = await gateway(frozen.port, good.port, observe_every_s=0.05)
    frozen.faults.set(Fault("freeze"))
    waiting = [await running.open_chat(model) for model in MODELS]
    await until(lambda: {load.worker for load in running.decisions(Load)} == {"w0", "w1"}, "a load on each")
    await until(lambda: not running.state.workers["w0"].healthy, "its loss")
    try:
        async with at_most(5):
            assert [await talk.head() for talk in waiting] == [200] * 3
    finally:
        for talk in waiting:
            talk.leave()
        frozen.faults.set(Fault("clear"))


async def test_a_crashed_runner_is_unloaded_because_ollama_goes_on_listing_it(sim, gateway):
    worker = await sim(time_scale=0.2)
    running = await gateway(worker.port)
    talk = await running.open_chat(options={"num_predict": 5_000})
    assert await talk.head() == 200
    worker.faults.set(Fault("crash", model="a:1"))
    last = (await talk.rest()).splitlines()[-1]
    assert last.startswith(b'{"error":')
    await talk.close()
    assert worker.loaded() == ["a:1"], "as Ollama does (ollama.md 12)"
    assert (await running.chat()).status == 200
    assert [unload.cause for unload in running.decisions(Unload)] == [UnloadCause.crashed]
    assert (worker.twin.counters.reloads, len(running.decisions(Load))) == (0, 2)


async def test_a_bug_of_ours_in_an_adapter_ends_the_operation_and_is_told(sim, gateway, monkeypatch):
    running = await gateway((await sim()).port)

    async def broken(name: str, **_: Any) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr(running.service.fleet.ports[WorkerId("w0")], "load", broken)
    async with at_most(5):
        reply = await running.chat()
    assert (reply.status, "ZeroDivisionError" in reply.error) == (502, True)
    running.errors_expected = 1


class Storm:
    """Clients that send, sometimes leave, and demand an honest end of each answer."""

    def __init__(self, running: Gateway, seed: int) -> None:
        self.running = running
        self.rng = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.left = 0
        self.bad: list[str] = []

    async def client(self, end_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < end_s:
            await self._one()

    async def _one(self) -> None:
        model, stream = self.rng.choice(MODELS), self.rng.random() < 0.6
        tokens = self.rng.choice((5, 20, 300))
        if self.rng.random() < 0.5:
            talk = await self.running.open_chat(model, stream=stream, options={"num_predict": tokens})
        else:
            talk = await self.running.open_completion(model, stream=stream, max_tokens=tokens)
        if self.rng.random() < 0.2:
            for _ in range(self.rng.randrange(200)):
                await asyncio.sleep(0)
            talk.leave()
            self.left += 1
            return
        status = await talk.head()
        body = await talk.rest()
        self.statuses[status] += 1
        if status not in HONEST or not talk.complete or not body.endswith((b"}", b"\n")):
            self.bad.append(f"{status} {talk.complete} {body[-200:]!r}")
        elif status == 200 and stream:
            good = b'"done":true' in body or b"[DONE]" in body
            if good == (b'"error":' in body.rstrip().splitlines()[-1]):
                self.bad.append(f"neither a good nor a bad end: {body[-300:]!r}")
        await talk.close()


async def misfortune(workers: list[Sim], seed: int) -> None:
    """One fault after another until cancelled."""
    rng = random.Random(seed)
    for model in MODELS[:2]:  # not more: the back-off after failed loads doubles up to minutes
        workers[0].faults.set(Fault("fail_load", model=model))
    while True:
        worker, model = rng.choice(workers), rng.choice(MODELS)
        fault = rng.choice(
            (
                Fault("crash", model=model),
                Fault("error_after", tokens=rng.randrange(10), count=3),
                Fault("refuse", count=rng.randrange(1, 6)),
                Fault("slow", percent=rng.choice((50, 100, 1000))),
                Fault("clear"),
            )
        )
        worker.faults.set(fault)
        await asyncio.sleep(0.05)  # the pace of misfortune, not a synchronisation


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_under_any_fault_every_request_has_one_end_and_every_invariant_holds(sim, gateway, tmp_path, seed):
    workers = [await sim(parallel=2, seed=number) for number in (0, 1)]
    running = await gateway(
        *(worker.port for worker in workers),
        drain_after="50ms",
        observe_every_s=0.05,
        queue={"per_model": 8, "timeout": "2s", "wait": "2s"},
        record={"path": str(tmp_path / "log")},
    )
    broken: list[Any] = []
    running.driver.watch(lambda now_us, event, decisions: broken.extend(running.driver.engine.check()))
    storm = Storm(running, seed)
    trouble = begin(misfortune(workers, seed))
    end_s = asyncio.get_running_loop().time() + SECONDS
    async with at_most(SECONDS + 30), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(storm.client(end_s))
    trouble.cancel()
    await asyncio.gather(trouble, return_exceptions=True)
    for worker in workers:
        worker.faults.set(Fault("clear"))

    assert broken[:3] == []
    assert storm.bad[:3] == []
    await until(lambda: not running.driver.requests, "the end of all requests")
    met = {event.fault for kind in (DispatchFailed, WorkerUnreachable) for event in running.events(kind)}
    assert {FaultKind.reset, FaultKind.crashed} <= met, "too little misfortune: the test proves nothing"
    assert storm.left > 10
    assert storm.statuses[200] > 100
    ends = Counter(event.request for event in running.events(RequestFinished))
    ends.update(event.request for event in running.events(RequestCancelled))
    ends.update(decision.request for decision in running.decisions(Reject))
    arrived = Counter(event.request for event in running.events(RequestArrived))
    assert ends.keys() == arrived.keys()
    assert set(ends.values()) == {1}
    for worker in workers:
        counters = worker.twin.counters
        assert (counters.own_evictions, counters.vram_overcommits, counters.rejected_503) == (0, 0, 0)

    # Safety was first; now all is well again, and everybody must be served.
    async with at_most(30):
        for model in MODELS:
            while (await running.chat(model)).status != 200:
                await asyncio.sleep(0.05)
    await running.close()
    report = replayed(tmp_path / "log")
    assert report.difference is None
    assert report.steps == len(running.steps)
