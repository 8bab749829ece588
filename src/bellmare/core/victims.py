"""Which runners have to leave one worker for a load, and what that costs in all. Only proposes.

For a policy that prices losses in seconds a set is weighed as a whole: several small victims cost an unload each, one
large one costs its own return. For the classics it is the shortest prefix of their order, less what is not needed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from bellmare.core.costs import UNLOAD_US
from bellmare.core.eviction.policy import EvictionPolicy, R
from bellmare.core.fleet import Fleet
from bellmare.core.state import Runner, Worker
from bellmare.core.units import SECOND_US, Bytes, ModelId, SpanUs

PAIRED_MAX = 12
"""The cheapest so many runners are tried alone and in pairs; larger sets come from the greedy order."""
RATE_SCALE = 0.5
"""Bytes freed beyond need are worth half of what victims cost per byte of late: the next load may want another size."""


class Claim(NamedTuple):
    """What a load asks for."""

    need_bytes: Bytes
    """What it will take, by our own ledger."""
    predicted_bytes: int
    """What Ollama's own fit test will be about."""


class Space(Protocol):
    """A worker, or what a shadow has in its place."""

    @property
    def runners(self) -> Mapping[ModelId, object]: ...
    @property
    def capacity_known(self) -> bool: ...
    @property
    def runners_max(self) -> int: ...
    @property
    def fit_percent(self) -> int: ...
    @property
    def headroom_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def unload_us(self) -> SpanUs: ...


class Without:
    """A worker once one of its runners has left, whoever else has to."""

    __slots__ = ("capacity_known", "fit_percent", "free_bytes", "headroom_bytes", "runners", "runners_max", "unload_us")

    def __init__(self, worker: Worker, gone: Runner) -> None:
        self.runners = {model: runner for model, runner in worker.runners.items() if runner is not gone}
        self.free_bytes = worker.free_bytes + gone.bytes
        self.capacity_known = worker.capacity_known
        self.runners_max = worker.runners_max
        self.fit_percent = worker.fit_percent
        self.headroom_bytes = worker.headroom_bytes
        self.unload_us = worker.unload_us


def fits(worker: Space, claim: Claim, *, leaving_bytes: int = 0, leaving: int = 0) -> bool:
    """Whether a load may be sent once ``leaving`` runners with ``leaving_bytes`` are gone.

    Both our ledger and Ollama's own test must agree (beside others it wants the load within 80 % of free memory, and
    counts runners), else Ollama would evict by itself: ollama.md 3.3.
    """
    others = len(worker.runners) - leaving
    if others == 0 and not worker.capacity_known:
        return True
    if worker.runners_max and others >= worker.runners_max:
        return False
    free = worker.free_bytes + leaving_bytes
    if claim.need_bytes > free:
        return False
    return others == 0 or claim.predicted_bytes * 100 <= (free + worker.headroom_bytes) * worker.fit_percent


def prefix(worker: Space, claim: Claim, order: Sequence[R]) -> list[R] | None:
    """The shortest prefix of ``order`` that makes room, less what turns out not to be needed; None if none does."""
    chosen: list[R] = []
    freed = 0
    for runner in order:
        chosen.append(runner)
        freed += runner.bytes
        if fits(worker, claim, leaving_bytes=freed, leaving=len(chosen)):
            break
    else:
        return None
    for runner in chosen[:-1]:  # the last one was needed, or the loop had ended before it
        if fits(worker, claim, leaving_bytes=freed - runner.bytes, leaving=len(chosen) - 1):
            chosen.remove(runner)
            freed -= runner.bytes
    return chosen


def cheapest(fleet: Fleet, policy: EvictionPolicy, worker: Space, *, claim: Claim, idle: Sequence[R]) -> list[R] | None:
    """The idle runners whose leaving costs least in seconds, unloads included, and makes room; inclusion-minimal.

    Their memory counts for them, so that a price may be below zero: still nobody leaves who is not needed.
    """
    unload_s = (worker.unload_us or UNLOAD_US) / SECOND_US
    rate = RATE_SCALE * fleet.state.forecast.byte_price
    priced = sorted(
        (policy.loss(fleet, [runner]) + unload_s - rate * runner.bytes, runner.model, runner) for runner in idle
    )
    best, best_price = _greedy(worker, claim, priced)
    alone = [fits(worker, claim, leaving_bytes=runner.bytes, leaving=1) for _, _, runner in priced[:PAIRED_MAX]]
    for i, (price, _, runner) in enumerate(priced[:PAIRED_MAX]):
        if alone[i]:
            if price < best_price:
                best, best_price = [runner], price
            continue  # whoever makes room alone needs nobody beside him, even if that looked cheaper
        for j in range(i + 1, len(alone)):
            other_price, _, other = priced[j]
            if price + other_price >= best_price:
                break  # those behind cost more still
            if not alone[j] and fits(worker, claim, leaving_bytes=runner.bytes + other.bytes, leaving=2):
                best, best_price = [runner, other], price + other_price
                break
    return best


def _greedy(worker: Space, claim: Claim, priced: Sequence[tuple[float, ModelId, R]]) -> tuple[list[R] | None, float]:
    """By price per byte."""
    order = sorted(priced, key=lambda entry: (entry[0] / max(1, entry[2].bytes), entry[1]))
    chosen = prefix(worker, claim, [runner for _, _, runner in order])
    if chosen is None:
        return None, float("inf")
    prices = {runner.model: price for price, _, runner in priced}
    return chosen, sum(prices[runner.model] for runner in chosen)
