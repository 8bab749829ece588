"""For the same request bellmare's answer is the worker's own, field by field and line by line; only time differs.

Asked of the worker itself and through the gateway, streamed and not. Where an answer is meant to differ it stands in
``DIFFERENT`` with the reason, and a difference that has gone must go from there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from native_cases import EMBEDDINGS, EMPTY, ERRORS, SIMULATED, TALK, TOOLS, Case
from rig import Gateway, Reply, ask, start_gateway, start_sim

from bellmare.workers.sim import SimModel
from engine_models import write_model

NUM_CTX = 4096
TIMES = frozenset(
    {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "modified_at"}
)
SIM_PARTS = {
    "talker": "talker:1",
    "thinker": "thinker:1",
    "seer": "seer:1",
    "embedder": "embedder:1",
    "nobody": "nobody:1",
}
ENGINE_PARTS = {"talker": "talker:latest", "embedder": "embedder:latest", "nobody": "nobody:1"}
SIM_MODELS = (
    SimModel("talker:1", capabilities=("completion", "tools")),
    SimModel("thinker:1", capabilities=("completion", "tools", "thinking")),
    SimModel("seer:1", capabilities=("completion", "vision", "insert")),
    SimModel("embedder:1", "bert", 12, 12, 12, 0, 768, 3072, 30_522, 2048, capabilities=("embedding",)),
)

UNWRAPPED = "llama-server's JSON, which Ollama passes on as a string, is unwrapped to its text"
DIFFERENT: dict[str, str] = {
    "chat too long, refused": UNWRAPPED,
    "generate too long, refused": UNWRAPPED,
}
"""Cases whose answers differ on purpose, and why. Of the simulated worker, which is what a stock Ollama is."""


class Pair(NamedTuple):
    """A gateway, and the worker behind it."""

    gateway: Gateway
    worker_port: int
    parts: dict[str, str]


@pytest.fixture(params=["sim", pytest.param("engine", marks=[pytest.mark.engine, pytest.mark.slow])])
async def pair(request: pytest.FixtureRequest, _gate: None, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "sim":
        sim = await start_sim(models=SIM_MODELS, time_scale=0.001, context_length=NUM_CTX, vram_bytes=48 << 30)
        gateway = await start_gateway(sim.port, num_ctx=NUM_CTX)
        yield Pair(gateway, sim.port, SIM_PARTS)
        await gateway.close()
        await sim.server.close()
        return
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    from bellmare.workers.embedded.server import EmbeddedConfig, start_embedded_worker

    write_model(tmp_path, "talker", seed=1)
    write_model(tmp_path, "embedder", seed=2, pooling=True)
    config = EmbeddedConfig(models_dir=tmp_path, memory_bytes=1 << 30, parallel=1, threads=1, num_ctx=NUM_CTX)
    worker = await start_embedded_worker(config)
    gateway = await start_gateway(worker.port, num_ctx=NUM_CTX)
    yield Pair(gateway, worker.port, ENGINE_PARTS)
    await gateway.close()
    await worker.close(grace_s=0.0)


def timeless(value: Any) -> Any:
    """Without what depends on the clock; the ids of calls, which a real engine draws, by their form alone."""
    if isinstance(value, dict):
        kept = {key: timeless(one) for key, one in value.items() if key not in TIMES}
        if "function" in kept and isinstance(kept.get("id"), str):
            kept["id"] = kept["id"][:5]
        return kept
    return [timeless(one) for one in value] if isinstance(value, list) else value


def told(reply: Reply) -> tuple[int, str, Any]:
    """Status, kind of body, and the body: lines of a stream as a list."""
    kind = reply.headers.get("content-type", "")
    if "ndjson" in kind:
        return reply.status, kind, timeless(reply.lines)
    return reply.status, kind, timeless(json.loads(reply.body)) if reply.body else None


def deterministic(body: dict[str, Any], *, engine: bool) -> dict[str, Any]:
    """A real engine says the same again only if nothing is drawn, and an end is in sight."""
    options = body.get("options") or {}
    if not engine or ("messages" not in body and "prompt" not in body):
        return body
    return body | {"options": {"num_predict": 24} | options | {"temperature": 0, "seed": 1}}


async def both(pair: Pair, case: Case, **more: Any) -> tuple[Any, Any]:
    """The worker's answer and ours."""
    engine = pair.parts is ENGINE_PARTS
    body = {"model": pair.parts[case.model]} | deterministic(case.body, engine=engine) | more
    through = await pair.gateway.post(case.path, body)
    if engine:  # what was cached by the first must not make the second's numbers differ
        await pair.gateway.post(case.path, body)
        through = await pair.gateway.post(case.path, body)
    direct = await ask(pair.worker_port, "POST", case.path, body)
    return told(direct), told(through)


