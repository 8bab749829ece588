"""ollama for Python, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import ollama
import pytest

from conftest import ASK_PERSON, PERSON, cancelled, until_cancelled

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(place: Any) -> ollama.Client:
    return ollama.Client(host=place.url)


@pytest.fixture
def short(place: Any) -> dict[str, int]:
    return {"num_predict": place.limit}


# ---------------------------------------------------------------------- synchronous


def test_models_are_listed_shown_and_running(client: Any, place: Any, short: Any) -> None:
    listed = {model.model: model for model in client.list().models}
    assert place.talker in listed and listed[place.talker].size > 0 and len(listed[place.talker].digest) == 64
    shown = client.show(place.talker)
    assert "completion" in shown.capabilities and shown.modelinfo and shown.details.format == "gguf"
    client.generate(place.talker, "x", options=short)
    assert place.talker in [model.model for model in client.ps().models]


def test_a_chat_is_answered(client: Any, place: Any, short: Any) -> None:
    answer = client.chat(place.talker, HELLO, options=short)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason in ("stop", "length") and 0 < answer.eval_count <= place.limit
    assert answer.prompt_eval_count > 0 and answer.total_duration > 0 and answer.model == place.talker


def test_a_chat_is_streamed(client: Any, place: Any, short: Any) -> None:
    parts = list(client.chat(place.talker, HELLO, options=short, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.message.content for part in parts) and parts[-1].eval_count


def test_a_prompt_is_completed_and_streamed(client: Any, place: Any) -> None:
    options = {"num_predict": place.limit, "temperature": 0, "seed": 1}
    whole = client.generate(place.talker, "Say hello.", options=options)
    parts = list(client.generate(place.talker, "Say hello.", options=options, stream=True))
    assert whole.response == "".join(part.response for part in parts)
    assert whole.eval_count == parts[-1].eval_count


def test_a_schema_is_obeyed(client: Any, place: Any) -> None:
    options = {"num_predict": 80, "temperature": 0}
    asked = [{"role": "user", "content": ASK_PERSON}]
    answer = client.chat(place.talker, asked, format=PERSON, options=options)
    if answer.done_reason == "stop":
        assert set(json.loads(answer.message.content)) == {"name", "age"}
    else:
        assert answer.message.content.lstrip().startswith("{")


def test_log_probabilities_are_told(client: Any, place: Any) -> None:
    answer = client.chat(place.talker, HELLO, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    assert answer.logprobs and all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in answer.logprobs)


def test_an_unknown_model_is_a_404(client: Any, place: Any) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            answer = client.chat("nobody:1", HELLO, stream=stream)
            list(answer)
        assert caught.value.status_code == 404


def test_a_bad_request_is_a_400(client: Any, place: Any) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(place.talker, HELLO, think=True)
    assert (caught.value.status_code, caught.value.error) == (400, f'"{place.talker}" does not support thinking')


def test_nobody_at_the_address_is_a_connection_error(place: Any) -> None:
    with pytest.raises(ConnectionError):
        ollama.Client(host=place.closed_url).list()


def test_loading_and_unloading_have_their_answers(client: Any, place: Any) -> None:
    assert client.generate(place.talker, keep_alive=-1).done_reason == "load"
    assert client.chat(place.talker, keep_alive=0).done_reason == "unload"


@pytest.mark.sim
def test_a_schema_gives_the_values_of_the_prompt(client: Any, place: Any) -> None:
    answer = client.chat(place.talker, [{"role": "user", "content": ASK_PERSON}], format=PERSON)
    assert json.loads(answer.message.content) == {"name": "Ada", "age": 36}


@pytest.mark.sim
@pytest.mark.parametrize("stream", [False, True])
def test_a_python_function_is_called_as_a_tool(client: Any, place: Any, stream: bool) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
          city: Where.
        """
        return f"rain in {city}"

    asked: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    parts = list(client.chat(place.talker, asked, tools=[get_weather], stream=True)) if stream else None
    answers = parts or [client.chat(place.talker, asked, tools=[get_weather])]
    calls = [call for answer in answers for call in answer.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("get_weather", {"city": "Oslo"})]
    asked += [answers[0].message, {"role": "tool", "tool_name": "get_weather", "content": get_weather("Oslo")}]
    final = client.chat(place.talker, asked, tools=[get_weather])
    assert final.message.content == "The result is rain in Oslo." and not final.message.tool_calls


