"""What `bellmare up` puts behind the gateway, in its order, and that it ends what it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from bellmare.cli import asking, discovery
from bellmare.cli.discovery import Found, NothingFound, answers, find_workers
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
            if self.path.startswith("/elsewhere/"):
                self.send_response(302)
                self.send_header("location", self.path.removeprefix("/elsewhere"))
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.001,))
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
    found = Found()
    find_workers(settings, console(), found)
    assert [str(worker.url) for worker in found.workers] == [ollama]
    assert found.workers[0].parallel == 3
    assert found.processes == []


def test_a_proxy_for_the_world_outside_is_not_asked(ollama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert answers(ollama)
    assert asking.ask(ollama, "/api/version") == {"version": "0.33.0"}


def test_a_redirect_is_not_followed(ollama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not answers(f"{ollama}/elsewhere")
    with pytest.raises(SystemExit):
        asking.ask(f"{ollama}/elsewhere", "/api/version")
    assert "answered 302" in capsys.readouterr().err


def gone(pid: int, *, within_s: float = 10.0) -> bool:
    """Whether the process ends in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def put_on_path(folder: Path, program: str) -> None:
    path = folder / "ollama"
    path.write_text(program)
    path.chmod(0o755)


STUBBORN = """#!{python}
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    pathlib.Path(os.environ["TOLD"]).write_text(f"{{os.getpid()}} {{child}}")
time.sleep(60)
"""


@pytest.mark.slow
def test_what_was_started_is_ended_whatever_broke_the_wait(
    nothing_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even one that ignores SIGTERM, with its own child, in a group that Ctrl-C on ours does not reach."""
    told = tmp_path / "told"
    put_on_path(tmp_path, STUBBORN.format(python=sys.executable))
    monkeypatch.setenv("TOLD", str(told))
    monkeypatch.setattr(discovery, "STOP_TIMEOUT_S", 0.2)

    def interrupted(url: str) -> bool:
        if told.exists() and told.read_text():
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(discovery, "answers", interrupted)
    found = Found()
    with pytest.raises(KeyboardInterrupt):
        find_workers(load_settings(None, environment={}), console(), found)
    (process,) = found.processes
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    pids = [int(pid) for pid in told.read_text().split()]
    found.close()
    assert process.returncode == -signal.SIGKILL
    assert all(gone(pid) for pid in pids)


STARTER = """
import os, sys, time
from rich.console import Console
from bellmare.cli import discovery
from bellmare.settings import load_settings
from bellmare.workers import capacity
capacity.nvidia_gpus = list
discovery.DEFAULT_URL = "http://127.0.0.1:9"
found = discovery.Found()
discovery.find_workers(load_settings(None, environment={}), Console(stderr=True), found)
print(found.processes[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children")
def test_a_gateway_that_is_killed_leaves_no_ollama(tmp_path: Path) -> None:
    put_on_path(tmp_path, FAKE_OLLAMA.format(python=sys.executable))
    environment = {**os.environ, "PATH": str(tmp_path)}
    starter = subprocess.Popen([sys.executable, "-c", STARTER], env=environment, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert not gone(pid, within_s=0.1)
    starter.kill()
    starter.wait(10)
    starter.stdout.close()
    assert gone(pid)


@pytest.mark.slow
def test_an_ollama_on_path_is_started_for_each_gpu_with_its_own_lifecycle_off(
    nothing_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ollama"
    program.write_text(FAKE_OLLAMA.format(python=sys.executable))
    program.chmod(0o755)
    gpus = [capacity.Gpu("GPU-a", 24 * 10**9), capacity.Gpu("GPU-b", 48 * 10**9)]
    monkeypatch.setattr(capacity, "nvidia_gpus", lambda: gpus)
    found = Found()
    try:
        find_workers(load_settings(None, environment={}), console(), found)
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
        find_workers(load_settings(None, environment={}), console(), Found())


def test_without_anything_the_three_ways_out_are_named(nothing_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise embedded_server.EngineNotInstalledError("pip install 'bellmare[embedded]'")

    monkeypatch.setattr(embedded_server, "check_installed", missing)
    with pytest.raises(NothingFound) as nothing:
        find_workers(load_settings(None, environment={}), console(), Found())
    text = str(nothing.value)
    for said in ("1.", "2.", "3.", "--worker", "bellmare[embedded]", "bellmare demo"):
        assert said in text


def test_the_embedded_engine_is_the_last_resort(nothing_here: None, tmp_path: Path) -> None:
    """With a model in the folder nothing is fetched."""
    pytest.importorskip("xllamacpp")
    models = tmp_path / "share" / "bellmare" / "models"
    models.mkdir(parents=True)
    (models / "any.gguf").write_bytes(b"GGUF")
    found = Found()
    find_workers(load_settings(None, environment={}), console(), found)
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
