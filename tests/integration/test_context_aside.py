"""A conversation of thousands of messages is cut beside the event loop, and as one of a few is."""

from __future__ import annotations

import threading

import pytest
from rig import start_gateway, start_sim

from bellmare.gateway import context
from bellmare.workers.sim import SimModel

MESSAGES = [{"role": "user" if turn % 2 == 0 else "assistant", "content": f"turn {turn} " * 40} for turn in range(201)]


@pytest.mark.parametrize("inline_max", [2_000, 10])
async def test_where_a_conversation_is_cut_changes_nothing(_gate, monkeypatch, inline_max):
    cut, threads = context.plans.cut, []
    monkeypatch.setattr(context, "CUT_INLINE_MESSAGES", inline_max)
    monkeypatch.setattr(
        context.plans, "cut", lambda *a, **k: threads.append(threading.current_thread().name) or cut(*a, **k)
    )
    worker = await start_sim(models=(SimModel("t:1", tokenizer="gpt2"),))
    gateway = await start_gateway(worker.port, num_ctx=4096)
    try:
        reply = await gateway.post(
            "/api/chat", {"model": "t:1", "messages": MESSAGES, "stream": False, "options": {"num_predict": 2}}
        )
        assert reply.status == 200
        told = dict(part.split("=") for part in reply.headers["x-bellmare-context"].split(" "))
        assert int(told["dropped"]) > 100
        assert reply.json["prompt_eval_count"] <= 4096
        assert len(threads) == 1
        assert threads[0].startswith("bellmare-cut") == (inline_max == 10)
        assert set(gateway.service.gateway.accounts.context._cut_tokens) == {"t:1"}
        assert not gateway.service.gateway.context.waiting
    finally:
        await gateway.close()
        await worker.server.close()