def ways(case: Case) -> list[dict[str, Any]]:
    """Streamed by default, streamed when asked, and not."""
    return [{}, {"stream": True}, {"stream": False}] if case.path in ("/api/chat", "/api/generate") else [{}]


async def compare(pair: Pair, cases: list[Case]) -> list[str]:
    """Each difference that is not among those we know, in words; and each of those that is none any more."""
    wrong = []
    for case in cases:
        if case.model not in pair.parts:
            continue
        differs = False
        for way in ways(case):
            direct, through = await both(pair, case, **way)
            if direct != through:
                differs = True
                if case.name not in DIFFERENT:
                    wrong.append(f"{case.name} {way}\n  worker   {shown(direct)}\n  bellmare {shown(through)}")
        if not differs and case.name in DIFFERENT and pair.parts is SIM_PARTS:
            wrong.append(f"{case.name}: no difference any more ({DIFFERENT[case.name]})")
    return wrong


def shown(answer: Any) -> str:
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) < 700 else f"{text[:500]} ... {text[-200:]}"


async def loaded(pair: Pair) -> None:
    """Every model is where it is needed, so that no answer waits for a load in one way only."""
    for part, name in pair.parts.items():
        if part == "embedder":
            assert (await pair.gateway.post("/api/embed", {"model": name, "input": "x"})).status == 200
        elif part != "nobody":
            assert (await pair.gateway.chat(name, options={"num_predict": 1})).status == 200


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(TALK, id="talk"),
        pytest.param(TOOLS, id="tools"),
        pytest.param(SIMULATED, id="capabilities"),
        pytest.param(EMBEDDINGS, id="embeddings"),
        pytest.param(EMPTY, id="empty"),
        pytest.param(ERRORS, id="errors"),
    ],
)
async def test_an_answer_is_the_workers_own(pair: Pair, cases: list[Case]) -> None:
    await loaded(pair)
    wrong = await compare(pair, cases)
    assert not wrong, "\n" + "\n".join(wrong)


def test_what_differs_on_purpose_is_a_case() -> None:
    names = {case.name for case in [*TALK, *TOOLS, *SIMULATED, *EMBEDDINGS, *EMPTY, *ERRORS]}
    assert DIFFERENT.keys() <= names
    assert len(names) == len(TALK) + len(TOOLS) + len(SIMULATED) + len(EMBEDDINGS) + len(EMPTY) + len(ERRORS)


async def test_lists_and_descriptions_are_the_workers_own(pair: Pair) -> None:
    await loaded(pair)
    for verbose in (False, True):
        for part, name in pair.parts.items():
            if part != "nobody":
                direct, through = await both(pair, Case("show", "/api/show", part, {"verbose": verbose}))
                assert through == direct, name
    tags = [told(await ask(port, "GET", "/api/tags")) for port in (pair.worker_port, pair.gateway.port)]
    assert by_name(tags[0][2]) == by_name(tags[1][2])
    running = [told(await ask(port, "GET", "/api/ps")) for port in (pair.worker_port, pair.gateway.port)]
    for answer in running:
        for row in answer[2]["models"]:
            row.pop("expires_at")
            row.pop("worker", None)  # where it is loaded: one field more than Ollama's
    for name, row in by_name(running[0][2]).items():
        assert by_name(running[1][2])[name] == row


def by_name(answer: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in answer["models"]}


async def test_a_failure_in_mid_stream_is_told_in_the_workers_place(_gate: None) -> None:
    """The text is ours: a worker's may quote other requests (ollama.md 12)."""
    from bellmare.workers.sim import Fault

    sim = await start_sim(models=SIM_MODELS, time_scale=0.1, context_length=NUM_CTX)
    gateway = await start_gateway(sim.port, num_ctx=NUM_CTX)
    await gateway.chat("talker:1", options={"num_predict": 1})
    body = {"model": "talker:1", "messages": [{"role": "user", "content": "hello"}]}
    ends = []
    for port in (sim.port, gateway.port):
        sim.faults.set(Fault("error_after", tokens=4))
        lines = (await ask(port, "POST", "/api/chat", body)).lines
        ends.append((timeless(lines[:-1]), list(lines[-1])))
    assert ends[0] == ends[1]
    assert ends[0][1] == ["error"] and len(ends[0][0]) == 4
    await asyncio.sleep(0)
    await gateway.close()
    await sim.server.close()
