"""2,000 requests over nine models on two simulated GPUs that hold two or three: the product's promise as counters."""

import asyncio
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from rig import at_most, replayed, until

from bellmare.cli import service
from bellmare.core.decisions import CacheState, Dispatch, Load, Reject, Unload
from bellmare.core.events import OperationEnded, Outcome, RequestArrived, RequestFinished
from bellmare.workers import ollama
from bellmare.workers.sim import DEFAULT_MODELS, Fault

REQUESTS = 2_000
CLIENTS = 64
PARALLEL = 4
AT_ONCE_US = 5_000
"""A dispatch in the step of its arrival has waited for nothing; the rest is this machine's noise."""


def body_of(model: str, rng: random.Random) -> tuple[str, dict]:
    """One request of a mixed load: native and OpenAI's, streamed and not."""
    text = "hi " * rng.randint(1, 50)
    if "embed" in model:
        return "/api/embed", {"model": model, "input": text}
    messages = [{"role": "user", "content": text}]
    match rng.randrange(4):
        case 0:
            return "/api/generate", {"model": model, "prompt": text, "stream": False, "options": {"num_predict": 20}}
        case 1:
            return "/api/chat", {"model": model, "messages": messages, "options": {"num_predict": 20}}
        case 2:
            return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 20}
        case _:
            return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 20, "stream": True}


def is_whole(path: str, body: dict, reply) -> bool:
    """Whether the answer has its own proper end."""
    if path == "/api/embed":
        return len(reply.json["embeddings"]) == 1
    if path.startswith("/v1"):
        return reply.events[-1] == "[DONE]" if body.get("stream") else reply.json["usage"]["completion_tokens"] == 20
    return (reply.lines[-1] if body.get("stream", True) else reply.json)["done"] is True


def confirmed_by(running, workers, told: list[dict[str, Any]], *, requests: int) -> None:
    """The workers' own account: they never evicted, queued, reloaded, refused or overcommitted."""
    for counters in told:
        for promise in (
            "own_evictions", "own_queue_max", "queued_total", "semaphore_waits", "slot_waits", "reloads",
            "rejected_503", "vram_overcommits", "loads_aborted", "failed_total", "cancelled_total",
        ):  # fmt: skip
            assert counters[promise] == 0, promise
    assert not any(worker.twin.stalled for worker in workers)
    loads, unloads = running.decisions(Load), running.decisions(Unload)
    assert sum(counters["loads"] for counters in told) == len(loads)
    assert sum(counters["unloads_asked"] for counters in told) == len(unloads)
    assert sum(counters["finished_total"] for counters in told) == requests
    assert len(unloads) >= 5, "nothing had to leave: the test proves nothing"


async def serve_all(running, *, requests: int, seed: int) -> None:
    """A mixed load from 64 clients; every answer must be whole."""
    rng = random.Random(seed)
    names = [model.name for model in DEFAULT_MODELS]
    assert len(names) == 9
    todo = iter([body_of(rng.choice(names), rng) for _ in range(requests)])
    statuses: Counter[int] = Counter()
    broken: list[str] = []

    async def client() -> None:
        for path, body in todo:
            reply = await running.post(path, body)
            statuses[reply.status] += 1
            if reply.status != 200 or not reply.complete or not is_whole(path, body, reply):
                broken.append(f"{path} {body['model']}: {reply.status} {reply.body[-200:]!r}")

    async with at_most(60), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    assert statuses == {200: requests}
    assert broken == []
    await running.settled()


@pytest.mark.slow
async def test_two_thousand_requests_over_nine_models_are_all_served_by_our_decisions_alone(sim, gateway, tmp_path):
    workers = [await sim(models=DEFAULT_MODELS, parallel=PARALLEL, time_scale=0.02, seed=seed) for seed in (0, 1)]
    running = await gateway(
        *(worker.port for worker in workers), record={"path": str(tmp_path / "log"), "file": "1MiB", "keep": 100}
    )
    await serve_all(running, requests=REQUESTS, seed=20)

    told = [await worker.counters() for worker in workers]
    confirmed_by(running, workers, told, requests=REQUESTS)
    assert [max(counters["in_flight_max"].values()) for counters in told] == [PARALLEL, PARALLEL]

    # Nothing lost, nothing answered twice.
    arrived = [event.request for event in running.events(RequestArrived)]
    assert len(set(arrived)) == len(arrived) == REQUESTS
    ends = Counter(event.request for event in running.events(RequestFinished))
    ends.update(decision.request for decision in running.decisions(Reject))
    assert ends == Counter(arrived)
    assert all(event.outcome is Outcome.completed for event in running.events(RequestFinished))
    assert running.driver.requests == 0
    assert running.driver.engine.check() == []

    # Hits wait for nothing, whatever is being loaded.
    dispatches = running.decisions(Dispatch)
    caches = Counter(decision.cache for decision in dispatches)
    assert min(caches[state] for state in CacheState) > 0, caches
    assert max(d.queued_us for d in dispatches if d.cache is CacheState.hit) <= AT_ONCE_US

    await running.close()
    assert Counter(line["request"] for line in running.lines("request")) == Counter(arrived)
    report = replayed(tmp_path / "log")
    assert report.difference is None
    assert report.files >= 2, "the log was to begin a file in the middle"
    assert report.steps == len(running.steps)


@pytest.mark.slow
@pytest.mark.parametrize(("vram", "parallel"), [("24GB", 4), ("24GB", 1), (None, 1)], ids=["4 slots", "1", "unknown"])
async def test_stock_servers_that_tell_nothing_are_kept_just_as_idle(sim, gateway, monkeypatch, vram, parallel):
    """Without our extension a worker is a stock Ollama; of an unknown size it is filled carefully, never over."""
    monkeypatch.setattr(ollama, "MEMORY_BACK_S", 0.05)  # the simulated machine is fifty times faster
    monkeypatch.setattr(service, "local_capacity_bytes", lambda: 12 * 10**9)  # what a guess may come to
    workers = [
        await sim(models=DEFAULT_MODELS, parallel=parallel, time_scale=0.02, seed=seed, extension=False)
        for seed in (0, 1)
    ]
    entries = [
        {"url": f"http://127.0.0.1:{worker.port}", "name": f"w{number}", "parallel": parallel}
        | ({"vram": vram} if vram else {})
        for number, worker in enumerate(workers)
    ]
    running = await gateway(*entries)
    await serve_all(running, requests=500, seed=3)
    told = [msgspec.to_builtins(worker.twin.counters) for worker in workers]
    confirmed_by(running, workers, told, requests=500)


async def test_a_resident_model_answers_while_another_one_loads_on_the_same_worker(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    assert (await running.chat("a:1")).status == 200
    worker.faults.set(Fault("hang", model="b:1"))
    waiting = await running.open_chat("b:1")
    await until(lambda: [load.name for load in running.decisions(Load)] == ["a:1", "b:1"], "the second load")
    assert (await running.chat("a:1")).status == 200
    hit = running.decisions(Dispatch)[-1]
    assert (hit.cache, hit.queued_us <= AT_ONCE_US) == (CacheState.hit, True)
    assert len(running.events(OperationEnded)) == 1, "the load of b:1 still runs"
    waiting.leave()
    await until(lambda: running.driver.requests == 0)
