"""The official clients, as their users use them, against the simulated fleet and the real engine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import ollama
import openai
import pytest
from rig import Gateway, start_gateway, start_sim

from bellmare.workers.sim import Fault

HELLO = [{"role": "user", "content": "Say hello."}]
SMOLLM = "smollm2:135m"
NPM_TIMEOUT_S = 120


class Served(NamedTuple):
    """A gateway, a model that it serves, and how much a short answer is."""

    gateway: Gateway
    model: str
    limit: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"


@pytest.fixture(scope="session")
def smollm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M: the user's own copy, else fetched once into pytest's cache (without one: for this session)."""
    from bellmare.workers.embedded.fetch import FetchError, default_models_dir, fetch_model, is_present

    if is_present(default_models_dir()):
        return default_models_dir()
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("models")) if cache is not None else tmp_path_factory.mktemp("models")
    try:
        fetch_model(folder, timeout_s=100)
    except FetchError as error:
        pytest.skip(f"SmolLM2 is neither present nor can it be fetched: {error}")
    return folder


@pytest.fixture(params=["sim", pytest.param("engine", marks=[pytest.mark.engine, pytest.mark.slow])])
async def served(request: pytest.FixtureRequest, _gate: None) -> AsyncIterator[Served]:
    if request.param == "sim":
        worker = await start_sim()
        gateway = await start_gateway(worker.port)
        yield Served(gateway, "a:1", 20)
        await gateway.close()
        await worker.server.close()
        return
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    folder = request.getfixturevalue("smollm_folder")
    gateway = await start_gateway(
        {"embedded": {"models": str(folder), "memory": "1GiB", "parallel": 2}, "name": "w0"}, num_ctx=1024
    )
    yield Served(gateway, SMOLLM, 12)
    await gateway.close()


# ---------------------------------------------------------------------- ollama, Python


def use_ollama(served: Served) -> None:
    """The synchronous client; runs in a thread of its own."""
    client = ollama.Client(host=served.url)
    model, options = served.model, {"num_predict": served.limit}
    try:
        assert model in [entry.model for entry in client.list().models]
        shown = client.show(model)
        assert "completion" in shown.capabilities
        assert shown.modelinfo
        answer = client.chat(model=model, messages=HELLO, options=options)
        assert answer.message.role == "assistant"
        assert answer.message.content
        assert (answer.done, answer.model) == (True, model)
        assert 0 < answer.eval_count <= served.limit
        parts = list(client.chat(model=model, messages=HELLO, options=options, stream=True))
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert len(parts) > 2
        assert "".join(part.message.content for part in parts)
        whole = client.generate(model=model, prompt="Say hello.", options=options)
        assert whole.response
        pieces = list(client.generate(model=model, prompt="Say hello.", options=options, stream=True))
        assert pieces[-1].done and "".join(piece.response for piece in pieces)
        (running,) = client.ps().models
        assert (running.model, running.digest) == (model, entry_of(client, model).digest)
        assert running.size > 0
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(model="nobody:1", messages=HELLO)
        assert (caught.value.status_code, "not found" in caught.value.error) == (404, True)
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat(model="nobody:1", messages=HELLO, stream=True))
        assert caught.value.status_code == 404
        assert client.generate(model=model, keep_alive=-1).done_reason == "load"
        assert client.generate(model=model, keep_alive=0).done_reason == "unload"
        end = time.monotonic() + 20
        while client.ps().models and time.monotonic() < end:
            time.sleep(0.05)
        assert client.ps().models == [], "it was this client's alone"
    finally:
        client._client.close()


def entry_of(client: ollama.Client, model: str) -> Any:
    return next(entry for entry in client.list().models if entry.model == model)


async def test_the_synchronous_ollama_client_is_at_home(served):
    await asyncio.to_thread(use_ollama, served)


async def test_the_asynchronous_ollama_client_is_at_home(served):
    client = ollama.AsyncClient(host=served.url)
    model, options = served.model, {"num_predict": served.limit}
    assert model in [entry.model for entry in (await client.list()).models]
    assert (await client.show(model)).details.format == "gguf"
    first, second = await asyncio.gather(
        client.chat(model=model, messages=HELLO, options=options),
        client.generate(model=model, prompt="Say hello.", options=options),
    )
    assert first.message.content and second.response
    parts = [part async for part in await client.chat(model=model, messages=HELLO, options=options, stream=True)]
    assert parts[-1].done and parts[-1].eval_count
    assert [entry.model for entry in (await client.ps()).models] == [model]
    with pytest.raises(ollama.ResponseError) as caught:
        await client.generate(model="nobody:1", prompt="x")
    assert caught.value.status_code == 404
    await client._client.aclose()


async def test_the_ollama_client_embeds(sim, gateway):
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{(await gateway((await sim()).port)).port}")
    answer = await client.embed(model="e:1", input=["one", "two"])
    assert [len(vector) for vector in answer.embeddings] == [768, 768]
    assert len((await client.embeddings(model="e:1", prompt="one")).embedding) == 768
    with pytest.raises(ollama.ResponseError) as caught:
        await client.embed(model="nobody:1", input="x")
    assert caught.value.status_code == 404
    await client._client.aclose()


async def test_the_ollama_client_calls_tools(sim, gateway):
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{(await gateway((await sim()).port)).port}")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    asked = [{"role": "user", "content": "[[call a tool]] please"}]
    answer = await client.chat(model="a:1", messages=asked, tools=[tool])
    assert [call.function.name for call in answer.message.tool_calls] == ["weather"]
    await client._client.aclose()


