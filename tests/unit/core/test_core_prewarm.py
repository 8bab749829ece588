"""Work ahead of demand: only where it pays, within its budget, and at nobody's cost."""

from __future__ import annotations

import pytest
from core_arrivals import arrive, model_of
from core_script import GIB, S, Script, stored

from bellmare.core import decisions as d
from bellmare.core import prewarm
from bellmare.core.events import HintGiven, HintSource
from bellmare.core.fleet import REST_LOADS, Fleet
from bellmare.core.prewarm import BUDGET_PERCENT, BUDGET_SPAN_S, CAUTION_MAX, CAUTION_MIN, NEEDS_MIN, OUTCOMES
from bellmare.core.state import Worker


def fleet_with(*held: str, gib: int = 24, large: int = 16, **limits: object) -> tuple[Script, Fleet, Worker]:
    """A worker of 24 GiB that stores models of 16 and holds some of them, long enough to let them go."""
    script = Script(**limits)
    script.worker("w", *(stored(name, large) for name in ("a", "b", "c")), gib=gib)
    for name in held:
        script.loads(name, "w")
        load = script.one(d.Load)
        script.passes(10)
        script.ends(load)
    script.passes(60)
    fleet = script.engine.fleet
    fleet.now_us = script.now  # type: ignore[assignment]
    fleet.out = []
    for model in fleet.state.models.values():
        model.load_us = 10 * S  # type: ignore[assignment]
    return script, fleet, script.seen("w")


def hot(fleet: Fleet, name: str, *, times: int = 30, every_s: float = 20.0) -> None:
    for _ in range(times):
        arrive(fleet, name, after_s=every_s, tenant=name)


def found(script: Script) -> prewarm.Ahead | None:
    fleet = script.engine.fleet
    fleet.state.forecast.ahead_us = 0  # type: ignore[assignment]
    return prewarm.best_ahead(fleet, script.engine.policy)


def test_a_model_that_will_be_asked_for_is_loaded_into_free_room() -> None:
    script, fleet, _ = fleet_with()
    hot(fleet, "a")
    ahead = found(script)
    assert ahead is not None
    assert (ahead.model.model, ahead.cause, ahead.plan.victims) == ("blob-a", d.LoadCause.prewarm, [])
    assert ahead.gain > 0


def test_a_model_that_nobody_asks_for_is_not_loaded_even_into_free_room() -> None:
    script, fleet, _ = fleet_with()
    arrive(fleet, "a")
    fleet.now_us += 86_400 * S  # type: ignore[assignment]
    assert found(script) is None


def test_nothing_is_loaded_ahead_in_place_of_what_is_worth_more() -> None:
    script, fleet, _ = fleet_with("b")
    hot(fleet, "a", every_s=40)
    hot(fleet, "b", every_s=10)
    assert found(script) is None


def test_what_is_loaded_ahead_takes_the_place_of_who_is_not_asked_for() -> None:
    script, fleet, _ = fleet_with("b")
    arrive(fleet, "b")
    fleet.now_us += 86_400 * S  # type: ignore[assignment]
    hot(fleet, "a", times=60, every_s=5)
    ahead = found(script)
    assert ahead is not None
    assert [victim.model for victim in ahead.plan.victims] == ["blob-b"]


def test_a_busy_runner_is_no_victim_ahead_of_demand() -> None:
    script, fleet, worker = fleet_with("b")
    hot(fleet, "a", times=60, every_s=5)
    assert found(script) is not None
    worker.runners["blob-b"].in_flight["r"] = None  # type: ignore[index]
    assert found(script) is None


def test_a_model_that_is_there_is_not_loaded_once_more() -> None:
    script, fleet, _ = fleet_with("a")
    hot(fleet, "a")
    assert found(script) is None


def test_a_model_that_left_is_not_loaded_ahead_before_twice_its_load() -> None:
    script, fleet, worker = fleet_with("a")
    script.unloads("a")
    script.ends(script.one(d.Unload))
    gone_us = script.now
    fleet.now_us = script.now  # type: ignore[assignment]
    span_us = worker.resting["blob-a"] - gone_us  # type: ignore[index]
    assert span_us == pytest.approx(REST_LOADS * 10 * S, rel=0.01)
    hot(fleet, "a", times=30, every_s=0.1)
    assert found(script) is None
    fleet.now_us = gone_us + span_us + 1  # type: ignore[assignment]
    assert found(script) is not None


def test_its_rest_outlasts_the_observations_made_meanwhile() -> None:
    script, _, worker = fleet_with("a")
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.shows("w")
    script.passes(10)
    script.shows("w")
    assert not worker.left
    assert "blob-a" in worker.resting
    script.passes(11)
    script.shows("w")
    assert not worker.resting


