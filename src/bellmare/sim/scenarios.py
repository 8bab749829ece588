"""The benchmark's scenarios by name (policy.md 6), each runnable from the project alone. Says what is run where."""

from collections.abc import Callable

import msgspec

from bellmare.sim.fleet import SimFaults, SimFleet, read_fleet
from bellmare.sim.workload import Workload
from bellmare.sim.workloads.generated import Sessions, chains, clients, functions, sessions

REQUESTS = 10_000
WARM_TIER_GB = 64


class Scenario(msgspec.Struct, frozen=True):
    """What one name on the command line runs."""

    name: str
    title: str
    build: Callable[[int, int], Workload]
    """From a seed and the number of requests at most."""
    fleets: tuple[SimFleet, ...]
    faults: SimFaults | None = None


def _sessions(load: int = 1, service_percent: int = 30) -> Callable[[int, int], Workload]:
    def built(seed: int, requests: int) -> Workload:
        return sessions(seed, Sessions(load=load, service_percent=service_percent, requests=requests))

    return built


def _large(seed: int, requests: int) -> Workload:
    return sessions(seed, Sessions(load=100, requests=requests, models=300, popularity_shift=300.0))


def _fleets(*texts: str) -> tuple[SimFleet, ...]:
    return tuple(read_fleet(text) for text in texts)


def _warm(text: str) -> tuple[SimFleet, ...]:
    return (read_fleet(f"{text},ram={WARM_TIER_GB}GB"),)


FAULTS = SimFaults(lost_per_day=2.0, load_failed_percent=2.0, load_slow_percent=5.0)
"""Bad days: every worker is lost twice a day, two loads in a hundred fail, five drag."""


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("S1", "sessions of users", _sessions(), _fleets("1x24GB")),
        Scenario("S2", "sessions of users", _sessions(), _fleets("1x48GB")),
        Scenario("S3", "sessions of users", _sessions(), _fleets("1x96GB")),
        Scenario("S4", "sessions of users", _sessions(), _fleets("4x24GB")),
        Scenario("S4x4", "sessions, four times the load", _sessions(load=4), _fleets("4x24GB")),
        Scenario("S4x10", "sessions, ten times the load", _sessions(load=10), _fleets("4x24GB")),
        Scenario("S5", "functions of a cloud", functions, _fleets("1x24GB", "1x48GB")),
        Scenario("S6", "clients of a cloud", clients, _fleets("1x48GB")),
        Scenario("S7", "RAG and agent chains", chains, _fleets("1x24GB", "1x48GB")),
        Scenario("S8", "sessions, long requests", _sessions(service_percent=100), _fleets("1x48GB")),
        Scenario("S9", "sessions, 64 GB of host memory", _sessions(), _warm("1x24GB")),
        Scenario("XL", "300 models on 100 workers, a request every quarter second", _large, _fleets("100x24GB")),
        Scenario("S10", "sessions, workers lost, loads failing", _sessions(), _fleets("4x24GB"), FAULTS),
    )
}
"""What hints announce is a matter of the policy (``runs``): the same requests are served with and without."""
