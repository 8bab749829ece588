"""Hazard value (HV): what losing a runner costs in seconds of waiting, by the forecast of its next use.

Value = p(tau) x load span: the probability that it is asked for before its room would have been taken anyway, times
what its return would cost. tau follows the cache's own characteristic time, so that one policy serves a single small
GPU and a large fleet (policy findings 4.5, 5.2, 5.3).
"""

from collections.abc import Sequence
from typing import ClassVar

from bellmare.core import forecast, hints
from bellmare.core.eviction.policy import R, Resident, used_us
from bellmare.core.fleet import Fleet
from bellmare.core.knowledge import Experience
from bellmare.core.prewarm import Ahead, best_ahead
from bellmare.core.residency import Residency
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import GIB, SECOND_US, ModelId

HORIZON = 0.3
"""tau is half the characteristic time: policy findings 5.2."""
SPARE_COPY = 0.1
"""Another ready copy serves on: losing this one costs a tenth, mostly waiting for slots."""
NEVER_ASKED = 0.02
"""p of a resident that nobody has asked for yet."""


class HazardValue:
    """Prices in seconds; see the module."""

    name: ClassVar[str] = "hv"
    prices: ClassVar[bool] = True

    def __init__(self, experience: Experience) -> None:
        del experience

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None: ...

    def left(self, fleet: Fleet, resident: Resident) -> None: ...

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        """By value per byte, so that the room comes from whom it costs least."""
        return sorted(candidates, key=lambda r: (self.value(fleet, r) / max(GIB // 4, r.bytes), r.used_us, r.model))

    def loss(self, fleet: Fleet, victims: Sequence[Resident]) -> float:
        total = 0.0
        for resident in victims:
            total += self.value(fleet, resident)
        return total

    def value(self, fleet: Fleet, resident: Resident) -> float:
        """Seconds of waiting expected if it leaves now."""
        if not used_us(fleet, resident):
            return 0.0
        tau_s = HORIZON * forecast.idle_s(fleet)
        # The span by which absent models are weighed too: by its own last load, mostly another, two models could each
        # be worth the other's place and push each other out for ever.
        load_us = fleet.state.models[resident.model].load_us or resident.load_us
        value = self.soon(fleet, resident.model, tau_s) * load_us / SECOND_US
        return value * SPARE_COPY if _spare(fleet, resident) else value

    def ahead(self, fleet: Fleet, worker: Worker) -> Ahead | None:
        del worker  # the best place may be another
        return best_ahead(fleet, self)

    def soon(self, fleet: Fleet, model_id: ModelId, tau_s: float) -> float:
        """p(tau) of a model, hints included."""
        model = fleet.state.models[model_id]
        said = forecast.chance(fleet, model.demand, tau_s) if model.demand.counters else NEVER_ASKED
        return max(said, hints.chance(fleet, model, tau_s)) if model.demand.hints else said


def _spare(fleet: Fleet, resident: Resident) -> bool:
    """Whether the model is ready on another worker too."""
    model = fleet.state.models[resident.model]
    if len(model.copies) < 2 or not isinstance(resident, Runner):  # a shadow holds one copy of each
        return False
    ready = sum(1 for _, runner in fleet.copies(model) if runner.residency is Residency.resident)
    return ready > 1