def test_loads_ahead_keep_to_their_share_of_the_loaders_time_and_hints_to_a_larger_one() -> None:
    script, fleet, _ = fleet_with()
    hot(fleet, "a")
    span_us = int(BUDGET_SPAN_S * S)
    prewarm.note_load(fleet, span_us * BUDGET_PERCENT[d.LoadCause.prewarm] // 100)
    assert found(script) is None
    assert prewarm._affordable(fleet, d.LoadCause.hint)
    fleet.now_us += 60 * S  # type: ignore[assignment]
    arrive(fleet, "a")
    assert found(script) is not None  # what was spent fades
    prewarm.note_load(fleet, span_us * BUDGET_PERCENT[d.LoadCause.hint] // 100)
    assert not prewarm._affordable(fleet, d.LoadCause.hint)


def test_a_load_ahead_is_booked_when_it_begins() -> None:
    script, fleet, _ = fleet_with()
    script.tell(HintGiven(source=HintSource.prepare, name="a"))
    assert script.one(d.Load).cause is d.LoadCause.hint
    assert fleet.state.forecast.spent_us == script.one(d.Load).expected_us
    assert script.runner("a", "w").untried


def test_a_load_ahead_that_serves_somebody_was_useful_and_one_that_leaves_unused_was_not() -> None:
    script, fleet, _ = fleet_with()
    for useful, useless in ((1, 0), (1, 1)):
        script.tell(HintGiven(source=HintSource.prepare, name="a"))
        script.ends(script.one(d.Load))
        if not useless:
            script.asks("r", "a")
            script.done("r")
        script.passes(1)
        script.unloads("a")
        script.ends(script.one(d.Unload))
        assert (fleet.state.forecast.useful, fleet.state.forecast.useless) == (useful, useless)
        script.passes(60)


def test_loads_ahead_cost_twice_as_much_while_few_are_of_use_and_half_when_most_are() -> None:
    _, fleet, _ = fleet_with()
    state = fleet.state.forecast
    state.useful, state.useless = 0.0, OUTCOMES - 1
    prewarm._heed_outcomes(fleet)
    assert state.caution == 1.0  # too few to judge by
    said = []
    for _ in range(5):
        state.useful, state.useless = 1.0, OUTCOMES
        prewarm._heed_outcomes(fleet)
        said.append(state.caution)
    assert said == [2.0, 4.0, CAUTION_MAX, CAUTION_MAX, CAUTION_MAX]
    for _ in range(6):
        state.useful, state.useless = OUTCOMES, 1.0
        prewarm._heed_outcomes(fleet)
    assert state.caution == CAUTION_MIN
    state.useful, state.useless = OUTCOMES / 2, OUTCOMES / 2
    prewarm._heed_outcomes(fleet)
    assert (state.caution, state.useful, state.useless) == (CAUTION_MIN, 0.0, 0.0)


def test_nothing_is_loaded_ahead_while_it_is_switched_off() -> None:
    script, fleet, _ = fleet_with(ahead=False)
    script.tell(HintGiven(source=HintSource.prepare, name="a"))
    hot(fleet, "b")
    script.now = fleet.now_us
    assert not [one for one in script.passes(60) if isinstance(one, d.Load)]
    assert script.none(d.Load)


def wants_room(fleet: Fleet, *, gib: int = 18) -> None:
    """Loads on demand were of that size lately, and the next one is not far."""
    fleet.state.forecast.needs = [gib * GIB] * NEEDS_MIN
    fleet.state.forecast.misses, fleet.state.forecast.misses_us = 60.0, fleet.now_us


def test_who_will_not_be_asked_for_leaves_before_the_next_miss_needs_its_room() -> None:
    script, fleet, worker = fleet_with("b")
    arrive(fleet, "b")
    fleet.now_us += 3 * 86_400 * S  # type: ignore[assignment]
    wants_room(fleet)
    leaving = prewarm.room_ahead(fleet, script.engine.policy, worker)
    assert leaving is not None
    assert leaving.model == "blob-b"


def test_who_may_be_asked_for_stays() -> None:
    script, fleet, worker = fleet_with("b")
    hot(fleet, "b")
    wants_room(fleet)
    assert prewarm.room_ahead(fleet, script.engine.policy, worker) is None


def test_nobody_leaves_ahead_while_misses_fit_or_are_too_few_to_say() -> None:
    script, fleet, worker = fleet_with("b")
    arrive(fleet, "b")
    fleet.now_us += 3 * 86_400 * S  # type: ignore[assignment]
    wants_room(fleet, gib=2)
    assert prewarm.room_ahead(fleet, script.engine.policy, worker) is None
    wants_room(fleet)
    del fleet.state.forecast.needs[0]
    assert prewarm.room_ahead(fleet, script.engine.policy, worker) is None


def test_a_wrong_hint_never_takes_the_place_of_a_hot_model() -> None:
    script, fleet, _ = fleet_with("b")
    hot(fleet, "b", times=60, every_s=2)
    script.now = fleet.now_us
    for source in HintSource:
        script.tell(HintGiven(source=source, name="a"))
        assert script.none(d.Load, d.Drain)
    assert model_of(fleet, "a").demand.hints
