"""Anthropic's own SDK as its users use it; runs with the clients' interpreter, against the gateway at BELLMARE_URL.

The models are those of ``tests/integration/test_anthropic_sdk.py``: ``a:1`` calls tools, ``think:1`` thinks, ``see:1``
takes pictures. Tests whose names begin with ``test_broken`` want a worker that fails in the middle of an answer.
"""

import asyncio
import base64
import json
import os

import anthropic
import pytest

URL = os.environ["BELLMARE_URL"]
HELLO = [{"role": "user", "content": "Say hello."}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
ASKED = [{"role": "user", "content": 'Please call get_weather for "Oslo".'}]


@pytest.fixture
def client():
    with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0) as one:
        yield one


def image(**source):
    return {"type": "image", "source": source or {"type": "base64", "media_type": "image/png", "data": PIXEL}}


def with_image(block):
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, block]}]


# ---------------------------------------------------------------------- messages


def test_a_message(client):
    answer = client.messages.create(model="a:1", max_tokens=20, messages=HELLO, system="Be brief.")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "a:1")
    assert answer.id.startswith("msg_")
    assert answer._request_id.startswith("req_")
    (block,) = answer.content
    assert block.type == "text" and block.text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert 0 < answer.usage.output_tokens <= 20
    assert answer.usage.input_tokens > 0


def test_ids_are_unique(client):
    answers = [client.messages.create(model="a:1", max_tokens=2, messages=HELLO) for _ in range(5)]
    assert len({answer.id for answer in answers}) == len({answer._request_id for answer in answers}) == 5


def test_a_streamed_message_is_the_same_message(client):
    sampling = {"temperature": 0.5, "top_k": 4, "top_p": 0.9}  # this SDK has no names for them any more
    asked = {"model": "a:1", "max_tokens": 20, "messages": HELLO, "extra_body": sampling}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == final.content[0].text == whole.content[0].text
    assert len(texts) > 2
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_events_come_in_order(client):
    events = list(client.messages.create(model="a:1", max_tokens=5, messages=HELLO, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_conversation_of_several_turns_and_blocks(client):
    block = {"type": "text", "text": "Say", "cache_control": {"type": "ephemeral"}}
    answer = client.messages.create(
        model="a:1",
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [block, block]}, {"role": "assistant", "content": "No."}, *HELLO],
        metadata={"user_id": "u"},
        service_tier="auto",
        stop_sequences=["###"],
    )
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")


def test_a_limit_is_told(client):
    assert client.messages.create(model="a:1", max_tokens=3, messages=HELLO).stop_reason == "max_tokens"


def test_the_asynchronous_client():
    async def use():
        async with anthropic.AsyncAnthropic(base_url=URL, auth_token="none", max_retries=0) as client:
            one, two = await asyncio.gather(
                client.messages.create(model="a:1", max_tokens=5, messages=HELLO),
                client.messages.count_tokens(model="a:1", messages=HELLO),
            )
            assert one.content[0].text
            assert two.input_tokens > 0
            async with client.messages.stream(model="a:1", max_tokens=5, messages=HELLO) as stream:
                texts = [text async for text in stream.text_stream]
                assert (await stream.get_final_text()) == "".join(texts)
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="nobody:1", max_tokens=5, messages=HELLO)

    asyncio.run(use())


# ---------------------------------------------------------------------- tools


def test_a_tool_is_called_and_its_result_is_taken(client):
    asked = {"model": "a:1", "max_tokens": 50, "tools": [WEATHER, CLOCK]}
    answer = client.messages.create(**asked, messages=ASKED)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Oslo"})
    for content in ("rain", [{"type": "text", "text": "rain"}]):
        result = {"type": "tool_result", "tool_use_id": call.id, "content": content}
        turns = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        final = client.messages.create(**asked, messages=turns)
        assert "rain" in final.content[0].text
        assert final.stop_reason == "end_turn"


def test_a_streamed_call_is_the_same_call(client):
    asked = {"model": "a:1", "max_tokens": 50, "tools": [WEATHER, CLOCK], "messages": ASKED}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "get_weather"}, {"type": "any"}])
@pytest.mark.parametrize("tools", [[WEATHER], [CLOCK, WEATHER]])
def test_a_tool_can_be_forced(client, choice, tools):
    asked = {"model": "a:1", "max_tokens": 200, "tools": tools, "tool_choice": choice}
    asked["messages"] = [{"role": "user", "content": "Hello there."}]
    whole = client.messages.create(**asked)
    (call,) = whole.content
    assert call.type == "tool_use"
    assert call.name in [tool["name"] for tool in tools]
    if choice["type"] == "tool":
        assert call.name == "get_weather"
        assert isinstance(call.input["city"], str)
    assert whole.stop_reason == "tool_use"
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    (streamed,) = final.content
    assert (streamed.name, streamed.input, final.stop_reason) == (call.name, call.input, "tool_use")


def test_tools_can_be_forbidden(client):
    asked = {"model": "a:1", "max_tokens": 20, "tools": [WEATHER], "tool_choice": {"type": "none"}}
    answer = client.messages.create(**asked, messages=ASKED)
    assert [block.type for block in answer.content] == ["text"]


