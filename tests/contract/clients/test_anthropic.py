"""Anthropic's own SDK for Python: messages, streams with their helpers, tools, thinking, pictures, token counts."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from conftest import cancelled, until_cancelled

HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture
def client(place: Any) -> Any:
    with anthropic.Anthropic(base_url=place.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_message_is_answered(client: Any, place: Any) -> None:
    answer = client.messages.create(model=place.talker, max_tokens=place.limit, messages=HELLO, system="Be brief.")
    assert answer.role == "assistant" and answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= place.limit
    assert answer.model == place.talker and answer.id.startswith("msg_")


def test_a_message_is_streamed(client: Any, place: Any) -> None:
    with client.messages.stream(model=place.talker, max_tokens=place.limit, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.content[0].text == text and final.usage.output_tokens > 0
    kinds = [
        event.type
        for event in client.messages.create(model=place.talker, max_tokens=place.limit, messages=HELLO, stream=True)
    ]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and kinds[-2] == "message_delta"


def test_an_unknown_model_is_a_404_and_a_bad_request_a_400(client: Any, place: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not found"):
        client.messages.create(model="nobody:1", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=place.talker, max_tokens=5, messages=[])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=place.talker, max_tokens=0, messages=HELLO)


def test_nobody_at_the_address_is_a_connection_error(place: Any) -> None:
    client = anthropic.Anthropic(base_url=place.closed_url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.create(model="x", max_tokens=5, messages=HELLO)


def test_tokens_are_counted(client: Any, place: Any) -> None:
    few = client.messages.count_tokens(model=place.talker, messages=HELLO).input_tokens
    many = client.messages.count_tokens(model=place.talker, messages=[HELLO[0] | {"content": "word " * 200}])
    assert 0 < few < many.input_tokens


@pytest.mark.sim
@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_their_results_used(client: Any, place: Any, stream: bool) -> None:
    asked = {"model": place.talker, "max_tokens": 100, "messages": ASK, "tools": [TOOL]}
    if stream:
        with client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    told = [*ASK, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    final = client.messages.create(**asked | {"messages": told})
    assert (final.content[0].text, final.stop_reason) == ("The result is rain.", "end_turn")


@pytest.mark.sim
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_can_be_forced(client: Any, place: Any, choice: Any) -> None:
    try:
        answer = client.messages.create(
            model=place.talker, max_tokens=100, messages=HELLO, tools=[TOOL], tool_choice=choice
        )
    except anthropic.BadRequestError as error:
        assert "tool_choice" in error.message
        return
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.name == "get_weather" and set(call.input) == {"city"}


@pytest.mark.sim
def test_a_stop_sequence_is_told(client: Any, place: Any) -> None:
    free = client.messages.create(model=place.talker, max_tokens=40, messages=HELLO).content[0].text
    stop = free.split(" ")[5]
    answer = client.messages.create(model=place.talker, max_tokens=40, messages=HELLO, stop_sequences=[stop])
    assert answer.content[0].text == free[: free.index(stop)]
    assert answer.stop_reason in ("stop_sequence", "end_turn")


@pytest.mark.sim
def test_a_model_thinks(client: Any, place: Any) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = client.messages.create(model=place.thinker, max_tokens=2048, messages=HELLO, thinking=thinking)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking and answer.content[1].text
    with client.messages.stream(model=place.thinker, max_tokens=2048, messages=HELLO, thinking=thinking) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    silent = client.messages.create(model=place.thinker, max_tokens=100, messages=HELLO, thinking={"type": "disabled"})
    assert [block.type for block in silent.content] == ["text"]


@pytest.mark.sim
def test_a_picture_is_taken(client: Any, place: Any, picture_b64: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": picture_b64}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    answer = client.messages.create(model=place.seer, max_tokens=5, messages=[{"role": "user", "content": parts}])
    assert answer.usage.input_tokens > 700


@pytest.mark.sim
def test_a_failure_in_mid_stream_raises(client: Any, place: Any, fault: Any) -> None:
    client.messages.create(model=place.talker, max_tokens=1, messages=HELLO)
    fault("error_after", tokens=5)
    with pytest.raises(anthropic.APIError):
        list(client.messages.create(model=place.talker, max_tokens=50, messages=HELLO, stream=True))


@pytest.mark.sim
def test_a_client_that_leaves_frees_the_worker(client: Any, place: Any) -> None:
    before = cancelled(place)
    with client.messages.stream(model=place.talker, max_tokens=400_000, messages=HELLO) as stream:
        next(iter(stream))
    until_cancelled(place, before)


@pytest.mark.sim
def test_a_full_queue_is_a_429_that_is_repeated_when_it_was_told(place: Any, crowd: Any) -> None:
    crowd.fill()
    client = anthropic.Anthropic(base_url=place.tight_url, api_key="none", max_retries=0)
    with client, pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(model=place.talker, max_tokens=2, messages=HELLO)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    import threading

    leaving = threading.Timer(0.5, crowd.leave)
    leaving.start()
    with anthropic.Anthropic(base_url=place.tight_url, api_key="none", max_retries=8) as client:
        answer = client.messages.create(model=place.talker, max_tokens=2, messages=HELLO)
    leaving.join()
    assert answer.content[0].text


async def test_the_asynchronous_client_is_at_home(place: Any) -> None:
    async with anthropic.AsyncAnthropic(base_url=place.url, api_key="none", max_retries=0) as client:
        first, second = await asyncio.gather(
            *(client.messages.create(model=place.talker, max_tokens=place.limit, messages=HELLO) for _ in range(2))
        )
        assert first.content[0].text and second.content[0].text
        async with client.messages.stream(model=place.talker, max_tokens=place.limit, messages=HELLO) as stream:
            assert "".join([piece async for piece in stream.text_stream])
