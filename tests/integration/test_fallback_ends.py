"""Requests that fall back to another model: nothing of them is kept for longer than of others."""

from __future__ import annotations

from rig import ask

from bellmare.gateway import app


async def test_what_is_remembered_of_their_ids_is_bounded(sim, gateway, monkeypatch):
    monkeypatch.setattr(app, "CORE_IDS_MAX", 3)
    worker = await sim()
    running = await gateway(worker.port, models={"gone:1": {"fallbacks": ["a:1"]}})
    for _ in range(8):
        reply = await ask(running.port, "POST", "/api/chat", {"model": "gone:1", "messages": [], "stream": False})
        assert reply.status == 200, reply.body
    assert len(running.service.gateway._core_ids) == 3
    assert not running.service.gateway._open
