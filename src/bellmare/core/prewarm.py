"""Work ahead of demand, on workers that have nothing to do: room for the next load, and loads that nobody waits for yet.

Everything is weighed in seconds of expected waiting, with the moment of the next miss as horizon: p(tau) with tau = mean
time to the next miss is the probability that a model is asked for before the next miss comes.
"""

from itertools import islice

from bellmare.core import forecast
from bellmare.core.costs import load_estimate_us, unload_estimate_us
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.placement import Plan, choose, evictable, plan_on
from bellmare.core.residency import Residency
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import SECOND_US, InstantUs

NEEDS_MIN = 4
"""Loads on demand before their sizes say anything."""
MARGIN = 4.0
LOOK_FIRST_US = 5 * SECOND_US
LOOK_MAX_US = 600 * SECOND_US
"""An idle worker is looked at again after twice as long each time, as forecasts fade slower and slower."""


def room_ahead(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> Runner | None:
    """The idle runner that should leave now, so that the next load need not wait for its unload; None: nobody.

    It leaves if the unload that it saves the next miss, weighed by how much of its memory that miss will need, is worth
    more than its own return, weighed by the probability that it is asked for before that miss.
    """
    needs = fleet.state.forecast.needs
    if not policy.prices or len(needs) < NEEDS_MIN or not fleet.room or not worker.capacity_known:
        return None
    free = max(fleet.room[-1][0], worker.free_bytes)
    if free != worker.free_bytes and free >= max(needs):
        return None
    short = [need - free for need in needs if need > free]
    if not short:
        return None
    _look_again(fleet, worker)
    unload_s = unload_estimate_us(worker) / SECOND_US
    tau_s = forecast.miss_gap_s(fleet)
    best: Runner | None = None
    best_gain = 0.0
    gap = free - worker.free_bytes
    for runner in worker.runners.values():
        if runner.residency is not Residency.resident or runner.used or not evictable(fleet, worker, runner):
            continue
        if fleet.evictable_us(runner) > fleet.now_us or runner.bytes <= gap:
            continue
        load_s = MARGIN * runner.load_us / SECOND_US
        if policy.soon(fleet, runner.model, tau_s) * load_s >= unload_s - best_gain:
            continue  # at a longer horizon it is more probable still
        size = runner.bytes - gap
        share = sum(min(size, missing) for missing in short) / (len(needs) * size)
        gain = unload_s - policy.soon(fleet, runner.model, tau_s / share) * load_s
        if gain > best_gain:
            best, best_gain = runner, gain
    return best


def _look_again(fleet: Fleet, worker: Worker) -> None:
    last_us = max([0, *(runner.ready_us for runner in worker.runners.values())])
    last_us = max(last_us, worker.room_us)
    span_us = min(max(LOOK_FIRST_US, fleet.now_us - last_us), LOOK_MAX_US)
    if worker.look_us <= fleet.now_us:
        worker.look_us = InstantUs(fleet.now_us + span_us)
        fleet.set_timer(worker.look_us, Timer.look_again, worker.worker)


AHEAD_EVERY_US = 2 * SECOND_US
P_MIN = 0.12
"""Below that a prediction is noise."""
THETA = 0.3
"""Victims are worth twice what the forecast says: certain residents against an uncertain guest."""
KAPPA = 0.15
"""A second of loading costs so much even if nobody waits: power, and the disk."""
RECENT_MAX = 8
LOOKED_MAX = 32


def best_ahead(fleet: Fleet, policy: EvictionPolicy, worker: Worker) -> tuple[Model, Plan] | None:
    """The absent model whose load on ``worker`` pays best although nobody waits for it; None: none pays."""
    best: tuple[Model, Plan] | None = None
    best_gain = 0.0
    if fleet.now_us < worker.ahead_us:
        return None
    worker.ahead_us = InstantUs(fleet.now_us + AHEAD_EVERY_US)
    for model in candidates(fleet):
        found = gain_on(fleet, policy, worker, model=model)
        if found is not None and found[0] > best_gain:
            best_gain, best = found[0], (model, found[1])
    return best


def candidates(fleet: Fleet) -> list[Model]:
    """Absent models that somebody may ask for soon: used lately, or foreseen."""
    found = []
    models = fleet.state.models
    for model_id in islice(reversed(fleet.state.recent), LOOKED_MAX):
        model = models[model_id]
        if not model.copies and not model.placements and model.healthy_holders and not model.waiting:
            found.append(model)
            if len(found) == RECENT_MAX:
                break
    return found


def gain_on(fleet: Fleet, policy: EvictionPolicy, worker: Worker, *, model: Model) -> tuple[float, Plan] | None:
    """Seconds that loading ``model`` on ``worker`` now saves on balance, with the plan; None if it does not pay."""
    tau_s = forecast.idle_s(fleet) * 0.3
    soon = policy.soon(fleet, model.model, tau_s)
    if soon < P_MIN:
        return None
    load_s = load_estimate_us(worker, model) / SECOND_US
    unload_s = unload_estimate_us(worker) / SECOND_US
    gain = soon * load_s - KAPPA * load_s - load_s * load_s / 2 / forecast.miss_gap_s(fleet)
    if gain <= 0:
        return None
    plan = plan_on(fleet, policy, worker, model=model, drain=False)
    if plan is None:
        return None
    loss = plan.loss - plan.load_us / SECOND_US - len(plan.victims) * unload_s
    gain -= (1 + THETA) * loss + unload_s * (1 - soon)
    return (gain, plan) if gain > 0 else None
