"""litellm as a client, by each of its providers that can speak to bellmare."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest

from conftest import ASK_PERSON, PERSON, cancelled, until_cancelled

HELLO = [{"role": "user", "content": "Say hello."}]
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
PROVIDERS = ["ollama_chat", "openai", "anthropic"]


def asked(place: Any, provider: str, model: str = "", **more: Any) -> dict[str, Any]:
    base = {"ollama_chat": place.url, "ollama": place.url, "openai": place.v1, "anthropic": place.url}[provider]
    key = {"api_key": "none"} if provider in ("openai", "anthropic") else {}
    name = f"{provider}/{model or place.talker}"
    return {"model": name, "api_base": base, "num_retries": 0, "max_retries": 0, **key, **more}


@pytest.mark.parametrize("provider", [*PROVIDERS, "ollama"])
def test_a_chat_is_answered_and_streamed(place: Any, provider: str) -> None:
    whole = litellm.completion(messages=HELLO, max_tokens=20, **asked(place, provider))
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    parts = list(litellm.completion(messages=HELLO, max_tokens=20, stream=True, **asked(place, provider)))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_asynchronous_side_is_at_home(place: Any, provider: str) -> None:
    import asyncio

    async def talk() -> None:
        whole = await litellm.acompletion(messages=HELLO, max_tokens=20, **asked(place, provider))
        assert whole.choices[0].message.content
        stream = await litellm.acompletion(messages=HELLO, max_tokens=20, stream=True, **asked(place, provider))
        assert [part async for part in stream]

    asyncio.run(talk())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_tools_are_called(place: Any, weather: Any, provider: str) -> None:
    whole = litellm.completion(messages=ASK, tools=[weather], max_tokens=100, **asked(place, provider))
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    assert whole.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("provider", ["ollama_chat", "openai"])
def test_a_schema_is_obeyed(place: Any, provider: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    told = [{"role": "user", "content": ASK_PERSON}]
    whole = litellm.completion(messages=told, response_format=form, **asked(place, provider))
    assert json.loads(whole.choices[0].message.content) == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_texts_are_embedded(place: Any, provider: str) -> None:
    found = litellm.embedding(input=["one", "two"], **asked(place, provider, place.embedder))
    assert [len(row["embedding"]) for row in found.data] == [768, 768]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unknown_model_is_an_error(place: Any, provider: str) -> None:
    with pytest.raises(Exception, match="not found"):
        litellm.completion(messages=HELLO, max_tokens=5, **asked(place, provider, "nobody:1"))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_failure_in_mid_stream_raises(place: Any, fault: Any, provider: str) -> None:
    litellm.completion(messages=HELLO, max_tokens=1, **asked(place, provider))
    fault("error_after", tokens=5)
    with pytest.raises(Exception) as caught:
        list(litellm.completion(messages=HELLO, max_tokens=50, stream=True, **asked(place, provider)))
    assert type(caught.value).__module__.startswith("litellm")


def test_a_client_that_leaves_frees_the_worker(place: Any) -> None:
    before = cancelled(place)
    stream = litellm.completion(messages=HELLO, stream=True, max_tokens=400_000, **asked(place, "openai"))
    next(iter(stream))
    stream.completion_stream.close()
    until_cancelled(place, before)
