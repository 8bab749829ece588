"""No child outlives its parent, however the parent ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from embedded_worker import is_alive, until_dead

from bellmare.workers.embedded import server
from bellmare.workers.embedded.server import EngineNotInstalledError, check_installed

SERVE = """
import asyncio, sys
from pathlib import Path
from bellmare.workers.embedded.server import EmbeddedConfig, run_embedded_worker
def ready(worker):
    print(worker.port, flush=True)
config = EmbeddedConfig(models_dir=Path(sys.argv[1]), threads=1, num_ctx=256)
asyncio.run(run_embedded_worker(config, host="127.0.0.1", port=0, on_ready=ready))
"""


async def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_engine_outlives_the_worker(models_dir: Path, number: signal.Signals) -> None:
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, str(models_dir), stdout=PIPE)
    assert worker.stdout is not None
    port = int(await worker.stdout.readline())

    def load() -> int:
        body = json.dumps({"model": "a", "keep_alive": -1}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return int(opener.open(f"http://127.0.0.1:{port}/api/generate", body, timeout=30).status)

    assert await asyncio.to_thread(load) == 200
    children = await children_of(worker.pid)
    assert len(children) == 1
    os.kill(worker.pid, number)
    await worker.wait()
    assert worker.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    await until_dead(children[0])


@pytest.mark.engine
@pytest.mark.slow
async def test_a_child_ends_when_its_input_closes_and_answers_one_line(models_dir: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellmare.workers.embedded.child"),
        *("--model", str(models_dir / "a.gguf"), "--num-ctx", "128", "--threads", "1"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert json.loads(await child.stdout.readline())["address"].startswith("http://127.0.0.1:")
    assert is_alive(child.pid)
    child.stdin.close()
    assert await asyncio.wait_for(child.stdout.read(), 10) == b""
    assert await asyncio.wait_for(child.wait(), 10) == 0


@pytest.mark.engine
@pytest.mark.slow
async def test_a_child_whose_parent_is_another_ends_at_once(models_dir: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bellmare.workers.embedded.child", "--parent", "1"),
        *("--model", str(models_dir / "a.gguf"), "--num-ctx", "128"),
        stdin=PIPE,
        stdout=PIPE,
    )
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.read(), 10) == b""
    assert await child.wait() == 1


def test_without_the_engine_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineNotInstalledError, match=r"pip install 'bellmare\[embedded\]'"):
        check_installed()