@pytest.mark.sim
def test_a_model_thinks(client: Any, place: Any) -> None:
    answer = client.chat(place.thinker, HELLO, think=True)
    assert answer.message.thinking and answer.message.content
    parts = list(client.chat(place.thinker, HELLO, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == answer.message.thinking
    assert not client.chat(place.thinker, HELLO, think=False).message.thinking
    assert client.generate(place.thinker, "x", think="low").thinking


@pytest.mark.sim
def test_a_picture_is_taken_by_a_model_that_sees(client: Any, place: Any, picture_b64: str) -> None:
    asked = [{"role": "user", "content": "What is it?", "images": [picture_b64]}]
    assert client.chat(place.seer, asked).prompt_eval_count > 700
    with pytest.raises(ollama.ResponseError, match="image input") as caught:
        client.chat(place.talker, asked)
    assert caught.value.status_code == 400
    assert client.generate(place.seer, "between", suffix="end").response


@pytest.mark.sim
def test_texts_are_embedded(client: Any, place: Any) -> None:
    found = client.embed(place.embedder, ["one", "two"])
    assert [len(vector) for vector in found.embeddings] == [768, 768] and found.prompt_eval_count > 0
    assert len(client.embed(place.embedder, "one", dimensions=16).embeddings[0]) == 16
    assert len(client.embeddings(place.embedder, "one").embedding) == 768
    for wrong, status in ((place.talker, 501), ("nobody:1", 404)):
        with pytest.raises(ollama.ResponseError) as caught:
            client.embed(wrong, "x")
        assert caught.value.status_code == status


@pytest.mark.sim
def test_a_failure_in_mid_stream_raises(client: Any, place: Any, fault: Any) -> None:
    client.generate(place.talker, "x", options={"num_predict": 1})
    fault("error_after", tokens=5)
    got = []
    with pytest.raises(ollama.ResponseError) as caught:
        got.extend(client.chat(place.talker, HELLO, stream=True))
    assert caught.value.status_code == -1


@pytest.mark.sim
def test_a_client_that_leaves_frees_the_worker(place: Any) -> None:
    before = cancelled(place)
    client = ollama.Client(host=place.url)
    stream = client.generate(place.talker, "x", stream=True, options={"num_predict": 400_000})
    next(stream)
    stream.close()
    until_cancelled(place, before)


@pytest.mark.sim
def test_a_full_queue_is_a_429_that_is_not_repeated(place: Any, crowd: Any) -> None:
    crowd.fill()
    asked = []
    client = ollama.Client(host=place.tight_url, event_hooks={"response": [asked.append]})
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(place.talker, HELLO)
    assert caught.value.status_code == 429 and len(asked) == 1
    assert int(asked[0].headers["retry-after"]) >= 1


def test_fields_of_the_future_do_no_harm(place: Any) -> None:
    body = {"model": place.talker, "messages": HELLO, "stream": False, "options": {"num_predict": 1}, "future": [1]}
    assert httpx.post(f"{place.url}/api/chat", json=body, timeout=60).status_code == 200


# ---------------------------------------------------------------------- asynchronous


async def test_the_asynchronous_client_is_at_home(place: Any, short: Any) -> None:
    client = ollama.AsyncClient(host=place.url)
    assert place.talker in [model.model for model in (await client.list()).models]
    first, second = await asyncio.gather(
        client.chat(place.talker, HELLO, options=short), client.generate(place.talker, "Say hello.", options=short)
    )
    assert first.message.content and second.response
    parts = [part async for part in await client.chat(place.talker, HELLO, options=short, stream=True)]
    assert parts[-1].done and parts[-1].eval_count
    with pytest.raises(ollama.ResponseError) as caught:
        await client.generate("nobody:1", "x")
    assert caught.value.status_code == 404


@pytest.mark.sim
async def test_an_asynchronous_client_that_leaves_frees_the_worker(place: Any) -> None:
    before = cancelled(place)
    client = ollama.AsyncClient(host=place.url)

    async def read() -> None:
        async for _ in await client.generate(place.talker, "x", stream=True, options={"num_predict": 400_000}):
            pass

    task = asyncio.get_running_loop().create_task(read())
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(until_cancelled, place, before)
