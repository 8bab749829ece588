"""Hints through a whole gateway: what clients say and what their traffic says reaches the core, within bounds."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest
from rig import open_talk, until

from bellmare.core.decisions import Load, LoadCause, Unload
from bellmare.core.events import HintGiven, HintSource, RequestArrived
from bellmare.gateway.hinting import LONG_BODY_BYTES, SAID, SEEN

BODY = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": False}


def hints(running: Any, source: HintSource) -> list[HintGiven]:
    return [event for event in running.events(HintGiven) if event.source is source]


async def metrics(running: Any) -> dict[str, float]:
    text = (await running.admin("GET", "/metrics")).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def resident(running: Any, *names: str) -> None:
    await until(lambda: {r.name for r in runners(running) if r.residency == "resident"} >= set(names), str(names))


def runners(running: Any) -> list[Any]:
    return [runner for worker in running.state.workers.values() for runner in worker.runners.values()]


async def test_a_prepared_model_is_loaded_by_the_hint_and_its_request_finds_it_ready(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv", admin="127.0.0.1:0")
    said = await running.post("/api/prepare", {"model": "A:1", "in_ms": 10_000})
    assert said.status == 202
    assert said.json == {"models": [{"model": "A:1", "state": "loading"}]}
    await resident(running, "a:1")
    assert [(load.name, load.cause) for load in running.decisions(Load)] == [("a:1", LoadCause.hint)]
    assert (await running.post("/v1/prepare", {"model": "a:1"})).json["models"][0]["state"] == "resident"
    answer = await running.chat("a:1")
    assert (answer.status, answer.headers["x-bellmare-cache"]) == (200, "hit")
    assert len(running.decisions(Load)) == 1
    seen = await metrics(running)
    assert seen['bellmare_hints_total{outcome="given",source="prepare"}'] == 2
    assert seen['bellmare_hints_total{outcome="right",source="prepare"}'] == 1
    assert 0.9 <= seen['bellmare_hint_precision{source="prepare"}'] < 1
    assert seen['bellmare_hint_lead_seconds{source="prepare"}'] > 0
    assert (seen["bellmare_ahead_useful_total"], seen["bellmare_ahead_useless_total"]) == (1, 0)
    assert seen['bellmare_model_loads_total{cause="hint",model="a:1"}'] == 1


async def test_a_wrong_hint_evicts_nothing_that_is_hotter(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv")
    for name in ("c:1", *("a:1", "b:1") * 8):  # c:1 has left for the two that are in constant use
        assert (await running.chat(name)).status == 200
    assert {runner.name for runner in runners(running)} == {"a:1", "b:1"}
    before = len(running.steps)
    for _ in range(3):
        said = await running.post("/api/prepare", {"model": "c:1"})
        assert (said.status, said.json["models"][0]["state"]) == (202, "expected")
    for name in ("a:1", "b:1"):
        assert (await running.chat(name)).headers["x-bellmare-cache"] == "hit"
    decided = [one for _, _, decisions in running.steps[before:] for one in decisions]
    assert len(hints(running, HintSource.prepare)) == 3
    assert [one for one in decided if isinstance(one, Load | Unload)] == []


async def test_a_preparation_that_is_wrong_is_told_in_each_dialect_and_gives_nothing(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv")
    for path in ("/api/prepare", "/v1/prepare"):
        for body, status in (
            ({"model": "a:9"}, 404), ({"models": ["a:1", "nobody"]}, 404), ({"model": "a:cloud"}, 403),
            ({"model": "a:1", "in_ms": -1}, 400), ({"models": ["a:1"] * 9}, 400), ({}, 400), (b"{", 400),
        ):  # fmt: skip
            reply = await running.post(path, body)
            assert reply.status == status, (path, body)
            assert isinstance(reply.json["error"], dict) is path.startswith("/v1")
    assert "did you mean 'a:1'" in (await running.post("/api/prepare", {"model": "a:9"})).error
    assert (await running.ask("GET", "/api/prepare")).status == 405
    assert running.events(HintGiven) == []


async def test_the_next_header_hints_at_what_comes_after_a_request_and_a_malformed_one_is_a_400(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv")
    header = {"x-bellmare-next": "b:1;in_ms=50, nobody:1"}
    assert (await running.post("/api/chat", BODY, **header)).status == 200
    asked = running.events(RequestArrived)[0]
    assert [(hint.name, hint.in_us, hint.tenant) for hint in hints(running, HintSource.next_header)] == [
        ("b:1", 50_000, asked.tenant), ("nobody:1", 0, asked.tenant),
    ]  # fmt: skip
    await resident(running, "b:1")
    assert [load.cause for load in running.decisions(Load) if load.name == "b:1"] == [LoadCause.hint]
    assert (await running.chat("b:1")).headers["x-bellmare-cache"] == "hit"
    for path in ("/api/chat", "/v1/chat/completions"):
        for value, status in (("b:1;soon", 400), ("a,b,c,d,e", 400), ("b:cloud", 403)):
            reply = await running.post(path, BODY, **{"x-bellmare-next": value})
            assert reply.status == status
            assert "X-Bellmare-Next" in reply.error
    refused = await running.post("/api/chat", BODY | {"model": "nobody:1"}, **header)
    assert refused.status == 404
    assert len(running.events(RequestArrived)) == 3
    assert len(hints(running, HintSource.next_header)) == 2, "who was refused announces nothing"


async def test_looks_lists_and_long_bodies_hint_at_a_known_clients_usual_model(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv")
    for path in ("/api/tags", "/v1/models"):
        assert (await running.ask("GET", path)).status == 200
    assert running.events(HintGiven) == [], "nothing is known of him yet"
    assert (await running.chat("a:1")).status == 200
    tenant = running.events(RequestArrived)[0].tenant
    for path in ("/api/tags", "/v1/models"):
        assert (await running.ask("GET", path)).status == 200
    assert [(hint.name, hint.tenant) for hint in hints(running, HintSource.tags)] == [("", tenant)] * 2
    assert (await running.post("/api/show", {"model": "b:1"})).status == 200
    assert [(hint.name, hint.tenant) for hint in hints(running, HintSource.show)] == [("b:1", tenant)]
    assert (await running.post("/api/show", {"model": "nobody:1"})).status == 404
    assert len(hints(running, HintSource.show)) == 1

    talk = await open_talk(running.port, "POST", "/api/chat", b" ", headers={"content-length": str(LONG_BODY_BYTES)})
    await until(lambda: hints(running, HintSource.body), "a hint while the body is on its way")
    assert [(hint.name, hint.tenant) for hint in hints(running, HintSource.body)] == [("", tenant)]
    assert len(running.events(RequestArrived)) == 1
    talk.leave()
    short = json.dumps(BODY | {"messages": [{"role": "user", "content": "x" * (LONG_BODY_BYTES - 1000)}]}).encode()
    assert (await running.post("/api/chat", short)).status == 200
    assert len(hints(running, HintSource.body)) == 1


@pytest.mark.slow
async def test_floods_are_limited_and_told_while_requests_are_served(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv", admin="127.0.0.1:0")
    await running.chat("a:1")
    statuses = [(await running.post("/api/prepare", {"models": ["a:1", "b:1", "c:1", "e:1"]})) for _ in range(20)]
    limited = [reply for reply in statuses if reply.status == 429]
    assert len(limited) >= 10
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in limited)
    assert "too many preparations" in limited[0].error
    given = len(hints(running, HintSource.prepare))
    assert given == 4 * (20 - len(limited))
    assert given <= SAID.burst + SAID.per_s * 5

    for _ in range(30):
        assert (await running.ask("GET", "/api/tags")).status == 200
        assert (await running.post("/api/chat", BODY, **{"x-bellmare-next": "b:1,c:1,e:1,a:1"})).status == 200
    assert len(hints(running, HintSource.tags)) <= SEEN.burst + 2
    assert len(hints(running, HintSource.next_header)) < 30
    told = await metrics(running)
    for source in ("prepare", "tags", "next_header"):
        assert told[f'bellmare_hints_total{{outcome="limited",source="{source}"}}'] > 0
    other = await running.post("/api/prepare", {"model": "a:1"}, authorization="Bearer somebody-else")
    assert other.status == 202


async def test_the_official_client_goes_on_as_before_with_the_header_beside_it(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, eviction="hv")
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{running.port}", headers={"X-Bellmare-Next": "b:1"})
    assert {model.model for model in (await client.list()).models} >= {"a:1", "b:1"}
    assert (await client.show("a:1")).details is not None
    messages = [{"role": "user", "content": "hello"}]
    answer = await client.chat(model="a:1", messages=messages, options={"num_predict": 5})
    assert answer.message.content
    parts = [part async for part in await client.chat("a:1", messages, stream=True, options={"num_predict": 5})]
    assert parts[-1].done
    await client._client.aclose()
    assert {event.source for event in running.events(HintGiven)} == {HintSource.show, HintSource.next_header}
