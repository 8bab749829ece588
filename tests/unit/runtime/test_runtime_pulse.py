"""The pulse tells how late the loop is: the worst of the last windows, and the sum."""

import asyncio
import time

from bellmare.runtime import pulse as module
from bellmare.runtime.pulse import Pulse


async def test_a_stall_is_seen_and_summed_and_forgotten_after_two_windows(monkeypatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.2)
    pulse = Pulse(every_s=0.01)
    await asyncio.sleep(0.05)
    time.sleep(0.3)  # what nothing in the gateway may do
    await asyncio.sleep(0.02)
    assert pulse.worst_s > 0.2
    assert pulse.stalled_s >= pulse.worst_s
    deadline = time.monotonic() + 20
    while pulse.worst_s > 0.2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    pulse.close()
    stalled = pulse.stalled_s
    await asyncio.sleep(0.05)
    assert pulse.stalled_s == stalled
