"""keep_alive 0: a model that was one client's alone leaves, as at an Ollama; while others use it, it stays."""

from __future__ import annotations

from rig import until

from bellmare.core.decisions import Unload, UnloadCause

RELEASE = {"model": "a:1", "keep_alive": 0, "stream": False}


async def test_what_was_its_clients_alone_leaves(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    reply = await running.post("/api/generate", RELEASE)
    assert (reply.status, reply.json["done_reason"]) == (200, "unload")
    await until(lambda: not worker.loaded(), "it is gone")
    await until(lambda: not running.state.operations, "confirmed")
    assert (await running.ask("GET", "/api/ps")).json["models"] == []
    assert [unload.cause for unload in running.decisions(Unload)] == [UnloadCause.released]
    assert (await running.chat()).status == 200, "and comes back for who asks"


async def test_while_others_use_it_it_stays(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    body = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": False}
    assert (await running.post("/api/chat", body, authorization="Bearer other")).status == 200
    assert (await running.chat()).status == 200
    assert (await running.post("/api/chat", {**RELEASE, "messages": []})).json["done_reason"] == "unload"
    await running.settled()
    assert worker.loaded() == ["a:1"]
    assert running.decisions(Unload) == []
