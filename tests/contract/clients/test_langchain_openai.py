"""langchain-openai, by LangChain's own standard suites for chat models and embeddings."""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

V1 = os.environ["BELLMARE_URL"] + "/v1"


@pytest.mark.usefixtures("pictures_of_ours")
class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": os.environ["BELLMARE_SEER"], "base_url": V1, "api_key": "none", "stream_usage": True}

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["BELLMARE_TALKER"]


class TestChatByTools(TestChat):
    """Structured answers by a forced call instead of a schema."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}


class TestResponses(TestChat):
    """The same by /v1/responses."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}

    @property
    def supported_usage_metadata_details(
        self,
    ) -> dict[Literal["invoke", "stream"], list[Any]]:
        return {"invoke": [], "stream": []}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Without this it sends numbers of OpenAI's own tokenizer instead of text.
        return {
            "model": os.environ["BELLMARE_EMBEDDER"],
            "base_url": V1,
            "api_key": "none",
            "check_embedding_ctx_length": False,
        }
