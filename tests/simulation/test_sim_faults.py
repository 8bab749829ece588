"""Faults and clients of the simulated fleet: who is cut off is retried as the gateway would, and everybody ends."""

import msgspec
import pytest

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision, Dispatch, Load
from bellmare.core.engine import Engine
from bellmare.core.events import (
    DispatchFailed,
    Event,
    OperationEnded,
    OperationOutcome,
    Outcome,
    RequestCancelled,
    RequestFinished,
)
from bellmare.core.units import InstantUs, SpanUs
from bellmare.sim.clients import ClientWorld, SimClients
from bellmare.sim.drive import Drive, core_config, engine
from bellmare.sim.faults import FaultyWorld
from bellmare.sim.fleet import SimFaults, SimFleet, read_fleet
from bellmare.sim.runs import Policy, possible, run
from bellmare.sim.scenarios import SCENARIOS
from bellmare.sim.tally import NEVER, Tally
from bellmare.sim.workload import Arrival, SimModel, Workload
from bellmare.sim.world import LightWorld

SECOND = 1_000_000
HOUR = 3600 * SECOND


def small(*arrivals: Arrival, models: int = 2) -> Workload:
    return Workload(
        "small",
        1,
        tuple(SimModel(f"m{i}:latest", f"{i:064x}", 4_000_000_000) for i in range(models)),
        arrivals,
        slots=1,
    )


