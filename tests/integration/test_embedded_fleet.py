"""The real engine under the gateway: two workers that hold two of five models each, 200 mixed requests."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from rig import at_most, replayed, until

from bellmare.core.decisions import CacheState, Dispatch, Load, LoadCause, Reject, Unload
from bellmare.core.events import RequestArrived, RequestFinished
from bellmare.core.units import MIB

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REQUESTS = 200
CLIENTS = 16
PARALLEL = 2
NUM_CTX = 512
BUDGET_BYTES = 280 * MIB
"""A runner claims 96 MiB and its file and cache, about 105 to 120 MiB: two fit, three do not."""
SIZES = {"a:1": 8_000_000, "b:1": 10_000_000, "c:1": 12_000_000, "d:1": 16_000_000, "e:1": 20_000_000}


@pytest.fixture
async def engine(_gate: None, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Start an embedded worker over one folder of small random models."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    from bellmare.workers.embedded.server import EmbeddedConfig, start_embedded_worker
    from engine_models import shape_of, write_model

    folder = tmp_path / "models"
    folder.mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        write_model(folder, name.replace(":", "__"), seed=seed, shape=shape_of(size))
    write_model(folder, "endless__1", seed=9, shape=shape_of(8_000_000), endless=True)
    servers = []

    async def start() -> Any:
        config = EmbeddedConfig(
            models_dir=folder, memory_bytes=BUDGET_BYTES, parallel=PARALLEL, threads=1, num_ctx=NUM_CTX
        )
        servers.append(await start_embedded_worker(config))
        return servers[-1]

    yield start
    for server in servers:
        await server.close(grace_s=0.0)
        assert server.engine.bytes_now() == 0


def body_of(model: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": "hi " * rng.randint(1, 20)}]
    stream = rng.random() < 0.5
    match rng.randrange(3):
        case 0:
            options = {"num_predict": 8, "num_ctx": 64}
            return "/api/generate", {"model": model, "prompt": "x", "stream": stream, "options": options}
        case 1:
            chat = {"model": model, "messages": messages, "stream": stream, "options": {"num_predict": 8}}
            return "/api/chat", chat | {"keep_alive": 0}
        case _:
            return "/v1/chat/completions", {"model": model, "messages": messages, "stream": stream, "max_tokens": 8}


def is_whole(path: str, body: dict[str, Any], reply: Any) -> bool:
    if path.startswith("/v1"):
        return reply.events[-1] == "[DONE]" if body["stream"] else reply.json["usage"]["completion_tokens"] > 0
    last = reply.lines[-1] if body["stream"] else reply.json
    return last["done"] is True and last["eval_count"] > 0


async def test_two_hundred_requests_stay_within_the_budget_and_every_load_is_ours(engine, gateway, tmp_path):
    workers = [await engine(), await engine()]
    running = await gateway(
        *(worker.port for worker in workers),
        num_ctx=NUM_CTX,
        drain_after="200ms",
        record={"path": str(tmp_path / "log")},
    )
    rng = random.Random(4)
    todo = iter([body_of(rng.choice(list(SIZES)), rng) for _ in range(REQUESTS)])
    bad: list[str] = []

    async def client() -> None:
        for path, body in todo:
            reply = await running.post(path, body)
            if reply.status != 200 or not reply.complete or not is_whole(path, body, reply):
                bad.append(f"{path} {body}: {reply.status} {reply.body[-300:]!r}")

    async with at_most(100), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    await running.settled()

    assert bad == []
    for worker in workers:
        counters = worker.counters
        assert 0 < counters.bytes_max <= BUDGET_BYTES
        promises = ("implicit_loads", "reloads", "refused_loads", "failed_loads", "crashes", "own_evictions")
        assert {name: getattr(counters, name) for name in promises} == dict.fromkeys(promises, 0)
    loads, unloads = running.decisions(Load), running.decisions(Unload)
    assert [worker.counters.loads for worker in workers] == [
        sum(load.worker == name and load.cause is not LoadCause.adopt for load in loads) for name in ("w0", "w1")
    ]
    assert [worker.counters.unloads for worker in workers] == [
        sum(unload.worker == name for unload in unloads) for name in ("w0", "w1")
    ]
    assert len(unloads) >= 3, "nothing had to leave: the test proves nothing"
    caches = Counter(decision.cache for decision in running.decisions(Dispatch))
    assert min(caches[state] for state in CacheState) > 0, caches
    assert running.decisions(Reject) == []
    assert Counter(event.request for event in running.events(RequestFinished)) == Counter(
        event.request for event in running.events(RequestArrived)
    )
    assert running.driver.requests == 0
    await running.close()
    report = replayed(tmp_path / "log")
    assert report.difference is None
    assert report.steps == len(running.steps)
    assert report.decisions == sum(len(decisions) for _, _, decisions in running.steps)


async def test_the_ledger_equals_the_engines_own_account(engine, gateway):
    """What the gateway books for a runner is what the engine claims, once it was measured."""
    worker = await engine()
    running = await gateway(worker.port, num_ctx=NUM_CTX)
    for model in ("a:1", "e:1"):
        assert (await running.chat(model, options={"num_predict": 4})).status == 200
    await running.settled()
    ours = {runner.name: runner.bytes for runner in running.state.workers["w0"].runners.values()}
    theirs = {runner.model.name: runner.claimed_bytes for runner in worker.engine.runners()}
    assert ours == theirs
    assert running.state.workers["w0"].used_bytes == worker.engine.bytes_now()


async def test_a_client_that_leaves_in_mid_stream_stops_the_engine(engine, gateway):
    worker = await engine()
    running = await gateway(worker.port, num_ctx=NUM_CTX)
    talk = await running.open_chat("endless:1", options={"num_predict": 100_000})
    assert await talk.head() == 200
    assert await talk.line()
    talk.leave()
    await until(lambda: not any(runner.references for runner in worker.engine.runners()), "the engine's slot")
    assert running.driver.requests == 0
    assert (await running.chat("endless:1", options={"num_predict": 4})).headers["x-bellmare-cache"] == "hit"


async def test_a_stream_whose_runner_is_killed_ends_with_one_error_and_the_model_is_loaded_again(engine, gateway):
    worker = await engine()
    running = await gateway(worker.port, num_ctx=NUM_CTX)
    talk = await running.open_chat("endless:1", options={"num_predict": 100_000})
    assert await talk.head() == 200
    assert await talk.line()
    (runner,) = worker.engine.runners()
    os.kill(runner.process.pid, signal.SIGKILL)
    *tokens, last = (await talk.rest()).splitlines()
    assert talk.complete
    assert json.loads(last).keys() == {"error"}
    assert not any(b'"error"' in line or b'"done":true' in line for line in tokens)
    await talk.close()
    again = await running.chat("endless:1", options={"num_predict": 4})
    assert (again.status, again.headers["x-bellmare-cache"]) == (200, "cold")
    assert (worker.counters.crashes, worker.counters.loads, worker.counters.implicit_loads) == (1, 2, 0)
