"""How soon a model will be asked for: p(tau) = E[exp(-T / tau)], T the time to its next arrival.

That is the probability that the next arrival comes before a moment that comes at rate 1/tau, such as the next miss.
Four logistic heads over decayed counters, learned online from what really happened; shipped weights to begin with
(policy findings 4.5: a linear model is enough). Pure: the same state gives the same numbers.
"""

from functools import lru_cache
from math import sqrt

from bellmare.core.demand import SPANS_S, activity_at, chain_at, sessions_at
from bellmare.core.fleet import Fleet
from bellmare.core.forecast_weights import WEIGHTS
from bellmare.core.knowledge import Demand, Forecast, Sample
from bellmare.core.numeric import decay, ln, logistic
from bellmare.core.state import Model
from bellmare.core.units import SECOND_US, InstantUs, SpanUs

HEADS_S = (60.0, 300.0, 1_800.0, 10_800.0)
FEATURES = (
    "one",
    *(f"counter_{int(span)}s" for span in SPANS_S),
    "age",
    "age_to_gap",
    "overdue",
    "due_in_60s",
    "due_in_10m",
    "regular",
    "sessions",
    "chain",
    "activity",
    "new",
)  # fmt: skip
SIZE = len(FEATURES)
SAMPLES_MAX = 3
"""Of one model, waiting for the truth."""
SAMPLE_EVERY_US = SECOND_US
"""A busy fleet learns no faster: a second has one lesson."""
SAMPLE_AGE_MAX_US = 86_400 * SECOND_US
"""A model not asked for in a day is not sampled: nothing more is to be learned from its silence."""
EXPIRED_US = int(4 * HEADS_S[-1] * SECOND_US)
"""Silence of that length is as good as for ever to all heads."""
RATE = 0.03
SQUARE_FIRST = 4.0
"""Adagrad's start: as if some dozens of lessons had been learned already, so that a few odd ones change little."""
PUBLISH_EVERY = 32
"""Lessons between two changes of the weights in use: numbers computed meanwhile may be kept."""
REGULAR_MIN = 4
"""Arrivals before gaps are believed to be regular."""
GAP_LN_MAX = 16.0
"""A hundred days."""
NOTHING = 1e-4
"""ln(1 + x) is x below that."""
FADING = 3
"""Numbers are kept for an eighth of the time since the last request: forecasts fade slower and slower."""
REGULAR_SPREAD = 0.25
"""Gaps that differ by a quarter are a timer's."""


_HEADS_LN = tuple(ln(span_s) for span_s in HEADS_S)


def ready(forecast: Forecast) -> None:
    """Give a new forecast the shipped weights."""
    if not forecast.weights:
        forecast.weights = [list(head) for head in WEIGHTS]
        forecast.learned = [list(head) for head in WEIGHTS]
        forecast.squares = [[SQUARE_FIRST] * SIZE for _ in HEADS_S]


def features(fleet: Fleet, demand: Demand, at_us: int) -> list[float]:
    """What is known of a model at ``at_us``, in the order of ``FEATURES``; it must have been asked for before."""
    age_s = max(0, at_us - demand.last_us) / SECOND_US
    age_ln = ln(1.0 + age_s)
    counters = demand.counters
    found = [1.0]
    for count, span_s in zip(counters, SPANS_S):  # noqa: B905 of equal length, and strict costs a fifth
        count *= decay(age_s / span_s)  # noqa: PLW2901
        found.append(ln(1.0 + count) if count > NOTHING else count)
    late = 0.3 * (age_ln - demand.gap_ln)
    timer, soon, soonish = regular(demand), 0.0, 0.0
    if timer > 0.0:
        off_s = abs(due_after_s(demand) - age_s)
        soon, soonish = timer * decay(off_s / 60.0), timer * decay(off_s / 600.0)
    chain = chain_at(demand, at_us) if demand.chain > NOTHING else 0.0
    found += (
        0.2 * age_ln,
        late,
        late if late > 0.0 else 0.0,
        soon,
        soonish,
        timer,
        ln(1.0 + sessions_at(demand, at_us)),
        ln(1.0 + chain) if chain > NOTHING else 0.0,
        0.3 * ln(1.0 + activity_at(fleet, at_us)),
        1.0 if demand.arrivals < 4 else 0.0,
    )
    return found


def regular(demand: Demand) -> float:
    """From 0 (gaps of any length) to 1 (a timer's)."""
    if demand.arrivals < REGULAR_MIN or demand.gap_spread >= 2 * REGULAR_SPREAD:
        return 0.0
    return min(1.0, 2.0 - demand.gap_spread / REGULAR_SPREAD)


def due_after_s(demand: Demand) -> float:
    """Seconds from one arrival to the next, on average: exp(gap_ln) - 1."""
    return 1.0 / decay(min(GAP_LN_MAX, demand.gap_ln)) - 1.0


def dot(weights: list[float], values: list[float]) -> float:
    """Written out: half the time of a loop, and one rounding everywhere (``sum`` rounds otherwise from 3.12 on)."""
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17 = weights
    b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15, b16, b17 = values
    low = a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3 + a4 * b4 + a5 * b5 + a6 * b6 + a7 * b7 + a8 * b8
    high = a9 * b9 + a10 * b10 + a11 * b11 + a12 * b12 + a13 * b13 + a14 * b14 + a15 * b15 + a16 * b16 + a17 * b17
    return low + high


