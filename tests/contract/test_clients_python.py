"""The clients that people use, from their own packages: each file of ``clients`` is one client's tests.

They run in an environment of their own (``.venv-clients``), as a child of one test here; what they print is shown if
they fail.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from serving import CLIENTS_PYTHON, Outcome, embedded, run_pytest, simulated

TIMEOUT_S = 300.0
LANGCHAIN = frozenset(
    {
        "test_pdf_inputs",  # Ollama takes no PDFs
        "test_audio_inputs",  # nor sounds in a chat
        "test_image_tool_message",  # nor pictures in a tool's result
        "test_pdf_tool_message",
        "test_anthropic_inputs",  # of Anthropic's own class
        "test_stream_time",  # compares with a recording
    }
)
SKIPPED = {
    "langchain_ollama": LANGCHAIN | {"test_tool_choice"},  # ChatOllama has none, because Ollama has none
    "langchain_openai": LANGCHAIN,
}
"""Tests of other people's suites that are switched off, by client, and why."""
CLIENTS = (
    "ollama",
    "openai",
    "anthropic",
    "langchain_ollama",
    "langchain_openai",
    "llama_index",
    "instructor",
    "litellm",
    "schemathesis",
)
ENGINE_CLIENTS = ("ollama", "openai", "anthropic")
"""Those that also speak to a real model; their tests that need the simulated one's words are marked ``sim``."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 60)]


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not CLIENTS_PYTHON.exists():
        pytest.skip("NOT TESTED: the clients are not installed; `make test` does it")


def check(client: str, outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.output
    assert outcome.passed > 0, outcome.output
    assert outcome.skipped == SKIPPED.get(client, frozenset()), outcome.output


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_is_at_home(_gate: None, tmp_path: Path, client: str) -> None:
    async with simulated() as environment:
        outcome = await run_pytest(f"test_{client}.py", environment, tmp_path, marks="", timeout_s=TIMEOUT_S)
    check(client, outcome)


@pytest.mark.engine
@pytest.mark.parametrize("client", ENGINE_CLIENTS)
async def test_a_client_is_at_home_with_a_real_model(
    _gate: None, tmp_path: Path, smollm_folder: Path, client: str
) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    async with embedded(smollm_folder) as environment:
        outcome = await run_pytest(f"test_{client}.py", environment, tmp_path, marks="not sim", timeout_s=TIMEOUT_S)
    assert outcome.status == 0 and outcome.passed > 0 and not outcome.skipped, outcome.output
