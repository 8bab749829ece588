"""How soon a model will be asked for: probabilities that learn from what happens and stay within their bounds."""

from __future__ import annotations

import math
import random

import pytest
from core_arrivals import arrive, fleet_of, model_of
from core_script import S, Script, stored

from bellmare.core import forecast
from bellmare.core.forecast import FEATURES, HEADS_S, SAMPLES_MAX, SIZE, SPANS_S
from bellmare.core.forecast_weights import WEIGHTS


def test_the_shipped_weights_have_one_number_for_each_head_and_feature() -> None:
    assert len(WEIGHTS) == len(HEADS_S)
    assert {len(head) for head in WEIGHTS} == {SIZE}


def test_features_come_in_their_documented_order_and_are_finite() -> None:
    fleet = fleet_of("a")
    for _ in range(20):
        arrive(fleet, "a", after_s=60, tenant="t")
    for age_s in (0, 1, 60, 86_400, 10_000_000):
        found = forecast.features(fleet, model_of(fleet, "a").demand, fleet.now_us + age_s * S)
        assert len(found) == len(FEATURES)
        assert all(math.isfinite(value) for value in found)
    named = dict(zip(FEATURES, forecast.features(fleet, model_of(fleet, "a").demand, fleet.now_us), strict=True))
    assert named["one"] == 1.0
    assert named["age"] == pytest.approx(0.0, abs=1e-9)
    assert named["regular"] == 1.0
    assert named["new"] == 0.0
    assert named[f"counter_{int(SPANS_S[-1])}s"] == pytest.approx(math.log(21), rel=0.01)
    assert named["sessions"] == pytest.approx(math.log(2), rel=1e-3)


def test_a_timers_next_call_is_due_when_its_gap_is_over() -> None:
    fleet = fleet_of("a")
    for _ in range(10):
        arrive(fleet, "a", after_s=600)
    known = model_of(fleet, "a").demand
    assert forecast.regular(known) == 1.0
    assert forecast.due_after_s(known) == pytest.approx(600, rel=0.01)
    due = FEATURES.index("due_in_60s")
    assert forecast.features(fleet, known, fleet.now_us + 600 * S)[due] == pytest.approx(1.0, abs=0.1)
    assert forecast.features(fleet, known, fleet.now_us + 10 * S)[due] < 0.01


def test_the_nearer_the_horizon_the_less_probable() -> None:
    fleet = fleet_of("a")
    for _ in range(10):
        arrive(fleet, "a", after_s=200)
    said = [forecast.chance(fleet, model_of(fleet, "a").demand, tau_s) for tau_s in (60, 200, 1000, 10_000)]
    assert said == sorted(said)
    assert all(0.0 < one < 1.0 for one in said)


def test_between_two_heads_a_horizon_is_weighed_by_its_logarithm() -> None:
    assert forecast.heads(10) == (0, 0.0)
    assert forecast.heads(HEADS_S[-1]) == (len(HEADS_S) - 2, 1.0)
    low, share = forecast.heads(math.sqrt(HEADS_S[1] * HEADS_S[2]))
    assert (low, share) == (1, pytest.approx(0.5, abs=1e-3))


def said_of_others(mean_s: float, *, arrivals: int, models: int = 6) -> list[float]:
    """Equal Poisson streams: what the second head says of the other models at each arrival, as eviction would ask."""
    rng = random.Random(1)
    names = tuple(f"m{number}" for number in range(models))
    fleet = fleet_of(*names)
    said: list[float] = []
    for _ in range(arrivals):
        name = rng.choice(names)
        arrive(fleet, name, after_s=rng.expovariate(models / mean_s))
        others = [model for model in fleet.state.models.values() if model.demand.arrivals and name not in model.model]
        said += [forecast.chance(fleet, model.demand, HEADS_S[1]) for model in others]
    return said


