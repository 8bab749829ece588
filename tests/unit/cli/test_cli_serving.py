"""How a foreground gateway starts and stops: signals at any time, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellmare.cli import serving
from bellmare.cli.own_workers import CannotStart
from bellmare.cli.service import CannotListen
from bellmare.cli.serving import _started, _Stop

START_TIMEOUT_S = 60
SILENT_OLLAMA = """#!{python}
import os, pathlib, time
pathlib.Path(os.environ["TOLD"]).write_text(str(os.getpid()))
time.sleep(60)
"""


class Process:
    """`bellmare` with arguments, in a session of its own as a shell's foreground job is in a group of its own."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.log = home / "log"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("BELLMARE", "OLLAMA", "MAX_VRAM"))
        }
        own = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "NO_COLOR": "1", "COLUMNS": "140"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bellmare", *arguments],
                stdout=output,
                stderr=output,
                env={**kept, **own, **environment},
                cwd=home,
                start_new_session=True,
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        return until(lambda: re.search(pattern, self.log.read_text()), self.log)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def until(found: Callable[[], Any], log: Path) -> Any:
    """What ``found`` says as soon as it says anything."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"it never came: {log.read_text()}")


@pytest.fixture
def bellmare(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        processes.append(Process(tmp_path, *arguments, **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


SETTINGS = """
listen: 127.0.0.1:0
admin: off
workers:
  - {name: gpu0, sim: {speed: 1, vram: 24GB}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_grace_and_the_streams_in_words(
    bellmare: Callable[..., Process], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "bellmare.yaml").write_text(SETTINGS)
    served = bellmare("serve")
    port = int(served.wait_for(r'"gateway":"127\.0\.0\.1:(\d+)"').group(1))
    body = json.dumps({"model": "llama3.2:3b", "prompt": "hi", "options": {"num_predict": 100_000}}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        head = "POST /api/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        os.killpg(served.process.pid, number)
        served.wait_for("stopping; a second signal cuts")
        assert served.process.poll() is None
        os.killpg(served.process.pid, number)
        ended = time.monotonic()
        while data := client.recv(65_536):
            answer = answer[-4096:] + data
        assert served.process.wait(15) == 0, served.log.read_text()
        assert time.monotonic() - ended < 10
    assert b'{"error":' in answer
    assert answer.endswith(b"0\r\n\r\n")
    assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
def test_a_signal_while_ollama_comes_up_ends_what_was_started(bellmare: Callable[..., Process], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ollama"
    program.write_text(SILENT_OLLAMA.format(python=sys.executable))
    program.chmod(0o755)
    told = tmp_path / "told"
    up = bellmare("up", PATH=str(program.parent), TOLD=str(told), OLLAMA_HOST="127.0.0.1:9", CUDA_VISIBLE_DEVICES="")
    pid = int(until(lambda: told.exists() and told.read_text(), up.log))
    os.kill(up.process.pid, signal.SIGTERM)
    assert up.process.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_signal_while_workers_are_awaited_gives_the_start_up(
    bellmare: Callable[..., Process], tmp_path: Path
) -> None:
    """A worker that accepts and says nothing: the start would wait for it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        served = bellmare("serve", "--worker", url, "--listen", "127.0.0.1:0", "--admin", "off")
        silent.settimeout(START_TIMEOUT_S)
        asked, _ = silent.accept()
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0, served.log.read_text()
        assert time.monotonic() - started < 4
        asked.close()
    assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
def test_a_state_folder_that_cannot_be_is_a_warning(bellmare: Callable[..., Process], tmp_path: Path) -> None:
    (tmp_path / "bellmare.yaml").write_text(SETTINGS)
    served = bellmare("serve", XDG_STATE_HOME="/proc/nope")
    served.wait_for("Ctrl-C stops it")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    text = served.log.read_text()
    assert "no event log" in text
    assert "Traceback" not in text


class Failing:
    """A service that cannot start."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def start(self) -> None:
        raise self.error

    def cut(self) -> None:
        raise AssertionError("nobody asked")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CannotListen("cannot listen on 127.0.0.1:1: in use"), serving.EXIT_PORT_TAKEN, "another bellmare"),
        (OSError(28, "No space left on device"), serving.EXIT_NOT_STARTED, "cannot start: [Errno 28] No space left"),
        (CannotStart("worker 'e': no models"), serving.EXIT_NOT_STARTED, "cannot start: worker 'e': no models"),
        (TimeoutError(), serving.EXIT_NOT_STARTED, "cannot start: TimeoutError"),
    ],
)
def test_only_a_taken_address_is_told_as_one(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def begin() -> None:
        service: Any = Failing(error)
        await _started(service, _Stop(service))

    with pytest.raises(SystemExit) as ended:
        asyncio.run(begin())
    assert ended.value.code == status
    text = capsys.readouterr().err
    assert said in text
    assert ("cannot listen" in text) == isinstance(error, CannotListen)
