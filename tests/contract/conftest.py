"""The production loop and the leak gate."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

# The rig of whole gateways, and the models of the real engine, are shared with other suites.
sys.path += [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[1])]


collect_ignore = ["clients"]
"""Run in an environment of their own: ``test_clients_python``."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def _gate(leak_gate: list[dict[str, Any]]) -> AsyncIterator[None]:
    yield


@pytest.fixture(scope="session")
def smollm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M: the user's own copy, else fetched once into pytest's cache (without one: for this session)."""
    from bellmare.workers.embedded.fetch import FetchError, default_models_dir, fetch_model, is_present

    if is_present(default_models_dir()):
        return default_models_dir()
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("models")) if cache is not None else tmp_path_factory.mktemp("models")
    try:
        fetch_model(folder, timeout_s=100)
    except FetchError as error:
        pytest.skip(f"SmolLM2 is neither present nor can it be fetched: {error}")
    return folder
