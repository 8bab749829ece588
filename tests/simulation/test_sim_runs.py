"""Whole runs: deterministic, each request ends once, never over capacity, and the same core as the gateway's."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from bellmare.core.decisions import Decision, Dispatch, Load, Reject, Unload
from bellmare.core.engine import Engine
from bellmare.core.events import Event, FirstTokenReceived, OperationEnded, RequestArrived, RequestFinished
from bellmare.core.units import InstantUs
from bellmare.runtime.recorder import encode_step, header_line
from bellmare.runtime.replay import replay
from bellmare.sim.drive import core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.report import row
from bellmare.sim.runs import DEFAULT_POLICIES, STOCK, Policy, possible, run
from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.workload import Arrival, SimModel, Workload
from bellmare.sim.workloads.generated import Sessions, sessions

CORE = (Policy.lru, Policy.belady, Policy.lru_twin, Policy.belady_twin)
DIGESTS = """
from bellmare.sim.fleet import read_fleet
from bellmare.sim.runs import Policy, run
from bellmare.sim.scenarios import SCENARIOS
for name in ("S1", "S5", "S6", "S7"):
    workload = SCENARIOS[name].build(5, 250)
    for policy in Policy:
        print(name, policy, run(workload, read_fleet("2x24GB"), policy).tally.digest())
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_under_every_hash_seed() -> None:
    said = []
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        said.append(done.stdout.splitlines())
    assert said[0] == said[1]
    assert len(said[0]) == 4 * len(Policy)


def test_another_seed_gives_another_run() -> None:
    digests = {
        run(sessions(seed, Sessions(requests=200)), read_fleet("1x24GB"), Policy.lru).tally.digest()
        for seed in (1, 2, 3)
    }
    assert len(digests) == 3


