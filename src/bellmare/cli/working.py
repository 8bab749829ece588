"""`bellmare worker sim` and `bellmare worker embedded`: workers as processes of their own, in the foreground."""

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from bellmare.cli.serving import fail
from bellmare.settings.quantities import parse_size

EXIT_PORT_TAKEN = 4


@dataclass(slots=True, frozen=True)
class SimOptions:
    """The flags of `worker sim`."""

    vram: str
    parallel: int
    speed: float
    max_loaded: int
    stock: bool
    seed: int


@dataclass(slots=True, frozen=True)
class EmbeddedOptions:
    """The flags of `worker embedded`; None is the default of ``EmbeddedConfig``."""

    models: Path | None
    memory: str | None
    parallel: int
    threads: int


def _size(flag: str, text: str) -> int:
    try:
        return int(parse_size(text))
    except ValueError as error:
        fail(f"--{flag}: {error}", 2)


def run_sim(options: SimOptions, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    vram = _size("vram", options.vram)
    try:
        asyncio.run(_sim(options, vram, port))
    except OSError as error:
        fail(f"cannot listen on 127.0.0.1:{port}: {error.strerror}", EXIT_PORT_TAKEN)


async def _sim(options: SimOptions, vram_bytes: int, port: int) -> None:
    from bellmare.workers.sim.server import SimConfig, start_sim_worker

    config = SimConfig(
        vram_bytes=vram_bytes,
        parallel=options.parallel,
        runners_max=options.max_loaded,
        seed=options.seed,
        time_scale=1.0 / options.speed,
        extension=not options.stock,
    )
    server = await start_sim_worker(config, host="127.0.0.1", port=port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    sys.stdout.write(f"simulated Ollama on http://127.0.0.1:{server.port} (nothing is computed); Ctrl-C stops it\n")
    sys.stdout.flush()
    await stop.wait()
    await server.close()


def run_embedded(options: EmbeddedOptions, port: int) -> None:
    """Fetch the default model if the default folder is empty, then serve until SIGINT or SIGTERM."""
    from bellmare.workers.embedded import fetch
    from bellmare.workers.embedded.progress import progress_on_stderr
    from bellmare.workers.embedded.server import (
        EmbeddedConfig,
        EmbeddedServer,
        EngineNotInstalledError,
        check_installed,
        half_of_memory_bytes,
        run_embedded_worker,
    )

    memory = _size("memory", options.memory) if options.memory is not None else half_of_memory_bytes()
    folder = options.models or fetch.default_models_dir()
    try:
        check_installed()
        if options.models is None and not fetch.is_present(folder):
            with progress_on_stderr(fetch.DEFAULT_MODEL.name) as report:
                fetch.fetch_model(folder, report=report)
    except (EngineNotInstalledError, fetch.FetchError) as error:
        fail(str(error), 3)
    config = EmbeddedConfig(models_dir=folder, memory_bytes=memory, parallel=options.parallel, threads=options.threads)

    def ready(server: EmbeddedServer) -> None:
        sys.stdout.write(f"embedded engine on http://127.0.0.1:{server.port}, models in {folder}; Ctrl-C stops it\n")
        sys.stdout.flush()

    try:
        asyncio.run(run_embedded_worker(config, host="127.0.0.1", port=port, on_ready=ready))
    except OSError as error:
        fail(f"cannot listen on 127.0.0.1:{port}: {error.strerror}", EXIT_PORT_TAKEN)
