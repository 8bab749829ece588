"""Two contexts of a model under load, on one and on two simulated Ollamas: the workers' own counters are the proof."""

import asyncio
import random
from typing import Any

import msgspec
import pytest
from rig import Gateway, at_most, until

from bellmare.core.decisions import Dispatch, Load, Unload, UnloadCause
from bellmare.core.events import RequestArrived

CANONICAL = 8192
LARGE = 32_768
REQUESTS = 160
CLIENTS = 12
LONG_SHARE = 0.3
LONG = "long word " * 6_000
"""Some 60 kB: more tokens than the canonical context holds."""


def ask_by_size(running: Gateway) -> None:
    """Let each request ask the core for the context that its prompt needs."""
    driver: Any = running.driver
    submit = driver.submit

    def by_size(event: RequestArrived, conversation: Any) -> None:
        name = driver.engine.fleet.class_for(event.name.partition("#")[0], event.prompt_tokens)
        submit(msgspec.structs.replace(event, name=name or event.name), conversation)

    driver.submit = by_size


async def serve(running: Gateway, *, seed: int) -> list[bool]:
    """A mixed load over two models, of which one has a second context. Which requests were long, by arrival."""
    rng = random.Random(seed)
    todo = iter([(rng.choice(("a:1", "a:1", "b:1")), rng.random() < LONG_SHARE) for _ in range(REQUESTS)])
    statuses: dict[int, int] = {}

    async def client() -> None:
        for model, long in todo:
            text = LONG if long and model == "a:1" else "hello"
            body = {"model": model, "prompt": text, "stream": False, "options": {"num_predict": 8}}
            reply = await running.post("/api/generate", body)
            statuses[reply.status] = statuses.get(reply.status, 0) + 1

    async with at_most(120), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    assert statuses == {200: REQUESTS}
    await running.settled()
    return [event.prompt_tokens > CANONICAL for event in running.events(RequestArrived)]


def judged(running: Gateway) -> list[Dispatch]:
    """Every request ran with a context that holds it, on a runner that had just that."""
    asked = {event.request: event for event in running.events(RequestArrived)}
    dispatches = running.decisions(Dispatch)
    assert len(dispatches) == len(asked) == REQUESTS
    for dispatch in dispatches:
        event = asked[dispatch.request]
        if event.name == f"a:1#{LARGE}":
            assert dispatch.num_ctx == LARGE
        else:
            assert event.prompt_tokens <= CANONICAL
            assert dispatch.num_ctx in ((CANONICAL, LARGE) if event.name == "a:1" else (CANONICAL,))
    return dispatches


async def never_by_themselves(running: Gateway, workers: list[Any]) -> None:
    """The workers reloaded, evicted and refused nothing: all that they did was decided by the core."""
    told = [await worker.counters() for worker in workers]
    for counters in told:
        for promise in ("reloads", "own_evictions", "rejected_503", "vram_overcommits", "failed_total"):
            assert counters[promise] == 0, promise
    assert sum(counters["loads"] for counters in told) == len(running.decisions(Load))
    assert sum(counters["unloads_asked"] for counters in told) == len(running.decisions(Unload))
    assert sum(counters["finished_total"] for counters in told) == REQUESTS


@pytest.mark.slow
async def test_on_one_worker_contexts_take_turns_and_the_worker_never_reloads(sim, gateway):
    worker = await sim(vram_bytes=48 * 10**9, parallel=2)
    running = await gateway(worker.port, models={"a:1": {"context_classes": [LARGE]}}, drain_after="200ms")
    ask_by_size(running)
    await serve(running, seed=1)
    judged(running)
    await never_by_themselves(running, [worker])
    causes = [unload.cause for unload in running.decisions(Unload)]
    assert UnloadCause.context in causes, "no context had to leave: the test proves nothing"


