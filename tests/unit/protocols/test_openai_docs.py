"""docs/apis-openai.md names every field that OpenAI's routes know, ignore or refuse."""

import re
from pathlib import Path

import pytest

from bellmare.protocols import openai, openai_completions, openai_embeddings, openai_responses
from bellmare.protocols.ollama_requests import known_fields

PAGE = (Path(__file__).parents[3] / "docs" / "apis-openai.md").read_text(encoding="utf-8")
ROUTES = {
    "/v1/chat/completions": known_fields(openai.OpenAIChat) | openai._IGNORED,
    "/v1/completions": known_fields(openai_completions.OpenAICompletion) | {"user"},
    "/v1/embeddings": known_fields(openai_embeddings.OpenAIEmbedding) | {"user"},
    "/v1/responses": known_fields(openai_responses.OpenAIResponse) | openai_responses._IGNORED,
}


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_every_field_is_documented(route):
    _, _, rest = PAGE.partition(f"## `POST {route}`")
    section = rest.partition("\n## ")[0]
    named = {name.split(".")[0] for name in re.findall(r"`([a-z_.]+)`", section)}
    assert not ROUTES[route] - named
