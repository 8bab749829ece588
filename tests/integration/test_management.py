"""What the fleet stores, changed by Ollama's own client through a gateway: on all workers, told as one, or refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import ollama
import pytest
from rig import SMALL, ask, begin, open_talk, until

from bellmare.gateway.management import blobs
from bellmare.protocols.names import KEPT_PREFIX

MANAGERS = ["127.0.0.1"]
ROUTES = [
    ("POST", "/api/pull", {"model": "m"}),
    ("POST", "/api/push", {"model": "a:1"}),
    ("POST", "/api/create", {"model": "m", "from": "a:1"}),
    ("POST", "/api/copy", {"source": "a:1", "destination": "m"}),
    ("DELETE", "/api/delete", {"model": "a:1"}),
    ("HEAD", "/api/blobs/sha256:" + "a" * 64, None),
    ("POST", "/api/blobs/sha256:" + "a" * 64, b"data"),
]


@pytest.fixture
async def fleet(sim, gateway):
    """Two workers behind a gateway that this machine may manage, and Ollama's client."""
    workers = [await sim(), await sim()]
    running = await gateway(*(worker.port for worker in workers), manage=MANAGERS)
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{running.port}")
    yield running, workers, client
    await client._client.aclose()


async def stored(worker: Any) -> dict[str, str]:
    """Digests by name, as the worker itself tells them."""
    listed = await ask(worker.port, "GET", "/api/tags")
    return {model["model"]: model["digest"] for model in listed.json["models"]}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_by_default_nobody_may(method, path, body, sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    reply = await running.ask(method, path, body)
    assert reply.status == 403
    if method != "HEAD":
        assert "manage" in reply.error
    assert set(await stored(worker)) == {model.name for model in SMALL}


async def test_only_those_named_may(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, manage=["10.0.0.0/8", "::1"])
    assert (await running.post("/api/copy", {"source": "a:1", "destination": "m"})).status == 403


async def test_a_pull_goes_to_every_worker_and_its_progress_is_that_of_one(fleet):
    _running, workers, client = fleet
    name = next(iter(workers[0].server.library._downloads.registry))
    told = [step async for step in await client.pull(name, stream=True)]
    assert told[0].status == "pulling manifest"
    assert told[-1].status == "success"
    assert sum(step.status == "success" for step in told) == 1
    for digest in {step.digest for step in told if step.digest}:
        figures = [step.completed or 0 for step in told if step.digest == digest]
        assert figures == sorted(figures)
        assert figures[-1] == next(step.total for step in told if step.digest == digest)
    for worker in workers:
        assert name in await stored(worker)
    assert name in {model.model for model in (await client.list()).models}, "the next request may be for it"
    answer = await client.chat(name, messages=[{"role": "user", "content": "hi"}])
    assert answer.done


async def test_an_unstreamed_pull_is_one_object(fleet):
    _, workers, client = fleet
    name = next(iter(workers[0].server.library._downloads.registry))
    assert (await client.pull(name)).status == "success"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unknown_model_is_told_in_ollamas_words(stream, fleet):
    _running, workers, client = fleet
    with pytest.raises(ollama.ResponseError, match="file does not exist") as caught:
        if stream:
            _ = [step async for step in await client.pull("nobody-has-it", stream=True)]
        else:
            await client.pull("nobody-has-it")
    if not stream:
        assert caught.value.status_code == 500
    direct = await ask(workers[0].port, "POST", "/api/pull", {"model": "nobody-has-it", "stream": False})
    assert direct.error == caught.value.error


async def test_a_worker_that_is_away_is_not_asked_and_one_that_fails_is_named(fleet):
    running, workers, client = fleet
    await workers[1].server.close()
    await until(lambda: not running.state.workers["w1"].healthy, "w1 is gone")
    name = next(iter(workers[0].server.library._downloads.registry))
    assert (await client.pull(name)).status == "success"


async def test_copy_create_and_delete(fleet):
    _running, workers, client = fleet
    assert (await client.copy("a:1", "mine")).status == "success"
    assert (
        await client.create("tuned", from_="b:1", system="Be brief.", parameters={"num_ctx": 4096})
    ).status == "success"
    for worker in workers:
        assert {"mine:latest", "tuned:latest"} <= set(await stored(worker))
    shown = await client.show("tuned")
    assert "Be brief." in (shown.modelfile or "") or "Be brief." in str(shown)
    assert (await client.chat("mine", messages=[{"role": "user", "content": "x"}])).done
    for name in ("mine", "tuned"):
        assert (await client.delete(name)).status == "success"
    for worker in workers:
        assert not {"mine:latest", "tuned:latest"} & set(await stored(worker))
    with pytest.raises(ollama.ResponseError, match="'gone' not found") as caught:
        await client.delete("gone")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        await client.copy("gone", "x")
    assert caught.value.status_code == 404


async def test_a_deleted_model_leaves_memory_although_its_name_is_gone(fleet):
    running, workers, client = fleet
    assert (await running.chat("a:1")).status == 200
    holder = next(worker for worker in workers if "a:1" in worker.loaded())
    await client.delete("a:1")
    await until(lambda: not holder.loaded(), "its runner is gone")
    assert not [name for name in await stored(holder) if name.startswith(KEPT_PREFIX)]
    await until(lambda: not any(w.runners for w in running.state.workers.values()), "the core has seen it")
    assert (await running.chat("a:1")).status == 404


async def test_a_name_that_moves_takes_its_old_runner_along(fleet):
    running, workers, client = fleet
    assert (await running.chat("a:1")).status == 200
    holder = next(worker for worker in workers if "a:1" in worker.loaded())
    before = (await stored(holder))["a:1"]
    await client.copy("b:1", "a:1")
    assert (await stored(holder))["a:1"] != before
    await until(lambda: not holder.loaded(), "the old version is gone")
    assert (await running.chat("a:1")).status == 200
    assert set(await stored(holder)) == set(await stored(workers[0])), "nothing of the way there is left"


async def test_what_runs_ends_before_its_model_goes(fleet):
    running, _workers, client = fleet
    talk = await running.open_chat("a:1", options={"num_predict": 400})
    assert await talk.head() == 200
    gone = begin(client.delete("a:1"))
    lines = (await talk.rest()).splitlines()
    assert json.loads(lines[-1])["done"] is True
    await gone


async def test_a_blob_reaches_every_worker(fleet, tmp_path):
    running, workers, client = fleet
    data = b"GGUF" + bytes(range(256)) * 4000
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    digest = await client.create_blob(path)
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    for worker in workers:
        reply = await (await open_talk(worker.port, "HEAD", f"/api/blobs/{digest}")).head()
        assert reply == 200
    assert (await running.ask("HEAD", f"/api/blobs/{digest}")).status == 200
    assert (await running.ask("POST", f"/api/blobs/{digest}", data)).status == 200, "it is there already"
    assert running.service.gateway.blobs._uploads == 0


async def test_a_blob_that_is_another_is_refused_and_kept_nowhere(fleet):
    running, _workers, _ = fleet
    digest = "sha256:" + hashlib.sha256(b"right").hexdigest()
    reply = await running.ask("POST", f"/api/blobs/{digest}", b"wrong")
    assert reply.status == 400
    assert "digest mismatch" in reply.error
    assert (await running.ask("HEAD", f"/api/blobs/{digest}")).status == 404
    assert (await running.ask("POST", "/api/blobs/sha256:short", b"x")).status == 400
    assert (await running.ask("HEAD", "/api/blobs/..%2f..%2fetc", None)).status == 400


async def test_uploads_are_bounded_and_one_that_is_left_gives_its_place_back(fleet):
    running, _, _ = fleet
    digest = "sha256:" + "b" * 64
    talks = []
    for _ in range(blobs.UPLOADS_MAX):
        talk = await open_talk(
            running.port, "POST", f"/api/blobs/{digest}", b"x" * 1000, headers={"content-length": "1000000"}
        )
        talks.append(talk)
    await until(lambda: running.service.gateway.blobs._uploads == blobs.UPLOADS_MAX, "all are under way")
    assert (await running.ask("POST", f"/api/blobs/{digest}", b"x")).status == 503
    for talk in talks:
        talk.leave()
    await until(lambda: running.service.gateway.blobs._uploads == 0, "nothing is left")


async def test_a_client_that_leaves_gives_its_pull_up(fleet):
    running, workers, _ = fleet
    name = next(iter(workers[0].server.library._downloads.registry))
    talk = await open_talk(running.port, "POST", "/api/pull", {"model": name})
    assert await talk.head() == 200
    talk.leave()
    await until(lambda: running.service.gateway.changes.under_way == 0, "the pull is given up")
    await asyncio.sleep(0.1)
