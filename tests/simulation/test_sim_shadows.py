"""Shadows in virtual time: another policy takes over from a bad one, once and for the better, never without reason."""

from __future__ import annotations

import pytest

from bellmare.core import decisions as d
from bellmare.core.engine import Engine
from bellmare.core.eviction.recency import LeastRecentlyUsed
from bellmare.core.eviction.registry import POLICIES
from bellmare.sim.drive import Drive, core_config
from bellmare.sim.faults import quick_world
from bellmare.sim.fleet import read_fleet
from bellmare.sim.runs import Policy, run
from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Workload

HOUR_US = 3_600_000_000


class MostRecentlyUsed(LeastRecentlyUsed):
    """Bad for sessions: who was used last, and will be again, leaves first."""

    name = "mru"

    def rank(self, fleet, candidates):
        return list(reversed(super().rank(fleet, candidates)))


def driven(workload: Workload, fleet: str, *, shadows: bool) -> tuple[Tally, list[tuple[int, d.PolicySwitch]]]:
    """MRU on the workload: the books, and the changes of policy with their instants."""
    tally, switches = Tally(workload), []
    engine = Engine(core_config("mru", shadows=shadows))

    def watch(now_us, event, decisions) -> None:
        switches.extend((now_us, one) for one in decisions if isinstance(one, d.PolicySwitch))

    Drive(engine, quick_world(workload, read_fleet(fleet), tally), tally, watcher=watch).run()
    return tally, switches


@pytest.mark.slow
def test_a_better_policy_takes_over_from_a_bad_one_after_its_time_and_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "mru", MostRecentlyUsed)
    workload = SCENARIOS["S2"].build(1, 3_000)
    bad, none = driven(workload, "1x48GB", shadows=False)
    good, switches = driven(workload, "1x48GB", shadows=True)
    assert none == []
    assert switches
    assert switches[0][0] >= workload.arrivals[0].at_us + HOUR_US
    assert switches[0][1].before == "mru"
    assert len(switches) == 1
    assert sum(good.cold) < 0.8 * sum(bad.cold)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "fleet"), [("S1", "1x24GB"), ("S2", "1x48GB")])
def test_the_default_policy_stays_where_it_is_good(scenario: str, fleet: str) -> None:
    switches: list[d.Decision] = []

    def watch(now_us, event, decisions) -> None:
        switches.extend(one for one in decisions if isinstance(one, d.PolicySwitch))

    run(SCENARIOS[scenario].build(1, 3_000), read_fleet(fleet), Policy.hv_auto, watcher=watch)
    assert switches == []
