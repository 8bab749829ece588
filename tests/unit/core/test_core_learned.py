"""What was learned outlives a restart: demand, forecast and scores; nothing of residency, and no tenant."""

from __future__ import annotations

import msgspec
from core_script import S, Script, stored

from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine


def lived() -> Script:
    script = Script()
    script.worker("w", stored("ant"), stored("bee", 2))
    for number in range(40):
        script.now += 30 * S
        script.tell(
            e.RequestArrived(
                request=f"r{number}",  # type: ignore[arg-type]
                name="ant" if number % 3 else "bee",
                deadline_us=script.now + 600 * S,  # type: ignore[arg-type]
                tenant="somebody",
            )
        )
    script.tell(e.HintGiven(source=e.HintSource.prepare, name="bee", tenant="somebody"))
    return script


def reborn(known: bytes, *, away_s: int = 60, now: int = 5_000 * S, **limits: object) -> tuple[Engine, bool]:
    engine = Engine(CoreConfig(**limits))  # type: ignore[arg-type]
    return engine, engine.remember(known, away_us=away_s * S, now_us=now)  # type: ignore[arg-type]


def test_demand_comes_back_with_the_ages_that_it_has_meanwhile() -> None:
    script = lived()
    before = script.engine.fleet.state.models["blob-ant"].demand  # type: ignore[index]
    age = script.now - before.last_us
    engine, taken = reborn(script.engine.learned())
    assert taken
    again = Script()
    again.engine, again.now = engine, 5_000 * S
    again.worker("w", stored("ant"), stored("bee", 2))
    demand = engine.fleet.state.models["blob-ant"].demand  # type: ignore[index]
    assert demand.arrivals == before.arrivals and demand.counters == before.counters
    assert 5_000 * S - demand.last_us == age + 60 * S
    assert engine.fleet.state.asked.count("blob-ant") == 1  # type: ignore[arg-type]
    assert not engine.fleet.state.remembered


def test_what_the_forecast_learned_goes_on_and_open_lessons_are_dropped() -> None:
    script = lived()
    forecast = script.engine.fleet.state.forecast
    assert forecast.lessons > 0
    engine, _ = reborn(script.engine.learned())
    assert engine.fleet.state.forecast.learned == forecast.learned
    assert engine.fleet.state.forecast.lessons == forecast.lessons
    assert all(not known.demand.samples and not known.demand.hints for known in engine.fleet.state.remembered.values())


def test_nothing_of_residency_and_no_tenant_is_written() -> None:
    script = lived()
    assert "somebody" in script.engine.fleet.state.callers
    known = script.engine.learned()
    assert b"somebody" not in known and b"resident" not in known and b"loading" not in known
    engine, _ = reborn(known)
    assert not engine.fleet.state.workers and not engine.fleet.state.models


def test_a_file_of_another_version_or_a_damaged_one_changes_nothing() -> None:
    known = lived().engine.learned()
    plain = msgspec.json.decode(known)
    for damaged in (
        b"{",
        b"[]",
        msgspec.json.encode({**plain, "version": 99}),
        msgspec.json.encode({**plain, "features": 3}),
    ):
        engine, taken = reborn(damaged)
        assert not taken
        assert engine.snapshot() == Engine(CoreConfig()).snapshot()


def test_an_earlier_life_of_a_longer_clock_gives_no_instants_before_zero() -> None:
    engine, _ = reborn(lived().engine.learned(), away_s=7 * 86_400, now=10 * S)
    assert all(known.demand.last_us >= 0 for known in engine.fleet.state.remembered.values())


def test_experience_belongs_to_its_policy() -> None:
    script = lived()
    script.engine.fleet.state.experience.inflation = 7.0
    known = script.engine.learned()
    assert reborn(known)[0].fleet.state.experience.inflation == 7.0
    assert reborn(known, eviction="gdsf")[0].fleet.state.experience.inflation == 0.0


def test_a_snapshot_holds_what_is_remembered_of_blobs_not_seen_yet() -> None:
    engine, _ = reborn(lived().engine.learned())
    copy = Engine.restore(engine.config, engine.snapshot())
    assert copy.fleet.state.remembered.keys() == engine.fleet.state.remembered.keys() != set()
