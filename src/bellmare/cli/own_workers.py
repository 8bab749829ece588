"""Workers that run inside the gateway's process because the settings say so: embedded engines and simulated GPUs."""

import asyncio
from pathlib import Path
from typing import Protocol

from bellmare.settings import WorkerSettings
from bellmare.settings.model import EmbeddedSettings


class CannotStart(Exception):  # noqa: N818 - of the world, not of ours
    """A worker of our own cannot run here; the text says which and why."""


class OwnWorker(Protocol):
    """A running server of ours on loopback."""

    @property
    def port(self) -> int: ...

    async def close(self) -> None: ...


async def start_own_worker(worker: WorkerSettings, position: int) -> OwnWorker | None:
    """Start the worker on a free loopback port; None if it is somebody else's, at a URL. Raises CannotStart."""
    if worker.embedded is not None:
        return await _start_embedded(worker.name, worker.embedded)
    if worker.sim is not None:
        from bellmare.workers.sim.server import SimConfig, start_sim_worker

        return await start_sim_worker(
            SimConfig(
                vram_bytes=worker.sim.vram_bytes,
                parallel=worker.sim.parallel,
                time_scale=1.0 / worker.sim.speed,
                seed=position,
            ),
            host="127.0.0.1",
            port=0,
        )
    return None


async def _start_embedded(name: str, wanted: EmbeddedSettings) -> OwnWorker:
    from bellmare.workers.embedded.fetch import FetchError
    from bellmare.workers.embedded.server import EmbeddedConfig, EngineNotInstalledError, start_embedded_worker

    try:
        folder = await asyncio.to_thread(_models_folder, wanted.models)
        config = EmbeddedConfig(models_dir=folder, memory_bytes=wanted.memory_bytes, parallel=wanted.parallel)
        return await start_embedded_worker(config, host="127.0.0.1", port=0)
    except (FetchError, EngineNotInstalledError, OSError) as error:
        raise CannotStart(f"worker '{name}': {error}") from error


def _models_folder(wanted: str | None) -> Path:
    """The folder that the settings name; without one our own, with the default model fetched if it is empty."""
    from bellmare.workers.embedded import fetch
    from bellmare.workers.embedded.progress import progress_on_stderr

    if wanted is not None:
        return Path(wanted).expanduser()
    folder = fetch.default_models_dir()
    if not any(folder.glob("*.gguf")):
        with progress_on_stderr(fetch.DEFAULT_MODEL.name) as report:
            fetch.fetch_model(folder, report=report)
    return folder
