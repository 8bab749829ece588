"""Statistics of arrivals: everything decays, and everything is bounded."""

from __future__ import annotations

import math

import pytest
from core_arrivals import arrive, fleet_of, model_of
from core_script import S

from bellmare.core import demand
from bellmare.core.demand import CALLERS_MAX, HABITS_MAX, SPANS_S, usual_model


def test_each_counter_decays_with_its_own_span() -> None:
    fleet = fleet_of("a")
    arrive(fleet, "a")
    model = arrive(fleet, "a", after_s=120)
    for span_s, count in zip(SPANS_S, model.demand.counters, strict=True):
        assert count == pytest.approx(1 + math.exp(-120 / span_s), rel=1e-3)


def test_the_first_gap_is_taken_as_it_is_and_later_ones_move_the_average() -> None:
    fleet = fleet_of("a")
    arrive(fleet, "a")
    known = arrive(fleet, "a", after_s=99).demand
    assert known.gap_ln == pytest.approx(math.log(100), rel=1e-3)
    for _ in range(60):
        arrive(fleet, "a", after_s=9)
    assert known.gap_ln == pytest.approx(math.log(10), rel=1e-3)
    assert known.gap_spread < 0.01


def test_gaps_of_any_length_have_a_wide_spread() -> None:
    fleet = fleet_of("a")
    for number in range(60):
        arrive(fleet, "a", after_s=1 if number % 2 else 1000)
    assert model_of(fleet, "a").demand.gap_spread > 1.0


def test_a_session_is_with_the_model_asked_for_last() -> None:
    fleet = fleet_of("a", "b")
    a = arrive(fleet, "a", tenant="t").demand
    assert demand.sessions_at(a, fleet.now_us) == pytest.approx(1.0)
    b = arrive(fleet, "b", after_s=10, tenant="t").demand
    assert demand.sessions_at(a, fleet.now_us) == pytest.approx(0.0, abs=1e-6)
    assert demand.sessions_at(b, fleet.now_us) == pytest.approx(1.0)


def test_one_tenant_is_one_session_however_often_he_asks() -> None:
    fleet = fleet_of("a")
    for _ in range(20):
        arrive(fleet, "a", after_s=1, tenant="t")
    arrive(fleet, "a", tenant="u")
    assert demand.sessions_at(model_of(fleet, "a").demand, fleet.now_us) == pytest.approx(2.0, abs=0.01)


def test_a_session_fades_in_minutes() -> None:
    fleet = fleet_of("a")
    known = arrive(fleet, "a", tenant="t").demand
    assert demand.sessions_at(known, fleet.now_us + 300 * S) == pytest.approx(math.exp(-1), rel=1e-3)


def test_what_follows_within_a_minute_is_a_follower_and_later_is_not() -> None:
    fleet = fleet_of("a", "b", "c")
    for _ in range(5):
        arrive(fleet, "a", after_s=600, tenant="t")
        arrive(fleet, "b", after_s=5, tenant="t")
        arrive(fleet, "c", after_s=61, tenant="t")
    assert [key for key, _ in demand.followers(model_of(fleet, "a"))] == ["blob-b"]
    assert demand.followers(model_of(fleet, "b")) == []


def test_a_follower_is_promised_by_its_forerunner_and_settled_by_what_comes() -> None:
    fleet = fleet_of("a", "b")
    for _ in range(8):
        arrive(fleet, "a", after_s=600, tenant="t")
        arrive(fleet, "b", after_s=5, tenant="t")
    arrive(fleet, "a", after_s=600, tenant="t")
    b = model_of(fleet, "b").demand
    promised = demand.chain_at(b, fleet.now_us)
    assert promised > 0.8
    assert demand.chain_at(b, fleet.now_us + 30 * S) == pytest.approx(promised * math.exp(-1), rel=1e-3)
    arrive(fleet, "b", after_s=5, tenant="t")
    assert demand.chain_at(b, fleet.now_us) < 0.1


def test_a_tenants_usual_model_is_what_he_asks_for_most() -> None:
    fleet = fleet_of("a", "b")
    for name in ("a", "b", "b", "a", "b"):
        arrive(fleet, name, tenant="t")
    assert usual_model(fleet, "t") == "blob-b"
    assert usual_model(fleet, "nobody") is None


def test_habits_are_bounded_and_the_one_that_is_new_is_kept() -> None:
    names = tuple(f"m{number}" for number in range(HABITS_MAX + 5))
    fleet = fleet_of(*names)
    for name in names:
        arrive(fleet, name, after_s=1, tenant="t")
        assert f"blob-{name}" in fleet.state.callers["t"].habits
    assert len(fleet.state.callers["t"].habits) == HABITS_MAX


def test_followers_are_bounded() -> None:
    names = tuple(f"m{number}" for number in range(HABITS_MAX + 5))
    fleet = fleet_of("a", *names)
    for name in names:
        arrive(fleet, "a", after_s=1, tenant="t")
        arrive(fleet, name, after_s=1, tenant="t")
    assert len(model_of(fleet, "a").demand.followers) == HABITS_MAX


def test_tenants_are_bounded_and_who_asked_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CALLERS_MAX == 10_000
    monkeypatch.setattr(demand, "CALLERS_MAX", 50)  # the same code, met sooner
    fleet = fleet_of("a")
    for number in range(60):
        arrive(fleet, "a", tenant=f"t{number}")
        arrive(fleet, "a", tenant="t0")
    assert len(fleet.state.callers) == 50
    assert "t0" in fleet.state.callers
    assert "t1" not in fleet.state.callers
    assert "t59" in fleet.state.callers


def test_activity_is_the_last_minutes_of_all_models() -> None:
    fleet = fleet_of("a", "b")
    for _ in range(10):
        arrive(fleet, "a")
        arrive(fleet, "b")
    assert demand.activity_at(fleet, fleet.now_us) == pytest.approx(20.0, rel=1e-3)
    assert demand.activity_at(fleet, fleet.now_us + 120 * S) == pytest.approx(20 * math.exp(-1), rel=1e-3)
