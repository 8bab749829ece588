"""What a run asks for: models with sizes, and arrivals in order of time. Says nothing of who serves them."""

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bellmare.core.units import SECOND_US

GB = 1_000_000_000
SIZES_GB = (
    0.27, 0.40, 0.52, 0.67, 0.82, 1.12, 1.32, 1.63, 1.93, 2.02, 2.49, 3.15, 3.34,
    4.11, 4.68, 4.92, 5.23, 5.44, 7.37, 8.15, 9.05, 9.28, 13.78, 17.40, 19.85,
)  # fmt: skip
"""Weights of 25 models as Ollama's library offers them by default (mostly Q4_K_M), from an embedding model of 0.27 GB
to a 32B of 19.85 GB. From memory of the library; policy.md 3 used the like."""
START_US = SECOND_US
"""The first arrival: workers have been observed by then."""


class SimModel(msgspec.Struct, frozen=True):
    """One model that every worker stores."""

    name: str
    blob: str
    """Digest of the weights, 64 hex digits. Stock Ollama breaks ties of eviction by it."""
    weights_bytes: int


class Arrival(NamedTuple):
    """One request. ``model`` is an index into the workload's models; the service span counts from its start."""

    at_us: int
    model: int
    service_us: int
    user: int


class Workload(msgspec.Struct, frozen=True):
    """Everything that one run is asked to serve."""

    name: str
    seed: int
    models: tuple[SimModel, ...]
    arrivals: tuple[Arrival, ...]
    """By rising ``at_us``, the first at ``START_US``."""
    slots: int = 4
    """Requests that one runner serves at once, on every worker and for every baseline alike (policy.md 3)."""


def randomness(seed: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose, so that a change of one leaves the others as they were."""
    return random.Random(f"bellmare {purpose} {seed}")  # noqa: S311 a simulation, not a secret


def build(name: str, *, seed: int, arrivals: Sequence[Arrival], slots: int = 4) -> Workload:
    """A workload from arrivals in any order and at any offset; sizes are drawn by seed, whatever a model's popularity.

    Model indexes must be dense from 0; at least one arrival is needed.
    """
    assert arrivals, "a workload asks for something"
    ordered = sorted(arrivals)
    shift_us = START_US - ordered[0].at_us
    moved = tuple(arrival._replace(at_us=arrival.at_us + shift_us) for arrival in ordered)
    chance = randomness(seed, "sizes")
    models = []
    for number in range(1 + max(arrival.model for arrival in moved)):
        model_name = f"model-{number:04d}:latest"
        blob = hashlib.sha256(f"{seed} {model_name}".encode()).hexdigest()
        models.append(SimModel(model_name, blob, int(chance.choice(SIZES_GB) * GB)))
    return Workload(name=name, seed=seed, models=tuple(models), arrivals=moved, slots=slots)


def first(workload: Workload, requests_max: int) -> Workload:
    """The beginning of a workload; the models stay, asked for or not."""
    return msgspec.structs.replace(workload, arrivals=workload.arrivals[:requests_max])
