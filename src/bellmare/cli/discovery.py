"""What `bellmare up` puts behind the gateway when nobody has said: found, started, or refused with the ways out.

Order: a reachable Ollama (OLLAMA_HOST, else 127.0.0.1:11434), an `ollama` on PATH, the embedded engine. Never the
simulator: that is `bellmare demo`.
"""

import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
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
_PR_SET_PDEATHSIG = 1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other, and none that we hope for."""

    def redirect_request(self, *_arguments: object, **_more: object) -> None:
        return None


DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
"""Opens URLs without http_proxy, which is for the world outside: the gateway's own calls to workers use none either."""


class NothingFound(Exception):  # noqa: N818 - an answer, not a bug
    """There is nothing that could run a model; the text names the ways out."""


@dataclass(slots=True)
class Found:
    """Workers for the settings, in words for the banner, and the processes that we started for them."""

    workers: list[WorkerSettings] = field(default_factory=list)
    how: str = ""
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def close(self) -> None:
        """End the processes that we started, and only those. May be called twice."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        try:
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for process in self.processes:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass  # killed below
        finally:  # a further Ctrl-C while we wait must leave nothing either
            for process in self.processes:
                if process.poll() is None:
                    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End it at once with its own children, Ollama's runners: they are in the session that it leads."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT_S)


def find_workers(settings: Settings, console: Console, found: Found) -> None:
    """Fill ``found`` by the first of the ways that works. Raises :class:`NothingFound`.

    ``found`` is the caller's to close whatever happens: what is started is in it before anything is awaited.
    """
    tried = str(settings.ollama_host) if settings.ollama_host is not None else DEFAULT_URL
    if answers(tried):
        found.workers.append(settings.worker_at(tried))
        found.how = f"Ollama at {tried}"
    elif shutil.which("ollama"):
        _start_ollama(settings, console, found)
    else:
        found.workers.append(_embedded(tried, console))
        found.how = "embedded llama.cpp engine (CPU, demo quality; install Ollama for GPUs)"


def answers(url: str) -> bool:
    """Whether an Ollama answers there."""
    try:
        with DIRECT.open(f"{url}/api/version", timeout=PROBE_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _start_ollama(settings: Settings, console: Console, found: Found) -> None:
    """One `ollama serve` per GPU, with its own lifecycle switched off."""
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
        _spawn_ollama(environment, found)
        _wait_for(url, found.processes[-1])
        worker = settings.worker_at(url)
        slots = int(environment["OLLAMA_NUM_PARALLEL"]) if environment["OLLAMA_NUM_PARALLEL"].isdigit() else 1
        update: dict[str, int | None] = {"parallel": max(1, slots), "max_loaded": OLLAMA_MODELS_MAX}
        if worker.vram_bytes is None:
            update["vram_bytes"] = gpu_bytes
        found.workers.append(worker.model_copy(update=update))
    found.how = f"ollama on PATH, {len(found.workers)} started"


def _spawn_ollama(environment: dict[str, str], found: Found) -> None:
    """In a session of its own: Ctrl-C goes to the whole foreground group, and Ollama must outlive our grace."""
    process = subprocess.Popen(
        ["ollama", "serve"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_us(),  # noqa: PLW1509 - no other thread runs yet, and it makes two system calls
    )
    found.processes.append(process)


def _end_with_us() -> Callable[[], None] | None:
    """What the child does before it becomes Ollama: have the kernel end it when we die, however. Linux only.

    SIGTERM, not SIGKILL: Ollama ends its own runners on it, and they would keep the GPU's memory.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible
    us = os.getpid()

    def end_with_us() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != us:
            os._exit(1)  # we died before the line above took effect

    return end_with_us


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
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


def _embedded(tried: str, console: Console) -> WorkerSettings:
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
    return WorkerSettings.model_validate({"name": "embedded", "embedded": embedded})


def _ways_out(tried: str, reason: str) -> str:
    return (
        "nothing that could run a model was found. Three ways out:\n"
        f"  1. start Ollama (none answers at {tried}), or name one: bellmare up --worker http://HOST:11434\n"
        "  2. install Ollama, so that an `ollama` is on PATH, and run `bellmare up` again\n"
        f"  3. use the embedded engine: {reason}\n"
        "To look around without any model: bellmare demo"
    )