@pytest.mark.slow
@pytest.mark.parametrize("mean_s", [60.0, 600.0])
def test_on_a_poisson_stream_what_is_said_is_on_average_what_happens(mean_s: float) -> None:
    said = said_of_others(mean_s, arrivals=2_000)
    late = said[len(said) // 2 :]
    true = 1 / (1 + mean_s / HEADS_S[1])
    assert sum(late) / len(late) == pytest.approx(true, rel=0.15)


def test_a_lesson_moves_every_head_towards_what_happened() -> None:
    for gap_s, rises in ((1, True), (1_000_000, False)):
        fleet = fleet_of("a")
        model = arrive(fleet, "a")
        state = fleet.state.forecast
        values = forecast.features(fleet, model.demand, fleet.now_us)
        before = [forecast.dot(head, values) for head in state.learned]
        fleet.now_us += S  # type: ignore[assignment]
        forecast._lesson(state, forecast.Sample(at_us=fleet.now_us, features=values), gap_s * S)
        after = [forecast.dot(head, values) for head in state.learned]
        assert all((new > old) == rises for new, old in zip(after, before, strict=True))


def test_weights_in_use_change_only_now_and_then() -> None:
    fleet = fleet_of("a")
    for _ in range(forecast.PUBLISH_EVERY):
        arrive(fleet, "a", after_s=2)
    state = fleet.state.forecast
    assert state.lessons < forecast.PUBLISH_EVERY
    assert state.weights == [list(head) for head in WEIGHTS]
    assert state.learned != state.weights
    for _ in range(2):
        arrive(fleet, "a", after_s=2)
    assert state.version == 1
    assert state.weights != [list(head) for head in WEIGHTS]


def test_samples_of_a_model_that_is_not_asked_for_are_bounded() -> None:
    fleet = fleet_of("a", "b")
    arrive(fleet, "b")
    for _ in range(100):
        arrive(fleet, "a", after_s=5)
        assert all(len(model.demand.samples) <= SAMPLES_MAX for model in fleet.state.models.values())
    assert len(model_of(fleet, "b").demand.samples) == SAMPLES_MAX


def test_a_long_silence_is_a_lesson_too() -> None:
    fleet = fleet_of("a", "b")
    arrive(fleet, "b")
    for _ in range(10):
        arrive(fleet, "a", after_s=5)
    oldest = model_of(fleet, "b").demand.samples[0].at_us
    lessons = fleet.state.forecast.lessons
    fleet.now_us += forecast.EXPIRED_US  # type: ignore[assignment]
    for _ in range(2):
        arrive(fleet, "a", after_s=5)
    waiting = model_of(fleet, "b").demand.samples
    assert fleet.state.forecast.lessons > lessons
    assert all(sample.at_us != oldest for sample in waiting)


def test_a_restored_engine_forecasts_the_same_numbers() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    for number in range(50):
        script.asks(f"r{number}", "a" if number % 3 else "b", tenant="t")
        script.cancels(f"r{number}")
        script.passes(7)
    other = script.copy()
    for one, two in zip(
        script.engine.fleet.state.models.values(), other.engine.fleet.state.models.values(), strict=True
    ):
        other.engine.fleet.now_us = script.engine.fleet.now_us
        for tau_s in (30, 300, 3_000):
            mine = forecast.chance(script.engine.fleet, one.demand, tau_s)
            assert forecast.chance(other.engine.fleet, two.demand, tau_s) == mine


def test_misses_say_how_soon_the_next_one_comes_and_their_sizes_are_bounded() -> None:
    fleet = fleet_of("a")
    quiet = forecast.miss_gap_s(fleet)
    for number in range(forecast.NEEDS_MAX + 10):
        fleet.now_us += 10 * S  # type: ignore[assignment]
        forecast.note_miss(fleet, number)
    assert forecast.miss_gap_s(fleet) < quiet
    assert len(fleet.state.forecast.needs) == forecast.NEEDS_MAX
    assert fleet.state.forecast.needs[-1] == forecast.NEEDS_MAX + 9


def test_the_characteristic_time_follows_how_long_victims_were_idle() -> None:
    fleet = fleet_of("a")
    for _ in range(200):
        forecast.note_victim(fleet, 50 * S, loss=2.0, size=1_000)
    assert forecast.idle_s(fleet) == pytest.approx(50, rel=0.02)
    assert fleet.state.forecast.byte_price == pytest.approx(0.002, rel=0.01)
