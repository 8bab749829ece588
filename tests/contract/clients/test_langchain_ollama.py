"""langchain-ollama, by LangChain's own standard suites for chat models and embeddings."""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from conftest import cancelled, until_cancelled

URL = os.environ["BELLMARE_URL"]


@pytest.mark.usefixtures("pictures_of_ours")
class TestChat(ChatModelIntegrationTests):
    """Off: what ChatOllama itself does not offer."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": os.environ["BELLMARE_SEER"], "base_url": URL}

    @property
    def has_tool_choice(self) -> bool:
        return False  # ChatOllama's bind_tools has no tool_choice: Ollama has none

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["BELLMARE_TALKER"]


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OllamaEmbeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": os.environ["BELLMARE_EMBEDDER"], "base_url": URL}


def test_the_text_model_answers_and_streams(place: Any) -> None:
    model = OllamaLLM(model=place.talker, base_url=URL, num_predict=10)
    assert model.invoke("hello") == "".join(model.stream("hello"))


def test_thoughts_are_apart(place: Any) -> None:
    answer = ChatOllama(model=place.thinker, base_url=URL, reasoning=True).invoke("hello")
    assert answer.additional_kwargs["reasoning_content"] and answer.content


def test_a_client_that_leaves_frees_the_worker(place: Any) -> None:
    before = cancelled(place)
    stream = ChatOllama(model=place.talker, base_url=URL, num_predict=400_000).stream("hello")
    next(stream)
    stream.close()
    until_cancelled(place, before)
