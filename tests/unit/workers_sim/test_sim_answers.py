"""Generating, loading, cancelling and failing over HTTP (ollama.md 1.4-1.6, 2.1-2.4, 12)."""

import asyncio
import json
import re
import time
from typing import Any

import ollama
import pytest
from sim_client import Reply, Worker

from bellmare.twin.config import FOREVER_US
from bellmare.workers.sim import Fault, SimModel
from bellmare.workers.sim.tools import TOOL_MARKER


async def test_a_stream_has_a_line_per_token_and_a_final_object_with_counters(worker: Worker) -> None:
    """1.4, 1.5: application/x-ndjson; nanoseconds; load_duration includes the load."""
    reply = await worker.generate(options={"num_predict": 5})
    assert reply.headers["content-type"] == "application/x-ndjson"
    *tokens, last = reply.lines
    assert [line["done"] for line in tokens] == [False] * 5
    assert all(line["model"] == "a:1" and line["response"] for line in tokens)
    assert (last["done"], last["done_reason"], last["eval_count"], last["response"]) == (True, "length", 5, "")
    assert last["prompt_eval_count"] == 2
    assert last["load_duration"] > 30e6
    assert last["total_duration"] >= last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
    assert last["created_at"].endswith("Z") and len(last["created_at"]) == 30
    assert "context" in last


async def test_the_same_prompt_says_the_same_streamed_or_not(worker: Worker) -> None:
    streamed = "".join(line["response"] for line in (await worker.generate()).lines)
    whole = await worker.generate(stream=False)
    assert whole.headers["content-type"] == "application/json; charset=utf-8"
    assert whole.json["response"] == streamed
    assert 20 <= whole.json["eval_count"] <= 60
    assert whole.json["done_reason"] == "stop"
    other = await worker.generate(stream=False, options={"seed": 7})
    assert other.json["response"] != streamed


async def test_format_gives_json(worker: Worker) -> None:
    whole = await worker.generate(stream=False, format="json")
    assert json.loads(whole.json["response"])["answer"]


async def test_a_chat_answers_with_messages(worker: Worker) -> None:
    body = {"model": "a:1", "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 3}}
    *tokens, last = (await worker.post("/api/chat", body)).lines
    assert [line["message"]["role"] for line in tokens] == ["assistant"] * 3
    assert last["message"]["content"] == "" and last["eval_count"] == 3
    whole = (await worker.post("/api/chat", body | {"stream": False})).json
    assert whole["message"]["content"] == "".join(line["message"]["content"] for line in tokens)


async def test_a_marker_in_the_prompt_calls_the_first_tool(worker: Worker) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    body = {"model": "a:1", "messages": [{"role": "user", "content": TOOL_MARKER}], "tools": tools}
    lines = (await worker.post("/api/chat", body)).lines
    (call,) = lines[0]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {}}
    assert re.fullmatch("call_[0-9a-f]{8}", call["id"])
    assert len(lines) == 2 and lines[1]["done"]
    whole = (await worker.post("/api/chat", body | {"stream": False})).json
    assert whole["message"]["tool_calls"][0]["function"]["name"] == "weather"


async def test_empty_forms_load_and_unload(worker: Worker) -> None:
    """2.1, 2.3: one object, never NDJSON, no durations; unload is answered also when not loaded."""
    loaded = (await worker.post("/api/generate", {"model": "a:1", "keep_alive": "10m"})).json
    assert set(loaded) == {"model", "created_at", "response", "done", "done_reason"}
    assert loaded["done_reason"] == "load"
    assert await worker.loaded() == ["a:1"]
    chat = (await worker.post("/api/chat", {"model": "a:1"})).json
    assert (chat["done_reason"], chat["message"]["content"]) == ("load", "")
    for _ in range(2):
        gone = (await worker.post("/api/chat", {"model": "a:1", "messages": [], "keep_alive": 0})).json
        assert gone["done_reason"] == "unload"
        assert await worker.loaded() == []
    assert (await worker.post("/api/generate", {"model": "e:1", "keep_alive": "0"})).json["done_reason"] == "unload"


