"""One more copy of a hot model, and which copy is one too many.

A copy is added when the queue outlasts its load, by more than its victims lose; it is never removed for its own sake,
but where room is wanted an idle copy that its model does not need leaves before any model's only one.
"""

from bellmare.core.costs import predicted_wait_us
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet
from bellmare.core.placement import Plan, choose, choose_free
from bellmare.core.residency import Residency
from bellmare.core.state import Model
from bellmare.core.units import SECOND_US, InstantUs

LOADS_OUTLASTED = 2
"""A queue must last so many loads: it goes on shrinking while the copy is loaded."""
LOOK_EVERY_US = SECOND_US
"""A free place for one more copy is looked for at most so often per model."""
VICTIMS_LOOK_EVERY_US = SECOND_US // 2
"""A place with victims is looked for at most so often in all: such a look weighs up to sixteen workers (0.1 ms)."""


def worth_a_copy(fleet: Fleet, policy: EvictionPolicy, model: Model) -> Plan | None:
    """A plan for one more copy that saves more waiting than it costs, or None.

    The relief is what the wait exceeds two loads by; it must be more than the victims' loss, which the policy gives in
    seconds of expected wait. Victims are idle and past their own load time: a busy model never leaves for a copy.
    """
    if model.waiting < 2 or fleet.now_us < model.replica_after_us or not fleet.room:
        return None
    if model.placements or _loads_somewhere(fleet, model):
        return None
    wait_us = predicted_wait_us(fleet, model)
    if wait_us <= LOADS_OUTLASTED * model.load_us:
        return None
    model.replica_after_us = InstantUs(fleet.now_us + LOOK_EVERY_US)
    plan = choose_free(fleet, policy, model)
    if plan is None and fleet.state.replica_after_us <= fleet.now_us:
        fleet.state.replica_after_us = InstantUs(fleet.now_us + VICTIMS_LOOK_EVERY_US)
        plan = choose(fleet, policy, model, drain=False)
    if plan is None:
        return None
    relief_us = wait_us - LOADS_OUTLASTED * plan.load_us
    return plan if relief_us > max(0.0, plan.lost * SECOND_US) else None


def _loads_somewhere(fleet: Fleet, model: Model) -> bool:
    """Whether a load is under way that can be counted on; the index spares the look at all copies."""
    return bool(fleet.loading[model.model]) and any(
        worker.healthy and runner.residency is Residency.loading for worker, runner in fleet.copies(model)
    )
