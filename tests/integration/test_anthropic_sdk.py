"""Anthropic's SDK against a gateway in front of a simulated worker, and Anthropic's dialect on the wire."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rig import SMALL, open_talk, until

from bellmare.workers.sim import Fault, SimModel

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
SCRIPT = ROOT / "tests" / "contract" / "clients" / "anthropic_sdk.py"
MODELS = (
    *SMALL,
    SimModel("think:1", capabilities=("completion", "thinking", "tools")),
    SimModel("see:1", capabilities=("completion", "vision")),
)
HELLO = [{"role": "user", "content": "Say hello."}]
CHILD_TIMEOUT_S = 100


async def run_clients(url: str, chosen: str) -> None:
    """Tests of the client's script whose names match, in the clients' own interpreter."""
    if not PYTHON.exists():
        pytest.skip("the clients are not installed in .venv-clients")
    command = [str(PYTHON), "-m", "pytest", str(SCRIPT), "-k", chosen, "-q", "-c", os.devnull, "--noconftest"]
    command += ["--rootdir", str(SCRIPT.parent), "-p", "no:cacheprovider"]
    environment = {**os.environ, "BELLMARE_URL": url, "PYTHONDONTWRITEBYTECODE": "1"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]


@pytest.mark.slow
async def test_anthropics_sdk_is_at_home(sim, gateway):
    worker = await sim(models=MODELS, vram_bytes=80 * 10**9)
    running = await gateway(worker.port, limits={"body": "2MiB"})
    await run_clients(f"http://127.0.0.1:{running.port}", "not broken")
    await running.back_to_baseline()
    await until(lambda: not worker.busy(), "no generation that nobody waits for")


@pytest.mark.slow
async def test_a_stream_that_breaks_raises_in_anthropics_sdk(sim, gateway):
    worker = await sim(models=MODELS, time_scale=0.2)
    running = await gateway(worker.port)
    await running.chat()
    worker.faults.set(Fault("error_after", tokens=5))
    await run_clients(f"http://127.0.0.1:{running.port}", "broken")


# ---------------------------------------------------------------------- on the wire


def frames(body: bytes) -> list[tuple[str, Any]]:
    assert body.endswith(b"\n\n")
    parts = [frame.split("\n") for frame in body.decode().removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "a:1", "max_tokens": 12, "messages": HELLO, **more}


async def test_an_answer_is_the_workers_own(sim, gateway):
    """Text, counts and reason, streamed and not, of the same native request."""
    running = await gateway((await sim(models=MODELS)).port)
    options = {"num_predict": 12}
    said = (
        await running.post("/api/chat", {"model": "a:1", "messages": HELLO, "stream": False, "options": options})
    ).json
    whole = (await running.post("/v1/messages", body())).json
    assert whole["content"] == [{"type": "text", "text": said["message"]["content"]}]
    counts = {"input_tokens": said["prompt_eval_count"], "output_tokens": said["eval_count"]}
    assert whole["usage"] == counts
    assert whole["stop_reason"] == {"stop": "end_turn", "length": "max_tokens"}[said["done_reason"]]
    streamed = frames((await running.post("/v1/messages", body(stream=True))).body)
    texts = [event["delta"]["text"] for name, event in streamed if name == "content_block_delta"]
    assert "".join(texts) == said["message"]["content"]
    (delta,) = [event for name, event in streamed if name == "message_delta"]
    assert (delta["delta"]["stop_reason"], delta["usage"]) == (whole["stop_reason"], counts)


async def test_headers_of_anthropics_clients_are_accepted(sim, gateway):
    running = await gateway((await sim()).port)
    headers = {
        "anthropic_version": "2023-06-01",
        "anthropic_beta": "x-2025",
        "x_api_key": "k",
        "authorization": "Bearer k",
    }
    reply = await running.post("/v1/messages?beta=true", body(), **headers)
    assert reply.status == 200
    assert reply.headers["request-id"] == "req_" + reply.json["id"].removeprefix("msg_")
    assert reply.headers["x-request-id"] == reply.json["id"].removeprefix("msg_")


async def test_an_empty_conversation_loads_the_model(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    empty = [{"role": "user", "content": ""}]
    reply = await running.post("/v1/messages", body(messages=empty))
    assert (reply.json["content"], reply.json["stop_reason"]) == ([], "stop_sequence")
    assert worker.loaded() == ["a:1"]
    reply = await running.post("/v1/messages", body(messages=empty, stream=True))
    assert [name for name, _ in frames(reply.body)] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"model":5}', b'{"model":"a:1","messages":[{"role":"user"}]}'])
async def test_what_is_no_request_is_refused_in_anthropics_shape(sim, gateway, path, data):
    reply = await (await gateway((await sim()).port)).post(path, data)
    assert reply.status == 400
    assert reply.json.keys() == {"type", "error", "request_id"}
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.headers["request-id"] == reply.json["request_id"]


async def test_a_wrong_method_and_a_wrong_path_are_refused_in_anthropics_shape(sim, gateway):
    running = await gateway((await sim()).port)
    for method, path, status in (("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404)):
        reply = await running.ask(method, path)
        assert reply.status == status
        assert reply.json["request_id"] == reply.headers["request-id"]


async def test_a_failed_stream_ends_in_an_error_event(sim, gateway):
    worker = await sim(time_scale=0.2)
    running = await gateway(worker.port)
    await running.chat()
    worker.faults.set(Fault("error_after", tokens=5))
    talk = await open_talk(running.port, "POST", "/v1/messages", body(stream=True, max_tokens=50))
    assert await talk.head() == 200
    events = frames(await talk.rest())
    assert talk.complete
    await talk.close()
    name, event = events[-1]
    assert name == event["type"] == "error"
    assert event["error"]["type"] == "api_error"
    assert "message_stop" not in [name for name, _ in events]


async def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_again(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"per_model": 1})
    holder = await running.open_chat(options={"num_predict": 4_000})
    assert await holder.head() == 200
    queued = await open_talk(running.port, "POST", "/v1/messages", body())
    await until(lambda: running.state.waiting == 1)
    reply = await running.post("/v1/messages", body(stream=True))
    assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
    assert int(reply.headers["retry-after-ms"]) > 0
    assert reply.headers["request-id"] == reply.json["request_id"]
    for talk in (holder, queued):
        talk.leave()
    await running.back_to_baseline()


async def test_a_gateway_without_workers_is_overloaded(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    await worker.server.close()
    await until(lambda: not any(one.healthy for one in running.state.workers.values()), "the loss is seen")
    reply = await running.post("/v1/messages", body())
    assert (reply.status, reply.json["error"]["type"]) == (503, "overloaded_error")


async def test_a_count_asks_no_worker(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    reply = await running.post("/v1/messages/count_tokens", {"model": "a:1", "messages": HELLO})
    assert reply.json.keys() == {"input_tokens"}
    assert worker.loaded() == []
    assert (await worker.counters())["granted_total"] == 0