def logits(fleet: Fleet, demand: Demand) -> list[float]:
    """What each head says now; kept for a second, or for as long as ``FADING`` says."""
    now_us = fleet.now_us
    if now_us >= demand.logits_until_us:
        values = features(fleet, demand, now_us)
        demand.logits = [dot(head, values) for head in fleet.state.forecast.weights]
        demand.logits_until_us = InstantUs(now_us + max(SECOND_US, (now_us - demand.last_us) >> FADING))
    return demand.logits


@lru_cache(maxsize=256)
def heads(tau_s: float) -> tuple[int, float]:
    """Which two heads lie around ``tau_s``: the lower one's index, and the share of the upper one."""
    if tau_s <= HEADS_S[0]:
        return 0, 0.0
    if tau_s >= HEADS_S[-1]:
        return len(HEADS_S) - 2, 1.0
    low = 0
    while tau_s > HEADS_S[low + 1]:
        low += 1
    return low, (ln(tau_s) - _HEADS_LN[low]) / (_HEADS_LN[low + 1] - _HEADS_LN[low])


def chance(fleet: Fleet, demand: Demand, tau_s: float) -> float:
    """p(tau) by the two heads around it, for a model that was asked for before."""
    low, share = heads(tau_s)
    said = logits(fleet, demand)
    return logistic(said[low] + share * (said[low + 1] - said[low]))


# ---------------------------------------------------------------------- learning


def learn(fleet: Fleet, model: Model) -> None:
    """An arrival of ``model``, before the statistics know of it: tell waiting samples the truth, take a new one."""
    forecast, now_us = fleet.state.forecast, fleet.now_us
    ready(forecast)
    for sample in model.demand.samples:
        _lesson(forecast, sample, now_us - sample.at_us)
    model.demand.samples = []
    if now_us - forecast.sampled_us >= SAMPLE_EVERY_US:
        forecast.sampled_us = now_us
        _sample_next(fleet, now_us)


def _sample_next(fleet: Fleet, now_us: InstantUs) -> None:
    """Look at the next model in turn, so that lessons are of what eviction has to compare at moments of arrival."""
    asked, forecast = fleet.state.asked, fleet.state.forecast
    if not asked:
        return
    forecast.cursor = (forecast.cursor + 1) % len(asked)
    model = fleet.state.models[asked[forecast.cursor]]
    samples = model.demand.samples
    while samples and now_us - samples[0].at_us >= EXPIRED_US:
        _lesson(forecast, samples[0], EXPIRED_US)
        del samples[0]
    if len(samples) < SAMPLES_MAX and now_us - model.demand.last_us <= SAMPLE_AGE_MAX_US:
        samples.append(Sample(at_us=now_us, features=features(fleet, model.demand, now_us)))


def _lesson(forecast: Forecast, sample: Sample, gap_us: int) -> None:
    """One step of Adagrad for each head towards exp(-gap / tau)."""
    values, gap_s = sample.features, gap_us / SECOND_US
    for head, tau_s in enumerate(HEADS_S):
        weights, squares = forecast.learned[head], forecast.squares[head]
        error = logistic(dot(weights, values)) - decay(gap_s / tau_s)
        for i, value in enumerate(values):
            if value:
                slope = error * value
                squares[i] += slope * slope
                weights[i] -= RATE * slope / sqrt(squares[i])
    forecast.lessons += 1
    if forecast.lessons % PUBLISH_EVERY == 0:
        forecast.weights = [list(head) for head in forecast.learned]
        forecast.version += 1


# ---------------------------------------------------------------------- the cache's own times


IDLE_FIRST_US = SpanUs(1_200 * SECOND_US)
MISS_SPAN_S = 1_800.0
"""Misses of about the last half hour say when the next one comes."""
NEEDS_MAX = 32


def note_miss(fleet: Fleet, need_bytes: int) -> None:
    """A load on demand begins."""
    forecast = fleet.state.forecast
    forecast.misses = _misses(fleet) + 1.0
    forecast.misses_us = fleet.now_us
    forecast.needs.append(need_bytes)
    if len(forecast.needs) > NEEDS_MAX:
        del forecast.needs[0]


def note_victim(fleet: Fleet, idle_us: int, *, loss: float, size: int) -> None:
    """A runner leaves for another one after having been idle for so long."""
    forecast = fleet.state.forecast
    forecast.byte_price += (loss / max(1, size) - forecast.byte_price) / 16
    old = forecast.idle_us or IDLE_FIRST_US
    forecast.idle_us = SpanUs(max(1, old + (idle_us - old) // 16))


def _misses(fleet: Fleet) -> float:
    forecast = fleet.state.forecast
    return forecast.misses * decay((fleet.now_us - forecast.misses_us) / (MISS_SPAN_S * SECOND_US))


def miss_gap_s(fleet: Fleet) -> float:
    """Seconds to the next miss, on average, by the latest ones."""
    return MISS_SPAN_S / max(0.05, _misses(fleet))


def idle_s(fleet: Fleet) -> float:
    """How long a runner stays unused before its room is taken, on average."""
    return (fleet.state.forecast.idle_us or IDLE_FIRST_US) / SECOND_US
