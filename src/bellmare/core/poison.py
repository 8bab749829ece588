"""Requests that take runners down: after two workers the same request is refused for a while (reliability E1).

A request is known by a fingerprint that the gateway makes with a secret of its own; here it is an opaque word. Both
tables are bounded and forget by time. Events carry fingerprints only while something is suspected.
"""

from bellmare.core.fleet import Fleet
from bellmare.core.units import InstantUs, WorkerId

SUSPECTS_MAX = 1024
"""Fingerprints that took down one worker; the oldest is forgotten first."""
POISON_MAX = 1024
"""Fingerprints that are refused; as above."""


def crashed(fleet: Fleet, fingerprint: str, worker: WorkerId) -> bool:
    """A runner died under it on ``worker``. Whether it is refused from now on, because another one did before."""
    forget_old(fleet)
    state = fleet.state
    until_us = InstantUs(fleet.now_us + fleet.config.poison_us)
    first = state.suspects.pop(fingerprint, None)
    if fingerprint not in state.poison and (first is None or first[0] == worker):
        state.suspects[fingerprint] = (worker, until_us)
        if len(state.suspects) > SUSPECTS_MAX:
            del state.suspects[next(iter(state.suspects))]
        return False
    state.poison.pop(fingerprint, None)
    state.poison[fingerprint] = until_us
    if len(state.poison) > POISON_MAX:
        del state.poison[next(iter(state.poison))]
    fleet.count("poison")
    return True


def quarantined(fleet: Fleet, fingerprint: str) -> bool:
    """Whether such a request is refused now."""
    forget_old(fleet)
    return fingerprint in fleet.state.poison


def cleared(fleet: Fleet, fingerprint: str) -> None:
    """An equal request was answered: the crash was not its doing."""
    fleet.state.suspects.pop(fingerprint, None)


def forget_old(fleet: Fleet) -> None:
    """Both tables are in the order of their ends, because all are kept equally long."""
    suspects, poison, now_us = fleet.state.suspects, fleet.state.poison, fleet.now_us
    while suspects and next(iter(suspects.values()))[1] <= now_us:
        del suspects[next(iter(suspects))]
    while poison and next(iter(poison.values())) <= now_us:
        del poison[next(iter(poison))]
