"""Hints: a probability by what became of such hints, never an order; bounded, and over when they said."""

from __future__ import annotations

import pytest
from core_arrivals import arrive, fleet_of, model_of
from core_script import S, Script, stored

from bellmare.core import hints
from bellmare.core.events import HintGiven, HintSource
from bellmare.core.fleet import Fleet
from bellmare.core.hints import BELIEF, CHANCE_MAX, EXPECTED_MAX, FORESEEN_MAX, TTL_MAX_US, TTL_US


def hint(fleet: Fleet, name: str, *, source: HintSource = HintSource.prepare, **more: object) -> None:
    hints.given(fleet, HintGiven(source=source, name=name, **more))  # type: ignore[arg-type]


def scripted(*names: str) -> Script:
    """A worker that is too busy with a foreigner to load anything: hints only come and go."""
    script = Script()
    script.worker("w", *(stored(name, 8) for name in names), gib=24)
    script.shows("w", foreign=23)
    return script


def tell(script: Script, name: str, source: HintSource = HintSource.prepare, **more: object) -> None:
    script.tell(HintGiven(source=source, name=name, **more))  # type: ignore[arg-type]


def test_each_source_begins_with_what_is_believed_of_it() -> None:
    fleet = fleet_of("a")
    for source, (right, wrong) in BELIEF.items():
        assert hints.precision(fleet, source) == pytest.approx(right / (right + wrong))
    assert set(BELIEF) == set(HintSource)


def test_a_hint_makes_its_model_probable_when_it_is_due_and_less_so_before_and_after() -> None:
    fleet = fleet_of("a")
    hint(fleet, "a", in_us=30 * S, ttl_us=60 * S)
    model, said = model_of(fleet, "a"), {}
    for at_s in (0, 29, 30, 60, 90):
        fleet.now_us += at_s * S - (fleet.now_us - 1000 * S)  # type: ignore[assignment]
        said[at_s] = hints.chance(fleet, model, 10.0)
    assert said[0] < said[29] <= said[30] == pytest.approx(0.9)
    assert said[30] > said[60] > said[90] == 0.0


def test_nothing_is_certain() -> None:
    fleet = fleet_of("a")
    for _ in range(500):
        hint(fleet, "a")
        arrive(fleet, "a", after_s=1)
    hint(fleet, "a")
    assert max(one.chance for one in model_of(fleet, "a").demand.hints.values()) <= CHANCE_MAX


def test_a_hint_that_comes_true_is_settled_and_counts_for_its_source_and_lead() -> None:
    fleet = fleet_of("a")
    before = hints.precision(fleet, HintSource.show)
    hint(fleet, "a", source=HintSource.show)
    arrive(fleet, "a", after_s=7)
    assert HintSource.show not in model_of(fleet, "a").demand.hints
    assert hints.precision(fleet, HintSource.show) > before
    assert hints.lead_us(fleet, HintSource.show) == 7 * S
    assert fleet.state.counters["hint_right_show"] == 1


def test_a_hint_that_did_not_come_true_expires_and_counts_against_its_source() -> None:
    script = scripted("a")
    before = hints.precision(script.engine.fleet, HintSource.prepare)
    tell(script, "a", ttl_us=20 * S)
    script.passes(19)
    assert model_of(script.engine.fleet, "a").demand.hints
    script.passes(2)
    fleet = script.engine.fleet
    assert not model_of(fleet, "a").demand.hints
    assert not fleet.state.foreseen
    assert hints.precision(fleet, HintSource.prepare) < before
    assert fleet.state.counters["hint_wrong_prepare"] == 1


def test_a_hint_given_again_is_put_off_and_not_counted_as_wrong() -> None:
    script = scripted("a")
    tell(script, "a", ttl_us=20 * S)
    script.passes(15)
    tell(script, "a", ttl_us=20 * S)
    script.passes(15)
    fleet = script.engine.fleet
    assert model_of(fleet, "a").demand.hints
    assert "hint_wrong_prepare" not in fleet.state.counters
    script.passes(10)
    assert not model_of(fleet, "a").demand.hints
    assert fleet.state.counters["hint_wrong_prepare"] == 1


