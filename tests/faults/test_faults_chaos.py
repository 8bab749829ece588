"""Part E of the fault catalogue, live: whole gateways and workers under load, with workers killed, hostile or too few.

Small in CI; BELLMARE_FAILOVER_REQUESTS=10000 (about ten minutes) and BELLMARE_SOAK_S=5400 make them what they are
named after. Every test prints its figures (``pytest -rP``).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import time
from collections import Counter
from typing import Any

import pytest
from hostile_worker import (
    CHUNKED,
    GOOD,
    HostileWorker,
    Scene,
    chunk,
    close,
    hang,
    honest,
    lines,
    pause,
    raw,
    reset,
    status,
    token,
)
from rig import WAIT_S, Gateway, at_most, begin, until

from bellmare.core.decisions import Dispatch, HealthChange, Load, LoadCause, Reject
from bellmare.core.events import LoadRequested, RequestArrived
from bellmare.core.units import WorkerId

FAILOVER_REQUESTS = int(os.environ.get("BELLMARE_FAILOVER_REQUESTS", "300"))
SOAK_S = float(os.environ.get("BELLMARE_SOAK_S", "8"))
KILL_EVERY_S = 2.0
GARBAGE = raw(b"\x00\x01 not http \r\n\r\n")


async def hold(running: Gateway, workers: int, model: str = "a:1") -> None:
    """``model`` becomes resident everywhere."""
    for number in range(workers):
        ticket = f"{model}@{number}"
        answer = await running.driver.ask(LoadRequested(ticket=ticket, name=model, worker=WorkerId(f"w{number}")))
        assert answer.accepted, answer.text
    names = [f"w{number}" for number in range(workers)]

    def all_there() -> bool:
        return all(
            any(r.name == model and r.residency == "resident" for r in running.state.workers[name].runners.values())
            for name in names
        )

    await until(all_there, f"{model} everywhere")


# ---------------------------------------------------------------------- E14 and the failover of section 2


@pytest.mark.slow
@pytest.mark.timeout(60 + FAILOVER_REQUESTS)
async def test_e14_killing_a_random_worker_every_two_seconds_costs_no_request_that_had_sent_nothing(process, gateway):
    """Answers are not streamed, so that nothing is sent before their end: every one must succeed."""
    workers = [process(time_scale=0.5) for _ in range(4)]
    running = await gateway(*(worker.port for worker in workers), drain_after="200ms")
    await hold(running, 4)
    statuses: Counter[int] = Counter()
    left = FAILOVER_REQUESTS
    slowest = 0.0

    async def client() -> None:
        nonlocal left, slowest
        while left > 0:
            left -= 1
            began = time.monotonic()
            reply = await running.chat(options={"num_predict": 60})
            slowest = max(slowest, time.monotonic() - began)
            statuses[reply.status] += 1

    kills = 0

    async def killer() -> None:
        nonlocal kills
        rng = random.Random(4)
        while left > 0:
            await asyncio.sleep(KILL_EVERY_S)  # the pace of misfortune
            number = rng.randrange(4)
            await asyncio.to_thread(workers[number].kill)
            kills += 1
            await asyncio.sleep(0.3)
            workers[number] = await asyncio.to_thread(process, workers[number].port, time_scale=0.5)

    trouble = begin(killer())
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(client())
    took = time.monotonic() - began
    async with at_most(WAIT_S):
        await trouble  # not cancelled: a worker that is just being started would be nobody's
    retried = sum(one.attempt > 1 for one in running.decisions(Dispatch))
    refused = dict(Counter(str(one.refusal) for one in running.decisions(Reject)))
    print(f"failover: {sum(statuses.values())} requests, {kills} kills in {took:.0f} s, {dict(statuses)}, "
          f"{retried} retries, slowest {slowest:.1f} s, refused {refused}")  # fmt: skip
    assert kills >= 2, "too little misfortune: the test proves nothing"
    assert retried >= 1
    assert statuses == {200: FAILOVER_REQUESTS}
    await running.settled()


@pytest.mark.slow
async def test_e05_attempts_stay_within_a_tenth_when_every_worker_fails(hostile, gateway):
    workers = [await hostile() for _ in range(3)]
    running = await gateway(*(worker.port for worker in workers), queue={"wait": "2s", "timeout": "3s"})
    await hold(running, 3)
    for worker in workers:
        worker.always = (GARBAGE, close)
    statuses: Counter[int] = Counter()

    async def client() -> None:
        for _ in range(8):
            statuses[(await running.chat()).status] += 1

    began = time.monotonic()
    async with at_most(100), asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(client())
    windows = int((time.monotonic() - began) // 10) + 1
    sent = running.decisions(Dispatch)
    firsts = sum(one.attempt == 1 for one in sent)
    asked = sum(len(worker.served) for worker in workers)
    print(f"amplification: {asked} attempts, {firsts} first ones, of {len(running.events(RequestArrived))} requests in "
          f"{windows} windows: {asked / firsts:.3f}; {dict(statuses)}")  # fmt: skip
    assert asked == len(sent), "the client below asks no more often than the core"
    assert asked - firsts <= max(0.10 * firsts, 10 * windows)
    assert set(statuses) <= {429, 502, 503, 504}


@pytest.mark.slow
async def test_e05_of_a_thousand_requests_that_no_worker_takes_a_tenth_is_tried_again(hostile, gateway):
    """Workers that say that they are busy are not ejected: only the budget stands between them and a storm."""
    workers = [await hostile(parallel=64, vram_bytes=400 * 10**9) for _ in range(3)]
    running = await gateway(*(worker.port for worker in workers))
    await hold(running, 3)
    for worker in workers:
        worker.always = (status(503, "server busy, please try again."),)
    statuses: Counter[int] = Counter()

    async def client() -> None:
        for _ in range(50):
            statuses[(await running.chat()).status] += 1

    began = time.monotonic()
    async with at_most(100), asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(client())
    windows = int((time.monotonic() - began) // 10) + 1
    sent = running.decisions(Dispatch)
    firsts = sum(one.attempt == 1 for one in sent)
    asked = sum(len(worker.served) for worker in workers)
    print(f"amplification: {asked} attempts of {firsts} requests in {windows} windows: {asked / firsts:.3f}")
    assert firsts == 1000
    assert asked == len(sent) <= firsts + max(100, 10 * windows)
    assert statuses == {502: 1000}


async def test_e05_a_refusal_for_a_spent_budget_says_when_to_come_back(hostile, gateway):
    worker = await hostile(parallel=16)
    running = await gateway(worker.port)
    await hold(running, 1)
    worker.always = (pause(0.2), GARBAGE, close)
    replies = await asyncio.gather(*(running.chat() for _ in range(16)))
    spent = [reply for reply in replies if "too much is being tried again" in reply.error]
    assert spent
    assert all(reply.status == 502 and 1 <= int(reply.headers["retry-after"]) <= 13 for reply in spent)


# ---------------------------------------------------------------------- poison


async def test_e01_a_poison_request_takes_down_two_of_four_and_the_others_go_on_serving(hostile, gateway):
    workers = [await hostile() for _ in range(4)]
    running = await gateway(*(worker.port for worker in workers))
    await hold(running, 4)
    crash = (status(500, "llama runner process has terminated: signal: segmentation fault"),)
    for worker in workers:
        worker.marked["drink me"] = crash
    poison = [{"role": "user", "content": "drink me"}]
    first = await running.chat(messages=poison)
    assert (first.status, "poison_suspected" in first.error) == (502, True)
    for _ in range(5):
        again = await running.chat(messages=poison)
        assert (again.status, "poison_suspected" in again.error) == (502, True)
    met = [worker for worker in workers if any("drink me" in str(body) for body in worker.served)]
    assert len(met) == 2
    assert sum("drink me" in str(body) for worker in workers for body in worker.served) == 2
    others = await asyncio.gather(*(running.chat() for _ in range(20)))
    assert {reply.status for reply in others} == {200}
    assert "drink me" not in running.log.getvalue()


async def test_e01_the_same_words_in_another_spelling_of_json_are_the_same_request(hostile, gateway):
    workers = [await hostile() for _ in range(3)]
    running = await gateway(*(worker.port for worker in workers))
    await hold(running, 3)
    for worker in workers:
        worker.marked["drink me"] = (status(500, "llama runner process has terminated"),)
    said = b'"messages":[{"role":"user","content":"drink me"}]'
    first = await running.post("/api/chat", b'{"model":"a:1","stream":false,' + said + b"}")
    again = await running.post("/api/chat", b"{  " + said + b', "stream":  false, "model": "A:1"}')
    assert [reply.status for reply in (first, again)] == [502, 502]
    assert sum(len(worker.served) for worker in workers) == 2


# ---------------------------------------------------------------------- herd and overload


async def test_e02_many_requests_for_a_cold_model_are_one_load_per_worker_and_a_bounded_queue(sim, gateway):
    workers = [await sim(time_scale=0.05), await sim(time_scale=0.05)]
    running = await gateway(*(worker.port for worker in workers), queue={"per_model": 64})
    replies = await asyncio.gather(*(running.chat(options={"num_predict": 2}) for _ in range(200)))
    statuses = Counter(reply.status for reply in replies)
    loads = [one for one in running.decisions(Load) if one.cause is not LoadCause.adopt]
    print(f"herd: 200 requests, {dict(statuses)}, {len(loads)} loads")
    assert len(loads) == len({one.worker for one in loads}) <= 2
    assert sum(worker.twin.counters.loads for worker in workers) == len(loads)
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= 64
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status == 429)


@pytest.mark.slow
async def test_e06_ten_times_the_load_costs_no_goodput_and_passes_without_a_trace(hostile, gateway):
    """Answers take 0.4 s on eight slots: twenty a second. Two hundred a second are offered for five seconds."""
    workers = [await hostile(), await hostile()]
    running = await gateway(
        *(worker.port for worker in workers), queue={"per_model": 16, "timeout": "3s", "wait": "3s"}
    )
    await hold(running, 2)
    for worker in workers:
        worker.always = (pause(0.4), honest)
    calm = await offered(running, per_second=15, seconds=3)
    storm = await offered(running, per_second=200, seconds=5)
    await running.settled()
    after = await offered(running, per_second=10, seconds=2)
    goodput = len(storm[200]) / (storm.took_s * 8 / 0.4)
    refused = sorted(storm[429])
    print(f"overload: goodput {goodput:.2f} of {8 / 0.4:.0f}/s; refusals {len(refused)}, median "
          f"{1000 * refused[len(refused) // 2]:.1f} ms, p99 {1000 * refused[int(len(refused) * 0.99)]:.1f} ms; "
          f"afterwards {max(after[200]):.2f} s, before {max(calm[200]):.2f} s")  # fmt: skip
    assert goodput >= 0.5, "in virtual time it is 1.0; here clients, gateway and workers share what is left of a core"
    assert set(storm.found) <= {200, 429}
    assert refused[len(refused) // 2] < 0.3, "who is refused does not wait for a slot"
    assert set(after.found) == {200}


class Offered:
    """What an open loop got: seconds by status."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {}
        self.took_s = 0.0

    def __getitem__(self, code: int) -> list[float]:
        return self.found.get(code, [0.0])


