"""What is run for each claim: two subjects under one load, and the figure that is compared. The first of a claim is
under the published conditions, as far as these are known; the others change one thing after another.

Not published are the number of models, the pauses, the lengths and the bound on waits: eight models, ten minutes (none
for throughput), Azure's conversations and five seconds are our choice, which is why the others are tried.
"""

from collections.abc import Iterator
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from bellmare.sim.claims.conditions import Lengths, Mix, Setup
from bellmare.sim.claims.verdict import Claim

MODELS_MAX = 12
"""Models tried per GPU. Three fit the card, so that nine of twelve are always missing."""
GPUS_MAX = 12
"""GPUs tried. Where none of these numbers is enough, one more is taken, which is kind to that side."""
BOUND_S = 5.0
"""A load of a 7B takes 3.7 s, one of a 13B 5.9 s."""


class Metric(StrEnum):
    """What is compared."""

    cold = "first token of cold requests"
    """Mean, of requests that found no ready runner."""
    every = "first token of all requests"
    cold_to_every = "first token, cold before and all after"
    """A reading that makes the most of the claim: misses of one side against the average of the other."""
    share = "cold requests"
    rate = "answers"
    most_models = "models within the bound"
    """The most of those tried with which the 95th percentile of added waits stays within the bound, per GPU."""
    least_gpus = "GPUs within the bound"
    """The fewest of those tried."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the report."""

    claim: Claim
    metric: Metric
    before: Setup
    after: Setup
    stated: bool = False
    tried: tuple[int, ...] = ()
    """Numbers of models, or of GPUs, where the most or the fewest is looked for."""
    bound_s: float = BOUND_S

    @property
    def conditions(self) -> str:
        """In words."""
        load = self.before.load
        if not self.tried:
            return load
        words = load.split(", ")
        varied = "models" if self.metric is Metric.most_models else "GPUs"
        words[1 if self.metric is Metric.most_models else 0] = f"{self.tried[0]} to {self.tried[-1]} {varied}" + (
            f" ({self.before.mix})" if self.metric is Metric.most_models else " (L4)"
        )
        return ", ".join(words) + f", p95 of waits within {self.bound_s:g} s"

    def at(self, setup: Setup) -> tuple[Setup, ...]:
        """The runs of one side, without their seeds."""
        if not self.tried:
            return (setup,)
        if self.metric is Metric.most_models:
            return tuple(replace(setup, models=count) for count in self.tried)
        return tuple(replace(setup, gpus=count) for count in self.tried)


def cases() -> tuple[Case, ...]:
    """All, claim by claim."""
    return (*_cold_start(), *_cold_starts(), *_density(), *_throughput(), *_gpu_cost())


def _both(**changed: object) -> tuple[Setup, Setup]:
    """Stock and bellmare under one load, ten minutes of thought."""
    load = {"think_s": 600.0, "horizon_s": 15_000.0, **changed}
    hints = load.pop("hints_percent", 0)
    stock: Setup = msgspec.convert({"gateway": False, **load}, Setup)
    load.pop("pinned", None)
    return stock, msgspec.convert({"gateway": True, "hints_percent": hints, **load}, Setup)


def _cold_start() -> Iterator[Case]:
    claim = Claim.cold_start
    for cache in (False, True):
        before, after = _both(page_cache=cache)
        yield Case(claim=claim, metric=Metric.cold, before=before, after=after, stated=not cache)
    for changed in (
        {},
        {"page_cache": True},
        {"page_cache": True, "hints_percent": 90},
        {"gpus": 4},
        {"gpus": 4, "page_cache": True, "hints_percent": 90},
    ):
        before, after = _both(**changed)
        yield Case(claim=claim, metric=Metric.every, before=before, after=after)
    for changed in (
        {},
        {"gpus": 4},
        {"lengths": Lengths.short},
        {"lengths": Lengths.short, "page_cache": True, "hints_percent": 90},
        {"lengths": Lengths.short, "gpus": 4},
    ):
        before, after = _both(**changed)
        yield Case(claim=claim, metric=Metric.cold_to_every, before=before, after=after)