async def collect(stream: Any, into: list[Any]) -> None:
    """What came is kept, also if the stream raises."""
    async for part in stream:
        into.append(part)  # noqa: PERF401 - a comprehension would lose what came before the error


async def test_a_stream_that_breaks_raises_in_the_ollama_client(sim, gateway):
    worker = await sim(time_scale=0.2)
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{(await gateway(worker.port)).port}")
    await client.chat(model="a:1", messages=HELLO)
    worker.faults.set(Fault("error_after", tokens=5))
    got: list[Any] = []
    with pytest.raises(ollama.ResponseError) as caught:
        await collect(await client.chat(model="a:1", messages=HELLO, stream=True), got)
    assert (len(got), caught.value.status_code) == (5, -1)
    await client._client.aclose()


# ---------------------------------------------------------------------- openai, Python


async def test_the_openai_client_is_at_home(served):
    async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        models = [entry.id async for entry in client.models.list()]
        assert served.model in models
        assert (await client.models.retrieve(served.model)).id == served.model
        whole = await client.chat.completions.create(model=served.model, messages=HELLO, max_tokens=served.limit)
        (choice,) = whole.choices
        assert choice.message.content
        assert choice.finish_reason in ("stop", "length")
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert 0 < whole.usage.completion_tokens <= served.limit
        stream = await client.chat.completions.create(
            model=served.model,
            messages=HELLO,
            max_tokens=served.limit,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert [reason for reason in reasons if reason] == reasons[-1:]
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens > 0) == ([], True)
        assert len({chunk.id for chunk in chunks}) == 1
        bare = await client.chat.completions.create(
            model=served.model, messages=HELLO, max_tokens=served.limit, stream=True
        )
        assert all(chunk.choices and chunk.usage is None for chunk in [chunk async for chunk in bare])
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody:1", messages=HELLO)
        assert "not found" in caught.value.message
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody:1")
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model=served.model, messages=[])


async def test_the_openai_client_sees_a_full_queue_as_a_rate_limit_and_obeys_retry_after(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"per_model": 1})
    slow = {"options": {"num_predict": 4_000}}
    holder, queued = await running.open_chat(**slow), None
    assert await holder.head() == 200
    queued = await running.open_chat(options={"num_predict": 5})
    base = f"http://127.0.0.1:{running.port}/v1"
    while running.state.waiting < 1:
        await asyncio.sleep(0)
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="a:1", messages=HELLO)
        assert int(caught.value.response.headers["retry-after-ms"]) > 0
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=3) as client:
        answer = await client.chat.completions.create(model="a:1", messages=HELLO)
        assert answer.choices[0].message.content
    for talk in (holder, queued):
        await talk.head() if not talk.status else None
        await talk.rest()
        await talk.close()


async def test_a_stream_that_breaks_raises_in_the_openai_client(sim, gateway):
    worker = await sim(time_scale=0.2)  # slow enough for the tokens to come one by one
    running = await gateway(worker.port)
    await running.chat()
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none") as client:
        worker.faults.set(Fault("error_after", tokens=5))
        got: list[Any] = []
        with pytest.raises(openai.APIError):
            await collect(await client.chat.completions.create(model="a:1", messages=HELLO, stream=True), got)
        assert len(got) >= 5


# ---------------------------------------------------------------------- ollama, npm

SCRIPT = """
import { Ollama } from 'ollama'
const [host, model] = process.argv.slice(2)
const client = new Ollama({ host })
const messages = [{ role: 'user', content: 'Say hello.' }]
const options = { num_predict: 12 }
const found = { models: (await client.list()).models.map((one) => one.model) }
const whole = await client.chat({ model, messages, options })
found.whole = { content: whole.message.content, done: whole.done, tokens: whole.eval_count }
found.parts = []
for await (const part of await client.chat({ model, messages, options, stream: true }))
  found.parts.push([part.message.content, part.done])
found.running = (await client.ps()).models.map((one) => one.model)
for (const stream of [false, true]) {
  try {
    const answer = await client.chat({ model: 'nobody:1', messages, stream })
    if (stream) for await (const _ of answer);
    found.error = 'none'
  } catch (error) {
    found[`error_${stream}`] = [error.name, error.status_code, error.message]
  }
}
console.log(JSON.stringify(found))
"""


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm package ``ollama``; a failing install fails the tests, only missing tools skip them."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED: the npm client; {tool} is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private":true,"type":"module"}')
    command = ["npm", "install", "ollama", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=folder, check=True, timeout=NPM_TIMEOUT_S, capture_output=True)
    (folder / "client.mjs").write_text(SCRIPT)
    return folder


@pytest.mark.node
@pytest.mark.slow
async def test_the_npm_client_is_at_home(node_folder, served):
    child = await asyncio.create_subprocess_exec(
        "node", "client.mjs", served.url, served.model, cwd=node_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await child.communicate()
    assert child.returncode == 0, err.decode()
    found = json.loads(out)
    assert served.model in found["models"]
    assert found["whole"]["content"] and found["whole"]["done"] and 0 < found["whole"]["tokens"] <= 12
    assert [done for _, done in found["parts"]] == [False] * (len(found["parts"]) - 1) + [True]
    assert found["running"] == [served.model]
    for stream in ("false", "true"):
        name, status, message = found[f"error_{stream}"]
        assert (name, status) == ("ResponseError", 404)
        assert "not found" in message
