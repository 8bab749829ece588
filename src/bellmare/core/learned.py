"""What the core has learned and a restart should not forget: demand, forecast, scores of hints.

Residency, queues and operations are not among it: those are for the first observations to say. Nor are tenants: their
pseudonyms hold for one life of the gateway only, and nothing about persons is written. Instants are monotonic
and differ from life to life, so that they are moved by the time that has passed meanwhile.
"""

import msgspec

from bellmare.core.events import HintSource
from bellmare.core.fleet import Fleet
from bellmare.core.forecast import HEADS_S, SIZE
from bellmare.core.knowledge import Experience, Forecast, Score
from bellmare.core.state import KnownModel, State
from bellmare.core.units import InstantUs, ModelId, SpanUs

VERSION = 1
"""Of the format and of the features; anything else is not taken."""
MODELS_MAX = 20_000


class Learned(msgspec.Struct):
    """All of it, as it is written to disk."""

    version: int
    features: int
    policy: str
    saved_us: InstantUs
    """The core's time at which it was taken."""
    models: dict[ModelId, KnownModel]
    """By the time of their first request."""
    scores: dict[HintSource, Score]
    forecast: Forecast
    experience: Experience
    service_us: SpanUs = SpanUs(0)


def learned(fleet: Fleet) -> Learned:
    """A picture of what is known now; shares its parts with the state, so it is to be encoded at once."""
    state = fleet.state
    known = {
        model_id: KnownModel(
            demand=msgspec.structs.replace(model.demand, samples=[], hints={}, logits=[]),
            load_us=model.load_us,
            service_us=model.service_us,
        )
        for model_id in state.asked
        if (model := state.models.get(model_id)) is not None
    }
    return Learned(
        version=VERSION,
        features=SIZE,
        policy=fleet.state.policy,
        saved_us=fleet.now_us,
        models=known | state.remembered,
        scores=state.scores,
        forecast=state.forecast,
        experience=state.experience,
        service_us=state.service_us,
    )


def remember(state: State, known: Learned, *, eviction: str, shift_us: int) -> bool:
    """Put what was learned in an earlier life into a state that has seen no worker yet; False if it does not fit.

    ``shift_us`` is added to every instant.
    """
    assert not state.models, "what was learned comes before the first worker"
    if known.version != VERSION or known.features != SIZE or len(known.forecast.weights) not in (0, len(HEADS_S)):
        return False

    def moved(at_us: InstantUs) -> InstantUs:
        return InstantUs(max(0, at_us + shift_us)) if at_us >= 0 else at_us

    for one in list(known.models.values())[:MODELS_MAX]:
        demand = one.demand
        demand.last_us, demand.before_us = moved(demand.last_us), moved(demand.before_us)
        demand.sessions_us, demand.chain_us = moved(demand.sessions_us), moved(demand.chain_us)
        demand.logits_until_us = InstantUs(-1)
    forecast = known.forecast
    forecast.sampled_us, forecast.misses_us = moved(forecast.sampled_us), moved(forecast.misses_us)
    forecast.spent_us, forecast.cursor, forecast.ahead_us = 0.0, 0, InstantUs(0)
    state.remembered = dict(list(known.models.items())[:MODELS_MAX])
    state.forecast, state.scores = forecast, known.scores
    state.service_us = known.service_us
    if known.policy == eviction:
        state.experience = known.experience
    return True
