"""What is run for each claim: two subjects under one load, and the figure that is compared.

``stated`` are the published conditions. What was not published (pauses, number of models, lengths, page cache, the
bound on waits) is tried with several values there; a claim is reproduced only if all of those rows hold. The other rows
change more: GPUs, hints, sizes, and stock Ollama with better settings.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from bellmare.sim.claims.conditions import Lengths, Mix, Setup
from bellmare.sim.claims.verdict import Claim

MODELS_MAX = 12
"""Models tried per GPU. Three fit the card, so that nine of twelve are always missing."""
MODELS_ON_FOUR = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24)
GPUS_MAX = 10
"""GPUs tried. Where none of these numbers is enough, one more is taken, which is kind to that side."""
BOUND_S, BOUND_LONG_S = 5.0, 10.0
"""A load of a 7B takes 3.7 s, one of a 13B 5.9 s and with an unload before it 6.7 s: the first allows one request in
twenty to wait for a 7B, the second for any one load."""
BOUND_SMALL_S = 1.0
"""Where all models are 1B, which load in 1.5 s."""


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


def _both(**changed: Any) -> tuple[Setup, Setup]:
    """Stock and bellmare under one load; ten minutes of thought unless said otherwise."""
    load = {"think_s": 600.0, "horizon_s": 15_000.0, **changed}
    theirs = {name: load.pop(name) for name in ("pinned", "assigned") if name in load}
    hints_percent = load.pop("hints_percent", 0)
    return Setup(gateway=False, **load, **theirs), Setup(gateway=True, hints_percent=hints_percent, **load)


SHORT: Any = {"lengths": Lengths.short}
AHEAD: Any = {"page_cache": True, "hints_percent": 90}
"""The files are in page cache and nine of ten requests are announced: the most that can be had."""
CALM: Any = {"think_s": 3_600.0, "horizon_s": 60_000.0}
"""Fifty people who ask once an hour: a runner is seldom busy when its memory is wanted."""
ASSIGNED: Any = {"pinned": True, "assigned": True}
"""What a careful operator does without a gateway."""


def _cold_start() -> Iterator[Case]:
    loads: tuple[tuple[Metric, Any], ...] = (
        (Metric.cold, {}),
        (Metric.cold, {"page_cache": True}),
        (Metric.cold, CALM),
        (Metric.every, {}),
        (Metric.every, {"page_cache": True}),
        (Metric.every, AHEAD),
        (Metric.every, {**CALM, **AHEAD}),
        (Metric.every, {**CALM, **AHEAD, **SHORT}),
        (Metric.every, {"gpus": 4}),
        (Metric.every, {"gpus": 4, **AHEAD}),
        (Metric.every, {"gpus": 4, **SHORT}),
        (Metric.every, {"gpus": 4, **SHORT, **ASSIGNED}),
        (Metric.cold_to_every, {}),
        (Metric.cold_to_every, {"gpus": 4}),
        (Metric.cold_to_every, {**SHORT, **AHEAD}),
        (Metric.cold_to_every, {"gpus": 4, **SHORT}),
    )
    for metric, changed in loads:
        before, after = _both(**changed)
        stated = metric is Metric.cold
        yield Case(claim=Claim.cold_start, metric=metric, before=before, after=after, stated=stated)


def _cold_starts() -> Iterator[Case]:
    loads: tuple[Any, ...] = (
        *({"models": count} for count in (3, 4, 6, 8, 12)),
        {"models": 8, **AHEAD},
        {"models": 8, **CALM},
        {"models": 8, **CALM, **AHEAD},
        {"models": 8, "pinned": True},
        *({"gpus": 4, "models": count} for count in (4, 8, 10, 12, 16, 24)),
        {"gpus": 4, "models": 16, **AHEAD},
        {"gpus": 4, "models": 8, "pinned": True},
        *({"gpus": 4, "models": count, **ASSIGNED} for count in (8, 12, 16)),
    )
    for changed in loads:
        before, after = _both(**changed)
        stated = set(changed) == {"models"}
        yield Case(claim=Claim.cold_starts, metric=Metric.share, before=before, after=after, stated=stated)


def _density() -> Iterator[Case]:
    loads: tuple[tuple[float, Any], ...] = (
        (BOUND_S, {}),
        (BOUND_LONG_S, {}),
        (BOUND_S, {"page_cache": True}),
        (BOUND_LONG_S, {"page_cache": True}),
        (BOUND_LONG_S, AHEAD),
        (BOUND_LONG_S, {"pinned": True}),
        (BOUND_SMALL_S, {"mix": Mix.small}),
        (BOUND_SMALL_S, {"mix": Mix.small, "pinned": True}),
        (BOUND_S, {"gpus": 4}),
        (BOUND_S, {"gpus": 4, **ASSIGNED}),
    )
    for bound_s, changed in loads:
        before, after = _both(**{"think_s": 1200.0, **changed})
        yield Case(
            claim=Claim.density,
            metric=Metric.most_models,
            before=before,
            after=after,
            bound_s=bound_s,
            stated=set(changed) <= {"page_cache"},
            tried=MODELS_ON_FOUR if "gpus" in changed else tuple(range(1, MODELS_MAX + 1)),
        )


def _throughput() -> Iterator[Case]:
    chat: Any = {"think_s": 0.0, "horizon_s": 1_800.0, "warm_up_s": 300.0}
    short: Any = {**chat, **SHORT, "horizon_s": 600.0, "warm_up_s": 120.0}
    pairs: list[tuple[Setup, Setup]] = []
    for load in (chat, short):
        stock, gateway = _both(**load)
        stock_four, gateway_four = replace(stock, parallel=4), replace(gateway, parallel=4)
        pairs += [(stock, gateway_four), (stock, stock_four), (stock, gateway), (stock_four, gateway_four)]
        stock, gateway = _both(**load, mix=Mix.seven, models=1)
        pairs += [(stock, replace(stock, parallel=4)), (replace(stock, parallel=4), replace(gateway, parallel=4))]
    for load in ({**short, "models": 2}, {**chat, "gpus": 4}, {**short, "gpus": 4}, {**short, "gpus": 4, **ASSIGNED}):
        stock, gateway = _both(**load)
        pairs.append((stock, replace(gateway, parallel=4)))
    for before, after in pairs:
        stated = after.gateway and (before.parallel, after.parallel, before.gpus, before.models) == (1, 4, 1, 8)
        yield Case(claim=Claim.throughput, metric=Metric.rate, before=before, after=after, stated=stated)


def _gpu_cost() -> Iterator[Case]:
    loads: tuple[tuple[float, Any], ...] = (
        (BOUND_S, {}),
        (BOUND_LONG_S, {}),
        (BOUND_S, {"think_s": 120.0}),
        (BOUND_LONG_S, {"think_s": 120.0}),
        (BOUND_S, {"pinned": True}),
        (BOUND_S, ASSIGNED),
        (BOUND_S, {"think_s": 120.0, **ASSIGNED}),
        (BOUND_LONG_S, {"think_s": 120.0, **ASSIGNED}),
    )
    for bound_s, changed in loads:
        before, after = _both(**{"horizon_s": 6_600.0, **changed})
        yield Case(
            claim=Claim.gpu_cost,
            metric=Metric.least_gpus,
            before=before,
            after=after,
            bound_s=bound_s,
            stated=set(changed) <= {"think_s"},
            tried=tuple(range(1, GPUS_MAX + 1)),
        )
