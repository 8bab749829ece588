"""What `bellmare up` puts behind the gateway when nobody has said: found, started, or refused with the ways out.

Order: a reachable Ollama (OLLAMA_HOST, else 127.0.0.1:11434), an `ollama` on PATH, the embedded engine. Never the
simulator: that is `bellmare demo`.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from rich.console import Console

from bellmare.settings import Settings, WorkerSettings

DEFAULT_URL = "http://127.0.0.1:11434"
PROBE_TIMEOUT_S = 2.0
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
OLLAMA_SLOTS = 4
OLLAMA_MODELS_MAX = 64
"""For an Ollama that we start: residency is ours, so its own count must never be in the way."""


class NothingFound(Exception):  # noqa: N818 - an answer, not a bug
    """There is nothing that could run a model; the text names the ways out."""


@dataclass(slots=True)
class Found:
    """Workers for the settings, in words for the banner, and the processes that we started for them."""

    workers: list[WorkerSettings]
    how: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def close(self) -> None:
        """End the processes that we started, and only those."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def find_workers(settings: Settings, console: Console) -> Found:
    """The first of the ways that works. Raises :class:`NothingFound`."""
    tried = str(settings.ollama_host) if settings.ollama_host is not None else DEFAULT_URL
    if answers(tried):
        return Found([settings.worker_at(tried)], f"Ollama at {tried}")
    if shutil.which("ollama"):
        return _start_ollama(settings, console)
    return _embedded(tried, console)


def answers(url: str) -> bool:
    """Whether an Ollama answers there."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310 - http only
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _start_ollama(settings: Settings, console: Console) -> Found:
    """One `ollama serve` per GPU, with its own lifecycle switched off."""
    found = Found([], "")
    for gpu, gpu_bytes in _gpus():
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": str(OLLAMA_MODELS_MAX),
            "OLLAMA_NUM_PARALLEL": os.environ.get("OLLAMA_NUM_PARALLEL", str(OLLAMA_SLOTS)),
            "OLLAMA_NOPRUNE": "1",
        }
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        console.print(f"starting [bold]ollama serve[/] on port {port}" + (f" for GPU {gpu}" if gpu else ""))
        process = subprocess.Popen(
            ["ollama", "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        found.processes.append(process)
        _wait_for(url, process, found)
        worker = settings.worker_at(url)
        slots = int(environment["OLLAMA_NUM_PARALLEL"]) if environment["OLLAMA_NUM_PARALLEL"].isdigit() else 1
        update: dict[str, int | None] = {"parallel": max(1, slots), "max_loaded": OLLAMA_MODELS_MAX}
        if worker.vram_bytes is None:
            update["vram_bytes"] = gpu_bytes
        found.workers.append(worker.model_copy(update=update))
    found.how = f"ollama on PATH, {len(found.workers)} started"
    return found


def _wait_for(url: str, process: "subprocess.Popen[bytes]", found: Found) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            found.close()
            raise NothingFound(f"`ollama serve` did not come up at {url}; run it by hand to see why")
        time.sleep(0.1)


def _gpus() -> list[tuple[str, int | None]]:
    """UUID and bytes of each NVIDIA GPU; one empty entry for a machine without, where one server does."""
    from bellmare.workers import capacity

    return [(gpu.uuid, gpu.total_bytes) for gpu in capacity.nvidia_gpus()] or [("", None)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _embedded(tried: str, console: Console) -> Found:
    from bellmare.workers.embedded import fetch
    from bellmare.workers.embedded.progress import progress_on_stderr
    from bellmare.workers.embedded.server import EngineNotInstalledError, check_installed, half_of_memory_bytes

    try:
        check_installed()
    except EngineNotInstalledError as missing:
        raise NothingFound(_ways_out(tried, str(missing))) from None
    folder = fetch.default_models_dir()
    if not fetch.is_present(folder) and not any(folder.glob("*.gguf")):
        console.print("no Ollama found: fetching [bold]SmolLM2 135M[/] (93 MB) for the embedded engine")
        try:
            with progress_on_stderr(fetch.DEFAULT_MODEL.name) as report:
                fetch.fetch_model(folder, report=report)
        except fetch.FetchError as error:
            raise NothingFound(_ways_out(tried, str(error))) from None
    embedded = {"models": str(folder), "memory": half_of_memory_bytes()}
    worker = WorkerSettings.model_validate({"name": "embedded", "embedded": embedded})
    return Found([worker], "embedded llama.cpp engine (CPU, demo quality; install Ollama for GPUs)")


def _ways_out(tried: str, reason: str) -> str:
    return (
        "nothing that could run a model was found. Three ways out:\n"
        f"  1. start Ollama (none answers at {tried}), or name one: bellmare up --worker http://HOST:11434\n"
        "  2. install Ollama, so that an `ollama` is on PATH, and run `bellmare up` again\n"
        f"  3. use the embedded engine: {reason}\n"
        "To look around without any model: bellmare demo"
    )
