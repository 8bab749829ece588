"""What was asked for, when and by whom: the statistics that forecasts and eviction policies rest on.

Only arrivals count, served or not. Everything decays, and everything is bounded.
"""

from bellmare.core.fleet import Fleet
from bellmare.core.knowledge import Caller, Demand
from bellmare.core.numeric import decay, ln
from bellmare.core.state import Burst, Model
from bellmare.core.units import SECOND_US, InstantUs, ModelId

SPANS_S = (30.0, 120.0, 600.0, 2_400.0, 10_800.0, 43_200.0, 259_200.0)
"""Time constants of the decayed counters: half a minute to three days (policy findings 5.1)."""
SESSION_S = 300.0
"""Half of a session's gaps are shorter than 67 s, 90 % than five minutes."""
CHAIN_S = 30.0
"""What follows in a chain follows within seconds."""
FOLLOW_US = 60 * SECOND_US
"""A tenant's next request counts as following his last one if it comes so soon."""
GAP_WEIGHT = 0.2
GAPS_MAX = 32
"""Equal gaps, one after another, after which the averages are theirs (0.8 to the 32nd is a thousandth)."""
FIRST_GAP_LN = 8.2
"""An hour, as long as nothing is known of a model's gaps."""
FIRST_SPREAD = 1.0
CALLERS_MAX = 10_000
"""Tenants remembered; who asked longest ago is forgotten. 10,000 take some 5 MB."""
HABITS_MAX = 8
"""Models remembered of one tenant, and followers of one model."""
FOLLOWER_MIN = 0.05
"""A follower's share below which it is not worth a thought."""


def note_arrival(fleet: Fleet, model: Model, tenant: str) -> None:
    """Take one arrival into the statistics of the model, of its tenant, and of what follows what."""
    demand, now_us = model.demand, fleet.now_us
    if demand.arrivals:
        _age(demand, now_us)
    else:
        demand.counters = [0.0] * len(SPANS_S)
        demand.gap_ln, demand.gap_spread = FIRST_GAP_LN, FIRST_SPREAD
        fleet.state.asked.append(model.model)
    demand.counters = [count + 1.0 for count in demand.counters]
    demand.arrivals += 1
    demand.before_us, demand.last_us = demand.last_us, now_us
    demand.logits_until_us = now_us
    fleet.state.recent.pop(model.model, None)
    fleet.state.recent[model.model] = None
    _age_activity(fleet)
    fleet.state.activity += 1.0
    _note_caller(fleet, model, tenant)


def note_burst(fleet: Fleet, model: Model, burst: Burst) -> None:
    """Take in arrivals that came shortly after one that was noted, as of the last of them (``fleet.now_us``)."""
    demand, now_us, count = model.demand, fleet.now_us, burst.count
    gap_us = (now_us - demand.last_us) // count
    gap_ln = ln(1.0 + gap_us / SECOND_US)
    span_s = (now_us - demand.last_us) / SECOND_US
    demand.counters = [held * decay(span_s / span) + count for held, span in zip(demand.counters, SPANS_S, strict=True)]
    for _ in range(min(count, GAPS_MAX)):
        _note_gap(demand, gap_ln)
        demand.arrivals += 1
    demand.arrivals += max(0, count - GAPS_MAX)
    demand.before_us = InstantUs(now_us - gap_us)
    demand.last_us = demand.logits_until_us = now_us
    fleet.state.recent.pop(model.model, None)
    fleet.state.recent[model.model] = None
    _age_activity(fleet)
    fleet.state.activity += count
    for tenant, times in burst.tenants.items():
        _note_caller(fleet, model, tenant)
        if times > 1:
            _count(fleet.state.callers[tenant].habits, model.model, times - 1)
            _count(demand.followers, model.model, times - 1)


def _age(demand: Demand, now_us: InstantUs) -> None:
    """Bring the counters to ``now_us`` and take in the gap since the last arrival."""
    gap_s = (now_us - demand.last_us) / SECOND_US
    counters = demand.counters
    demand.counters = [counters[i] * decay(gap_s / SPANS_S[i]) for i in range(len(SPANS_S))]
    _note_gap(demand, ln(1.0 + gap_s))


def _note_gap(demand: Demand, gap_ln: float) -> None:
    off = gap_ln - demand.gap_ln
    if demand.arrivals == 1:
        demand.gap_ln = gap_ln
        return
    demand.gap_spread += GAP_WEIGHT * (abs(off) - demand.gap_spread)
    demand.gap_ln += GAP_WEIGHT * off