@pytest.mark.slow
async def test_on_two_workers_both_contexts_live_side_by_side(sim, gateway):
    workers = [await sim(vram_bytes=48 * 10**9, parallel=2, seed=seed) for seed in (0, 1)]
    running = await gateway(
        *(worker.port for worker in workers), models={"a:1": {"context_classes": [LARGE]}}, drain_after="200ms"
    )
    ask_by_size(running)
    await serve(running, seed=2)
    dispatches = judged(running)
    await never_by_themselves(running, workers)
    assert {dispatch.num_ctx for dispatch in dispatches} == {CANONICAL, LARGE}


async def test_clients_see_one_model_and_operators_its_contexts(sim, gateway):
    worker = await sim(vram_bytes=48 * 10**9, parallel=2)
    running = await gateway(worker.port, models={"a:1": {"context_classes": [LARGE]}}, admin="127.0.0.1:0")
    ask_by_size(running)
    reply = await running.post("/api/generate", {"model": "a:1", "prompt": LONG, "stream": False})
    assert reply.status == 200
    assert reply.json["model"] == "a:1"
    names = sorted(model["name"] for model in (await running.ask("GET", "/api/tags")).json["models"])
    assert names == ["a:1", "b:1", "c:1", "e:1"]
    assert sorted(entry["id"] for entry in (await running.ask("GET", "/v1/models")).json["data"]) == names
    await until(lambda: running.state.workers["w0"].runners, "a runner")
    rows = (await running.admin("GET", "/api/v1/models")).json
    contexts = {row["model"]: row["contexts"] for row in rows}
    assert contexts == {"a:1": [CANONICAL, LARGE], "b:1": [CANONICAL], "c:1": [CANONICAL], "e:1": [2048]}
    assert [row["resident"] for row in rows if row["model"] == "a:1"] == [["w0"]]
    held = (await running.admin("GET", "/api/v1/ps")).json
    assert [(row["model"], row["num_ctx"]) for row in held] == [("a:1", LARGE)]
    metrics = (await running.admin("GET", "/metrics")).body.decode()
    assert 'model="a:1"' in metrics
    assert "#" not in "".join(line for line in metrics.splitlines(keepends=True) if not line.startswith("#"))
    told = (await running.admin("GET", "/api/v1/explain/a:1")).json["lines"]
    assert any("Load" in line and f"num_ctx={LARGE}" in line for line in told)
    shown = (await running.ask("GET", "/api/ps")).json["models"]
    assert [(model["name"], model["context_length"]) for model in shown] in ([], [("a:1", LARGE)])
    answer = await running.admin("POST", "/api/v1/load", {"model": f"a:1#{LARGE}"})
    assert (answer.status, answer.json["text"]) == (202, "already there or on its way")
    answer = await running.admin("POST", "/api/v1/unload", {"model": "a:1"})
    assert answer.json["text"] == "leaving once its requests are done"
    await until(lambda: not running.state.workers["w0"].runners, "the unload")
    assert (await worker.counters())["reloads"] == 0


async def test_a_client_that_names_a_context_gets_the_one_that_holds_it(sim, gateway):
    worker = await sim(vram_bytes=48 * 10**9, parallel=2)
    running = await gateway(worker.port, models={"a:1": {"context_classes": [LARGE]}}, drain_after="200ms")
    for wanted, context, overridden, noted in (
        (LARGE, LARGE, None, f"class={LARGE}"),
        (10_000, LARGE, "num_ctx", f"class={LARGE}"),
        (CANONICAL, CANONICAL, None, None),
        (2048, CANONICAL, "num_ctx", None),
    ):
        reply = await running.chat("a:1", options={"num_ctx": wanted, "num_predict": 2})
        assert reply.status == 200
        given = running.decisions(Dispatch)[-1].num_ctx
        assert given >= context, "a larger one that is idle serves a smaller request too"
        assert given == LARGE or context == CANONICAL
        assert reply.headers.get("x-bellmare-overridden") == overridden
        assert reply.headers.get("x-bellmare-context") == noted
    assert (await worker.counters())["reloads"] == 0
