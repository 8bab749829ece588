"""What Ollama's own integration tests and its command line ask of a server, asked of the gateway in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rig import Gateway, begin, start_gateway, start_sim, until
from test_native_equality import SIM_MODELS

TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture
async def gateway(_gate: None) -> AsyncIterator[Gateway]:
    sim = await start_sim(models=SIM_MODELS, time_scale=0.01, parallel=2, vram_bytes=48 << 30)
    gateway = await start_gateway(sim.port, num_ctx=4096)
    yield gateway
    await gateway.close()
    await sim.server.close()


async def running(gateway: Gateway) -> list[dict[str, Any]]:
    reply = await gateway.ask("GET", "/api/ps")
    models: list[dict[str, Any]] = reply.json["models"]
    return models


@pytest.mark.parametrize("stream", [True, False])
async def test_generate_and_chat_end_with_every_count(gateway: Gateway, stream: bool) -> None:
    """api_test: no field of the last object may be zero, and the model is listed as running at once."""
    options = {"temperature": 0, "seed": 123}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/api/generate", {"prompt": "why is the sky blue?"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "why is the sky blue?"}]}),
    ]
    for path, body in asked:
        reply = await gateway.post(path, {"model": "talker:1", "stream": stream, "options": options} | body)
        rows = reply.lines if stream else [reply.json]
        assert all(row["model"] == "talker:1" and row["created_at"] for row in rows)
        last = rows[-1]
        assert last["done"] and last["done_reason"] == "stop" and last["eval_count"] and last["prompt_eval_count"]
        assert all(last[name] > 0 for name in TIMES)
        assert path == "/api/chat" or last["context"]
        (row,) = await running(gateway)
        assert row["name"] == row["model"] == "talker:1" and row["size"] and row["digest"] and row["expires_at"]
        assert all(row["details"][name] for name in ("format", "family", "parameter_size", "quantization_level"))


async def test_a_load_is_listed_before_its_answer_is_read(gateway: Gateway) -> None:
    """concurrency_test: load one model after the other, and count those that run after each."""
    for count, name in enumerate(("talker:1", "thinker:1"), 1):
        reply = await gateway.post("/api/generate", {"model": name, "keep_alive": "10s"})
        assert (reply.status, reply.json["done_reason"]) == (200, "load")
        assert len(await running(gateway)) == count


async def test_the_lists_have_what_the_command_line_cuts_and_prints(gateway: Gateway) -> None:
    """``ollama list`` and ``ps`` take the first 12 characters of a digest, and panic at a shorter one."""
    await gateway.chat("talker:1")
    for row in [*(await gateway.ask("GET", "/api/tags")).json["models"], *await running(gateway)]:
        assert len(row["digest"]) == 64 and row["name"] and row["size"]
    shown = (await gateway.post("/api/show", {"name": "talker:1"})).json
    assert shown["model_info"]["general.architecture"] and shown["capabilities"] and shown["modified_at"]
    assert shown["modelfile"] and shown["details"]["family"]


async def test_run_asks_for_a_missing_model_before_it_pulls(gateway: Gateway) -> None:
    """``ollama run``: HEAD /, then show, whose 404 makes it pull."""
    assert (await gateway.ask("HEAD", "/")).status == 200
    reply = await gateway.post("/api/show", {"model": "missing"})
    assert (reply.status, reply.error) == (404, "model 'missing:latest' not found")


async def test_stop_is_answered_as_by_ollama_and_hurts_nobody(gateway: Gateway) -> None:
    """``ollama stop``: while another client uses the model, it goes only when its memory is needed."""
    chat = {"model": "talker:1", "messages": [{"role": "user", "content": "hello"}], "stream": False}
    assert (await gateway.post("/api/chat", chat, authorization="Bearer another")).status == 200
    await gateway.chat("talker:1")
    reply = await gateway.post("/api/generate", {"model": "talker:1", "keep_alive": "0s"})
    assert (reply.status, reply.json["done_reason"]) == (200, "unload")
    assert [row["name"] for row in await running(gateway)] == ["talker:1"]
    assert (await gateway.chat("talker:1")).status == 200


async def test_a_cancelled_generation_leaves_its_slot(gateway: Gateway) -> None:
    """A context that is cancelled in mid-stream: the next requests are served at once."""
    await gateway.chat("talker:1")
    talks = [await gateway.open_chat("talker:1", options={"num_predict": 500}) for _ in range(2)]
    for talk in talks:
        assert await talk.head() == 200
        assert await talk.line()
        talk.leave()
    await until(lambda: not gateway.driver.requests, "no request")
    replies = await asyncio.gather(*(begin(gateway.chat("talker:1", options={"num_predict": 2})) for _ in range(3)))
    assert [reply.json["done_reason"] for reply in replies] == ["length"] * 3


async def test_a_small_context_of_the_clients_is_answered_in_the_models_own(gateway: Gateway) -> None:
    """context_test sends num_ctx 128: the answer comes, and names what was not obeyed."""
    reply = await gateway.chat("talker:1", options={"num_ctx": 128, "seed": 1})
    assert reply.status == 200 and reply.json["done"]
    assert reply.headers["x-bellmare-overridden"] == "num_ctx"
    (row,) = await running(gateway)
    assert row["context_length"] == 4096


async def test_embeddings_of_a_batch_come_in_its_order(gateway: Gateway) -> None:
    texts = ["why is the sky blue?", "why is the grass green?", ""]
    batch = (await gateway.post("/api/embed", {"model": "embedder:1", "input": texts})).json
    assert len(batch["embeddings"]) == 3
    for text, vector in zip(texts[:2], batch["embeddings"], strict=False):
        alone = (await gateway.post("/api/embed", {"model": "embedder:1", "input": text})).json
        assert alone["embeddings"] == [vector]