def _age_activity(fleet: Fleet) -> None:
    state = fleet.state
    span_s = (fleet.now_us - state.activity_us) / SECOND_US
    state.activity *= decay(span_s / SPANS_S[1])
    state.activity_us = fleet.now_us


def activity_at(fleet: Fleet, now_us: int) -> float:
    """Requests of the last two minutes, decayed."""
    return fleet.state.activity * decay(max(0, now_us - fleet.state.activity_us) / (SPANS_S[1] * SECOND_US))


def sessions_at(demand: Demand, now_us: int) -> float:
    """Tenants whose last request was for this model, each weighed by how long ago that was."""
    return demand.sessions * decay(max(0, now_us - demand.sessions_us) / (SESSION_S * SECOND_US))


def chain_at(demand: Demand, now_us: int) -> float:
    """Requests that should come by what tenants asked for last, each weighed by probability and age."""
    return demand.chain * decay(max(0, now_us - demand.chain_us) / (CHAIN_S * SECOND_US))


def _note_caller(fleet: Fleet, model: Model, tenant: str) -> None:
    callers, now_us = fleet.state.callers, fleet.now_us
    caller = callers.pop(tenant, None)
    if caller is None:
        caller = Caller()
        if len(callers) >= CALLERS_MAX:
            del callers[next(iter(callers))]
    callers[tenant] = caller  # at the end: the order of the dictionary is that of last requests
    before = fleet.state.models.get(caller.model) if caller.model is not None else None
    if before is not None:
        _leave(before.demand, caller, now_us)
        if now_us - caller.last_us <= FOLLOW_US:
            _follow(before, model.model)
        _unpromise(fleet, before, caller)
    demand = model.demand
    demand.sessions = sessions_at(demand, now_us) + 1.0
    demand.sessions_us = now_us
    _promise(fleet, model)
    caller.model, caller.last_us = model.model, now_us
    _count(caller.habits, model.model)


def _leave(demand: Demand, caller: Caller, now_us: InstantUs) -> None:
    """The tenant's session is with another model now, or anew with the same."""
    weight = decay((now_us - caller.last_us) / (SESSION_S * SECOND_US))
    demand.sessions = max(0.0, sessions_at(demand, now_us) - weight)
    demand.sessions_us = now_us


def _count(counts: dict[ModelId, float], model: ModelId, times: int = 1) -> None:
    """One more; beyond the bound all counts are halved and the smallest is forgotten, of equals not the newest."""
    counts[model] = counts.get(model, 0.0) + times
    if len(counts) > HABITS_MAX:
        for key in list(counts):
            counts[key] *= 0.5
        smallest = min(counts, key=lambda key: (counts[key], key == model))
        del counts[smallest]


def _follow(before: Model, model: ModelId) -> None:
    _count(before.demand.followers, model)


def followers(model: Model) -> list[tuple[ModelId, float]]:
    """Which models tenants ask for after this one within a minute, and how probable each is."""
    if not model.demand.followers:
        return []
    counts, arrivals = model.demand.followers, max(1.0, model.demand.counters[-1] if model.demand.counters else 1.0)
    found = [(key, min(1.0, count / arrivals)) for key, count in counts.items()]
    return [(key, share) for key, share in found if share >= FOLLOWER_MIN]


def _promise(fleet: Fleet, model: Model) -> None:
    """Whoever asks for this one will ask for its followers soon."""
    now_us = fleet.now_us
    for key, share in followers(model):
        other = fleet.state.models.get(key)
        if other is not None and key != model.model:
            other.demand.logits_until_us = now_us
            other.demand.chain = chain_at(other.demand, now_us) + share
            other.demand.chain_us = now_us


def _unpromise(fleet: Fleet, before: Model, caller: Caller) -> None:
    """His next request is here: what was promised for it is settled."""
    now_us = fleet.now_us
    weight = decay((now_us - caller.last_us) / (CHAIN_S * SECOND_US))
    for key, share in followers(before):
        other = fleet.state.models.get(key)
        if other is not None and key != before.model:
            other.demand.chain = max(0.0, chain_at(other.demand, now_us) - share * weight)
            other.demand.chain_us = now_us


def usual_model(fleet: Fleet, tenant: str) -> ModelId | None:
    """What the tenant asked for most, lately; None if he is not known."""
    caller = fleet.state.callers.get(tenant)
    if caller is None or not caller.habits:
        return None
    return max(caller.habits, key=lambda key: (caller.habits[key], key == caller.model))