async def test_embeddings_have_length_one(worker: Worker) -> None:
    """1.4: L2-normalised; 2.1: embedding models are preloaded with /api/embed without input."""
    assert (await worker.post("/api/embed", {"model": "e:1"})).json == {"model": "e:1", "embeddings": []}
    assert await worker.loaded() == ["e:1"]
    reply = (await worker.post("/api/embed", {"model": "e:1", "input": ["one", "two"]})).json
    assert [len(vector) for vector in reply["embeddings"]] == [768, 768]
    assert sum(value * value for value in reply["embeddings"][0]) == pytest.approx(1)
    assert reply["embeddings"][0] != reply["embeddings"][1]
    assert reply["prompt_eval_count"] == 2
    short = (await worker.post("/api/embed", {"model": "e:1", "input": "one", "dimensions": 8})).json
    assert sum(value * value for value in short["embeddings"][0]) == pytest.approx(1)
    single = (await worker.post("/api/embeddings", {"model": "e:1", "prompt": "one"})).json
    assert single["embedding"] == pytest.approx(reply["embeddings"][0])


async def test_embedding_asked_of_a_completion_model_is_501(worker: Worker) -> None:
    """12."""
    reply = await worker.post("/api/embed", {"model": "a:1", "input": "x"})
    assert reply.status == 501
    assert reply.error == "This server does not support embeddings. Start it with `--embeddings`"


async def test_no_byte_leaves_before_the_first_token(worker: Worker) -> None:
    """1.5: no byte, not even headers, while queued or loading; then tokens come one by one."""
    reader, writer = await worker.open(
        "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 200}}
    )
    start = time.monotonic()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert time.monotonic() - start > 0.03  # a cold load of 34 ms
    assert head.startswith(b"HTTP/1.1 200")
    assert worker.twin.loaded()[0].refcount == 1, "the generation goes on"
    writer.close()
    await worker.until(lambda: worker.twin.counters.cancelled_total == 1)


async def test_a_client_that_leaves_during_a_load_aborts_it(worker: Worker) -> None:
    """2.1, 12."""
    _, writer = await worker.open("POST", "/api/generate", {"model": "a:1"})
    await worker.until(lambda: worker.twin.counters.loads == 1)
    writer.close()
    await worker.until(lambda: worker.twin.counters.loads_aborted == 1)
    assert await worker.loaded() == []


@pytest.mark.slow
async def test_leaving_during_prefill_leaves_a_ghost(start_worker: Any) -> None:
    """2.4: the next request waits inside llama-server."""
    worker = await start_worker(time_scale=0.2)
    await worker.post("/api/generate", {"model": "a:1"})
    _, writer = await worker.open("POST", "/api/generate", {"model": "a:1", "prompt": "x" * 15_000})
    await worker.until(lambda: worker.twin.loaded()[0].refcount == 1)
    writer.close()
    await worker.until(lambda: worker.twin.counters.cancelled_total == 1)
    reply = await worker.generate(options={"num_predict": 1}, stream=False)
    assert worker.twin.counters.slot_waits == 1
    assert reply.json.get("load_duration", 0) < reply.json["total_duration"] / 2


async def test_a_full_queue_is_503_without_retry_after(start_worker: Any) -> None:
    """12 MAX_QUEUE=2: 6 at once to a cold model: 3 x 200, 3 x 503."""
    worker = await start_worker(queue_max=2, time_scale=0.05)
    replies = await asyncio.gather(*(worker.generate(stream=False, options={"num_predict": 1}) for _ in range(6)))
    assert sorted(reply.status for reply in replies) == [200, 200, 200, 503, 503, 503]
    busy = next(reply for reply in replies if reply.status == 503)
    assert busy.error == "server busy, please try again.  maximum pending requests exceeded"
    assert "retry-after" not in busy.headers


async def test_truncate_false_answers_with_llama_servers_json_as_a_string(worker: Worker) -> None:
    """1.6: the inner text carries the exact counts."""
    reply = await worker.generate(prompt="x" * 40_000, truncate=False)
    assert reply.status == 400
    inner = json.loads(reply.error)["error"]
    assert (inner["type"], inner["n_prompt_tokens"], inner["n_ctx"]) == ("exceed_context_size_error", 10_001, 4096)