class Books:
    """The test's own books, from the stream of events and decisions alone."""

    def __init__(self, workload: Workload, fleet_text: str) -> None:
        self.capacity = read_fleet(fleet_text).machines[0].vram_bytes
        self.weights = {model.blob: model.weights_bytes for model in workload.models}
        self.used: Counter[str] = Counter()
        self.used_most = 0
        self.operations: dict[int, Load | Unload] = {}
        self.ends: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()
        self.dispatched: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.last_us = 0

    def __call__(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        assert now_us >= self.last_us
        self.last_us = now_us
        self.kinds[type(event).__name__] += 1
        if isinstance(event, RequestArrived):
            self.arrived[event.request] += 1
        elif isinstance(event, FirstTokenReceived):
            assert self.dispatched[event.request]
        elif isinstance(event, RequestFinished):
            self.ends[event.request] += 1
        elif isinstance(event, OperationEnded):
            operation = self.operations.pop(event.operation)
            if isinstance(operation, Unload):
                self.used[operation.worker] -= self.footprint(operation.model)
        for decision in decisions:
            self.kinds[type(decision).__name__] += 1
            if isinstance(decision, Reject):
                self.ends[decision.request] += 1
            elif isinstance(decision, Dispatch):
                self.dispatched[decision.request] += 1
            elif isinstance(decision, Load | Unload):
                assert all(other.worker != decision.worker for other in self.operations.values())
                self.operations[decision.operation] = decision
                if isinstance(decision, Load):
                    self.used[decision.worker] += self.footprint(decision.model)
                    self.used_most = max(self.used_most, self.used[decision.worker])
                    assert self.used[decision.worker] <= self.capacity

    def footprint(self, model: str) -> int:
        return self.weights[model] * 108 // 100 + (1 << 29)


@pytest.mark.slow
@pytest.mark.parametrize("policy", CORE)
@pytest.mark.parametrize("fleet_text", ["1x24GB", "3x24GB"])
def test_each_request_ends_once_and_no_worker_is_ever_over_capacity(
    day: Workload, policy: Policy, fleet_text: str
) -> None:
    books = Books(day, fleet_text)
    done = run(day, read_fleet(fleet_text), policy, watcher=books)
    assert len(books.arrived) == len(day.arrivals) and set(books.arrived.values()) == {1}
    assert books.ends == books.arrived
    assert books.dispatched == books.arrived, "nobody was refused or tried twice"
    assert done.tally.open == 0 and not done.tally.refused
    met = {"Drain", "Load", "Unload", "TimePassed", "WorkerObserved", "WorkerAdded", "FirstTokenReceived"}
    assert met <= set(books.kinds)
    assert books.used_most > books.capacity * 3 // 4, "memory was never short: nothing was proved"


@pytest.mark.slow
@pytest.mark.parametrize("policy", sorted(STOCK))
def test_behind_stock_ollama_too_each_request_ends_once(day: Workload, policy: Policy) -> None:
    tally = run(day, read_fleet("2x24GB"), policy).tally
    assert tally.open == 0 and not tally.refused and len(tally.waits_us()) == len(day.arrivals)
    for arrival, start_us, end_us in zip(day.arrivals, tally.start_us, tally.end_us, strict=True):
        assert arrival.at_us <= start_us
        assert end_us - start_us == arrival.service_us or arrival.service_us < 100_000, "as long as the trace says"


@pytest.mark.slow
@pytest.mark.parametrize("fleet_text", ["1x24GB", "1x48GB", "4x24GB"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_knows_the_future_has_no_more_cold_starts(seed: int, fleet_text: str) -> None:
    workload = sessions(seed, Sessions(requests=1_200))
    cold = {policy: sum(run(workload, read_fleet(fleet_text), policy).tally.cold) for policy in DEFAULT_POLICIES}
    assert cold[Policy.belady] <= cold[Policy.lru] < cold[Policy.stock]


@pytest.mark.slow
def test_the_quick_world_and_the_twins_agree(day: Workload) -> None:
    """The twins keep 1 GiB free and obey Ollama's 80 % rule, so they load a little more; never less by much."""
    machines = read_fleet("1x48GB")
    quick, faithful = (
        row("", machines, policy, run=run(day, machines, policy)) for policy in (Policy.lru, Policy.lru_twin)
    )
    assert quick.cold_percent * 0.9 <= faithful.cold_percent <= quick.cold_percent * 1.5
    assert quick.added_wait_mean_s * 0.9 <= faithful.added_wait_mean_s <= quick.added_wait_mean_s * 1.6


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_scenario_meets_evictions_and_stays_whole(name: str) -> None:
    scenario = SCENARIOS[name]
    workload = scenario.build(1, 1_000)
    assert [a.at_us for a in workload.arrivals] == sorted(a.at_us for a in workload.arrivals)
    for machines in scenario.fleets:
        machines = msgspec.structs.replace(machines, faults=scenario.faults)
        policies = [
            policy for policy in (Policy.hv, Policy.lru, Policy.stock) if possible(policy, faults=bool(machines.faults))
        ]
        assert policies
        for policy in policies:
            tally = run(workload, machines, policy).tally
            assert tally.loads > tally.evictions > 0 or name == "XL"  # which holds all its models for a while
            cut_off = tally.refused.pop("cut_off", 0) if machines.faults is not None else 0
            assert not tally.refused and cut_off <= len(workload.arrivals) // 100
            assert len(tally.waits_us()) == len(workload.arrivals) - cut_off


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Policy.lru, Policy.hv, Policy.lru_twin])
def test_a_simulated_run_replays_to_the_same_decisions(day: Workload, policy: Policy, tmp_path: Path) -> None:
    """Simulator and gateway share one core: its log is the gateway's log."""
    config = core_config("hv" if policy is Policy.hv else "lru")
    lines = [header_line("test", config, Engine(config).snapshot())]
    run(day, read_fleet("2x24GB"), policy, watcher=lambda now, event, out: lines.append(encode_step(now, event, out)))
    path = tmp_path / "events-000001.jsonl"
    path.write_bytes(b"".join(lines))
    *_, report = replay(path)
    assert report.difference is None and not report.truncated
    assert report.steps == len(lines) - 1 > 3 * len(day.arrivals)
    assert report.decisions > len(day.arrivals)


@pytest.mark.parametrize("policy", [Policy.lru, Policy.lru_twin, Policy.stock])
def test_what_becomes_ready_at_the_instant_of_an_arrival_is_ready_for_it(policy: Policy) -> None:
    models = (SimModel("m:latest", "0" * 64, 1_000_000_000),)
    second = 1_000_000
    arrivals = tuple(Arrival(at_us, 0, 10 * second, 0) for at_us in (second, 2_499_999, 2_500_000))
    tally = run(Workload("tie", 1, models, arrivals, slots=4), read_fleet("1x24GB"), policy).tally
    assert list(tally.cold) == [1, 1, 0]
    assert tally.start_us == [2_500_000] * 3
