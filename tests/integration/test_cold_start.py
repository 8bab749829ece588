"""A gateway that starts knows within moments what a large fleet holds, and leaves all of it where it is."""

import os
import time

import pytest
from lifecycle_rig import loads_and_unloads
from rig import start_gateway, start_sim

from bellmare.core.decisions import Load, LoadCause, Unload
from bellmare.core.events import LoadRequested
from bellmare.core.units import WorkerId

pytestmark = pytest.mark.slow
WORKERS = int(os.environ.get("BELLMARE_WORKERS", "100"))
BOUND_S = 20.0
"""Ten times what an idle machine may take: gateway and workers share a core here, and tests run beside them."""


@pytest.mark.timeout(300)
async def test_a_cold_start_learns_the_residents_of_a_large_fleet_and_unloads_none(_gate):
    sims = [await start_sim(time_scale=0.001) for _ in range(WORKERS)]
    entries = [
        {"url": f"http://127.0.0.1:{one.port}", "name": f"w{i}", "parallel": 4, "vram": "24GB"}
        for i, one in enumerate(sims)
    ]
    first = await start_gateway(*entries)
    names = ("a:1", "b:1", "c:1")
    for number in range(WORKERS):
        event = LoadRequested(ticket=f"t{number}", name=names[number % 3], worker=WorkerId(f"w{number}"))
        assert (await first.driver.ask(event)).accepted
    await first.settled()
    held = [one.loaded() for one in sims]
    assert held == [[names[number % 3]] for number in range(WORKERS)]
    await first.close()

    began = time.monotonic()
    second = await start_gateway(*entries)
    took_s = time.monotonic() - began
    print(f"{WORKERS} workers known after {took_s:.2f} s")
    workers = second.state.workers
    assert [list(workers[f"w{i}"].runners) for i in range(WORKERS)] == [
        [one.model for one in first.state.workers[f"w{i}"].runners.values()] for i in range(WORKERS)
    ]
    assert took_s < BOUND_S
    await second.settled()
    assert loads_and_unloads(*sims)[1] == 0
    assert not second.decisions(Unload)
    assert not [load for load in second.decisions(Load) if load.cause is not LoadCause.adopt]
    assert (await second.chat()).headers["x-bellmare-cache"] == "hit"
    await second.close()
    assert [one.loaded() for one in sims] == held
    for one in sims:
        await one.server.close()
