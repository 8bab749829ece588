"""Which runners leave one worker: enough, none too many, and the cheapest of what is tried."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from core_script import GIB, Script
from hypothesis import given, settings
from hypothesis import strategies as st

from bellmare.core.costs import UNLOAD_US
from bellmare.core.residency import Residency
from bellmare.core.state import Runner, Worker
from bellmare.core.units import SECOND_US
from bellmare.core.victims import Claim, cheapest, fits, prefix

CAPACITY = 24


def worker_with(sizes: list[int], **more: Any) -> tuple[Script, Worker, list[Runner]]:
    """A worker of 24 GiB with runners of these many GiB; what is left is free."""
    script = Script()
    script.joins("w", gib=CAPACITY, **more)
    worker = script.seen("w")
    for number, gib in enumerate(sizes):
        runner = Runner(
            worker=worker.worker,
            model=f"m{number}",  # type: ignore[arg-type]
            name=f"m{number}",
            residency=Residency.resident,
            num_ctx=8192,
            slots=1,
            bytes=gib * GIB,  # type: ignore[arg-type]
            since_us=script.now,  # type: ignore[arg-type]
        )
        worker.runners[runner.model] = runner
        worker.used_bytes += runner.bytes  # type: ignore[assignment]
    return script, worker, list(worker.runners.values())


def claim_of(gib: int) -> Claim:
    return Claim(gib * GIB, 0)  # type: ignore[arg-type]


class Prices:
    """A policy that only says what each runner is worth."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = {f"m{number}": price for number, price in enumerate(seconds)}

    def loss(self, _: Any, victims: list[Runner]) -> float:
        return sum(self.seconds[victim.model] for victim in victims)


def makes_room(worker: Worker, claim: Claim, chosen: list[Runner]) -> bool:
    return fits(worker, claim, leaving_bytes=sum(one.bytes for one in chosen), leaving=len(chosen))


def is_minimal(worker: Worker, claim: Claim, chosen: list[Runner]) -> bool:
    return not any(makes_room(worker, claim, [other for other in chosen if other is not one]) for one in chosen)


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) <= CAPACITY)
PRICED = SIZES.flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.lists(st.floats(0.0, 60.0), min_size=len(sizes), max_size=len(sizes)))
)


@given(priced=PRICED, need=st.integers(1, CAPACITY), rate=st.floats(0.0, 5.0))
@settings(max_examples=200)
def test_the_cheapest_set_makes_room_and_nobody_in_it_is_not_needed(
    priced: tuple[list[int], list[float]], need: int, rate: float
) -> None:
    sizes, seconds = priced
    script, worker, idle = worker_with(sizes)
    script.engine.fleet.state.forecast.byte_price = rate / GIB
    claim = claim_of(need)
    chosen = cheapest(script.engine.fleet, Prices(seconds), worker, claim=claim, idle=idle)  # type: ignore[arg-type]
    possible = makes_room(worker, claim, idle)
    assert (chosen is not None) == possible
    if chosen is not None and not makes_room(worker, claim, []):
        assert makes_room(worker, claim, chosen)
        assert is_minimal(worker, claim, chosen)


@given(priced=PRICED, need=st.integers(1, CAPACITY))
@settings(max_examples=200)
def test_no_single_runner_or_pair_is_cheaper_than_the_set_that_is_chosen(
    priced: tuple[list[int], list[float]], need: int
) -> None:
    sizes, seconds = priced
    script, worker, idle = worker_with(sizes)
    claim = claim_of(need)
    policy = Prices(seconds)
    if makes_room(worker, claim, []):
        return
    chosen = cheapest(script.engine.fleet, policy, worker, claim=claim, idle=idle)  # type: ignore[arg-type]
    if chosen is None:
        return
    unload_s = UNLOAD_US / SECOND_US

    def price(victims: list[Runner]) -> float:
        return policy.loss(None, victims) + unload_s * len(victims)

    for count in (1, 2):
        for some in combinations(idle, count):
            if makes_room(worker, claim, list(some)) and is_minimal(worker, claim, list(some)):
                assert price(chosen) <= price(list(some)) + 1e-6


@given(sizes=SIZES, need=st.integers(1, CAPACITY))
@settings(max_examples=200)
def test_the_prefix_of_an_order_is_minimal_and_ends_where_it_makes_room(sizes: list[int], need: int) -> None:
    _, worker, order = worker_with(sizes)
    claim = claim_of(need)
    chosen = prefix(worker, claim, order)
    assert (chosen is None) == (not makes_room(worker, claim, order))
    if chosen and not makes_room(worker, claim, []):
        assert makes_room(worker, claim, chosen)
        assert is_minimal(worker, claim, chosen)
        last = order.index(chosen[-1])
        assert not makes_room(worker, claim, order[:last])


def test_one_that_makes_room_alone_takes_nobody_along_even_if_memory_is_dear() -> None:
    script, worker, idle = worker_with([12, 12])
    script.engine.fleet.state.forecast.byte_price = 100 / GIB
    chosen = cheapest(script.engine.fleet, Prices([1, 2]), worker, claim=claim_of(10), idle=idle)  # type: ignore[arg-type]
    assert chosen is not None
    assert len(chosen) == 1


def test_one_large_victim_is_weighed_against_two_small_ones() -> None:
    script, worker, idle = worker_with([6, 6, 12])
    fleet, claim = script.engine.fleet, claim_of(12)
    dear = cheapest(fleet, Prices([1, 1, 30]), worker, claim=claim, idle=idle)  # type: ignore[arg-type]
    cheap = cheapest(fleet, Prices([9, 9, 10]), worker, claim=claim, idle=idle)  # type: ignore[arg-type]
    assert [one.model for one in dear or []] == ["m0", "m1"]
    assert [one.model for one in cheap or []] == ["m2"]


def test_the_number_of_runners_counts_as_well_as_bytes() -> None:
    _, worker, order = worker_with([2, 2], runners_max=2)
    assert not fits(worker, claim_of(1))
    assert fits(worker, claim_of(1), leaving_bytes=order[0].bytes, leaving=1)


def test_ollamas_own_share_of_free_memory_counts_only_beside_others() -> None:
    _, worker, _ = worker_with([4], fit_percent=80)
    assert fits(worker, Claim(1 * GIB, 16 * GIB))  # type: ignore[arg-type]
    assert not fits(worker, Claim(1 * GIB, 16 * GIB + 1))  # type: ignore[arg-type]
    assert fits(worker, Claim(1 * GIB, 90 * GIB), leaving_bytes=4 * GIB, leaving=1)  # type: ignore[arg-type]