def _cold_starts() -> Iterator[Case]:
    for changed in (
        {"models": 8},
        {"models": 2},
        {"models": 3},
        {"models": 4},
        {"models": 6},
        {"models": 12},
        {"models": 8, "page_cache": True, "hints_percent": 90},
        {"models": 8, "pinned": True},
        *({"gpus": 4, "models": count} for count in (4, 8, 10, 12, 16, 24)),
        {"gpus": 4, "models": 16, "page_cache": True, "hints_percent": 90},
        {"gpus": 4, "models": 8, "pinned": True},
        {"gpus": 4, "models": 12, "pinned": True},
    ):
        before, after = _both(**changed)
        stated = changed == {"models": 8}
        yield Case(claim=Claim.cold_starts, metric=Metric.share, before=before, after=after, stated=stated)


def _density() -> Iterator[Case]:
    one, four = tuple(range(1, MODELS_MAX + 1)), tuple(range(4, 4 * MODELS_MAX + 1, 4))
    for changed, bound_s in (
        ({}, BOUND_S),
        ({}, 10.0),
        ({"page_cache": True}, BOUND_S),
        ({"page_cache": True}, 10.0),
        ({"page_cache": True, "hints_percent": 90}, BOUND_S),
        ({"pinned": True}, BOUND_S),
        ({"mix": Mix.small}, BOUND_S / 5),
        ({"mix": Mix.small, "pinned": True}, BOUND_S / 5),
        ({"gpus": 4}, BOUND_S),
        ({"gpus": 4, "pinned": True}, BOUND_S),
    ):
        before, after = _both(**{"think_s": 1200.0, **changed})
        yield Case(
            claim=Claim.density, metric=Metric.most_models, before=before, after=after, bound_s=bound_s,
            stated=not changed and bound_s == BOUND_S, tried=four if "gpus" in changed else one,
        )  # fmt: skip


def _throughput() -> Iterator[Case]:
    busy = {"think_s": 0.0, "horizon_s": 1_800.0, "warm_up_s": 300.0}
    short = {**busy, "lengths": Lengths.short, "horizon_s": 900.0}
    for load in (busy, short, {**short, "models": 2}, {**short, "gpus": 4}, {**busy, "gpus": 4}):
        stock, gateway = _both(**load)
        pairs = [(stock, replace(gateway, parallel=4))]
        if load in (busy, short):  # what the setting does by itself, and what the gateway does without it
            pairs += [(stock, replace(stock, parallel=4)), (stock, gateway)]
            pairs.append((replace(stock, parallel=4), replace(gateway, parallel=4)))
        for before, after in pairs:
            stated = load is busy and before is stock and after.gateway and after.parallel == 4
            yield Case(claim=Claim.throughput, metric=Metric.rate, before=before, after=after, stated=stated)
    for load in ({**busy, "models": 1, "mix": Mix.seven}, {**short, "models": 1, "mix": Mix.seven}):
        stock, gateway = _both(**load)
        four = replace(stock, parallel=4)
        for before, after in ((stock, four), (four, replace(gateway, parallel=4))):
            yield Case(claim=Claim.throughput, metric=Metric.rate, before=before, after=after)


def _gpu_cost() -> Iterator[Case]:
    tried = tuple(range(1, GPUS_MAX + 1))
    for changed, bound_s in (
        ({}, BOUND_S),
        ({}, 10.0),
        ({"pinned": True}, BOUND_S),
        ({"think_s": 120.0}, 10.0),
        ({"think_s": 120.0, "pinned": True}, BOUND_S),
        ({"think_s": 120.0, "page_cache": True}, BOUND_S),
    ):
        before, after = _both(**{"horizon_s": 7_800.0, **changed})
        yield Case(
            claim=Claim.gpu_cost, metric=Metric.least_gpus, before=before, after=after, bound_s=bound_s,
            stated=not changed and bound_s == BOUND_S, tried=tried,
        )  # fmt: skip
