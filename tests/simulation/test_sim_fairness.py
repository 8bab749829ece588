"""Fairness over long runs in virtual time (reliability I14, I15): the core, one simulated GPU, thousands of turns."""

import random
from collections.abc import Callable

import msgspec
import pytest

from bellmare.core.config import TenantConfig
from bellmare.core.decisions import Decision, Dispatch
from bellmare.core.engine import Engine
from bellmare.core.events import Event, Priority, RequestArrived
from bellmare.core.fairness import LANE_TURN_EVERY, RESCUE_BORROWED_MAX
from bellmare.core.units import InstantUs
from bellmare.sim.drive import Drive, core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Arrival, SimModel, Workload
from bellmare.sim.world import LightWorld, request_index

SECOND = 1_000_000
SLOTS = 4
GB = 1_000_000_000
Span = Callable[[random.Random], float]


class Watched(Drive):
    """A run that counts the turns of each user; the second user's requests may have a lower priority."""

    def __init__(self, workload: Workload, *, weights: dict[str, int] | None = None, low: bool = False) -> None:
        tenants = {name: TenantConfig(weight=weight) for name, weight in (weights or {}).items()}
        engine = Engine(msgspec.structs.replace(core_config(), tenants=tenants))
        tally = Tally(workload)
        world = LightWorld(workload, read_fleet("1x24GB"), tally)
        super().__init__(engine, world, tally, watcher=self._watch)
        self.turns: list[int] = []
        """Users in the order of their dispatches."""
        self.served_us: list[list[int]] = [[0, 0]]
        """Service dispatched so far by user, one entry per dispatch, while both users wait."""
        self._low = low
        self._left = [sum(1 for a in workload.arrivals if a.user == user) for user in (0, 1)]

    def _arrived(self, name: str, number: int, *, user: int) -> RequestArrived:
        event = super()._arrived(name, number, user=user)
        return msgspec.structs.replace(event, priority=Priority.low) if self._low and user else event

    def _watch(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Dispatch):
                arrival = self.tally.workload.arrivals[request_index(decision.request)]
                self._left[arrival.user] -= 1
                self.turns.append(arrival.user)
                if min(self._left) > 0:
                    both = list(self.served_us[-1])
                    both[arrival.user] += arrival.service_us
                    self.served_us.append(both)


def backlog(requests: int, *spans: Span) -> Workload:
    """All requests come within the first second: from then on both users wait until one has had everything."""
    chance = random.Random("two backlogged tenants")
    arrivals = []
    for user, span in enumerate(spans):
        arrivals += [Arrival(SECOND + n, 0, int(span(chance) * SECOND), user) for n in range(requests)]
    return Workload("backlog", 1, (SimModel("m:latest", "0" * 64, GB),), tuple(sorted(arrivals)), slots=SLOTS)


@pytest.mark.slow
@pytest.mark.parametrize("requests", [500, 4_000])
def test_two_backlogged_tenants_never_differ_by_more_than_a_bound_whatever_the_length_of_the_run(requests: int) -> None:
    """One sends requests five times as long as the other, and both vary by a factor of twenty."""
    longest_us = 10 * SECOND
    run = Watched(backlog(requests, lambda c: c.uniform(0.1, 2.0), lambda c: c.uniform(0.5, 10.0)))
    run.run()
    bound_us = 2 * (SLOTS + RESCUE_BORROWED_MAX) * longest_us
    apart = [abs(a - b) for a, b in run.served_us]
    assert len(apart) > requests
    assert max(apart) <= bound_us
    quarter = len(apart) // 4
    assert max(apart[-quarter:]) <= 2 * max(apart[:quarter]) + longest_us, "it does not grow with the run"


@pytest.mark.slow
def test_a_weight_of_three_gets_three_times_the_service_within_the_same_bound() -> None:
    workload = backlog(3_000, lambda c: c.uniform(0.5, 4.0), lambda c: c.uniform(0.5, 4.0))
    run = Watched(workload, weights={"user-1": 3})
    run.run()
    assert len(run.served_us) > 3_000
    assert max(abs(3 * a - b) for a, b in run.served_us) <= 3 * 2 * (SLOTS + RESCUE_BORROWED_MAX) * 4 * SECOND
    a, b = run.served_us[-1]
    assert b / a == pytest.approx(3, rel=0.02)


def test_without_accounts_by_service_the_difference_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: if every request counted alike, who sends longer ones would get five times more."""
    from bellmare.core.fairness import Turns

    monkeypatch.setattr(Turns, "_add", lambda self, turns, tenant, span_us: None)
    monkeypatch.setattr("bellmare.core.queueing.service_estimate_us", lambda fleet, model: SECOND)
    run = Watched(backlog(1_000, lambda c: c.uniform(0.1, 2.0), lambda c: c.uniform(0.5, 10.0)))
    run.run()
    assert max(abs(a - b) for a, b in run.served_us) > 2 * (SLOTS + RESCUE_BORROWED_MAX) * 10 * SECOND


def overload() -> Workload:
    """An hour in which normal requests ask for one and a half times what the GPU can serve, and a few low ones."""
    chance = random.Random("a low stream under overload")
    arrivals, at = [], 1.0
    while at < 3_600:
        at += chance.expovariate(SLOTS * 1.5 / 2)
        arrivals.append(Arrival(int(at * SECOND), 0, int(chance.uniform(1, 3) * SECOND), 0))
    low = [Arrival((60 + 20 * n) * SECOND, 0, 2 * SECOND, 1) for n in range(170)]
    ordered = tuple(sorted([*arrivals, *low]))
    return Workload("overload", 1, (SimModel("m:latest", "0" * 64, GB),), ordered, slots=SLOTS)


@pytest.mark.slow
def test_a_stream_of_low_priority_is_never_starved_by_an_overload_of_normal_requests() -> None:
    workload = overload()
    run = Watched(workload, low=True)
    run.run()
    waits = {
        user: [run.tally.start_us[n] - a.at_us for n, a in enumerate(workload.arrivals) if a.user == user]
        for user in (0, 1)
    }
    assert len(waits[1]) == 170
    assert max(waits[0]) > 300 * SECOND, "it was an overload"
    assert max(waits[1]) <= LANE_TURN_EVERY * 3 * SECOND, "its turn comes after seven others at the latest"
    assert not run.tally.refused


def test_no_request_is_overtaken_by_a_later_one_of_its_own_tenant_and_priority() -> None:
    run = Watched(backlog(1_000, lambda c: c.uniform(0.1, 2.0), lambda c: c.uniform(0.5, 10.0)))
    run.run()
    for user in (0, 1):
        starts = [run.tally.start_us[n] for n, a in enumerate(run.tally.workload.arrivals) if a.user == user]
        assert starts == sorted(starts)
    assert len(run.turns) == 2_000
