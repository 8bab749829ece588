"""OpenAI's own SDK, synchronous and not, at every route of its dialect, against the simulated worker."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any, Literal, NamedTuple

import openai
import pytest
from pydantic import BaseModel
from rig import EMBEDDER, Gateway, Sim, start_gateway, start_sim, until

from bellmare.workers.sim import Fault, SimModel

MODELS = (
    SimModel("a:1", capabilities=("completion", "tools")),
    SimModel("t:1", "qwen3", capabilities=("completion", "thinking", "tools")),
    SimModel("team/b:1"),
    EMBEDDER,
)
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Looks up the weather.", "parameters": PLACE}
CLOCK = {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
TOOLS: list[Any] = [{"type": "function", "function": one} for one in (WEATHER, CLOCK)]
RESPONSE_TOOLS: list[Any] = [{"type": "function", "strict": False, **one} for one in (WEATHER, CLOCK)]
ASKED: list[Any] = [{"role": "user", "content": "Please get_weather for the trip."}]


class Event(BaseModel):
    """What a structured answer is."""

    name: str
    day: Literal["mon", "tue"]
    guests: list[str]
    count: int


class Served(NamedTuple):
    """A gateway over one simulated worker, and clients of it."""

    gateway: Gateway
    worker: Sim
    client: openai.AsyncOpenAI
    blocking: openai.OpenAI


@pytest.fixture
async def served(_gate: None) -> AsyncIterator[Served]:
    worker = await start_sim(models=MODELS)
    gateway = await start_gateway(worker.port)
    base = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as blocking:
            yield Served(gateway, worker, client, blocking)
    await gateway.close()
    await worker.server.close()


async def native(served: Served, **fields: Any) -> Any:
    """What the worker itself would answer, unstreamed: the measure of all other answers."""
    body = {"model": "a:1", "messages": HELLO, "stream": False, "options": {"temperature": 1, "top_p": 1}} | fields
    return (await served.gateway.post("/api/chat", body)).json


# ---------------------------------------------------------------------- chat completions


async def test_a_chat_says_what_the_worker_says_streamed_and_not(served):
    own = await native(served, options={"temperature": 1, "top_p": 1, "num_predict": 12, "seed": 3})
    asked: dict[str, Any] = {"model": "a:1", "messages": HELLO, "max_completion_tokens": 12, "seed": 3}
    whole = await served.client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.message.content == own["message"]["content"]
    assert (choice.finish_reason, own["done_reason"]) == ("length", "length")
    counts = (own["prompt_eval_count"], own["eval_count"])
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == counts
    stream = await served.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in said) == own["message"]["content"]
    assert [one.delta.role for one in said] == ["assistant"] + [None] * (len(said) - 1)
    assert [one.finish_reason for one in said] == [None] * (len(said) - 1) + ["length"]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks} | {whole.id}) == 2


async def test_ids_are_unique(served):
    answers = await asyncio.gather(
        *[served.client.chat.completions.create(model="a:1", messages=HELLO, max_tokens=1) for _ in range(20)]
    )
    assert len({answer.id for answer in answers}) == 20


def use_blocking(client: openai.OpenAI) -> None:
    """The synchronous client; runs in a thread of its own."""
    whole = client.chat.completions.create(model="a:1", messages=HELLO)
    with client.chat.completions.stream(model="a:1", messages=HELLO) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text
    assert text == whole.choices[0].message.content
    with client.responses.stream(model="a:1", input="Say hello.") as events:
        kinds = [event.type for event in events]
        response = events.get_final_response()
    assert kinds[-1] == "response.completed" and response.output_text
    assert client.responses.create(model="a:1", input="Say hello.").output_text == response.output_text
    assert client.completions.create(model="a:1", prompt="Once", max_tokens=4).choices[0].text
    assert len(client.embeddings.create(model="e:1", input=["a", "b"]).data) == 2
    assert "a:1" in [entry.id for entry in client.models.list()]


async def test_the_synchronous_client_is_at_home(served):
    await asyncio.to_thread(use_blocking, served.blocking)


async def test_a_structured_answer_is_parsed(served):
    parsed = await served.client.chat.completions.parse(model="a:1", messages=HELLO, response_format=Event)
    event = parsed.choices[0].message.parsed
    assert isinstance(event, Event)
    async with served.client.chat.completions.stream(model="a:1", messages=HELLO, response_format=Event) as stream:
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Event)
    loose = await served.client.chat.completions.create(
        model="a:1", messages=HELLO, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(loose.choices[0].message.content), dict)


async def test_tools_are_called_and_answered(served):
    first = await served.client.chat.completions.create(model="a:1", messages=ASKED, tools=TOOLS)
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and call.id
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["city"], str) and isinstance(arguments["days"], int)
    result = {"role": "tool", "tool_call_id": call.id, "content": "4 degrees"}
    spoken = choice.message.model_dump(exclude_none=True)
    second = await served.client.chat.completions.create(model="a:1", messages=[*ASKED, spoken, result], tools=TOOLS)
    assert "4 degrees" in second.choices[0].message.content
    assert second.choices[0].finish_reason == "stop"
    stream = await served.client.chat.completions.create(model="a:1", messages=ASKED, tools=TOOLS, stream=True)
    chunks = [chunk.choices[0] async for chunk in stream]
    calls = [one for chunk in chunks for one in chunk.delta.tool_calls or ()]
    assert [(one.index, one.function.name) for one in calls] == [(0, "get_weather")]
    assert json.loads(calls[0].function.arguments) == arguments
    assert chunks[-1].finish_reason == "tool_calls"
    none = await served.client.chat.completions.create(model="a:1", messages=ASKED, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.tool_calls is None and none.choices[0].message.content


FORCED: list[Any] = [
    {"type": "function", "function": {"name": "get_weather"}},
    {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
    },
    "required",
]


@pytest.mark.parametrize("choice", FORCED, ids=["named", "allowed", "required"])
async def test_a_tool_is_called_because_the_client_insists(served, choice):
    asked: dict[str, Any] = {"model": "a:1", "messages": HELLO, "tools": TOOLS, "tool_choice": choice}
    whole = await served.client.chat.completions.create(**asked)
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert call.function.name in (("get_weather", "get_time") if choice == "required" else ("get_weather",))
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert isinstance(arguments["city"], str) and isinstance(arguments["days"], int)
    async with served.client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls
    assert (streamed.function.name, json.loads(streamed.function.arguments)) == (call.function.name, arguments)
    assert final.choices[0].finish_reason == "tool_calls"


async def test_a_forced_call_that_was_cut_says_so(served):
    cut = await served.client.chat.completions.create(
        model="a:1", messages=HELLO, tools=TOOLS, tool_choice=FORCED[0], max_tokens=2
    )
    assert cut.choices[0].finish_reason == "length"


async def test_reasoning_comes_apart(served):
    whole = await served.client.chat.completions.create(model="t:1", messages=HELLO, reasoning_effort="low")
    message: Any = whole.choices[0].message
    assert message.reasoning and message.content
    stream = await served.client.chat.completions.create(
        model="t:1", messages=HELLO, reasoning_effort="low", stream=True
    )
    deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(getattr(one, "reasoning", None) or "" for one in deltas) == message.reasoning
    assert "".join(one.content or "" for one in deltas) == message.content
    quiet: Any = await served.client.chat.completions.create(model="t:1", messages=HELLO, reasoning_effort="none")
    assert not hasattr(quiet.choices[0].message, "reasoning")
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        await served.client.chat.completions.create(model="a:1", messages=HELLO, reasoning_effort="high")


async def test_logprobs_are_the_workers(served):
    own = await native(served, logprobs=True, top_logprobs=2, options={"temperature": 1, "top_p": 1, "num_predict": 3})
    whole = await served.client.chat.completions.create(
        model="a:1", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
    )
    (choice,) = whole.choices
    assert [one.model_dump() for one in choice.logprobs.content] == own["logprobs"]
    stream = await served.client.chat.completions.create(
        model="a:1", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [one async for chunk in stream if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert streamed == choice.logprobs.content


# ---------------------------------------------------------------------- responses


async def test_a_response_is_streamed_in_order_and_parsed(served):
    whole = await served.client.responses.create(model="a:1", input="Say hello.", instructions="Be kind.")
    assert (whole.status, whole.error, whole.incomplete_details) == ("completed", None, None)
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    async with served.client.responses.stream(model="a:1", input="Say hello.", instructions="Be kind.") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert final.output_text == whole.output_text
    assert (final.usage, len({final.id, whole.id})) == (whole.usage, 2)


async def test_a_structured_response_is_parsed(served):
    parsed = await served.client.responses.parse(model="a:1", input="Say hello.", text_format=Event)
    assert isinstance(parsed.output_parsed, Event)
    async with served.client.responses.stream(model="a:1", input="Say hello.", text_format=Event) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Event)


async def test_a_response_that_was_cut_is_incomplete(served):
    whole = await served.client.responses.create(model="a:1", input="Say hello.", max_output_tokens=3)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    stream = await served.client.responses.create(model="a:1", input="Say hello.", max_output_tokens=3, stream=True)
    *_, last = [event async for event in stream]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == whole.output_text


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "get_weather"}])
async def test_a_response_calls_tools_and_takes_their_results(served, choice):
    asked: dict[str, Any] = {"model": "a:1", "input": ASKED, "tools": RESPONSE_TOOLS, "tool_choice": choice}
    whole = await served.client.responses.create(**asked)
    (call,) = whole.output
    assert call.type == "function_call" and call.call_id and json.loads(call.arguments) is not None
    async with served.client.responses.stream(**asked) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    (streamed,) = final.output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    deltas = "".join(one.delta for one in events if one.type == "response.function_call_arguments.delta")
    assert deltas == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4 degrees"}
    answer = await served.client.responses.create(
        model="a:1", input=[*ASKED, call.model_dump(exclude_none=True), result], tools=RESPONSE_TOOLS
    )
    assert "4 degrees" in answer.output_text


async def test_reasoning_is_an_item_that_can_be_sent_back(served):
    async with served.client.responses.stream(model="t:1", input="Say hello.") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    reasoning, message = final.output
    assert reasoning.type == "reasoning" and message.type == "message"
    deltas = "".join(one.delta for one in events if one.type == "response.reasoning_summary_text.delta")
    assert deltas == reasoning.summary[0].text == reasoning.encrypted_content
    again = [*HELLO, *[item.model_dump(exclude_none=True) for item in final.output], *HELLO]
    for item in again:
        for part in item["content"] if isinstance(item.get("content"), list) else ():
            part.pop("parsed", None)
    assert (await served.client.responses.create(model="t:1", input=again)).status == "completed"


# ---------------------------------------------------------------------- completions, embeddings, models


async def test_texts_are_completed(served):
    asked: dict[str, Any] = {"model": "a:1", "prompt": "Once upon", "max_tokens": 6}
    own = await served.gateway.post(
        "/api/generate", {"model": "a:1", "prompt": "Once upon", "stream": False, "options": {"num_predict": 6}}
    )
    whole = await served.client.completions.create(**asked)
    assert whole.choices[0].text == own.json["response"]
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 6)
    stream = await served.client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    told = await served.client.completions.create(**asked, logprobs=2)
    logprobs = told.choices[0].logprobs
    assert "".join(logprobs.tokens) == whole.choices[0].text
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    loaded = await served.client.completions.create(model="a:1", prompt="")
    assert loaded.choices[0].finish_reason == "load"
    stream = await served.client.completions.create(model="a:1", prompt="", stream=True)
    assert [chunk.choices[0].finish_reason async for chunk in stream] == ["load"]


async def test_embeddings_are_the_workers_as_numbers_and_as_base64(served):
    texts = ["one", "two words"]
    own = (await served.gateway.post("/api/embed", {"model": "e:1", "input": texts})).json
    default = await served.client.embeddings.create(model="e:1", input=texts)  # the SDK asks for base64
    numbers = await served.client.embeddings.create(model="e:1", input=texts, encoding_format="float")
    assert [one.embedding for one in numbers.data] == own["embeddings"]
    for one, other in zip(default.data, numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert numbers.usage.prompt_tokens == own["prompt_eval_count"]
    small = await served.client.embeddings.create(model="e:1", input="one", dimensions=64)
    assert len(small.data[0].embedding) == 64
    with pytest.raises(openai.BadRequestError, match="invalid input type"):
        await served.client.embeddings.create(model="e:1", input=[1, 2, 3])


async def test_models_are_listed_and_found_with_their_namespaces(served):
    listed = [entry.id async for entry in served.client.models.list()]
    assert set(listed) == {"a:1", "t:1", "team/b:1", "e:1"}
    assert listed == [entry["name"] for entry in (await served.gateway.ask("GET", "/api/tags")).json["models"]]
    found = await served.client.models.retrieve("team/b:1")
    assert (found.id, found.owned_by) == ("team/b:1", "team")
    with pytest.raises(openai.NotFoundError, match="not found"):
        await served.client.models.retrieve("team/c:1")


# ---------------------------------------------------------------------- leaving, and what goes wrong


@pytest.mark.parametrize("route", ["chat", "completion", "response"])
async def test_a_client_that_leaves_frees_the_worker(served, route):
    client = served.client
    long: dict[str, Any] = {"model": "a:1", "stream": True}
    if route == "chat":
        stream: Any = await client.chat.completions.create(**long, messages=HELLO, max_tokens=100_000)
    elif route == "completion":
        stream = await client.completions.create(**long, prompt="Once", max_tokens=100_000)
    else:
        stream = await client.responses.create(**long, input="hi", max_output_tokens=100_000)
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: served.worker.busy() == 0, "the worker is free")
    await served.gateway.settled()


async def test_a_stream_that_breaks_is_an_error_or_a_failed_response():
    worker = await start_sim(models=MODELS, time_scale=0.2)  # slow enough for the tokens to come one by one
    gateway = await start_gateway(worker.port)
    base = f"http://127.0.0.1:{gateway.port}/v1"
    try:
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            await client.chat.completions.create(model="a:1", messages=HELLO, max_tokens=1)
            worker.faults.set(Fault("error_after", tokens=5))
            with pytest.raises(openai.APIError):
                [
                    chunk
                    async for chunk in await client.chat.completions.create(model="a:1", messages=HELLO, stream=True)
                ]
            worker.faults.set(Fault("error_after", tokens=5))
            with pytest.raises(openai.APIError):
                [chunk async for chunk in await client.completions.create(model="a:1", prompt="Once", stream=True)]
            worker.faults.set(Fault("error_after", tokens=5))
            events = [event async for event in await client.responses.create(model="a:1", input="hi", stream=True)]
            assert events[-1].type == "response.failed"
            assert events[-1].response.error.code == "server_error"
            assert events[-1].response.output[0].content[0].text
    finally:
        await gateway.close()
        await worker.server.close()


async def test_errors_are_the_sdks_own(served):
    client = served.client
    for create in (
        lambda: client.chat.completions.create(model="nobody:1", messages=HELLO),
        lambda: client.completions.create(model="nobody:1", prompt="x"),
        lambda: client.embeddings.create(model="nobody:1", input="x"),
        lambda: client.responses.create(model="nobody:1", input="x"),
        lambda: client.responses.create(model="nobody:1", input="x", stream=True),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await create()
        assert caught.value.type == "not_found_error"
    refused: dict[str, Any] = {
        "n": {"n": 2},
        "logit_bias": {"logit_bias": {"5": 1}},
        "audio": {"audio": {"voice": "x", "format": "mp3"}, "modalities": ["text", "audio"]},
        "tool_choice": {"tool_choice": "required"},
    }
    for field, fields in refused.items():
        with pytest.raises(openai.BadRequestError, match=field) as bad:
            await client.chat.completions.create(model="a:1", messages=HELLO, **fields)
        assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await client.responses.create(model="a:1", input="x", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="web_search"):
        await client.responses.create(model="a:1", input="x", tools=[{"type": "web_search"}])


async def test_many_threads_of_the_synchronous_client_get_their_own_answers(served):
    texts: dict[int, str] = {}
    lock = threading.Lock()

    def ask(number: int) -> None:
        answer = served.blocking.responses.create(model="a:1", input=f"number {number}", max_output_tokens=5)
        with lock:
            texts[number] = answer.output_text

    await asyncio.gather(*[asyncio.to_thread(ask, number) for number in range(8)])
    for number, text in texts.items():
        again = await served.client.responses.create(model="a:1", input=f"number {number}", max_output_tokens=5)
        assert again.output_text == text
    assert len(texts) == 8