# ---------------------------------------------------------------------- thinking, form, pictures


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}])
def test_a_model_thinks(client, thinking):
    asked = {"model": "think:1", "max_tokens": 2048, "messages": HELLO, "thinking": thinking}
    with client.messages.stream(**asked, output_config={"effort": "low"}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"thinking", "text"} <= kinds
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking and final.content[1].text
    whole = client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    again = [*HELLO, {"role": "assistant", "content": final.content}, *HELLO]
    assert client.messages.create(**{**asked, "messages": again}).content


def test_a_model_need_not_think(client):
    asked = {"model": "think:1", "max_tokens": 20, "messages": HELLO, "thinking": {"type": "disabled"}}
    assert [block.type for block in client.messages.create(**asked).content] == ["text"]


def test_who_asks_a_model_to_think_that_cannot_gets_an_answer(client):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = client.messages.create(model="a:1", max_tokens=2048, messages=HELLO, thinking=thinking)
    assert [block.type for block in answer.content] == ["text"]


def test_an_answer_in_a_form(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "schema": schema}
    asked = {"model": "a:1", "max_tokens": 200, "messages": HELLO, "output_config": {"format": form}}
    said = json.loads(client.messages.create(**asked).content[0].text)
    assert isinstance(said["name"], str) and isinstance(said["age"], int)
    with client.messages.stream(**asked) as stream:
        assert json.loads(stream.get_final_text()) == said


def test_an_answer_parsed_into_a_type(client):
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str
        age: int

    answer = client.messages.parse(model="a:1", max_tokens=200, messages=HELLO, output_format=Person)
    assert isinstance(answer.parsed_output, Person)


def test_a_picture(client):
    assert client.messages.create(model="see:1", max_tokens=5, messages=with_image(image())).content[0].text
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [image()]}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    turns = [*HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": [nested]}]
    assert client.messages.create(model="see:1", max_tokens=5, messages=turns).content


def test_a_large_picture(client):
    """Above what is parsed at once, and with a wish to think that this model cannot meet."""
    data = base64.b64encode(base64.b64decode(PIXEL) + bytes(400_000)).decode()
    block = image(type="base64", media_type="image/png", data=data)
    asked = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    assert client.messages.create(model="see:1", messages=with_image(block), **asked).content[0].text


# ---------------------------------------------------------------------- counts


def test_tokens_are_counted_without_an_answer(client):
    least = client.messages.count_tokens(model="a:1", messages=HELLO).input_tokens
    assert least > 0
    more = client.messages.count_tokens(model="a:1", messages=HELLO, system="word " * 400, tools=[WEATHER])
    assert more.input_tokens > least + 300
    assert more._request_id.startswith("req_")
    large = [{"role": "user", "content": "word " * 100_000}]
    assert client.messages.count_tokens(model="a:1", messages=large).input_tokens > 50_000


def test_tokens_of_an_unknown_model_are_not_counted(client):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nobody:1", messages=HELLO)


# ---------------------------------------------------------------------- errors


def refused(call, kind, **more):
    asked = {"model": "a:1", "max_tokens": 5, "messages": HELLO} | more
    with pytest.raises(kind) as caught:
        call(**asked)
    error = caught.value
    assert error.body["type"] == "error"
    assert error.body["request_id"] == error.request_id == error.response.headers["request-id"]
    return error.body["error"]


def test_an_unknown_model(client):
    error = refused(client.messages.create, anthropic.NotFoundError, model="nobody:1")
    assert error["type"] == "not_found_error"
    assert error["message"].startswith("model 'nobody:1' not found")
    error = refused(client.messages.create, anthropic.NotFoundError, model="nobody:1", stream=True)
    assert error["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"messages": []}, "messages is required"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"messages": with_image(image(type="url", url="http://x/y.png"))}, "Only base64 images are supported."),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"extra_body": {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages.0.content.0"),
        ({"model": "think:1", "messages": with_image(image())}, "image"),
    ],
)
def test_what_cannot_be_served_is_said(client, more, message):
    error = refused(client.messages.create, anthropic.BadRequestError, **more)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


def test_tools_of_a_model_that_calls_none(client):
    error = refused(client.messages.create, anthropic.BadRequestError, model="see:1", tools=[WEATHER])
    assert "does not support tools" in error["message"]


def test_a_body_that_is_too_large(client):
    long = [{"role": "user", "content": "x" * (3 << 20)}]
    error = refused(client.messages.create, anthropic.APIStatusError, messages=long)
    assert error["type"] == "request_too_large"


def test_an_embedding_model_does_not_talk(client):
    error = refused(client.messages.create, anthropic.BadRequestError, model="e:1")
    assert "does not support chat" in error["message"]


# ---------------------------------------------------------------------- ends before the end


def test_a_client_may_leave_a_stream(client):
    with client.messages.stream(model="a:1", max_tokens=3000, messages=HELLO) as stream:
        assert next(iter(stream.text_stream))
    assert client.messages.create(model="a:1", max_tokens=2, messages=HELLO).content


def test_an_asynchronous_request_may_be_cancelled():
    async def use():
        async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.messages.create(model="a:1", max_tokens=20_000, messages=HELLO)

    asyncio.run(use())


def test_broken_streams_raise_what_came_before_kept(client):
    texts = []
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model="a:1", max_tokens=50, messages=HELLO) as stream,
    ):
        for text in stream.text_stream:
            texts.append(text)  # noqa: PERF402 - what came before the error is kept
    assert texts
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["error"]["message"]
