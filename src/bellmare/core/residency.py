"""Residency of one model on one worker, as a literal table.

A runner that is not in the table's domain is *absent* (or merely stored on disk). Loading and unloading runners hold
memory: Ollama gives it back only after the process has exited. A load that failed, timed out or was cut off leaves the
runner ``unloading`` with no operation under way: what really happened is for the next observation to say.
"""

from enum import StrEnum


class Residency(StrEnum):
    absent = "absent"
    loading = "loading"
    resident = "resident"
    """Ready: the only state in which requests are dispatched to it."""
    draining = "draining"
    """Ready, but leaving: requests under way finish, none are added."""
    unloading = "unloading"


class Cue(StrEnum):
    """What moves a runner from one state to the next."""

    load = "load"
    loaded = "loaded"
    load_broke = "load_broke"
    adopted = "adopted"
    """Seen in an observation although we did not load it."""
    drain = "drain"
    undrain = "undrain"
    unload = "unload"
    unload_broke = "unload_broke"
    gone = "gone"


TRANSITIONS: dict[tuple[Residency, Cue], Residency] = {
    (Residency.absent, Cue.load): Residency.loading,
    (Residency.absent, Cue.adopted): Residency.resident,
    (Residency.loading, Cue.loaded): Residency.resident,
    (Residency.loading, Cue.load_broke): Residency.unloading,
    (Residency.loading, Cue.gone): Residency.absent,
    (Residency.resident, Cue.drain): Residency.draining,
    (Residency.resident, Cue.unload): Residency.unloading,
    (Residency.resident, Cue.gone): Residency.absent,
    (Residency.draining, Cue.undrain): Residency.resident,
    (Residency.draining, Cue.unload): Residency.unloading,
    (Residency.draining, Cue.gone): Residency.absent,
    (Residency.unloading, Cue.gone): Residency.absent,
    (Residency.unloading, Cue.adopted): Residency.resident,
    (Residency.unloading, Cue.unload): Residency.unloading,
    (Residency.unloading, Cue.unload_broke): Residency.unloading,
}


def after(state: Residency, cue: Cue) -> Residency:
    """The state that follows; an impossible pair is our own bug."""
    following = TRANSITIONS.get((state, cue))
    assert following is not None, f"no transition from {state} on {cue}"
    return following