async def test_an_error_in_mid_stream_is_a_last_line(worker: Worker) -> None:
    """1.6, 12: a last line {"error"}, a normal end of the chunked body, no done:true; non-stream: 500."""
    worker.server.faults.set(Fault("error_after", tokens=4))
    reply = await worker.generate()
    assert reply.status == 200 and reply.complete
    *tokens, last = reply.lines
    assert len(tokens) == 4
    assert last == {"error": "an error was encountered while running the model: unexpected EOF"}
    await worker.post("/sim/fault", {"kind": "error_after", "tokens": 4})
    whole = await worker.generate(stream=False)
    assert (whole.status, whole.error) == (500, last["error"])
    assert (await worker.generate()).lines[-1]["done"], "the fault is used up"


@pytest.mark.slow
async def test_a_crash_ends_what_runs_and_the_next_request_reloads(start_worker: Any) -> None:
    """12: /api/ps goes on listing the dead runner."""
    worker = await start_worker(time_scale=0.05)
    await worker.post("/api/generate", {"model": "a:1", "keep_alive": -1})
    running = asyncio.get_running_loop().create_task(worker.generate(options={"num_predict": 4000}))
    await worker.until(lambda: worker.twin.loaded()[0].refcount == 1)
    await asyncio.sleep(0.05)
    await worker.post("/sim/fault", {"kind": "crash", "model": "a:1"})
    assert (await running).lines[-1] == {"error": "an error was encountered while running the model: unexpected EOF"}
    assert await worker.loaded() == ["a:1"]
    assert (await worker.generate()).lines[-1]["done"]
    assert worker.twin.counters.reloads == 1


async def test_a_crash_is_400_on_embed(worker: Worker) -> None:
    """1.6 traps: /api/embed answers 400 for every non-status error; /api/embeddings 500."""
    await worker.post("/sim/fault", {"kind": "fail_load", "model": "e:1"})
    assert (await worker.post("/api/embed", {"model": "e:1", "input": "x"})).status == 400
    await worker.post("/sim/fault", {"kind": "fail_load", "model": "e:1"})
    assert (await worker.post("/api/embeddings", {"model": "e:1", "prompt": "x"})).status == 500


async def test_a_hung_runner_never_answers_while_the_rest_does(worker: Worker) -> None:
    """8: runner hung, /api/ps and / fine."""
    await worker.post("/api/generate", {"model": "a:1"})
    await worker.post("/sim/fault", {"kind": "hang", "model": "a:1"})
    reader, writer = await worker.open("POST", "/api/generate", {"model": "a:1", "prompt": "x"})
    assert (await worker.generate("b:1")).lines[-1]["done"]
    assert "a:1" in await worker.loaded()
    assert not reader._buffer  # type: ignore[attr-defined]
    writer.close()


async def test_faults_refuse_freeze_and_slow(worker: Worker) -> None:
    await worker.post("/sim/fault", {"kind": "refuse", "count": 1})
    reader, _ = await worker.open("GET", "/api/version")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert (await worker.ask("GET", "/api/version")).status == 200
    await worker.post("/sim/fault", {"kind": "freeze"})
    reader, writer = await worker.open("GET", "/api/version")
    assert (await worker.post("/sim/fault", {"kind": "clear"})).status == 200
    assert not reader._buffer  # type: ignore[attr-defined]
    writer.close()
    await worker.post("/api/generate", {"model": "a:1"})
    normal = (await worker.generate(stream=False)).json["eval_duration"]
    await worker.post("/sim/fault", {"kind": "slow", "percent": 500})
    assert (await worker.generate(stream=False)).json["eval_duration"] > 3 * normal
    assert (await worker.post("/sim/fault", {"kind": "nonsense"})).status == 400
    assert (await worker.post("/sim/fault", {"kind": "crash", "model": "x:1"})).status == 404


