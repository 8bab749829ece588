"""What is known of requests to come: who said so, when they are due, and how often such hints came true.

A hint is a probability, never an order: it enters the forecast of its model, weighed by the precision of its source and
of its tenant, so that a wrong one evicts nothing that is hotter.
"""

from bellmare.core import demand, forecast
from bellmare.core.costs import SPAWN_US
from bellmare.core.events import HintGiven, HintSource
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.knowledge import Hint, Score
from bellmare.core.numeric import decay
from bellmare.core.state import Model
from bellmare.core.units import SECOND_US, InstantUs, ModelId, SpanUs

BELIEF = {
    HintSource.prepare: (9.0, 1.0),
    HintSource.next_header: (9.0, 1.0),
    HintSource.body: (9.0, 1.0),
    HintSource.show: (2.0, 4.0),
    HintSource.tags: (1.0, 5.0),
    HintSource.chain: (2.0, 2.0),
    HintSource.period: (3.0, 2.0),
}
"""Hints of each source that count as right and wrong before any was seen: what is said outright is mostly true."""
TENANT_BELIEF = (4.0, 0.5)
CHANCE_MAX = 0.97
"""The findings' p of a hint: nothing is certain."""
TTL_US = SpanUs(60 * SECOND_US)
TTL_MAX_US = SpanUs(900 * SECOND_US)
"""Whoever says it longer ahead may say it again."""
AHEAD_MAX_US = SpanUs(86_400 * SECOND_US)
LEAD_US = {HintSource.show: 10 * SECOND_US, HintSource.tags: 20 * SECOND_US}
"""From hint to request where the hint does not say, before any was seen; other sources: at once."""
EARLY_US = 15 * SECOND_US
"""Loading begins so long before it would have to: earlier brings nothing more (policy findings 4.6)."""
EXPECTED_MAX = 64
FORESEEN_MAX = 64
"""Models with hints that are looked at; the oldest is dropped."""
FADE = 0.98
"""Each outcome fades the older ones: some fifty count."""


def given(fleet: Fleet, event: HintGiven) -> None:
    """Take in one hint. A name that no worker stores, or a tenant without habits, says nothing."""
    fleet.count(f"hint_{event.source}")
    if event.name:
        model = fleet.resolve(event.name)
    else:
        usual = demand.usual_model(fleet, event.tenant)
        model = fleet.state.models.get(usual) if usual is not None else None
    if model is None:
        fleet.count("hint_unknown")
        return
    in_us = event.in_us or lead_us(fleet, event.source)
    due_us = InstantUs(fleet.now_us + min(in_us, AHEAD_MAX_US))
    ttl_us = min(event.ttl_us or TTL_US, TTL_MAX_US)
    give(fleet, model, event.source, due_us=due_us, ttl_us=SpanUs(ttl_us), tenant=event.tenant)


def give(
    fleet: Fleet,
    model: Model,
    source: HintSource,
    *,
    due_us: InstantUs,
    ttl_us: SpanUs,
    tenant: str,
    share: float = 1.0,
) -> None:  # tidy: what a hint consists of
    """Note that a request for ``model`` is expected at ``due_us``, probable to ``share`` if the source is right."""
    chance = min(CHANCE_MAX, share * precision(fleet, source))
    fleet.count(f"hint_given_{source}")
    caller = fleet.state.callers.get(tenant)
    if caller is not None and source in SAID:
        chance = min(chance, _share(caller.score, TENANT_BELIEF))
    until_us = InstantUs(due_us + ttl_us)
    hints = model.demand.hints
    hint = hints.get(source)
    if hint is None:
        hints[source] = Hint(given_us=fleet.now_us, due_us=due_us, until_us=until_us, chance=chance, tenant=tenant)
        fleet.set_timer(until_us, Timer.hint, model.model, key2=source)
    else:
        hint.due_us = min(hint.due_us, due_us) if hint.due_us > fleet.now_us else due_us
        hint.until_us = max(hint.until_us, until_us)
        hint.chance = max(hint.chance, chance)
        hint.expected = min(EXPECTED_MAX, hint.expected + 1)
        hint.given_us, hint.tenant = fleet.now_us, tenant
    start_us = due_us - (model.load_us or SPAWN_US) - EARLY_US
    if start_us > fleet.now_us:
        fleet.set_timer(start_us, Timer.foreseen, model.model)
    else:
        foresee(fleet, model)


SAID = (HintSource.prepare, HintSource.next_header)
"""What a tenant said in so many words: only that is held against him. Of what was read from his traffic or found by the
core itself, the source alone is to blame: a page that polls /api/tags must not spoil the word of who opened it."""


