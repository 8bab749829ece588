"""The context guard over a whole gateway: what does not fit is cut as promised, refused or routed, in every dialect."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rig import Gateway, Reply, begin, start_gateway, start_sim, until

from bellmare.workers.sim import SimModel

pytestmark = pytest.mark.slow

NUM_CTX = 4_096
WANTED = NUM_CTX * 80 // 100
GENERATE = {"num_predict": 4}
PROSE = "the mare leads and train follows over stone river at an even pace while bells ring slow; x = f(y[3] 'z')"
OTHERS = ("\u65e5\u672c\u8a9e", "\u0441\u043b\u043e\u0432\u043e", "caf\u00e9", "\U0001f600", "12345", "0x1F\n\n")
WORDS = [*PROSE.split(), *OTHERS]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Served(NamedTuple):
    gateway: Gateway
    model: str

    async def chat(self, messages: list[dict[str, Any]], *, stream: bool = False, **more: Any) -> Reply:
        body = {"model": self.model, "messages": messages, "stream": stream, "options": GENERATE}
        return await self.gateway.post("/api/chat", body | more)


@pytest.fixture(params=["sim", pytest.param("engine", marks=pytest.mark.engine)])
async def served(request: pytest.FixtureRequest, _gate: None, tmp_path: Path) -> AsyncIterator[Served]:
    if request.param == "sim":
        worker = await start_sim(models=(SimModel("t:1", tokenizer="gpt2", capabilities=("completion", "tools")),))
        gateway = await start_gateway(worker.port, num_ctx=NUM_CTX)
        yield Served(gateway, "t:1")
        await gateway.close()
        await worker.server.close()
        return
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    from engine_vocabularies import byte_pairs, write_vocabulary

    write_vocabulary(tmp_path / "v__1.gguf", byte_pairs("llama-bpe"), chat_template=CHATML)
    entry = {"embedded": {"models": str(tmp_path), "memory": "2GiB", "parallel": 1}, "name": "w0"}
    gateway = await start_gateway(entry, num_ctx=NUM_CTX)
    yield Served(gateway, "v:1")
    await gateway.close()


@pytest.fixture
async def simulated(_gate: None) -> AsyncIterator[Any]:
    """Start a gateway with settings over one simulated worker with vocabularies."""
    worker = await start_sim(
        models=(
            SimModel("t:1", tokenizer="gpt2", capabilities=("completion", "tools")),
            SimModel("s:1", tokenizer="llama"),
            SimModel("u:1"),
        )
    )
    started: list[Gateway] = []

    async def start(**settings: Any) -> Gateway:
        started.append(await start_gateway(worker.port, **({"num_ctx": NUM_CTX} | settings)))
        return started[-1]

    yield start
    for one in started:
        if not one.closed:
            await one.close()
    await worker.server.close()


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def conversation(turns: int, *, seed: int = 1, length: int = 60) -> list[dict[str, Any]]:
    """A chat whose every message can be told by its first word."""
    rng = random.Random(seed)
    messages = [{"role": "system", "content": "SYSTEM " + words(rng, 20)}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Q{turn} " + words(rng, length)})
        messages.append({"role": "assistant", "content": f"A{turn} " + words(rng, length)})
    return [*messages, {"role": "user", "content": "LAST " + words(rng, 10)}]


def told(reply: Reply) -> dict[str, int]:
    """The header ``x-bellmare-context``."""
    pairs = (pair.split("=") for pair in reply.headers["x-bellmare-context"].split())
    return {key: int(value) if value.isdigit() else value for key, value in pairs}  # type: ignore[misc]


async def rendered(served: Served, messages: list[dict[str, Any]], **more: Any) -> str:
    """What the worker makes of what the gateway sends it."""
    reply = await served.chat(messages, _debug_render_only=True, **more)
    assert reply.status == 200, reply.body
    text: str = reply.json["_debug_info"]["rendered_template"]
    return text


LONG = conversation(60, length=75)


async def test_a_chat_of_fifteen_thousand_tokens_is_cut_to_its_context(served):
    for stream in (False, True):
        reply = await served.chat(LONG, stream=stream)
        assert reply.status == 200, reply.body
        final = reply.lines[-1] if stream else reply.json
        header = told(reply)
        assert final["done"] is True
        assert header["prompt"] == final["prompt_eval_count"], "the count is exact"
        assert header["limit"] == NUM_CTX
        assert WANTED // 2 < header["prompt"] <= NUM_CTX - GENERATE["num_predict"]
        assert header["dropped"] % 2 == 0
        assert 60 < header["dropped"] < len(LONG) - 2
    free = await served.chat(LONG, options={"num_predict": -1, "stop": ["e"]})
    assert told(free)["prompt"] <= WANTED


async def test_the_full_conversation_has_the_promised_length(served):
    """So that the tests above show what they say."""
    reply = await served.chat(LONG, truncate=False)
    assert reply.status == 400
    tokens = int(reply.json["error"].split("request (")[1].split(" ")[0])
    assert tokens > 15_000
    assert reply.json["code"] == "context_length_exceeded"


async def test_system_message_and_last_turn_stay_and_nothing_is_orphaned(simulated):
    served = Served(await simulated(), "t:1")
    text = await rendered(served, LONG)
    assert "SYSTEM" in text
    assert text.rstrip().endswith("<|im_start|>assistant")
    assert "LAST" in text
    kept = [turn for turn in range(60) if f"Q{turn} " in text]
    assert kept == list(range(kept[0], 60))
    assert [turn for turn in range(60) if f"A{turn} " in text] == kept


async def test_turn_after_turn_is_cut_at_the_same_place(simulated):
    served = Served(await simulated(), "t:1")
    first = []
    for turns in range(40, 60):
        text = await rendered(served, [*LONG[: 1 + 2 * turns], LONG[-1]], options={"num_predict": -1})
        first.append(next(turn for turn in range(60) if f"Q{turn} " in text))
    moves = sum(before != after for before, after in itertools.pairwise(first))
    assert first == sorted(first)
    assert 1 <= moves <= len(first) / 2, first


async def test_calls_go_and_stay_with_their_results(simulated):
    served = Served(await simulated(), "t:1")
    rng = random.Random(3)
    messages = [{"role": "user", "content": "BEGIN " + words(rng, 20)}]
    for step in range(60):
        call = {"function": {"name": f"step{step}", "arguments": {"text": words(rng, 20)}}}
        messages.append({"role": "assistant", "content": f"CALL{step}:", "tool_calls": [call]})
        messages.append({"role": "tool", "content": f"RESULT{step}: " + words(rng, 40), "tool_name": f"step{step}"})
    text = await rendered(served, messages)
    calls = [step for step in range(60) if f"CALL{step}:" in text]
    assert calls == [step for step in range(60) if f"RESULT{step}:" in text]
    assert calls == list(range(calls[0], 60))
    assert calls[0] > 10
    assert "BEGIN" in text


@pytest.mark.parametrize("model", ["t:1", "s:1"])
async def test_counts_equal_the_workers_own(simulated, model):
    served = Served(await simulated(), model)
    for turns in (12, 14, 40):
        reply = await served.chat(conversation(turns, seed=turns, length=60))
        final = reply.json
        metrics = served.gateway.service.metrics.context
        assert reply.status == 200
        if "x-bellmare-context" in reply.headers:
            assert told(reply)["prompt"] == final["prompt_eval_count"]
        assert sum(metrics._errors["exact"][4:]) == 0, metrics._errors
    assert sum(metrics._errors["exact"]) == 3


async def test_openai_clients_get_their_conversation_cut_too(served):
    body = {"model": served.model, "messages": LONG, "max_tokens": 4}
    reply = await served.gateway.post("/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    assert told(reply)["prompt"] == reply.json["usage"]["prompt_tokens"]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    reply = await served.gateway.post("/v1/chat/completions", body | streamed)
    usage = json.loads(reply.events[-2])["usage"]
    assert reply.events[-1] == "[DONE]"
    assert told(reply)["prompt"] == usage["prompt_tokens"]


async def test_anthropic_clients_get_their_conversation_cut_too(served):
    body = {"model": served.model, "messages": LONG[1:], "system": "be kind", "max_tokens": 4}
    reply = await served.gateway.post("/v1/messages", body)
    assert reply.status == 200, reply.body
    assert told(reply)["prompt"] == reply.json["usage"]["input_tokens"]
    counted = await served.gateway.post("/v1/messages/count_tokens", body)
    assert counted.json["input_tokens"] > 15_000
    short = body | {"messages": LONG[-1:]}
    counted = await served.gateway.post("/v1/messages/count_tokens", short)
    answered = await served.gateway.post("/v1/messages", short)
    assert counted.json["input_tokens"] == answered.json["usage"]["input_tokens"]


async def test_the_policy_refuse_answers_in_each_dialect(simulated):
    running = await simulated(context={"policy": "refuse"})
    messages = LONG[1:]
    native = await running.post("/api/chat", {"model": "t:1", "messages": messages})
    openai = await running.post("/v1/chat/completions", {"model": "t:1", "messages": messages})
    body = {"model": "t:1", "messages": messages, "max_tokens": 8}
    anthropic = await running.post("/v1/messages", body)
    generate = await running.post("/api/generate", {"model": "t:1", "prompt": LONG[1]["content"] * 60})
    assert [one.status for one in (native, openai, anthropic, generate)] == [400] * 4
    assert native.json["code"] == "context_length_exceeded"
    assert "exceeds the available context size (4096 tokens)" in native.json["error"]
    assert openai.json["error"]["code"] == "context_length_exceeded"
    assert openai.json["error"]["type"] == "invalid_request_error"
    assert "maximum context length is 4096 tokens" in openai.json["error"]["message"]
    assert anthropic.json["error"]["type"] == "invalid_request_error"
    assert anthropic.json["error"]["message"].startswith("prompt is too long: ")
    assert anthropic.json["error"]["message"].endswith(" tokens > 4096 maximum")
    assert "exceeds the available context size" in generate.json["error"]
    assert running.driver.requests == 0


async def test_models_and_tenants_may_differ(simulated):
    running = await simulated(
        context={"policy": "refuse"},
        models={"t:1": {"context": {"policy": "truncate"}}},
        tenants={"127.0.0.1": {"context": {"at": "50%"}}},
    )
    free = {"options": {"num_predict": -1, "stop": ["e"]}, "stream": False}
    reply = await running.post("/api/chat", {"model": "t:1", "messages": LONG} | free)
    assert told(reply)["prompt"] <= NUM_CTX // 2
    reply = await running.post("/api/chat", {"model": "s:1", "messages": LONG} | free)
    assert reply.status == 400


async def test_a_last_message_that_is_too_long_by_itself_is_left_to_the_worker_and_announced(served):
    messages = [*LONG[:9], {"role": "user", "content": "x " * 9_000}]
    reply = await served.chat(messages)
    assert reply.status == 200
    assert told(reply)["cut"] == "worker"
    assert told(reply)["dropped"] == 8
    assert told(reply)["prompt"] > NUM_CTX
    strict = await served.chat(messages, truncate=False)
    assert strict.status == 400
    if served.model == "v:1":  # the engine cuts as Ollama does; the simulated worker does not
        assert reply.json["prompt_eval_count"] < NUM_CTX
        text = served.gateway.service.metrics.render().decode()
        assert 'bellmare_context_shift_events_total{by="worker",model="v:1"} 1.0' in text


async def test_a_larger_class_serves_what_does_not_fit(simulated):
    running = await simulated(models={"t:1": {"context_classes": [32_768], "context": {"policy": "class"}}})
    body = {"model": "t:1", "messages": LONG, "stream": False, "options": GENERATE}
    reply = await running.post("/api/chat", body)
    assert reply.status == 200, reply.body
    assert told(reply) == {
        "prompt": reply.json["prompt_eval_count"],
        "limit": 32_768,
        "dropped": 0,
        "class": 32_768,
    }
    assert reply.json["prompt_eval_count"] > 15_000
    short = await running.post("/api/chat", body | {"messages": LONG[-1:]})
    assert "x-bellmare-context" not in short.headers


async def test_without_a_class_that_is_large_enough_the_largest_is_filled(simulated):
    running = await simulated(models={"t:1": {"context_classes": [8_192], "context": {"policy": "class"}}})
    reply = await running.post("/api/chat", {"model": "t:1", "messages": LONG, "stream": False, "options": GENERATE})
    assert told(reply)["limit"] == 8_192
    assert 4_096 < told(reply)["prompt"] <= 8_192
    assert told(reply)["dropped"] > 0


async def test_a_model_without_a_vocabulary_is_guarded_by_estimates_that_learn(simulated):
    running = await simulated()
    for turn in range(8):
        reply = await running.post(
            "/api/chat",
            {"model": "u:1", "messages": conversation(60, seed=turn), "stream": False, "options": GENERATE},
        )
        assert reply.status == 200
        assert told(reply)["counted"] == "about"
        assert reply.json["prompt_eval_count"] <= NUM_CTX
    assert reply.json["prompt_eval_count"] > WANTED * 0.6


async def test_policy_off_leaves_everything_to_the_worker(simulated):
    served = Served(await simulated(context={"policy": "off"}), "t:1")
    text = await rendered(served, LONG)
    assert "Q0 " in text


async def test_a_client_that_leaves_while_its_prompt_is_counted_leaves_nothing_behind(simulated):
    running = await simulated()
    await Served(running, "t:1").chat(LONG)  # the vocabulary is there
    rng = random.Random(9)
    for _ in range(4):
        messages = [{"role": "user", "content": words(rng, 20_000)}, {"role": "user", "content": "x"}]
        talk = await running.open_chat("t:1", messages=messages)
        await until(lambda: running.service.gateway.context.waiting, "counting")
        talk.leave()
        await until(lambda: not running.service.gateway.context.waiting, "left")
        await talk.close()
    await running.back_to_baseline()
    assert running.service.gateway.context.counter.waiting == 0


async def test_prompts_being_counted_at_the_end_of_the_grace_get_their_503(simulated):
    running = await simulated()
    served = Served(running, "t:1")
    await served.chat(LONG)
    rng = random.Random(11)
    asking = begin(served.chat([{"role": "user", "content": words(rng, 150_000)}, LONG[-1]]))
    await until(lambda: running.service.gateway.context.waiting, "counting")
    await running.close()
    reply = await asking
    assert reply.status == 503
    assert "shutting down" in reply.error


async def test_short_requests_are_never_counted(simulated):
    running = await simulated()
    reply = await Served(running, "t:1").chat([{"role": "user", "content": "hi"}])
    assert "x-bellmare-context" not in reply.headers
    metrics = running.service.metrics.context
    assert metrics.proven == 1
    assert sum(metrics._requests.values()) == 0


async def test_metrics_tell_of_cuts(simulated):
    running = await simulated()
    served = Served(running, "t:1")
    await served.chat(LONG)
    text = running.service.metrics.render().decode()
    assert 'bellmare_context_shift_events_total{by="gateway",model="t:1"} 1.0' in text
    assert 'bellmare_context_requests_total{method="exact"} 1.0' in text
    assert 'bellmare_context_count_error_ratio_bucket{le="0.0",method="exact"} 1.0' in text
    assert "bellmare_context_vocabularies 1.0" in text


async def test_large_cut_bodies_are_written_anew(simulated):
    """Of a request so large that its body was encoded ahead: what is sent is what was left."""
    running = await simulated()
    messages = conversation(400, length=150)
    assert len(json.dumps(messages)) > 512 << 10
    reply = await Served(running, "t:1").chat(messages)
    assert reply.status == 200
    assert told(reply)["prompt"] == reply.json["prompt_eval_count"] <= NUM_CTX


async def test_many_long_prompts_at_once_are_all_answered(simulated):
    running = await simulated()
    served = Served(running, "t:1")
    replies = await asyncio.gather(*(served.chat(conversation(50, seed=seed)) for seed in range(24)))
    assert {reply.status for reply in replies} == {200}
    assert all(told(reply)["prompt"] == reply.json["prompt_eval_count"] for reply in replies)
    assert running.driver.requests == 0
