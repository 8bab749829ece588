"""What every policy is: a way to value residents. Of the live cache and of the shadows' alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from bellmare.core.fleet import Fleet
from bellmare.core.state import Model, Worker
from bellmare.core.units import SECOND_US, Bytes, InstantUs, ModelId, SpanUs

if TYPE_CHECKING:
    from bellmare.core.prewarm import Ahead


class Resident(Protocol):
    """A runner, or what a shadow holds in its place."""

    model: ModelId
    bytes: Bytes
    used_us: InstantUs
    """Last dispatch or finish."""
    load_us: SpanUs
    """What loading it again would cost."""


R = TypeVar("R", bound=Resident)


class EvictionPolicy(Protocol):
    """One way to value residents. Pure: the same state gives the same order."""

    name: ClassVar[str]
    prices: ClassVar[bool]
    """Whether ``loss`` is in seconds of expected waiting, comparable with the spans of loads and unloads."""

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None:
        """A request for ``model`` has come; its demand knows of it already. ``held``: this cache has a copy of it."""

    def left(self, fleet: Fleet, resident: Resident) -> None:
        """A victim leaves, for another's sake or ahead of demand. Told once of each that goes."""

    def rank(self, fleet: Fleet, candidates: Sequence[R]) -> list[R]:
        """``candidates`` by rising value: the first leaves first. Ties go by model id."""

    def loss(self, fleet: Fleet, victims: Sequence[Resident]) -> float:
        """What losing all of ``victims`` costs, comparable between workers; 0.0 for none."""

    def ahead(self, fleet: Fleet, worker: Worker) -> "Ahead | None":
        """A load on an idle worker that pays although nobody waits for it; None: there is none."""

    def soon(self, fleet: Fleet, model: ModelId, tau_s: float) -> float:
        """p(tau): the probability that the model is asked for before a moment that comes at rate 1 / ``tau_s``. Only of
        policies that price."""


def used_us(fleet: Fleet, resident: Resident) -> InstantUs:
    """When it was last of use; released since then it counts as never used."""
    released_us = fleet.state.models[resident.model].released_us
    return InstantUs(0) if released_us >= resident.used_us else resident.used_us


class ByRecency:
    """What most classics share: nothing is learned, and a victim used lately weighs more than one of an hour ago."""

    prices: ClassVar[bool] = False

    def __init__(self, experience: object) -> None:
        del experience

    def asked(self, fleet: Fleet, model: Model, *, held: bool) -> None: ...

    def left(self, fleet: Fleet, resident: Resident) -> None: ...

    def ahead(self, fleet: Fleet, worker: Worker) -> "Ahead | None":
        return None

    def soon(self, fleet: Fleet, model: ModelId, tau_s: float) -> float:
        return 0.0

    def loss(self, fleet: Fleet, victims: Sequence[Resident]) -> float:
        """Load spans over seconds since the last use."""
        total = 0.0
        for resident in victims:
            age_us = max(0, fleet.now_us - used_us(fleet, resident))
            total += resident.load_us / (age_us + SECOND_US)
        return total
