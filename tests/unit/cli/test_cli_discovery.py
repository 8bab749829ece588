"""What `bellmare up` puts behind the gateway, in its order, and that it ends what it started."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from bellmare.cli import discovery
from bellmare.cli.discovery import NothingFound, find_workers
from bellmare.settings import load_settings
from bellmare.workers import capacity
from bellmare.workers.embedded import server as embedded_server

FAKE_OLLAMA = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        kept = {{k: v for k, v in os.environ.items() if k.startswith(("OLLAMA_", "CUDA_"))}}
        body = json.dumps({{"version": "0.33.0", "environment": kept}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

assert sys.argv[1:] == ["serve"]
host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
HTTPServer((host, int(port)), Handler).serve_forever()
"""


def console() -> Console:
    return Console(file=open(os.devnull, "w"), force_terminal=False)


@pytest.fixture
def ollama() -> Iterator[str]:
    """Something that answers as an Ollama would."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"version":"0.33.0"}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Ollama at the default address, none on PATH, no GPU."""
    monkeypatch.setattr(discovery, "DEFAULT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(capacity, "nvidia_gpus", list)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def test_a_reachable_ollama_comes_first(ollama: str, nothing_here: None) -> None:
    settings = load_settings(None, environment={"OLLAMA_HOST": ollama, "OLLAMA_NUM_PARALLEL": "3"})
    found = find_workers(settings, console())
    assert [str(worker.url) for worker in found.workers] == [ollama]
    assert found.workers[0].parallel == 3
    assert found.processes == []


@pytest.mark.slow
def test_an_ollama_on_path_is_started_for_each_gpu_with_its_own_lifecycle_off(
    nothing_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ollama"
    program.write_text(FAKE_OLLAMA.format(python=sys.executable))
    program.chmod(0o755)
    gpus = [capacity.Gpu("GPU-a", 24 * 10**9), capacity.Gpu("GPU-b", 48 * 10**9)]
    monkeypatch.setattr(capacity, "nvidia_gpus", lambda: gpus)
    found = find_workers(load_settings(None, environment={}), console())
    try:
        told = []
        for worker in found.workers:
            with discovery.urllib.request.urlopen(f"{worker.url}/api/version", timeout=5) as answer:
                told.append(json.load(answer)["environment"])
        assert [entry["CUDA_VISIBLE_DEVICES"] for entry in told] == ["GPU-a", "GPU-b"]
        assert {entry["OLLAMA_KEEP_ALIVE"] for entry in told} == {"-1"}
        assert {entry["OLLAMA_MAX_LOADED_MODELS"] for entry in told} == {"64"}
        assert [worker.parallel for worker in found.workers] == [4, 4]
        assert [worker.max_loaded for worker in found.workers] == [64, 64]
        assert [worker.vram_bytes for worker in found.workers] == [24 * 10**9, 48 * 10**9]
    finally:
        found.close()
    assert all(process.poll() is not None for process in found.processes)


def test_an_ollama_that_does_not_come_up_is_said(
    nothing_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ollama"
    program.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    program.chmod(0o755)
    with pytest.raises(NothingFound, match="did not come up"):
        find_workers(load_settings(None, environment={}), console())


def test_without_anything_the_three_ways_out_are_named(nothing_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise embedded_server.EngineNotInstalledError("pip install 'bellmare[embedded]'")

    monkeypatch.setattr(embedded_server, "check_installed", missing)
    with pytest.raises(NothingFound) as nothing:
        find_workers(load_settings(None, environment={}), console())
    text = str(nothing.value)
    for said in ("1.", "2.", "3.", "--worker", "bellmare[embedded]", "bellmare demo"):
        assert said in text


def test_the_embedded_engine_is_the_last_resort(nothing_here: None, tmp_path: Path) -> None:
    """With a model in the folder nothing is fetched."""
    pytest.importorskip("xllamacpp")
    models = tmp_path / "share" / "bellmare" / "models"
    models.mkdir(parents=True)
    (models / "any.gguf").write_bytes(b"GGUF")
    found = find_workers(load_settings(None, environment={}), console())
    assert found.workers[0].embedded is not None
    assert found.workers[0].embedded.models == str(models)


class FakeNvml:
    """NVML's own interface, for machines without a driver."""

    class NVMLError(Exception):
        pass

    class _Memory:
        total = 24 * 10**9

    def __init__(self, *, driver: bool) -> None:
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> FakeNvml._Memory:
        return self._Memory()


def test_local_capacity_is_that_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(driver=True)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert capacity.local_capacity_bytes() == 48 * 10**9
    assert [gpu.uuid for gpu in capacity.nvidia_gpus()] == ["GPU-0", "GPU-1"]
    assert nvml.open == 0


def test_without_a_driver_it_is_half_of_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert capacity.local_capacity_bytes() == whole // 2