def foresee(fleet: Fleet, model: Model) -> None:
    """Let loaders look at the model, if it is not ready anyway."""
    if model.copies or model.placements:
        return
    foreseen = fleet.state.foreseen
    foreseen.pop(model.model, None)
    foreseen[model.model] = None
    fleet.state.look_ahead = True
    if len(foreseen) > FORESEEN_MAX:
        del foreseen[next(iter(foreseen))]


def foreseen_due(fleet: Fleet, model_id: str) -> None:
    """It is time to load what a hint spoke of; if the hint still stands."""
    model = fleet.state.models.get(ModelId(model_id))
    if model is not None and model.demand.hints:
        foresee(fleet, model)


def expired(fleet: Fleet, model_id: str, source: str) -> None:
    """The hint's time is over, or was put off meanwhile."""
    model = fleet.state.models.get(ModelId(model_id))
    hint = model.demand.hints.get(HintSource(source)) if model is not None else None
    if model is None or hint is None:
        return
    if hint.until_us > fleet.now_us:
        fleet.set_timer(hint.until_us, Timer.hint, model_id, key2=source)
        return
    del model.demand.hints[HintSource(source)]
    _judge(fleet, HintSource(source), hint, right=False)
    if not model.demand.hints:
        fleet.state.foreseen.pop(model.model, None)


def came_true(fleet: Fleet, model: Model) -> None:
    """A request for ``model`` has come: every hint that spoke of it was right once."""
    hints = model.demand.hints
    for source in list(hints):
        hint = hints[source]
        _judge(fleet, source, hint, right=True)
        hint.expected -= 1
        if hint.expected <= 0:
            del hints[source]
    if not hints:
        fleet.state.foreseen.pop(model.model, None)


def _judge(fleet: Fleet, source: HintSource, hint: Hint, *, right: bool) -> None:
    fleet.count(f"hint_{'right' if right else 'wrong'}_{source}")
    score = fleet.state.scores.setdefault(source, Score())
    _mark(score, right=right)
    if right:
        lead = fleet.now_us - hint.given_us
        score.lead_us = SpanUs(score.lead_us + (lead - score.lead_us) // 8 if score.lead_us else lead)
    caller = fleet.state.callers.get(hint.tenant)
    if caller is not None and source in SAID:
        _mark(caller.score, right=right)


def _mark(score: Score, *, right: bool) -> None:
    score.right = score.right * FADE + right
    score.wrong = score.wrong * FADE + (not right)


def _share(score: Score, belief: tuple[float, float]) -> float:
    right = score.right + belief[0]
    return right / (right + score.wrong + belief[1])


def precision(fleet: Fleet, source: HintSource) -> float:
    """How probable it is that a hint of this source comes true."""
    return _share(fleet.state.scores.get(source, NO_SCORE), BELIEF[source])


NO_SCORE = Score()


def lead_us(fleet: Fleet, source: HintSource) -> SpanUs:
    """How long after a hint of this source the request comes, where the hint does not say."""
    score = fleet.state.scores.get(source, NO_SCORE)
    return SpanUs(score.lead_us or LEAD_US.get(source, 0))


def chance(fleet: Fleet, model: Model, tau_s: float) -> float:
    """p(tau) by hints alone; 0.0 without any."""
    best = 0.0
    for hint in model.demand.hints.values():
        off_s = (hint.due_us - fleet.now_us) / SECOND_US
        said = hint.chance
        if off_s > 0:
            said *= decay(off_s / tau_s)
        else:
            ttl_s = (hint.until_us - hint.due_us) / SECOND_US
            said *= max(0.0, 1.0 + off_s / max(1.0, ttl_s))  # overdue: the later, the less probable
        best = max(best, said)
    return best


PERIODS_MIN_US = 30 * SECOND_US
"""A shorter period is not worth a thought: its model stays."""


def note_arrival(fleet: Fleet, model: Model, tenant: str) -> None:
    """What the core can tell by itself after an arrival: the next call of a timer, and what mostly follows."""
    known = model.demand
    gap_us = int(forecast.due_after_s(known) * SECOND_US)
    if forecast.regular(known) >= REGULAR_MIN and gap_us >= PERIODS_MIN_US:
        due_us = InstantUs(fleet.now_us + gap_us)
        ttl_us = SpanUs(max(10 * SECOND_US, min(gap_us // 4, TTL_US)))
        give(fleet, model, HintSource.period, due_us=due_us, ttl_us=ttl_us, tenant=tenant)
    for follower, share in demand.followers(model):
        if share >= CHAIN_MIN and follower != model.model:
            other = fleet.state.models.get(follower)
            if other is not None:
                due_us = InstantUs(fleet.now_us + lead_us(fleet, HintSource.chain))
                ttl_us = SpanUs(30 * SECOND_US)
                give(fleet, other, HintSource.chain, due_us=due_us, ttl_us=ttl_us, tenant=tenant, share=share)


REGULAR_MIN = 0.5
CHAIN_MIN = 0.3
"""Rarer followers are left to the forecast."""
