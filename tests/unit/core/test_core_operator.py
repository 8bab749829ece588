"""What operators ask for by hand, the story of what happened, and what a snapshot carries over."""

import pytest
from core_script import Script, loaded, names, plain, stored

from bellmare.core import decisions as d
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.engine import Engine


def test_an_operator_loads_on_the_best_worker_or_on_the_one_named() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), stored("b"))
    assert script.loads("a").accepted
    load = script.one(d.Load)
    assert load.cause is d.LoadCause.operator
    script.ends(load)
    answer = script.loads("b", "w2")
    assert answer.workers == ("w2",)


def test_an_operator_is_told_why_not() -> None:
    script = Script()
    script.worker("w1", stored("a"))
    script.worker("w2", stored("b", 20), stored("c", 20))
    assert "not found" in script.loads("nothing").text
    assert "no worker named" in script.loads("a", "w9").text
    assert "does not store" in script.loads("a", "w2").text
    script.loads("b", "w2")
    assert "try again in a moment" in script.loads("c", "w2").text
    script.unreachable("w1")
    assert "no healthy worker" in script.loads("a").text
    for name in ("nothing", "c"):
        assert not script.loads(name).accepted


def test_what_is_there_is_not_loaded_again() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    answer = script.loads("a")
    assert (answer.accepted, answer.workers) == (True, ("w",))
    assert script.none(d.Load)


def test_an_operator_unloads_after_the_requests_under_way() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    assert script.unloads("a").accepted
    assert script.one(d.Drain).cause is d.UnloadCause.operator
    assert script.none(d.Unload)
    script.done("r")
    assert script.one(d.Unload).cause is d.UnloadCause.operator
    assert not script.unloads("b").accepted


def test_an_unload_that_fails_is_tried_again_but_not_in_a_hurry() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.unloads("a")
    for _ in range(2):
        script.broken(script.one(d.Unload))
        script.shows("w", loaded("a"))
    script.broken(script.one(d.Unload))
    script.shows("w", loaded("a"))
    assert script.none(d.Unload)
    script.passes(6)
    script.shows("w", loaded("a"))
    assert script.one(d.Unload).cause is d.UnloadCause.operator


def test_a_runner_that_no_name_reaches_serves_on_when_its_name_returns() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),), parallel=1)
    script.asks("r", "a")
    script.unloads("a")
    script.shows("w", loaded("a"), stores=())
    script.done("r")
    script.shows("w", loaded("a"), stores=(stored("a"),))
    script.asks("s", "a")
    assert names(script.out) == ["Dispatch"]


def test_the_story_of_a_request_and_of_a_model_is_told() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    script.asks("r", "a")
    script.ends(script.one(d.Load))
    story = "\n".join(script.engine.explain("r"))
    assert "RequestArrived" in story
    assert "Dispatch" in story
    assert "Load" in "\n".join(script.engine.explain("a"))
    assert script.engine.explain("never heard of") == []


def test_a_restored_engine_goes_on_as_the_first_would() -> None:
    script = Script()
    script.worker("w", stored("a", 8), stored("b", 8), stored("c", 12), parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.passes(60)
    for number, name in enumerate("aabbcc"):
        script.asks(f"r{number}", name, within=1000, prompt_tokens=500)
    script.cancels("r2")
    script.fails("r0", "w", "busy")
    other = script.copy()
    for one in (script, other):
        one.all = []
        one.passes(8)
        one.cancels("r4")
        one.passes(30)
    assert plain(script.all) == plain(other.all)
    assert script.all
    assert script.engine.snapshot() == other.engine.snapshot()


def test_a_snapshot_is_read_under_another_configuration() -> None:
    """A shorter context makes room for a model that was too large before the restart."""
    script = Script()
    big = stored("a", 4, kv_bytes_per_token=1 << 20)
    script.worker("w", big, stored("b", 1), gib=10, parallel=1)
    script.resident("b", "w")
    script.passes(60)
    other = Script(CoreConfig(models={"a": ModelConfig(num_ctx=1024)}))
    other.engine = Engine.restore(other.config, script.engine.snapshot())
    other.now = script.now
    for one, loads in ((script, False), (other, True)):
        one.asks("r", "a")
        assert one.none(d.Load) is not loads


def test_time_does_not_go_back() -> None:
    script = Script()
    script.joins("w")
    script.now -= 10
    with pytest.raises(AssertionError, match="time does not go back"):
        script.shows("w")
