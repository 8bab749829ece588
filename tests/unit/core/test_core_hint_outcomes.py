"""Hints are scored by what becomes of them: of what a tenant said, he is scored too; loads ahead are counted."""

from core_script import S, Script, stored

from bellmare.core import decisions as d
from bellmare.core.events import HintGiven, HintSource


def fresh() -> Script:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    script.asks("r0", "a", tenant="t")
    script.ends(script.one(d.Load))
    script.done("r0")
    return script


def hint(script: Script, source: HintSource, name: str = "b", ttl: int = 5) -> None:
    script.tell(HintGiven(source=source, name=name, tenant="t", in_us=S, ttl_us=ttl * S))


def test_a_hint_that_runs_out_is_held_against_the_tenant_only_if_he_said_it():
    for source, blamed in (
        (HintSource.prepare, True), (HintSource.next_header, True), (HintSource.show, False), (HintSource.tags, False),
        (HintSource.body, False),
    ):  # fmt: skip
        script = fresh()
        hint(script, source)
        for load in script.some(d.Load):
            script.ends(load)
        script.passes(10)
        state = script.engine.fleet.state
        assert state.counters[f"hint_given_{source}"] == 1
        assert state.counters[f"hint_wrong_{source}"] == 1
        assert state.scores[source].wrong == 1.0
        assert (state.callers["t"].score.wrong == 1.0) is blamed, source


def test_what_traffic_says_in_vain_does_not_weaken_what_its_client_says():
    script, other = fresh(), fresh()
    for one in (script, other):
        one.resident("b", "w")
    for _ in range(20):
        hint(script, HintSource.tags, ttl=1)
        script.passes(3)
        other.passes(3)
    hint(script, HintSource.prepare)
    hint(other, HintSource.prepare)
    said = [one.engine.fleet.resolve("b").demand.hints[HintSource.prepare].chance for one in (script, other)]
    assert script.engine.fleet.state.scores[HintSource.tags].wrong > 10
    assert said[0] == said[1]


def test_a_load_ahead_is_counted_as_useful_or_not_once_that_is_known():
    script = fresh()
    hint(script, HintSource.prepare)
    load = script.one(d.Load)
    assert load.cause is d.LoadCause.hint
    script.ends(load)
    counters = script.engine.fleet.state.counters
    assert "ahead_useful" not in counters
    script.asks("r1", "b", tenant="t")
    assert counters["ahead_useful"] == 1
    script.done("r1")
    script.asks("r2", "b", tenant="t")
    assert counters["ahead_useful"] == 1, "once for each load"

    script = fresh()
    hint(script, HintSource.prepare)
    script.ends(script.one(d.Load))
    script.passes(30)
    script.unloads("b")
    script.ends(script.one(d.Unload))
    assert script.engine.fleet.state.counters["ahead_useless"] == 1
