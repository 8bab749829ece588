"""OpenAI's own SDK for Python: chat, completions, responses, embeddings, models; synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pydantic
import pytest

from conftest import ASK_PERSON, PERSON, cancelled, until_cancelled

HELLO = [{"role": "user", "content": "Say hello."}]


class Person(pydantic.BaseModel):
    name: str
    age: int


@pytest.fixture
def client(place: Any) -> Any:
    with openai.OpenAI(base_url=place.v1, api_key="none", max_retries=0, timeout=60) as made:
        yield made


# ---------------------------------------------------------------------- chat completions


def test_models_are_listed_and_retrieved(client: Any, place: Any) -> None:
    assert place.talker in [model.id for model in client.models.list()]
    assert client.models.retrieve(place.talker).id == place.talker
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody:1")


def test_a_chat_is_answered(client: Any, place: Any) -> None:
    whole = client.chat.completions.create(model=place.talker, messages=HELLO, max_tokens=place.limit)
    (choice,) = whole.choices
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert 0 < whole.usage.completion_tokens <= place.limit


def test_the_modern_name_of_the_limit_is_obeyed(client: Any, place: Any) -> None:
    whole = client.chat.completions.create(model=place.talker, messages=HELLO, max_completion_tokens=4)
    assert whole.usage.completion_tokens <= 4 and whole.choices[0].finish_reason in ("length", "stop")


def test_a_chat_is_streamed_with_its_usage(client: Any, place: Any) -> None:
    stream = client.chat.completions.create(
        model=place.talker,
        messages=HELLO,
        max_tokens=place.limit,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == reasons[-1:]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_ids_are_unique(client: Any, place: Any) -> None:
    made = {client.chat.completions.create(model=place.talker, messages=HELLO, max_tokens=1).id for _ in range(3)}
    assert len(made) == 3


def test_a_bad_request_is_a_400_and_an_unknown_model_a_404(client: Any, place: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=place.talker, messages=[])
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="not found"):
            client.chat.completions.create(model="nobody:1", messages=HELLO, stream=stream)


def test_nobody_at_the_address_is_a_connection_error(place: Any) -> None:
    client = openai.OpenAI(base_url=place.closed_url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_a_completion_is_answered_and_streamed(client: Any, place: Any) -> None:
    asked = {"model": place.talker, "prompt": "Say hello.", "max_tokens": place.limit, "temperature": 0, "seed": 1}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text and whole.usage.completion_tokens > 0
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_a_response_is_made_and_streamed(client: Any, place: Any) -> None:
    asked = {"model": place.talker, "input": "Say hello.", "max_output_tokens": place.limit, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text and whole.usage.output_tokens > 0
    assert whole.status in ("completed", "incomplete")
    kinds, text = [], ""
    with client.responses.stream(**asked) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        final = stream.get_final_response() if whole.status == "completed" else None
    assert kinds[0] == "response.created" and kinds[-1] == f"response.{whole.status}"
    assert text == whole.output_text and (final is None or final.output_text == text)


@pytest.mark.sim
def test_several_answers_are_a_clear_400_or_are_several(client: Any, place: Any) -> None:
    try:
        whole = client.chat.completions.create(model=place.talker, messages=HELLO, n=2, max_tokens=3)
        assert [choice.index for choice in whole.choices] == [0, 1]
    except openai.BadRequestError as error:
        assert "n" in error.message


@pytest.mark.sim
@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_their_results_used(client: Any, place: Any, weather: Any, stream: bool) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    if stream:
        with client.chat.completions.stream(model=place.talker, messages=asked, tools=[weather]) as events:
            for _ in events:
                pass
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(model=place.talker, messages=asked, tools=[weather]).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    asked += [
        {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    final = client.chat.completions.create(model=place.talker, messages=asked, tools=[weather])
    assert final.choices[0].message.content == "The result is rain." and final.choices[0].finish_reason == "stop"


@pytest.mark.sim
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_can_be_forced(client: Any, place: Any, weather: Any, choice: Any) -> None:
    whole = client.chat.completions.create(model=place.talker, messages=HELLO, tools=[weather], tool_choice=choice)
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}
    silent = client.chat.completions.create(
        model=place.talker,
        messages=[{"role": "user", "content": "get_weather for Oslo"}],
        tools=[weather],
        tool_choice="none",
    )
    assert not silent.choices[0].message.tool_calls


@pytest.mark.sim
def test_structured_answers_are_parsed(client: Any, place: Any) -> None:
    asked = [{"role": "user", "content": ASK_PERSON}]
    parsed = client.chat.completions.parse(model=place.talker, messages=asked, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
    bare = client.chat.completions.create(
        model=place.talker, messages=asked, response_format={"type": "json_object"}, max_tokens=20
    )
    assert isinstance(json.loads(bare.choices[0].message.content), dict)
    response = client.responses.parse(model=place.talker, input=ASK_PERSON, text_format=Person)
    assert response.output_parsed == Person(name="Ada", age=36)
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    whole = client.chat.completions.create(model=place.talker, messages=asked, response_format=schema)
    assert json.loads(whole.choices[0].message.content) == {"name": "Ada", "age": 36}


@pytest.mark.sim
def test_log_probabilities_are_told(client: Any, place: Any) -> None:
    whole = client.chat.completions.create(
        model=place.talker, messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3
    )
    told = whole.choices[0].logprobs.content
    assert len(told) == 3 and all(len(one.top_logprobs) == 2 for one in told)
    assert "".join(one.token for one in told) == whole.choices[0].message.content


@pytest.mark.sim
def test_pictures_are_taken_as_data(client: Any, place: Any, picture_b64: str) -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture_b64}"}},
    ]
    whole = client.chat.completions.create(
        model=place.seer, messages=[{"role": "user", "content": parts}], max_tokens=5
    )
    assert whole.usage.prompt_tokens > 700


@pytest.mark.sim
def test_a_model_thinks(client: Any, place: Any) -> None:
    whole = client.chat.completions.create(model=place.thinker, messages=HELLO)
    assert whole.choices[0].message.content and whole.choices[0].message.model_extra["reasoning"]
    chunks = list(client.chat.completions.create(model=place.thinker, messages=HELLO, stream=True))
    thought = "".join((chunk.choices[0].delta.model_extra or {}).get("reasoning") or "" for chunk in chunks)
    assert thought == whole.choices[0].message.model_extra["reasoning"]
    silent = client.chat.completions.create(model=place.thinker, messages=HELLO, reasoning_effort="none")
    assert not (silent.choices[0].message.model_extra or {}).get("reasoning")


@pytest.mark.sim
def test_a_namespaced_model_is_found(client: Any) -> None:
    assert client.models.retrieve("me/talker:1").id == "me/talker:1"
    assert client.chat.completions.create(model="me/talker:1", messages=HELLO, max_tokens=2).model == "me/talker:1"


@pytest.mark.sim
def test_texts_are_embedded(client: Any, place: Any) -> None:
    found = client.embeddings.create(model=place.embedder, input=["one", "two"])  # the SDK asks for base64
    assert [len(row.embedding) for row in found.data] == [768, 768] and found.usage.prompt_tokens > 0
    plain = client.embeddings.create(model=place.embedder, input="one", encoding_format="float", dimensions=16)
    vector = plain.data[0].embedding
    assert len(vector) == 16 and math.isclose(math.fsum(value * value for value in vector), 1, abs_tol=1e-3)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody:1", input="x")


@pytest.mark.sim
def test_a_response_calls_tools(client: Any, place: Any, weather: Any) -> None:
    tool = {"type": "function", **weather["function"], "strict": False}
    whole = client.responses.create(model=place.talker, input="What is the weather in Oslo?", tools=[tool])
    (call,) = [item for item in whole.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    again = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    assert client.responses.create(model=place.talker, input=again, tools=[tool]).output_text == "The result is rain."


@pytest.mark.sim
def test_a_cut_response_is_incomplete(client: Any, place: Any) -> None:
    whole = client.responses.create(model=place.talker, input="x", max_output_tokens=3)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.sim
def test_a_failure_in_mid_stream_raises(client: Any, place: Any, fault: Any) -> None:
    client.chat.completions.create(model=place.talker, messages=HELLO, max_tokens=1)
    fault("error_after", tokens=5)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=place.talker, messages=HELLO, stream=True))
    fault("error_after", tokens=5)
    with pytest.raises(openai.APIError):
        list(client.completions.create(model=place.talker, prompt="x", stream=True))
    fault("error_after", tokens=5)
    kinds = []
    try:
        stream = client.responses.create(model=place.talker, input="x", stream=True)
        kinds.extend(event.type for event in stream)
    except openai.APIError:
        kinds.append("raised")
    assert kinds[-1] in ("response.failed", "raised"), "never a silent end"


@pytest.mark.sim
def test_a_client_that_leaves_frees_the_worker(client: Any, place: Any) -> None:
    for begin in (
        lambda: client.chat.completions.create(model=place.talker, messages=HELLO, stream=True, max_tokens=400_000),
        lambda: client.responses.create(model=place.talker, input="x", stream=True, max_output_tokens=400_000),
    ):
        before = cancelled(place)
        stream = begin()
        next(iter(stream))
        stream.close()
        until_cancelled(place, before)


@pytest.mark.sim
def test_a_full_queue_is_a_429_that_is_repeated_when_it_was_told(place: Any, crowd: Any) -> None:
    crowd.fill()
    url = place.tight_url + "/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=place.talker, messages=HELLO)
    assert float(caught.value.response.headers["retry-after-ms"]) > 0
    assert int(caught.value.response.headers["retry-after"]) >= 1
    import threading

    leaving = threading.Timer(0.5, crowd.leave)
    leaving.start()
    with openai.OpenAI(base_url=url, api_key="none", max_retries=8) as client:
        whole = client.chat.completions.with_raw_response.create(model=place.talker, messages=HELLO, max_tokens=2)
    leaving.join()
    assert whole.retries_taken > 0 and whole.parse().choices[0].message.content


async def test_the_asynchronous_client_is_at_home(place: Any) -> None:
    async with openai.AsyncOpenAI(base_url=place.v1, api_key="none", max_retries=0) as client:
        first, second = await asyncio.gather(
            *(
                client.chat.completions.create(model=place.talker, messages=HELLO, max_tokens=place.limit)
                for _ in range(2)
            )
        )
        assert first.choices[0].message.content and second.choices[0].message.content
        stream = await client.chat.completions.create(
            model=place.talker, messages=HELLO, max_tokens=place.limit, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)
