"""The commands as a user runs them: real processes, real output, exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "bellmare"]
START_TIMEOUT_S = 60


def environment(home: Path) -> dict[str, str]:
    """Nobody's settings but the test's; colours and terminal width fixed."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("BELLMARE", "OLLAMA", "MAX_VRAM"))
    }
    return {**kept, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "COLUMNS": "140", "NO_COLOR": "1"}


def run(home: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=90, env=environment(home), cwd=home
    )
    assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
    return done


class Process:
    """A foreground command; its output goes to a file that can be waited on."""

    def __init__(self, home: Path, name: str, *arguments: str) -> None:
        self.log = home / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], stdout=output, stderr=output, env=environment(home), cwd=home
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} never came: {self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A simulated worker and a gateway in front, as two processes: (home, gateway URL, admin URL)."""
    home = tmp_path_factory.mktemp("home")
    worker = Process(home, "worker", "worker", "sim", "--port", "0", "--speed", "100")
    port = worker.wait_for(r"http://127\.0\.0\.1:(\d+)").group(1)
    (home / "bellmare.yaml").write_text(
        f"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers:\n  - {{url: 'http://127.0.0.1:{port}', name: gpu0}}\n"
    )
    served = Process(home, "gateway", "serve")
    served.wait_for("Ctrl-C stops it")
    ports = served.wait_for(r'"gateway":"127\.0\.0\.1:(\d+)","admin_port":(\d+)')
    yield home, f"http://127.0.0.1:{ports.group(1)}", f"http://127.0.0.1:{ports.group(2)}"
    assert served.stop() == 0
    assert worker.stop() == 0


def test_the_banner_tells_where_to_connect_and_what_to_try(gateway: tuple[Path, str, str]) -> None:
    home, url, _ = gateway
    log = (home / "gateway.log").read_text()
    for said in ("is ready", url, f"{url}/v1", "gpu0", "curl ", " ps --admin-url"):
        assert said in log


def test_the_command_that_the_banner_suggests_works(gateway: tuple[Path, str, str]) -> None:
    home, _, _ = gateway
    suggested = next(
        line for line in (home / "gateway.log").read_text().splitlines() if line.strip().startswith("curl")
    )
    answer = subprocess.run(
        ["bash", "-c", suggested.strip().replace("curl", "curl -sN")], capture_output=True, timeout=60
    )
    assert json.loads(answer.stdout.splitlines()[-1])["done"] is True


def test_load_ps_unload(gateway: tuple[Path, str, str]) -> None:
    home, _, admin = gateway
    at = ["--admin-url", admin]
    assert "ready on gpu0" in run(home, "load", "mistral:7b", *at).stdout
    rows = json.loads(run(home, "ps", "--json", *at).stdout)
    assert [(row["model"], row["residency"]) for row in rows if row["model"] == "mistral:7b"] == [
        ("mistral:7b", "resident")
    ]
    assert "mistral:7b" in run(home, "ps", *at).stdout
    assert "gone from gpu0" in run(home, "unload", "mistral:7b", *at).stdout
    assert "mistral:7b" not in run(home, "ps", *at).stdout


def test_shadows_as_a_table_and_for_scripts(gateway: tuple[Path, str, str]) -> None:
    home, _, admin = gateway
    at = ("--admin-url", admin)
    report = json.loads(run(home, "shadows", "--json", *at).stdout)
    assert {row["policy"] for row in report["shadows"]} == {"hv", "lru", "gdsf", "lhd", "stock"}
    told = run(home, "shadows", *at).stdout
    assert "hv (in use)" in told
    assert "saved against stock Ollama" in told


def test_prepare_says_what_is_known_of_each_model_and_waits_for_nothing(gateway: tuple[Path, str, str]) -> None:
    home, url, admin = gateway
    run(home, "load", "mistral:7b", "--admin-url", admin)
    said = run(home, "prepare", "mistral:7b", "--in", "10s", "--ttl", "1m", "--url", url)
    assert said.stdout == "mistral:7b: resident\n"
    both = json.loads(run(home, "prepare", "mistral:7b", "nomic-embed-text", "--json", "--url", url).stdout)["models"]
    assert [row["model"] for row in both] == ["mistral:7b", "nomic-embed-text"]
    assert both[1]["state"] in ("expected", "loading", "resident")
    assert "not found" in run(home, "prepare", "nothing:here", "--url", url, status=1).stderr
    assert "--in" in run(home, "prepare", "mistral:7b", "--in", "soon", "--url", url, status=2).stderr
    assert "no gateway answers" in run(home, "prepare", "mistral:7b", "--url", "http://127.0.0.1:1", status=5).stderr
    at = ("--admin-url", admin)
    deadline = time.monotonic() + 30
    while rows := json.loads(run(home, "ps", "--json", *at).stdout):  # a hint may load, and take another's place for it
        assert time.monotonic() < deadline
        for row in rows:
            if row["residency"] == "resident":
                run(home, "unload", row["model"], *at)


def test_refusals_have_a_reason_and_a_status(gateway: tuple[Path, str, str]) -> None:
    home, _, admin = gateway
    at = ["--admin-url", admin]
    assert "not found" in run(home, "load", "nothing:here", *at, status=1).stderr
    assert "no worker named" in run(home, "load", "mistral:7b", "--worker", "gpu9", *at, status=1).stderr
    assert "not resident" in run(home, "unload", "phi4:14b", *at, status=1).stderr
    assert json.loads(run(home, "load", "nothing:here", "--json", *at, status=1).stdout)["accepted"] is False


def test_models_workers_and_explain(gateway: tuple[Path, str, str]) -> None:
    home, _, admin = gateway
    at = ["--admin-url", admin]
    run(home, "load", "llama3.2:3b", *at)
    assert len(json.loads(run(home, "models", "--json", *at).stdout)) == 9
    (worker,) = json.loads(run(home, "workers", "--json", *at).stdout)
    assert worker["healthy"] is True
    assert worker["capacity_bytes"] == 24 * 10**9
    assert "healthy" in run(home, "workers", *at).stdout
    told = run(home, "explain", "llama3.2:3b", *at).stdout
    assert "Load " in told
    assert "cause=operator" in told
    assert "nothing is remembered" in run(home, "explain", "never-heard-of", *at, status=1).stderr


def test_the_log_of_the_running_gateway_replays(gateway: tuple[Path, str, str]) -> None:
    home, url, _ = gateway
    body = json.dumps({"model": "llama3.2:3b", "prompt": "hi", "stream": False}).encode()
    urllib.request.urlopen(f"{url}/api/generate", data=body, timeout=60).read()
    time.sleep(0.5)  # the log is written behind the steps
    report = json.loads(run(home, "replay", "--json", str(home / "state" / "bellmare" / "events")).stdout)
    assert report["difference"] is None
    assert report["steps"] > 5


def test_a_wrong_settings_file_is_refused_with_line_reason_and_the_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("queue:\n  per_modell: 5\n  wait: soon\n")
    told = run(tmp_path, "serve", "-c", "wrong.yaml", status=2).stderr
    assert "wrong.yaml:2" in told
    assert "per_model" in told
    assert "wrong.yaml:3" in told
    assert run(tmp_path, "config", "check", "wrong.yaml", status=2).stderr == told


def test_settings_are_shown_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "bellmare.yaml").write_text("queue: {per_model: 7}\n")
    shown = run(tmp_path, "config", "show").stdout
    assert re.search(r"queue\.per_model\s+7\s+\S*bellmare\.yaml:1", shown)
    assert json.loads(run(tmp_path, "config", "schema").stdout)["type"] == "object"


def test_no_gateway_is_said_with_the_way_out(tmp_path: Path) -> None:
    told = run(tmp_path, "ps", "--admin-url", "http://127.0.0.1:9", status=5).stderr
    assert "bellmare up" in told


def test_serve_without_workers_says_what_to_do(tmp_path: Path) -> None:
    assert "bellmare up" in run(tmp_path, "serve", status=2).stderr


def test_a_taken_port_is_said_with_the_way_out(gateway: tuple[Path, str, str], tmp_path: Path) -> None:
    _, url, _ = gateway
    taken = url.rpartition(":")[2]
    told = run(
        tmp_path, "serve", "--worker", "http://127.0.0.1:9", "--listen", taken, "--admin", "off", status=4
    ).stderr
    assert "cannot listen" in told
    assert "--listen" in told


def test_a_listener_that_is_not_loopback_needs_a_word(tmp_path: Path) -> None:
    told = run(tmp_path, "serve", "--worker", "http://127.0.0.1:9", "--listen", "0.0.0.0:0", status=2).stderr
    assert "insecure" in told


def test_replay_says_what_is_wrong(tmp_path: Path) -> None:
    assert "no event log" in run(tmp_path, "replay", "nowhere", status=2).stderr


def test_the_version_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    told = run(tmp_path, "--version").stdout
    assert re.fullmatch(r"bellmare \d+\.\d+\.\d+\n", told)
    probe = "import sys; sys.argv[1:] = ['--version']; import bellmare.cli.main as m; m.main(); print(len(sys.modules))"
    plain = int(
        subprocess.run([sys.executable, "-c", "import sys; print(len(sys.modules))"], capture_output=True).stdout
    )
    loaded = int(subprocess.run([sys.executable, "-c", probe], capture_output=True).stdout.splitlines()[-1])
    assert loaded - plain < 20


def test_every_command_has_help_that_says_what_it_does(tmp_path: Path) -> None:
    top = run(tmp_path, "--help").stdout
    for command in (
        "up",
        "serve",
        "demo",
        "ps",
        "models",
        "workers",
        "load",
        "unload",
        "explain",
        "replay",
        "simulate",
    ):
        assert command in top
        assert len(run(tmp_path, command, "--help").stdout) > 200
    for command in ("sim", "embedded"):
        assert "--parallel" in run(tmp_path, "worker", command, "--help").stdout