async def offered(running: Gateway, *, per_second: int, seconds: float) -> Offered:
    """Requests at equal intervals, whatever becomes of the earlier ones."""
    got = Offered()

    async def one() -> None:
        began = time.monotonic()
        reply = await running.chat()
        got.found.setdefault(reply.status, []).append(time.monotonic() - began)

    began = time.monotonic()
    async with at_most(60), asyncio.TaskGroup() as group:
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            group.create_task(one())
    got.took_s = time.monotonic() - began
    return got


# ---------------------------------------------------------------------- all of it, for a while


async def stall(scene: Scene) -> None:
    """Silence is noticed in streams only: an answer that is not streamed may take as long as its generation."""
    await (hang if scene.body.get("stream", True) else reset)(scene)


MISCHIEF = (
    (reset,), (close,), (GARBAGE, close), (stall,), (pause(0.3), GOOD), (lines(token("x")),),
    (lines(token("x"), {"error": "an error was encountered while running the model"}),),
    (raw(CHUNKED), chunk(b'{"half'), reset), (status(503, "server busy, please try again."),),
    (status(500, "llama runner process has terminated"),), (status(500, "strange"),), (lines({"error": "strange"}),),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(120 + 2 * SOAK_S)
async def test_e15_mixed_faults_for_a_while_leave_nothing_behind(hostile, gateway):
    workers: list[HostileWorker] = [await hostile(), await hostile(), await hostile()]
    limits = {"first_token_timeout": "1s", "token_timeout": "1s"}
    running = await gateway(*(worker.port for worker in workers), limits=limits, drain_after="100ms")
    broken: list[Any] = []
    running.driver.watch(lambda now_us, event, decisions: broken.extend(running.driver.engine.check()[:1]))
    statuses: Counter[int] = Counter()
    end = time.monotonic() + SOAK_S
    rng = random.Random(15)
    numbers = itertools.count()

    async def client() -> None:
        while time.monotonic() < end:
            seed = next(numbers) // 2  # every request twice: were all equal, all would be quarantined soon
            options = {"seed": seed}
            talk = await running.open_chat(rng.choice(("a:1", "b:1")), stream=rng.random() < 0.5, options=options)
            if rng.random() < 0.1:
                talk.leave()
                continue
            statuses[await talk.head()] += 1
            await talk.rest()
            await talk.close()

    async def mischief() -> None:
        while True:
            worker = rng.choice(workers)
            worker.scripts.extend([rng.choice(MISCHIEF)] * rng.randrange(1, 4))
            await asyncio.sleep(0.05)

    trouble = begin(mischief())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client())
            await asyncio.sleep(SOAK_S / 2)
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finally:
        trouble.cancel()
        await asyncio.gather(trouble, return_exceptions=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early
    changes = Counter(one.reason for one in running.decisions(HealthChange))
    refusals = Counter(str(one.refusal) for one in running.decisions(Reject))
    print(f"soak {SOAK_S:.0f} s: {dict(statuses)}; {dict(changes)}; {dict(refusals)}; {grown} KiB more")
    assert broken == []
    assert statuses[200] > 20
    assert grown < 30_000
    for worker in workers:
        worker.scripts.clear()
    await running.settled()
    for model in ("a:1", "b:1"):
        async with at_most(90):
            while (await running.chat(model, options={"seed": next(numbers)})).status != 200:
                await asyncio.sleep(0.2)
