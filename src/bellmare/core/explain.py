"""Why something happened: the recent events and decisions, kept in a ring and told in plain words."""

from collections import deque
from collections.abc import Iterable

import msgspec

from bellmare.core.decisions import Decision
from bellmare.core.events import Event
from bellmare.core.naming import CLASS_MARK
from bellmare.core.units import SECOND_US, InstantUs, ModelId

STORY_MAX = 8192
"""Steps remembered; about a minute of a very busy fleet, days of a quiet one."""
TOLD_MAX = 200
QUIET = frozenset({"TimePassed", "FirstTokenReceived", "WorkerObserved"})
"""Events that explain nothing by themselves."""


class Story:
    """A bounded memory of steps. Not part of the state: it decides nothing."""

    def __init__(self) -> None:
        self._steps: deque[tuple[InstantUs, Event, list[Decision]]] = deque(maxlen=STORY_MAX)

    def record(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        self._steps.append((now_us, event, decisions))

    def about(self, subject: str, models: tuple[ModelId, ...], *, now_us: InstantUs) -> list[str]:
        """The newest lines that name ``subject`` or one of ``models``, oldest first, each with its age in seconds."""
        told: deque[str] = deque(maxlen=TOLD_MAX)
        for step_us, event, decisions in self._steps:
            kind, age = type(event).__name__, f"{(now_us - step_us) / SECOND_US:.3f} s ago"
            if kind not in QUIET and _names(event, subject, models):
                told.append(f"{age}  {_tell(event)}")
            for decision in decisions:
                if _names(decision, subject, models):
                    told.append(f"{age}  -> {_tell(decision)}  (on {kind})")
        return list(told)


def _names(item: Event | Decision, subject: str, models: tuple[ModelId, ...]) -> bool:
    fields = ("request", "worker", "model", "name", "wanted_by", "ticket", "policy", "before")
    values = {getattr(item, field, None) for field in fields}
    if subject in values or any(model in values for model in models):
        return True
    return bool(models) and str(getattr(item, "name", "")).partition(CLASS_MARK)[0] == subject


def _tell(item: Event | Decision) -> str:
    fields: Iterable[tuple[str, object]] = msgspec.structs.asdict(item).items()
    said = (f"{name}={value}" for name, value in fields if value not in ("", None, 0, ()))
    return f"{type(item).__name__} {' '.join(said)}"
