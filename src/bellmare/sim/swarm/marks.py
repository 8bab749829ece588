"""Coverage marks: what the runs of a campaign must have met in all, by name.

A rule that was never put to the test proves nothing, so whatever is not met fails the campaign.
"""

from collections.abc import Mapping
from enum import StrEnum

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.eviction.registry import POLICIES


class Fault(StrEnum):
    """What the outside world does wrong. Each is switched off at random per seed."""

    worker_lost = "worker_lost"
    worker_lost_emptied = "worker_lost_emptied"
    worker_back = "worker_back"
    worker_removed = "worker_removed"
    worker_added = "worker_added"
    load_failed = "load_failed"
    file_damaged = "file_damaged"
    """No load of the model succeeds, anywhere."""
    load_slow = "load_slow"
    """It ends after the core has given it up."""
    unload_failed = "unload_failed"
    end_lost = "end_lost"
    end_lost_undone = "end_lost_undone"
    """Nothing happened, and nobody says so."""
    out_of_memory = "out_of_memory"
    short_context = "short_context"
    """A load brings less context than was asked for."""
    no_answer = "no_answer"
    stale_sight = "stale_sight"
    """An observation arrives after a younger one."""
    dispatch_failed = "dispatch_failed"
    broken_off = "broken_off"
    """The answer ends after its first byte."""
    cut_off = "cut_off"
    """The worker died under a request."""
    foreign_memory = "foreign_memory"
    stranger = "stranger"
    """Somebody else loads a model."""
    reloaded = "reloaded"
    """Somebody else has a blob loaded anew with another context."""
    loaded_anew = "loaded_anew"
    """A load of ours does that to what somebody else has loaded since we looked."""
    grown = "grown"
    timer_back = "timer_back"
    expired = "expired"
    vanished = "vanished"
    renamed = "renamed"
    unnamed = "unnamed"
    late_timer = "late_timer"
    """The driver wakes after the deadline."""


class Habit(StrEnum):
    """What clients and operators do."""

    burst = "burst"
    clockwork = "clockwork"
    """Equal gaps, long enough to be worth a hint."""
    unheard_of = "unheard_of"
    short_deadline = "short_deadline"
    past_deadline = "past_deadline"
    cancel_waiting = "cancel_waiting"
    cancel_prefill = "cancel_prefill"
    cancel_streaming = "cancel_streaming"
    cancel_too_late = "cancel_too_late"
    retry_honouring = "retry_honouring"
    """After a 429 or 503, when Retry-After says."""
    retry_at_once = "retry_at_once"
    hint_right = "hint_right"
    hint_wrong = "hint_wrong"
    hint_late = "hint_late"
    """The request was there first."""
    hint_unknown = "hint_unknown"
    hint_usual = "hint_usual"
    """It names a tenant and no model."""
    hint_flood = "hint_flood"
    operator_load = "operator_load"
    operator_unload = "operator_unload"


SITUATIONS = (
    "drained busy",
    "drained idle",
    "undrained",
    "zombie",
    "adopted",
    "found gone",
    "hint right",
    "hint wrong",
    "retried elsewhere",
    "retried beside the budget",
    "ejected in a row",
    "ejected for its share",
    "ejected on trial",
    "nobody more is ejected",
    "on trial",
    "trial passed",
    "slow start",
    "slow start over",
    "poison",
    "forgiven",
    "released",
    "forgotten",
    "context changed",
    "class forgotten",
    "loaded anew by others",
    "stood in at once",
    "stood in after a wait",
    "operation given up",
    "ended too late",
    "Answer.True",
    "Answer.False",
    "HealthChange.True",
    "HealthChange.False",
    "restored",
    "replayed",
    "context kept",
    "policy set",
    "standby True",
    "standby False",
    "healed",
    "overload passed",
)
ENUMS: tuple[type[StrEnum], ...] = (
    d.Refusal,
    d.LoadCause,
    d.UnloadCause,
    d.CacheState,
    e.FaultKind,
    e.HintSource,
    e.Priority,
    e.RequestKind,
    Fault,
    Habit,
)
EXEMPT: dict[str, str] = {}
"""What cannot be met, and why. An entry that is met all the same is reported, so that none outlives its reason."""


def wanted() -> list[str]:
    """Everything that a campaign must meet, derived from the closed sets themselves."""
    events = [kind.__name__ for kind in e.Event.__subclasses__()]
    decisions = [kind.__name__ for kind in d.Decision.__subclasses__()]
    members = [f"{enum.__name__}.{one}" for enum in ENUMS for one in enum]
    policies = [f"eviction {name}" for name in POLICIES]
    return [*events, *decisions, *members, *policies, *SITUATIONS]


def unmet(met: Mapping[str, int]) -> list[str]:
    """What was not met and has no exemption, by name."""
    return [mark for mark in wanted() if not met.get(mark) and mark not in EXEMPT]


def outlived(met: Mapping[str, int]) -> list[str]:
    """Exemptions of what was met."""
    return [mark for mark in EXEMPT if met.get(mark)]
