"""Work ahead of demand, on workers that have nothing to do: room for the next load, loads that nobody waits for yet.

Everything is weighed in seconds of expected waiting. For room the horizon is the next miss: p(tau) with tau = mean time
to the next miss is the probability that a model is asked for before it.
"""

from itertools import islice
from typing import NamedTuple

from bellmare.core import forecast
from bellmare.core.classes import larger_there
from bellmare.core.costs import SPAWN_US, unload_estimate_us
from bellmare.core.decisions import LoadCause
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.numeric import decay
from bellmare.core.placement import Plan, choose, evictable
from bellmare.core.residency import Residency
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import SECOND_US, InstantUs

NEEDS_MIN = 4
"""Loads on demand before their sizes say anything."""
MARGIN = 8.0
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


AHEAD_EVERY_US = 10 * SECOND_US
"""Forecasts change no faster; what hints speak of is looked at at once."""
P_MIN = 0.3
"""Below that hardly anything pays: from 0.12 on the waits are the same."""
THETA = 0.3
"""Victims are worth so much more than the forecast says: certain residents against an uncertain guest."""
KAPPA = 0.15
"""A second of loading costs so much even if nobody waits: power, and the disk. Times ``Forecast.caution``."""
RECENT_MAX = 4
LOOKED_MAX = 32
"""Absent models weighed, and models looked at to find them."""
HORIZON = 0.3
"""Of the characteristic time: as for eviction, since guest and victim compete for the same stay."""
BUDGET_PERCENT = {LoadCause.prewarm: 10, LoadCause.hint: 60}
"""Share of the loaders' time in an hour that loads ahead of demand may take."""
BUDGET_SPAN_S = 3_600.0
OUTCOMES = 20
"""Outcomes after which the price of loads ahead is looked at again."""
USEFUL_LOW, USEFUL_HIGH = 0.25, 0.6
CAUTION_MIN, CAUTION_MAX = 0.5, 8.0


class Ahead(NamedTuple):
    """A load that nobody waits for yet."""

    gain: float
    """Seconds of waiting that it saves on balance."""
    model: Model
    plan: Plan
    cause: LoadCause


def best_ahead(fleet: Fleet, policy: EvictionPolicy) -> Ahead | None:
    """The absent model whose load pays best although nobody waits for it, and where; None: none pays."""
    state = fleet.state.forecast
    if fleet.now_us < state.ahead_us:
        return None
    state.ahead_us = InstantUs(fleet.now_us + AHEAD_EVERY_US)
    if not _affordable(fleet, LoadCause.prewarm):
        return None
    _heed_outcomes(fleet)
    return _best(fleet, policy, [*_absent(fleet), *_foreseen(fleet)])


def best_foreseen(fleet: Fleet, policy: EvictionPolicy) -> Ahead | None:
    """The hinted model whose load pays best, on whichever worker; None: none pays, or no loader is free."""
    if not fleet.room or not fleet.config.ahead or not _affordable(fleet, LoadCause.hint):
        return None
    models = fleet.state.models
    for model_id in list(fleet.state.foreseen):
        if models[model_id].copies or models[model_id].placements:
            del fleet.state.foreseen[model_id]
    best = _best(fleet, policy, _foreseen(fleet))
    if best is not None:
        del fleet.state.foreseen[best.model.model]
    return best


def _best(fleet: Fleet, policy: EvictionPolicy, models: list[Model]) -> Ahead | None:
    """Whose load pays best; of equals the first."""
    best: Ahead | None = None
    for model in models:
        best = weigh(fleet, policy, model, least=best.gain if best is not None else 0.0) or best
    return best


def _missing(fleet: Fleet, model: Model) -> bool:
    if model.copies or model.placements or model.waiting or not model.healthy_holders:
        return False
    return not larger_there(fleet, model)


def _absent(fleet: Fleet) -> list[Model]:
    """Absent models that were used lately, the latest first."""
    found = []
    models = fleet.state.models
    for model_id in islice(reversed(fleet.state.recent), LOOKED_MAX):
        model = models[model_id]
        if _missing(fleet, model):
            found.append(model)
            if len(found) == RECENT_MAX:
                break
    return found


def _foreseen(fleet: Fleet) -> list[Model]:
    models = fleet.state.models
    return [models[model_id] for model_id in fleet.state.foreseen if _missing(fleet, models[model_id])]


def weigh(fleet: Fleet, policy: EvictionPolicy, model: Model, *, least: float = 0.0) -> Ahead | None:
    """Whether loading ``model`` ahead of demand pays more than ``least`` on the best of the idle workers; None if not.

    What it saves, less what its victims are worth, less the price of the load, less the wait of a miss that comes while
    the loader is taken (a load cannot be broken off), less the room that the next miss will have to clear again.
    """
    soon = policy.soon(fleet, model.model, HORIZON * forecast.idle_s(fleet))
    if soon < P_MIN:
        return None
    load_s = (model.load_us or SPAWN_US) / SECOND_US
    price = KAPPA * fleet.state.forecast.caution * load_s
    gain = soon * load_s - price - load_s * load_s / 2 / forecast.miss_gap_s(fleet)
    if gain <= least:
        return None
    plan = choose(fleet, policy, model, drain=False)
    if plan is None:
        return None
    if plan.worker.resting.get(model.model, 0) > fleet.now_us:
        return None
    unload_s = unload_estimate_us(plan.worker) / SECOND_US
    gain -= (1 + THETA) * plan.lost + unload_s * (1 - soon)
    cause = LoadCause.hint if model.demand.hints else LoadCause.prewarm
    return Ahead(gain, model, plan, cause) if gain > least else None


# ---------------------------------------------------------------------- budget and feedback


def note_load(fleet: Fleet, span_us: int) -> None:
    """A load ahead of demand begins: book its loader time."""
    forecast_state = fleet.state.forecast
    forecast_state.spent_us = _spent_us(fleet) + span_us
    forecast_state.spent_at_us = fleet.now_us


def _spent_us(fleet: Fleet) -> float:
    state = fleet.state.forecast
    return state.spent_us * decay((fleet.now_us - state.spent_at_us) / (BUDGET_SPAN_S * SECOND_US))


def _affordable(fleet: Fleet, cause: LoadCause) -> bool:
    limit_us = BUDGET_PERCENT[cause] / 100 * BUDGET_SPAN_S * SECOND_US * max(1, len(fleet.state.workers))
    return _spent_us(fleet) < limit_us


def _heed_outcomes(fleet: Fleet) -> None:
    """Loads ahead cost more while few of them were of use, and less while most were."""
    state = fleet.state.forecast
    seen = state.useful + state.useless
    if seen < OUTCOMES:
        return
    share = state.useful / seen
    if share < USEFUL_LOW:
        state.caution = min(CAUTION_MAX, 2 * state.caution)
    elif share > USEFUL_HIGH:
        state.caution = max(CAUTION_MIN, state.caution / 2)
    state.useful, state.useless = 0.0, 0.0
