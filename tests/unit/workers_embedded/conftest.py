"""Tiny random models in a folder, and workers over them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/engine_models.py is shared by several suites

from embedded_worker import StartWorker, Worker

from bellmare.workers.embedded.server import EmbeddedConfig, start_embedded_worker
from engine_models import write_model


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """``a`` and ``b`` end by themselves, ``endless`` only at its limit; ``bare`` has no template, ``e`` embeds."""
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder, "a", seed=1)
    write_model(folder, "b__1b", seed=2)
    write_model(folder, "endless", seed=3, endless=True)
    write_model(folder, "bare", seed=4, chat_template=False)
    write_model(folder, "e", seed=5, pooling=True)
    return folder


@pytest.fixture
async def start_worker(models_dir: Path) -> AsyncIterator[StartWorker]:
    """Start workers with settings of the test's; all are closed, and no child may be left."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    workers: list[Worker] = []

    async def start(**settings: Any) -> Worker:
        settings = {"memory_bytes": 4 << 30, "threads": 1, "num_ctx": 512} | settings
        worker = Worker(await start_embedded_worker(EmbeddedConfig(models_dir=models_dir, **settings)))
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        await worker.close()
        assert worker.server.engine.bytes_now() == 0


@pytest.fixture
async def worker(start_worker: StartWorker) -> Worker:
    started: Worker = await start_worker()
    return started
