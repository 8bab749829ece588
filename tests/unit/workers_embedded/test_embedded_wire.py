"""The worker on the wire, with the real engine: what a gateway relies on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from embedded_worker import StartWorker, Worker, is_alive, lines_of, until_dead

from bellmare.protocols.ollama import blob_of, decode_ps, decode_show, decode_tags, expires_far
from bellmare.workers.embedded.app import RUNNER_GONE
from bellmare.workers.embedded.relay import RUNNER_DIED

pytestmark = [pytest.mark.engine, pytest.mark.slow]


async def test_a_model_is_loaded_streamed_and_unloaded(worker: Worker) -> None:
    loaded = await worker.post("/api/generate", model="a")
    assert loaded.json() | {"created_at": ""} == {
        "model": "a", "created_at": "", "response": "", "done": True, "done_reason": "load",
    }  # fmt: skip
    pid = worker.pid("a:latest")
    shown = (await worker.ps())["a:latest"]
    assert shown["size"] == shown["size_vram"] == worker.server.engine.bytes_now()
    assert shown["context_length"] == 512

    chat = await worker.post(
        "/api/chat", model="a", messages=[{"role": "user", "content": "hello"}], options={"num_predict": 7, "seed": 1}
    )
    assert chat.headers["content-type"] == "application/x-ndjson"
    *pieces, final = lines_of(chat.text)
    assert all(not piece["done"] and piece["message"]["role"] == "assistant" for piece in pieces)
    assert all(piece["message"]["content"].isprintable() for piece in pieces)
    assert final["done_reason"] in ("stop", "length")
    assert 0 < final["eval_count"] <= 7
    assert final["prompt_eval_count"] == len("<s>[user]hello\n[assistant]") - 2
    assert final["total_duration"] >= final["load_duration"] > 0

    unloaded = await worker.post("/api/generate", model="a", keep_alive=0)
    assert unloaded.json()["done_reason"] == "unload"
    await worker.until_gone("a:latest")
    assert not is_alive(pid)
    counters = await worker.counters()
    assert (counters["loads"], counters["unloads"], counters["implicit_loads"], counters["crashes"]) == (1, 1, 0, 0)
    assert counters["own_evictions"] == 0


async def test_streamed_and_whole_answers_are_the_same_text(worker: Worker) -> None:
    options = {"seed": 7, "num_predict": 20, "temperature": 1}
    whole = await worker.generate("endless", prompt="x", options=options)
    streamed = await worker.post("/api/generate", model="endless", prompt="x", options=options)
    *pieces, final = lines_of(streamed.text)
    assert "".join(piece["response"] for piece in pieces) == whole["response"]
    assert whole["done_reason"] == final["done_reason"] == "length"
    assert whole["eval_count"] == final["eval_count"] == 20
    raw = await worker.generate("endless", prompt="x", raw=True, options=options)
    assert raw["prompt_eval_count"] < whole["prompt_eval_count"]


async def test_two_models_answer_at_once_and_a_link_is_the_same_runner(worker: Worker, models_dir: Path) -> None:
    (models_dir / "alias.gguf").symlink_to("a.gguf")
    answers = await asyncio.gather(
        *(worker.generate(name, prompt="x", options={"num_predict": 50}) for name in ("a", "b:1b", "alias", "a:latest"))
    )
    assert all(answer["done"] for answer in answers)
    counters = await worker.counters()
    assert (counters["loads"], counters["implicit_loads"]) == (2, 2)
    assert len(await worker.ps()) == 2


async def test_a_load_past_the_budget_is_refused_and_evicts_nothing(start_worker: StartWorker) -> None:
    one_and_a_half = 150 << 20
    worker = await start_worker(memory_bytes=one_and_a_half)
    await worker.generate("a")
    refused = await worker.post("/api/generate", model="b:1b")
    assert refused.status_code == 500
    assert "requires more system memory" in refused.json()["error"]
    assert set(await worker.ps()) == {"a:latest"}
    await worker.generate("a", keep_alive=0)
    await worker.generate("b:1b")  # waits for the leaving runner instead of being refused
    counters = await worker.counters()
    assert (counters["refused_loads"], counters["loads"], counters["own_evictions"]) == (1, 2, 0)
    assert counters["bytes_max"] <= one_and_a_half


async def test_another_context_length_reloads_and_a_refused_reload_keeps_the_old(start_worker: StartWorker) -> None:
    worker = await start_worker(memory_bytes=100 << 20, runner_overhead_bytes=99 << 20)
    await worker.generate("a", prompt="x", options={"num_ctx": 256, "num_predict": 1})
    await worker.generate("a", prompt="x", options={"num_ctx": 1024, "num_predict": 1})
    assert (await worker.ps())["a:latest"]["context_length"] == 1024
    refused = await worker.post("/api/generate", model="a", prompt="x", options={"num_ctx": 4096})
    assert refused.status_code == 500
    assert (await worker.ps())["a:latest"]["context_length"] == 1024
    counters = await worker.counters()
    assert (counters["loads"], counters["reloads"], counters["implicit_loads"]) == (2, 1, 1)


async def test_a_reload_waits_for_the_answers_under_way(worker: Worker) -> None:
    long = asyncio.gather(worker.generate("endless", prompt="x", options={"num_predict": 400}))
    await worker.until_held(1)
    await worker.generate("endless", prompt="x", options={"num_ctx": 256, "num_predict": 1})
    assert (await long)[0]["eval_count"] == 400
    assert (await worker.counters())["reloads"] == 1


async def test_the_context_is_capped_by_the_training_context(worker: Worker) -> None:
    await worker.generate("a", options={"num_ctx": 1_000_000_000})
    assert (await worker.ps())["a:latest"]["context_length"] == 4096


async def test_a_crash_is_a_last_line_to_its_clients_and_nothing_more(worker: Worker) -> None:
    await worker.generate("a")
    body = {"model": "endless", "prompt": "x", "options": {"num_ctx": 4096}}
    async with worker.client.stream("POST", "/api/generate", json=body) as answer:
        lines = answer.aiter_lines()
        assert not lines_of(await anext(lines))[0]["done"]
        os.kill(worker.pid("endless:latest"), signal.SIGKILL)
        rest = [line async for line in lines]
    assert answer.status_code == 200
    assert lines_of(rest[-1]) == [{"error": RUNNER_DIED}]
    await worker.until_gone("endless:latest")
    assert set(await worker.ps()) == {"a:latest"}
    assert (await worker.counters())["crashes"] == 1
    assert (await worker.generate("endless", prompt="x", options={"num_predict": 2}))["eval_count"] == 2


async def test_a_crash_before_the_first_byte_is_a_500_to_all_who_wait(start_worker: StartWorker) -> None:
    worker = await start_worker(parallel=1, num_ctx=4096)
    await worker.generate("endless")
    posts = [worker.post("/api/generate", model="endless", prompt="x", stream=False) for _ in range(2)]
    answers = asyncio.gather(*posts)
    await worker.until_held(2)
    os.kill(worker.pid("endless:latest"), signal.SIGKILL)
    assert [answer.status_code for answer in await answers] == [500, 500]
    assert {answer.json()["error"] for answer in await answers} <= {RUNNER_DIED, RUNNER_GONE}


async def test_a_client_that_leaves_frees_its_slot(start_worker: StartWorker) -> None:
    worker = await start_worker(parallel=1, num_ctx=4096)
    async with worker.client.stream("POST", "/api/generate", json={"model": "endless", "prompt": "x"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        waiting = [worker.generate("endless", prompt="x", options={"num_predict": 3}) for _ in range(3)]
        waiters = asyncio.gather(*waiting)
        await worker.until_held(4)
        assert not waiters.done()
        await lines.aclose()  # type: ignore[attr-defined]
    assert [answer["eval_count"] for answer in await waiters] == [3, 3, 3]
    await worker.until_held(0)


async def test_a_client_that_leaves_while_it_waits_takes_nobodys_turn(start_worker: StartWorker) -> None:
    worker = await start_worker(parallel=1, num_ctx=4096)
    async with worker.client.stream("POST", "/api/generate", json={"model": "endless", "prompt": "x"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        with pytest.raises(httpx.ReadTimeout):
            await worker.client.post("/api/generate", json={"model": "endless", "prompt": "y"}, timeout=0.05)
        await lines.aclose()  # type: ignore[attr-defined]
    assert (await worker.generate("endless", prompt="x", options={"num_predict": 3}))["eval_count"] == 3


async def test_a_client_that_leaves_during_a_load_aborts_it(worker: Worker) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await worker.client.post("/api/generate", json={"model": "a"}, timeout=0.02)
    async with asyncio.timeout(10):
        while worker.server.engine.bytes_now():
            await asyncio.sleep(0.01)
    assert await worker.ps() == {}
    await worker.generate("a")


async def test_keep_alive_zero_unloads_after_the_answer(worker: Worker) -> None:
    answer = await worker.generate("a", prompt="x", keep_alive="0s", options={"num_predict": 2})
    assert answer["done"]
    await worker.until_gone("a:latest")


async def test_keep_alive_is_for_ever_or_a_time_or_what_it_was(worker: Worker) -> None:
    await worker.generate("a", keep_alive=-1)
    await worker.generate("a", prompt="x", options={"num_predict": 1})
    assert expires_far((await worker.ps())["a:latest"]["expires_at"])
    assert "a:latest" in decode_ps((await worker.client.get("/api/ps")).content).models[0].name
    await worker.generate("b:1b")
    assert list(await worker.ps()) == ["a:latest", "b:1b"]
    await worker.generate("a", keep_alive="50ms")
    await worker.until_gone("a:latest")
    assert set(await worker.ps()) == {"b:1b"}


@pytest.mark.parametrize(("value", "text"), [("300", "missing unit"), (True, "Unsupported type")])
async def test_a_bad_keep_alive_is_refused(worker: Worker, value: object, text: str) -> None:
    answer = await worker.post("/api/generate", model="a", keep_alive=value)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


async def test_an_unload_lets_running_answers_end_and_a_new_request_cancels_it(worker: Worker) -> None:
    await worker.generate("endless", keep_alive=-1)
    body = {"model": "endless", "prompt": "x", "options": {"num_predict": 400}}
    async with worker.client.stream("POST", "/api/generate", json=body) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        await worker.generate("endless", keep_alive=0)
        rest = [line async for line in lines]
    assert lines_of(rest[-1])[0]["eval_count"] == 400
    await worker.until_gone("endless:latest")


async def test_a_file_that_does_not_load_is_an_error_with_the_engines_words(worker: Worker, models_dir: Path) -> None:
    content = (models_dir / "a.gguf").read_bytes()
    (models_dir / "cut.gguf").write_bytes(content[: len(content) - 20_000])
    answer = await worker.post("/api/generate", model="cut")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("llama-server process has terminated: ")
    counters = await worker.counters()
    assert (counters["failed_loads"], counters["crashes"]) == (1, 0)
    assert worker.server.engine.bytes_now() == 0


async def test_a_load_that_takes_too_long_is_ended(start_worker: StartWorker) -> None:
    worker = await start_worker(load_timeout_s=0.001)
    answer = await worker.post("/api/generate", model="a")
    assert answer.status_code == 500
    assert "timed out waiting for llama-server to start" in answer.json()["error"]


async def test_a_prompt_past_the_context_tells_its_length(worker: Worker) -> None:
    answer = await worker.post("/api/generate", model="a", prompt="x" * 1000, truncate=False)
    assert answer.status_code == 400
    assert "exceed_context_size_error" in answer.json()["error"]


async def test_json_is_asked_for_by_schema_and_probabilities_are_told(worker: Worker) -> None:
    answer = await worker.generate(
        "a", prompt="x", format={"type": "boolean"}, logprobs=True, top_logprobs=2, options={"num_predict": 20}
    )
    assert answer["response"].strip() in ("true", "false")
    assert len(answer["logprobs"][0]["top_logprobs"]) == 2


async def test_lists_and_show_are_what_the_gateway_reads(worker: Worker) -> None:
    tags = decode_tags((await worker.client.get("/api/tags")).content).models
    assert {model.name for model in tags} == {"a:latest", "b:1b", "bare:latest", "e:latest", "endless:latest"}
    shown = decode_show((await worker.post("/api/show", model="a")).content)
    digest = next(model.digest for model in tags if model.name == "a:latest")
    assert blob_of(shown.modelfile) == f"sha256:{digest}"
    assert shown.model_info is not None
    assert shown.model_info["llama.block_count"] == 2
    assert shown.capabilities == ["completion", "tools"]
    assert shown.tensors


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"model": "none", "prompt": "x"}, 404, "model 'none' not found"),
        ("/api/show", {"model": "none"}, 404, "model 'none' not found"),
        ("/api/embed", {"model": "none", "input": "x"}, 404, 'model "none" not found, try pulling it first'),
        ("/api/embed", {"model": "a", "input": "x"}, 501, "This server does not support embeddings"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/generate", {"model": "a", "prompt": "x", "suffix": "y"}, 400, "does not support insert"),
        ("/api/chat", {"model": "a", "messages": [{"role": "user"}], "think": True}, 400, "does not support thinking"),
        (
            "/api/chat",
            {"model": "bare", "messages": [{"role": "user"}], "tools": [{"function": {"name": "f"}}]},
            400,
            "registry.ollama.ai/library/bare:latest does not support tools",
        ),
    ],
)
async def test_refusals_are_in_ollamas_words(
    worker: Worker, path: str, body: dict[str, object], status: int, text: str
) -> None:
    answer = await worker.post(path, **body)
    assert answer.status_code == status
    assert text in answer.json()["error"]


async def test_routes_methods_and_foreign_pages(worker: Worker) -> None:
    assert (await worker.client.get("/")).text == "Ollama is running"
    assert (await worker.client.head("/")).status_code == 200
    unknown = await worker.client.get("/api/nothing")
    assert (unknown.status_code, unknown.text) == (404, "404 page not found")
    wrong = await worker.client.get("/api/chat")
    assert (wrong.status_code, wrong.text) == (405, "405 method not allowed")
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        assert (await worker.client.get("/api/tags", headers=headers)).status_code == 403
    for headers in ({"origin": "http://localhost:3000"}, {"host": "127.0.0.1"}, {"host": "box.local:1"}):
        assert (await worker.client.get("/api/tags", headers=headers)).status_code == 200


async def test_closing_ends_answers_and_children(start_worker: StartWorker) -> None:
    worker = await start_worker(num_ctx=4096)
    async with worker.client.stream("POST", "/api/generate", json={"model": "endless", "prompt": "x"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        pid = worker.pid("endless:latest")
        await worker.server.close(grace_s=0)
    await until_dead(pid)
