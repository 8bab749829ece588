"""A restart hands over: no request fails, no stream is cut, nothing is unloaded, and one process decides at a time."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from lifecycle_rig import GatewayProcess, Load
from rig import ask, replayed, until

pytestmark = pytest.mark.slow
RESTARTS = 3


@pytest.fixture
async def served(sim: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a gateway process; every process of it is gone at the end."""
    started: list[GatewayProcess] = []

    async def start(*workers: Any, **settings: Any) -> GatewayProcess:
        started.append(GatewayProcess(tmp_path, list(workers), **settings))
        await started[-1].started()
        return started[-1]

    yield start
    for one in started:
        one.kill()


async def warm(gateway: GatewayProcess, *models: str) -> None:
    for model in models:
        answer = await ask(gateway.port, "POST", "/api/generate", {"model": model, "prompt": "hi", "stream": False})
        assert answer.status == 200, answer.body


def loads_and_unloads(*workers: Any) -> tuple[int, int]:
    counters = [one.twin.counters for one in workers]
    return sum(one.loads for one in counters), sum(one.unloads_asked for one in counters)


@pytest.mark.timeout(240)
async def test_restarts_in_a_row_under_load_fail_nothing_and_unload_nothing(sim, served):
    workers = [await sim(time_scale=0.05), await sim(time_scale=0.05)]
    gateway = await served(*workers)
    await warm(gateway, "a:1", "b:1")
    before = loads_and_unloads(*workers)
    load = Load(gateway.port)
    load.start()
    for _ in range(RESTARTS):
        done = load.outcomes.total()
        await gateway.restart()
        await until(lambda done=done: load.outcomes.total() > done + 20, "traffic through the new process")
    await load.stop()
    assert load.bad == []
    assert min(load.outcomes[f"{kind} good"] for kind in ("stream", "short", "kept")) >= RESTARTS
    after = loads_and_unloads(*workers)
    assert after[1] == before[1] == 0
    assert len(set(gateway.pids)) == RESTARTS + 1
    for pid in gateway.pids[:-1]:
        await gateway.gone(pid)
    await gateway.stop()
    assert not [row for row in gateway.text().splitlines() if '"level":"error"' in row or "Traceback" in row]
    report = replayed(gateway.home / "state" / "bellmare" / "events")
    assert report.difference is None
    assert report.files >= RESTARTS + 1
