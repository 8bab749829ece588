"""Fleets as they are written and read, and worlds of unequal machines."""

import re

import pytest
from test_sim_stock import asked, waits_s
from test_sim_world import load, settle, small

from bellmare.sim.fleet import GROUPS_MAX, WORKERS_MAX, FleetError, SimMachine, load_us, read_fleet
from bellmare.sim.runs import Policy, run
from bellmare.sim.stock import Stock
from bellmare.sim.tally import Tally
from bellmare.sim.twin_world import TwinWorld
from bellmare.sim.workload import Workload
from bellmare.sim.world import LightWorld

SECOND = 1_000_000
GB = 1_000_000_000


@pytest.mark.parametrize(
    "text",
    [
        "4x24GB",
        "2x24GB+1x48GB",
        "1x24GB,ram=64GB,disk=2.5GB/s",
        "1x24GB,bus=12GB/s,spawn=2s,unload=0.5s+3x7.5GB,disk=0.154GB/s",
        "1x24GB,spawn=0s,unload=0s",
    ],
)
def test_a_fleet_reads_back_as_it_was_written(text: str) -> None:
    fleet = read_fleet(text)
    assert fleet.text == text and read_fleet(fleet.text) == fleet


def test_what_is_usual_is_not_written_and_equal_neighbours_are_one_group() -> None:
    assert read_fleet("1x24GB,disk=2GB/s,spawn=1s+1x24gb").text == "2x24GB"
    assert read_fleet("1x24GB+1x48GB+1x24GB").text == "1x24GB+1x48GB+1x24GB", "the order of workers is kept"


def test_options_hold_for_their_group_alone() -> None:
    fast, plain = read_fleet("1x24GB,ram=1GiB,disk=4GB/s,bus=8GiB/s,spawn=2.5s,unload=0.25s+1x48GB").machines
    assert plain == SimMachine(48 * GB)
    assert (fast.host_cache_bytes, fast.disk_bytes_per_s, fast.host_bytes_per_s) == (1 << 30, 4 * GB, 8 << 30)
    assert (fast.spawn_us, fast.unload_us) == (2_500_000, 250_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1x24GB+", "write the number of workers"),
        ("1x24GB,", "no option ''; there are ram, disk, bus, spawn, unload"),
        ("1x24GB,vram=3GB", "no option 'vram'"),
        ("1x24GB,ram=64", "'64' is no value of ram"),
        ("1x24GB,disk=0GB/s", "'0GB/s' is no value of disk"),
        ("1x24GB,disk=2GB", "'2GB' is no value of disk"),
        ("1x24GB,spawn=3601s", "'3601s' is no value of spawn"),
        (f"{WORKERS_MAX}x24GB+1x24GB", f"between 1 and {WORKERS_MAX} workers"),
        ("+".join(["1x1GB"] * (GROUPS_MAX + 1)), f"at most {GROUPS_MAX}"),
    ],
)
def test_a_fleet_that_cannot_be_read_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(FleetError, match=re.escape(said)):
        read_fleet(text)


def test_the_largest_fleet_has_as_many_workers_as_the_bound() -> None:
    fleet = read_fleet(f"{WORKERS_MAX - 1}x24GB+1x48GB")
    assert fleet.workers == WORKERS_MAX == len(set(fleet.names()))


def test_each_worker_of_an_unequal_fleet_has_its_own_memory_and_rate() -> None:
    fleet = read_fleet("1x8GB,disk=4GB/s+1x24GB")
    workload = small(4.0, 14.0)
    world = LightWorld(workload, fleet, Tally(workload))
    assert [added.capacity_bytes for added in world.added()] == [8 * GB, 24 * GB]
    world.act(0, load(world, 1))
    settle(world)
    assert world.loads_failed == 1, "the first worker is too small for it"
    world.act(SECOND, load(world, 0, 2))
    assert settle(world)[0] == 3 * SECOND
    assert load_us(fleet.machines[0], workload.models[0], cached=False) == 2 * SECOND


def test_twins_have_the_machine_of_their_worker() -> None:
    workload = small(4.0)
    world = TwinWorld(workload, read_fleet("1x8GB+1x24GB"), Tally(workload))
    assert [added.capacity_bytes for added in world.added()] == [8 * GB, 24 * GB]
    assert [server.twin.config.gpu.vram_bytes for server in world.servers.values()] == [8 * GB, 24 * GB]


def test_stock_ollamas_load_as_quickly_as_their_own_machine() -> None:
    stock = Stock(Tally(asked((1, 0, 60), (2, 0, 1), weights_gb=4.0)), read_fleet("1x24GB,disk=4GB/s+1x24GB"))
    stock.run()
    assert waits_s(stock) == [2.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Policy.stock, Policy.lru, Policy.lru_twin, Policy.belady])
def test_every_request_is_served_by_an_unequal_fleet(day: Workload, policy: Policy) -> None:
    tally = run(day, read_fleet("1x8GB+1x48GB,ram=32GB,disk=1GB/s"), policy).tally
    assert tally.open == 0 and tally.evictions > 0 and len(tally.waits_us()) == len(day.arrivals)