@pytest.mark.slow
async def test_a_client_that_does_not_read_holds_nothing_but_its_place(start_worker: Any) -> None:
    """Backpressure: writing stops at the connection's mark; all lines arrive once the client reads."""
    worker = await start_worker(time_scale=0.001)
    body = {"model": "a:1", "prompt": "x", "options": {"num_predict": 40_000}}
    reader, writer = await worker.open("POST", "/api/generate", body, buffer_bytes=4096)
    writer.transport.pause_reading()
    await worker.until(lambda: worker.twin.counters.finished_total == 1, timeout_s=30)
    (connection,) = worker.server._server._connections
    assert connection.write_paused
    assert connection._transport.get_write_buffer_size() < 1 << 20
    writer.transport.resume_reading()
    async with asyncio.timeout(20):
        raw = b"".join([part async for part in _parts(reader)])
    lines = Reply(raw).lines
    assert len(lines) == 40_001 and lines[-1]["eval_count"] == 40_000


async def _parts(reader: asyncio.StreamReader) -> Any:
    while part := await reader.read(1 << 16):
        yield part


async def test_openai_streams_chunks_and_loses_the_error_text(worker: Worker) -> None:
    """1.5, 1.6, 12: role in the first chunk, finish chunk, usage, [DONE]; in an error one chunk with an empty model."""
    body: dict[str, Any] = {
        "model": "a:1",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = await worker.post("/v1/chat/completions", body)
    assert reply.headers["content-type"] == "text/event-stream"
    events = reply.body.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[3]["choices"][0]["finish_reason"] == "length"
    assert chunks[4]["choices"] == [] and chunks[4]["usage"]["completion_tokens"] == 3
    worker.server.faults.set(Fault("error_after", tokens=1))
    broken = (await worker.post("/v1/chat/completions", body)).body.decode().strip().split("\n\n")
    last = json.loads(broken[-1].removeprefix("data: "))
    assert len(broken) == 2
    assert last["model"] == "" and last["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
    }
    whole = (await worker.post("/v1/chat/completions", body | {"stream": False})).json
    assert whole["choices"][0]["message"]["content"] and whole["usage"]["total_tokens"] > 3


async def test_v1_on_a_pinned_model_reloads_it_and_loses_the_pin(worker: Worker) -> None:
    """12: a /v1 request on a model pinned with keep_alive -1 and num_ctx 2048."""
    await worker.post("/api/generate", {"model": "a:1", "keep_alive": -1, "options": {"num_ctx": 2048}})
    body = {"model": "a:1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    assert (await worker.post("/v1/chat/completions", body)).status == 200
    (row,) = worker.twin.loaded()
    assert row.context_length == 4096
    assert row.expires_us < FOREVER_US // 2


async def test_ollamas_own_client_is_content(worker: Worker) -> None:
    """7: the Python client's types and calls."""
    client = ollama.AsyncClient(host=worker.url)
    names = [model.model for model in (await client.list()).models]
    assert names == ["e:1", "r:1", "b:1", "a:1"]
    shown = await client.show("a:1")
    assert shown.modelinfo and shown.details
    parts = [
        part async for part in await client.chat("a:1", messages=[{"role": "user", "content": "hello"}], stream=True)
    ]
    assert parts[-1].done and parts[-1].eval_count == len(parts) - 1
    assert (await client.generate("a:1", "hello")).response
    assert len((await client.embed("e:1", ["x"])).embeddings) == 1
    assert [row.model for row in (await client.ps()).models] == ["e:1", "a:1"]
    with pytest.raises(ollama.ResponseError, match="not found"):
        await client.generate("x:1", "hello")
    worker.server.faults.set(Fault("error_after", tokens=2))
    with pytest.raises(ollama.ResponseError, match="unexpected EOF"):
        async for _ in await client.generate("a:1", "hello", stream=True):
            pass


@pytest.mark.slow
async def test_tokens_come_at_the_twins_pace(start_worker: Any) -> None:
    """1.5: one line per token, as they are made."""
    worker = await start_worker(time_scale=0.1, models=(SimModel("slow:1", quantization="F16"),))
    await worker.post("/api/generate", {"model": "slow:1"})
    reader, _ = await worker.open(
        "POST", "/api/generate", {"model": "slow:1", "prompt": "x", "options": {"num_predict": 50}}
    )
    await reader.readuntil(b"\r\n\r\n")
    instants = []
    while b'"done":true' not in (line := await reader.readline()):
        if line.startswith(b"{"):
            instants.append(time.monotonic())
    assert len(instants) == 50
    assert instants[-1] - instants[0] > 0.05
