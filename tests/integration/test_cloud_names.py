"""Names of ollama.com's models: refused unless allowed, then passed on to a worker without a word to the core."""

from __future__ import annotations

import json

import pytest
from rig import SMALL, until

from bellmare.core.events import RequestArrived
from bellmare.workers.sim import SimModel

NAME = "gpt-oss:120b-cloud"
HI = [{"role": "user", "content": "hi"}]
BODY = {"model": NAME, "messages": HI, "stream": False}
PATHS = ["/api/chat", "/v1/chat/completions", "/v1/messages"]


def said(path: str, **more: object) -> dict[str, object]:
    return {**BODY, **({"max_tokens": 8} if path != "/api/chat" else {}), **more}


@pytest.fixture
async def fleet(sim, gateway):
    """A worker to which ollama.com's model is known, and a gateway that may use it."""
    worker = await sim(models=(*SMALL, SimModel(NAME)))
    return await gateway(worker.port, cloud=True), worker


@pytest.mark.parametrize("path", PATHS)
async def test_by_default_they_reach_no_worker(path, sim, gateway):
    worker = await sim(models=(*SMALL, SimModel(NAME)))
    running = await gateway(worker.port)
    reply = await running.post(path, said(path))
    assert reply.status == 403
    assert "ollama.com" in reply.error
    assert worker.loaded() == []


@pytest.mark.parametrize("path", PATHS)
async def test_where_allowed_a_worker_answers_and_the_core_hears_nothing(path, fleet):
    running, worker = fleet
    reply = await running.post(path, said(path))
    assert reply.status == 200
    assert reply.json["model"] == NAME
    assert reply.headers["x-bellmare-worker"] == "w0"
    assert running.events(RequestArrived) == []
    assert worker.loaded() == [NAME], "the worker saw the very name"
    assert "num_ctx" not in json.dumps(reply.json)


@pytest.mark.parametrize("cloud", [True, False])
async def test_the_status_says_whether_they_may_be_used(cloud, sim, gateway):
    running = await gateway((await sim()).port, cloud=cloud)
    told = (await running.ask("GET", "/api/status")).json["cloud"]
    assert told == {"disabled": not cloud, "source": "none" if cloud else "config"}


async def test_a_stream_is_one_in_every_dialect(fleet):
    running, _ = fleet
    reply = await running.post("/api/chat", said("/api/chat", stream=True, options={"num_predict": 4}))
    assert reply.lines[-1]["done"] is True
    reply = await running.post("/v1/chat/completions", said("/v1/chat/completions", stream=True))
    assert reply.events[-1] == "[DONE]"


async def test_what_the_worker_says_against_it_is_passed_on(fleet):
    running, _ = fleet
    reply = await running.post("/api/chat", {**BODY, "model": "nobody:cloud"})
    assert reply.status == 404
    assert "not found" in reply.error


async def test_a_large_one_too(fleet):
    running, _ = fleet
    reply = await running.post("/api/chat", {**BODY, "messages": [{"role": "user", "content": "x" * 400_000}]})
    assert reply.status == 200


async def test_a_client_that_leaves_frees_the_worker(fleet):
    running, worker = fleet
    talk = await running.open_chat(NAME, options={"num_predict": 100_000})
    assert await talk.head() == 200
    talk.leave()
    await until(lambda: worker.busy() == 0, "the worker is free")
    await until(lambda: not running.service.gateway.cloud.talks, "nothing is left")
    await running.close()
    rows = [row for row in running.lines("request") if row["model"] == NAME]
    assert [row["status"] for row in rows] == [499]


async def test_a_shutdown_tells_who_still_waits(fleet):
    running, _ = fleet
    talk = await running.open_chat(NAME, options={"num_predict": 100_000})
    assert await talk.head() == 200
    await running.close()
    body = await talk.rest()
    assert "shutting down" in json.loads(body.splitlines()[-1])["error"]
    await talk.close()