def test_a_hint_without_a_span_lasts_a_minute_and_none_longer_than_its_bound() -> None:
    fleet = fleet_of("a", "b")
    hint(fleet, "a")
    hint(fleet, "b", ttl_us=10 * TTL_MAX_US, in_us=10 * hints.AHEAD_MAX_US)
    a, b = (model_of(fleet, name).demand.hints[HintSource.prepare] for name in ("a", "b"))
    assert a.until_us - a.due_us == TTL_US
    assert b.until_us - b.due_us == TTL_MAX_US
    assert b.due_us - fleet.now_us == hints.AHEAD_MAX_US


def test_sources_that_lie_lose_their_weight_one_by_one() -> None:
    script = scripted("a")
    fleet = script.engine.fleet
    for _ in range(30):
        tell(script, "a", HintSource.show, ttl_us=S, in_us=1)
        script.passes(3)
    assert hints.precision(fleet, HintSource.show) < 0.1
    assert hints.precision(fleet, HintSource.prepare) == pytest.approx(0.9)


def test_a_tenant_who_lies_loses_his_weight_and_others_keep_theirs() -> None:
    fleet = fleet_of("a", "b")
    for tenant in ("liar", "honest"):
        arrive(fleet, "b", tenant=tenant)
    for _ in range(40):
        for tenant in ("liar", "honest"):
            hint(fleet, "a", tenant=tenant)
            found = model_of(fleet, "a").demand.hints.pop(HintSource.prepare)
            hints._judge(fleet, HintSource.prepare, found, right=tenant == "honest")
    chances = {}
    for tenant in ("liar", "honest"):
        hint(fleet, "a", tenant=tenant)
        chances[tenant] = model_of(fleet, "a").demand.hints.pop(HintSource.prepare).chance
    assert chances["liar"] < 0.2
    assert chances["honest"] > 2 * chances["liar"]


def test_a_flood_of_hints_is_one_hint_for_a_bounded_number_of_requests() -> None:
    fleet = fleet_of("a")
    for _ in range(1_000):
        hint(fleet, "a")
    known = model_of(fleet, "a").demand.hints
    assert len(known) == 1
    assert known[HintSource.prepare].expected == EXPECTED_MAX


def test_models_that_hints_speak_for_are_bounded_and_the_oldest_is_dropped() -> None:
    names = tuple(f"m{number}" for number in range(FORESEEN_MAX + 6))
    fleet = fleet_of(*names)
    for name in names:
        hint(fleet, name)
    assert len(fleet.state.foreseen) == FORESEEN_MAX
    assert "blob-m5" not in fleet.state.foreseen
    assert f"blob-{names[-1]}" in fleet.state.foreseen


def test_an_unknown_name_or_a_stranger_says_nothing() -> None:
    fleet = fleet_of("a")
    hint(fleet, "nobody-stores-it")
    hint(fleet, "", tenant="stranger")
    assert fleet.state.counters["hint_unknown"] == 2
    assert not model_of(fleet, "a").demand.hints


def test_without_a_name_it_is_the_tenants_usual_model() -> None:
    fleet = fleet_of("a", "b")
    for name in ("a", "b", "b"):
        arrive(fleet, name, tenant="t")
    hint(fleet, "", source=HintSource.tags, tenant="t")
    assert HintSource.tags in model_of(fleet, "b").demand.hints


def test_a_hint_for_later_is_looked_at_when_its_load_would_have_to_begin() -> None:
    script = scripted("a")
    fleet = script.engine.fleet
    tell(script, "a", in_us=300 * S)
    assert not fleet.state.foreseen
    script.passes(270)
    assert not fleet.state.foreseen
    script.passes(29)
    assert "blob-a" in fleet.state.foreseen


def test_a_timers_next_call_is_foreseen_by_the_core_itself() -> None:
    fleet = fleet_of("a")
    for _ in range(10):
        arrive(fleet, "a", after_s=300)
    found = model_of(fleet, "a").demand.hints[HintSource.period]
    assert found.due_us == pytest.approx(fleet.now_us + 300 * S, rel=0.01)


def test_what_mostly_follows_is_foreseen_by_the_core_itself() -> None:
    fleet = fleet_of("a", "b")
    for _ in range(10):
        arrive(fleet, "a", after_s=1000, tenant="t")
        arrive(fleet, "b", after_s=3, tenant="t")
    arrive(fleet, "a", after_s=1000, tenant="t")
    assert HintSource.chain in model_of(fleet, "b").demand.hints