class Run:
    """One drive over a faulty world, with all that was said."""

    def __init__(
        self, workload: Workload, fleet: SimFleet, clients: SimClients | None = None, config: CoreConfig | None = None
    ) -> None:
        self.tally = Tally(workload)
        self.world = FaultyWorld(workload, fleet, self.tally)
        self.events: list[tuple[int, Event]] = []
        self.decisions: list[Decision] = []
        front = ClientWorld(self.world, workload, clients) if clients is not None else None
        self.front = front
        core = Engine(config) if config is not None else engine()
        self.drive = Drive(core, front or self.world, self.tally, watcher=self._watch)

    def go(self) -> "Run":
        self.drive.run()
        assert self.tally.open == 0, "everybody ends"
        return self

    def _watch(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        self.events.append((now_us, event))
        self.decisions.extend(decisions)

    def said(self, kind: type[Event]) -> list[Event]:
        return [event for _, event in self.events if type(event) is kind]


def test_without_faults_the_faulty_world_is_the_quick_world(day: Workload) -> None:
    fleet = read_fleet("1x24GB")
    quick = Tally(day)
    Drive(engine(), LightWorld(day, fleet, quick), quick).run()
    assert Run(day, fleet).go().tally.digest() == quick.digest()


def test_a_request_cut_off_before_its_first_token_runs_elsewhere() -> None:
    done = Run(small(Arrival(SECOND, 0, 100 * SECOND, 0)), read_fleet("2x24GB"))
    done.world._outage("gpu-000", 8 * SECOND, 60 * SECOND)
    done.world._outage("gpu-001", 3 * HOUR, 60 * SECOND)
    done.go()
    (failed,) = done.said(DispatchFailed)
    assert isinstance(failed, DispatchFailed) and failed.worker == "gpu-000"
    places = [(d.worker, d.attempt) for d in done.decisions if isinstance(d, Dispatch)]
    assert places == [("gpu-000", 1), ("gpu-001", 2)]
    assert done.tally.end_us[0] > 100 * SECOND and not done.tally.refused


def test_a_request_cut_off_after_its_first_token_is_not_retried() -> None:
    done = Run(small(Arrival(SECOND, 0, 100 * SECOND, 0)), read_fleet("2x24GB"))
    done.world._outage("gpu-000", 60 * SECOND, 60 * SECOND)
    done.go()
    (finished,) = done.said(RequestFinished)
    assert isinstance(finished, RequestFinished) and finished.outcome is Outcome.failed
    assert done.tally.refused == {"cut_off": 1} and done.tally.start_us[0] == NEVER


def test_a_lost_worker_is_empty_when_it_comes_back_and_loads_again() -> None:
    done = Run(small(Arrival(SECOND, 0, SECOND, 0), Arrival(400 * SECOND, 0, SECOND, 0)), read_fleet("1x24GB"))
    done.world._outage("gpu-000", 100 * SECOND, 60 * SECOND)
    done.go()
    assert [type(d) for d in done.decisions if isinstance(d, Load)] == [Load, Load]
    assert list(done.tally.cold) == [1, 1] and not done.tally.refused


def test_a_load_under_way_on_a_lost_worker_ends_badly_once() -> None:
    done = Run(small(Arrival(SECOND, 0, SECOND, 0)), read_fleet("2x24GB"))
    done.world._outage("gpu-000", 2 * SECOND, 4 * SECOND)
    done.go()
    ends = [e.outcome for _, e in done.events if isinstance(e, OperationEnded)]
    assert ends == [OperationOutcome.failed, OperationOutcome.done]
    assert done.tally.end_us[0] != NEVER and not done.tally.refused


@pytest.mark.slow
def test_s10_made_worse_still_ends_every_request_once() -> None:
    scenario = SCENARIOS["S10"]
    workload = scenario.build(1, 4_000)
    (usual,) = scenario.fleets
    assert scenario.faults is not None
    fleet = msgspec.structs.replace(usual, faults=msgspec.structs.replace(scenario.faults, lost_per_day=150.0))
    first = Run(workload, fleet).go()
    assert first.world.workers_lost and first.world.loads_broken and first.world.loads_slow
    assert any(isinstance(d, Dispatch) and d.attempt > 1 for d in first.decisions)
    assert all(gpu.used_max_bytes <= gpu.machine.vram_bytes for gpu in first.world.gpus.values())
    served = sum(
        end != NEVER and start != NEVER for start, end in zip(first.tally.start_us, first.tally.end_us, strict=True)
    )
    assert served + sum(first.tally.refused.values()) == 4_000
    assert served > 3_500
    assert Run(workload, fleet).go().tally.digest() == first.tally.digest()


def test_slow_loads_take_longer_and_failed_ones_are_tried_again() -> None:
    arrivals = tuple(Arrival(SECOND + i * 60 * SECOND, i % 6, SECOND, 0) for i in range(200))
    fleet = msgspec.structs.replace(
        read_fleet("1x24GB"), faults=SimFaults(load_failed_percent=20, load_slow_percent=20)
    )
    patient = msgspec.structs.replace(core_config(), load_failures_max=50)
    done = Run(small(*arrivals, models=6), fleet, config=patient).go()
    usual = Run(small(*arrivals, models=6), read_fleet("1x24GB")).go()
    assert done.world.loads_broken > 5 and done.world.loads_slow > 5
    assert done.tally.load_us > usual.tally.load_us


def test_stock_and_twins_are_not_run_on_a_fleet_with_faults() -> None:
    scenario = SCENARIOS["S10"]
    fleet = msgspec.structs.replace(scenario.fleets[0], faults=scenario.faults)
    kept_out = {policy for policy in Policy if not possible(policy, faults=True)}
    assert kept_out == {Policy.stock, Policy.stock_pinned, Policy.lru_twin, Policy.hv_twin, Policy.belady_twin}
    assert all(possible(policy, faults=False) for policy in Policy)
    with pytest.raises(AssertionError):
        run(small(Arrival(SECOND, 0, SECOND, 0)), fleet, Policy.stock)


def test_a_client_without_patience_leaves_and_costs_no_slot() -> None:
    arrivals = (Arrival(SECOND, 0, 100 * SECOND, 0), Arrival(2 * SECOND, 0, SECOND, 1))
    done = Run(small(*arrivals), read_fleet("1x24GB"), SimClients(patience_us=10 * SECOND)).go()
    assert done.front is not None and done.front.left_waiting == 1
    assert done.tally.refused == {"left": 1} and len(done.said(RequestCancelled)) == 1
    assert sum(isinstance(d, Dispatch) for d in done.decisions) == 1


def test_a_client_that_breaks_off_frees_its_slot_for_the_next() -> None:
    arrivals = (Arrival(SECOND, 0, 100 * SECOND, 0), Arrival(2 * SECOND, 0, SECOND, 1))
    done = Run(small(*arrivals), read_fleet("1x24GB"), SimClients(break_off_percent=100)).go()
    assert done.front is not None and done.front.left_running == 2
    assert done.tally.refused == {"left": 2}


def test_a_refused_client_comes_back_when_retry_after_says() -> None:
    arrivals = tuple(Arrival(SECOND + i, 0, 4 * SECOND, i) for i in range(6))
    tight = CoreConfig(queue_per_model_max=1, queue_wait_max_us=SpanUs(HOUR))
    alone = Run(small(*arrivals), read_fleet("1x24GB"), SimClients(deadline_us=HOUR), tight).go()
    assert alone.tally.refused == {"queue_full": 5}
    back = Run(small(*arrivals), read_fleet("1x24GB"), SimClients(tries_max=20, deadline_us=HOUR), tight).go()
    assert back.front is not None and back.front.came_back >= 5
    assert not back.tally.refused
