"""llama-index: its LLM and its embeddings for Ollama."""

from __future__ import annotations

import asyncio
from typing import Any

import pydantic
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama

from conftest import ASK_PERSON, cancelled, until_cancelled

HELLO = [ChatMessage(role="user", content="Say hello.")]


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int


@pytest.fixture
def llm(place: Any) -> Ollama:
    return Ollama(model=place.talker, base_url=place.url, request_timeout=60, context_window=8192)


def test_a_prompt_is_completed_and_streamed(llm: Any) -> None:
    whole = llm.complete("Say hello.").text
    assert whole and list(llm.stream_complete("Say hello."))[-1].text == whole


def test_a_chat_is_answered_and_streamed(llm: Any) -> None:
    whole = llm.chat(HELLO)
    assert whole.message.content and whole.raw["eval_count"] > 0
    parts = list(llm.stream_chat(HELLO))
    assert "".join(part.delta or "" for part in parts) == whole.message.content


async def test_the_asynchronous_side_is_at_home(llm: Any) -> None:
    whole, parts = (await llm.achat(HELLO)).message.content, []
    async for part in await llm.astream_chat(HELLO):
        parts.append(part.delta or "")  # noqa: PERF401
    assert "".join(parts) == whole
    assert (await asyncio.gather(*(llm.acomplete("x") for _ in range(2))))[0].text


def test_tools_are_called(llm: Any) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg="What is the weather in Oslo?")
    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Oslo"})
    assert str(llm.predict_and_call([tool], user_msg="What is the weather in Oslo?")) == "rain in Oslo"


def test_structured_answers_are_parsed(llm: Any) -> None:
    answer = llm.as_structured_llm(Person).chat([ChatMessage(role="user", content=ASK_PERSON)])
    assert answer.raw == Person(name="Ada", age=36)
    parts = list(llm.as_structured_llm(Person).stream_chat([ChatMessage(role="user", content=ASK_PERSON)]))
    assert parts[-1].raw == Person(name="Ada", age=36)
    assert LLMTextCompletionProgram


def test_a_model_thinks(place: Any) -> None:
    llm = Ollama(model=place.thinker, base_url=place.url, request_timeout=60, thinking=True, context_window=8192)
    answer = llm.chat(HELLO)
    kinds = [type(block).__name__ for block in answer.message.blocks]
    assert "ThinkingBlock" in kinds and answer.message.content


def test_texts_are_embedded(place: Any) -> None:
    model = OllamaEmbedding(model_name=place.embedder, base_url=place.url)
    assert len(model.get_text_embedding("one")) == 768
    assert [len(vector) for vector in model.get_text_embedding_batch(["one", "two"])] == [768, 768]
    assert model.get_query_embedding("one") == model.get_text_embedding("one")


def test_an_unknown_model_is_an_error(place: Any) -> None:
    with pytest.raises(Exception, match="not found") as caught:
        Ollama(model="nobody:1", base_url=place.url, context_window=8192).complete("x")
    assert getattr(caught.value, "status_code", 404) == 404


def test_a_client_that_leaves_frees_the_worker(place: Any) -> None:
    before = cancelled(place)
    llm = Ollama(
        model=place.talker,
        base_url=place.url,
        request_timeout=60,
        context_window=8192,
        additional_kwargs={"num_predict": 400_000},
    )
    stream = llm.stream_chat(HELLO)
    next(stream)
    stream.close()
    until_cancelled(place, before)
