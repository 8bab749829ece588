"""What an observation may change: everything older than itself, nothing younger, and never at the price of a model."""

from core_script import GIB, S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.events import OperationEnded, OperationOutcome
from bellmare.core.residency import Residency


def test_restart_adopts_without_one_unload() -> None:
    """A fresh core meets a fleet that is full, and serves from it at once."""
    script = Script(CoreConfig(models={"pin": ModelConfig(pinned=True)}))
    names = [stored(name, 4) for name in ("a", "b", "c", "pin")]
    script.worker("w1", *names, holds=(loaded("a", 8), loaded("b", 8), loaded("pin", 7)))
    script.worker("w2", *names, holds=(loaded("c", 20),))
    assert not [one for one in script.all if isinstance(one, d.Unload | d.Drain | d.Load)]
    for number, name in enumerate(("a", "b", "c", "pin")):
        script.asks(f"r{number}", name)
        assert script.one(d.Dispatch).cache is d.CacheState.hit


def test_adopted_runner_with_a_timer_is_pinned() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a", pinned=False),))
    load = script.one(d.Load)
    assert (load.cause, load.model) == (d.LoadCause.adopt, "blob-a")
    script.asks("r", "a")
    assert script.one(d.Dispatch).worker == "w"
    script.ends(load)
    assert script.runner("a", "w").pinned
    script.shows("w", loaded("a"))
    assert script.none(d.Load)


def test_adopt_every() -> None:
    """A timer that somebody sets again and again is taken away at most twice a minute."""
    script = Script(adopt_every_us=30 * S)
    script.worker("w", stored("a"), holds=(loaded("a", pinned=False),))
    script.ends(script.one(d.Load))
    script.shows("w", loaded("a", pinned=False))
    assert script.none(d.Load)
    script.passes(30)
    assert script.one(d.Load).cause is d.LoadCause.adopt


def test_a_finished_adoption_is_not_undone_by_an_older_observation() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a", pinned=False),))
    load = script.one(d.Load)
    asked = script.now + 1
    script.passes(1)
    script.ends(load)
    script.shows("w", asked=asked)
    assert script.runner("a", "w").residency is Residency.resident


def test_a_lost_completion_heals_at_the_next_observation() -> None:
    """The end of a load never came. Once it is given up, what is resident serves, and is not loaded again."""
    script = Script(load_timeout_us=60 * S, operation_grace_us=10 * S)
    script.worker("w", stored("a"), stored("b"))
    script.asks("r", "a", within=1000)
    script.shows("w", loaded("a"))
    assert script.none(d.Dispatch)  # listed is not ready: the load is still under way
    said = script.passes(71)
    assert [one.worker for one in said if isinstance(one, d.Observe)] == ["w"]
    script.asks("s", "a", within=1000)
    script.shows("w", loaded("a"))
    assert [one.request for one in script.some(d.Dispatch)] == ["s"]
    assert len([one for one in script.all if isinstance(one, d.Load)]) == 1


def test_a_lost_end_of_an_unload_heals_at_the_next_observation() -> None:
    script = Script(unload_timeout_us=20 * S, operation_grace_us=10 * S)
    script.worker("w", stored("a", 12), stored("b", 12))
    script.resident("a", "w")
    script.passes(60)
    script.asks("r", "b", within=1000)
    script.one(d.Unload)
    script.passes(31)
    script.shows("w")
    assert script.one(d.Load).model == "blob-b"


def test_an_observation_knows_nothing_of_what_came_after_its_question() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    asked = script.now
    script.resident("a", "w")
    script.shows("w", asked=asked)
    assert script.runner("a", "w").residency is Residency.resident


def test_what_was_unloaded_is_not_adopted_from_an_older_observation() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    asked = script.now
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.shows("w", loaded("a"), asked=asked)
    assert "blob-a" not in script.seen("w").runners
    script.shows("w", loaded("a"))
    assert "blob-a" in script.seen("w").runners


def test_answers_that_overtake_each_other_count_by_their_questions() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.passes(1)
    early, late = script.now - 1000, script.now - 500
    script.shows("w", loaded("a"), asked=late)
    script.shows("w", asked=early)
    assert "blob-a" in script.seen("w").runners


def test_what_has_vanished_is_noticed_and_loaded_again_on_demand() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    script.shows("w")
    assert script.seen("w").used_bytes == 0
    script.asks("r", "a")
    assert script.one(d.Load).cause is d.LoadCause.demand


def test_shape_below_canonical_leaves_and_one_above_stays() -> None:
    script = Script()
    small, large = loaded("a", num_ctx=2048), loaded("b", num_ctx=32_768)
    script.worker("w", stored("a"), stored("b"), holds=(small, large))
    unload = script.one(d.Unload)
    assert (unload.model, unload.cause) == ("blob-a", d.UnloadCause.shape)
    script.ends(unload)
    script.asks("r", "b")
    assert script.one(d.Dispatch).num_ctx == 32_768


def test_a_busy_runner_of_wrong_shape_serves_to_the_end_first() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    script.asks("r", "a")
    script.shows("w", loaded("a", num_ctx=2048))
    assert script.one(d.Drain).cause is d.UnloadCause.shape
    script.done("r")
    assert script.one(d.Unload).cause is d.UnloadCause.shape


def test_a_worker_that_grants_less_context_than_asked_is_not_reloaded_for_ever() -> None:
    """It caps to a training context that nobody told us."""
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "a")
    script.ends(script.one(d.Load), line=loaded("a", num_ctx=2048))
    assert script.one(d.Dispatch).num_ctx == 2048
    script.shows("w", loaded("a", num_ctx=2048))
    assert script.none(d.Drain, d.Unload)
    script.shows("w", loaded("a", num_ctx=1024))
    assert script.one(d.Drain).cause is d.UnloadCause.shape


def test_a_replaced_blob_leaves_while_a_name_still_reaches_it() -> None:
    script = Script()
    script.worker("w", stored("a", model="old"), stored("keep", model="old"), holds=(loaded("a", model="old"),))
    script.shows("w", loaded("a", model="old"), stores=(stored("a", model="new"), stored("keep", model="old")))
    unload = script.one(d.Unload)
    assert (unload.model, unload.name, unload.cause) == ("old", "keep", d.UnloadCause.replaced)


def test_a_replaced_blob_that_has_left_already_is_not_drained() -> None:
    script = Script()
    script.worker("w", stored("a", model="old"), stored("keep", model="old"), holds=(loaded("a", model="old"),))
    script.shows("w", stores=(stored("a", model="new"), stored("keep", model="old")))
    assert script.none(d.Drain, d.Unload)


def test_a_runner_that_no_name_reaches_is_left_alone_and_counted() -> None:
    script = Script()
    script.worker("w", stored("a", model="old"), holds=(loaded("a", 20, model="old"),))
    script.shows("w", loaded("a", 20, model="old"), stores=(stored("a", model="new"), stored("b", 12)))
    assert script.none(d.Unload)
    script.asks("r", "b")
    script.passes(30)
    assert not [one for one in script.all if isinstance(one, d.Unload | d.Drain)]
    assert script.engine.fleet.state.counters["unreachable_runner"] == 1


def test_a_victim_whose_name_goes_is_not_unloaded_by_a_name_that_is_not_there() -> None:
    script = Script()
    script.worker("w", stored("a", 12), stored("b", 12), parallel=1)
    script.resident("a", "w")
    script.passes(60)
    script.asks("busy", "a", within=1000)
    script.asks("r", "b", within=1000)
    script.passes(6)
    script.shows("w", loaded("a", 12), stores=(stored("b", 12),))
    script.done("busy")
    assert script.none(d.Unload)


def test_a_name_that_moves_while_room_is_made_is_not_loaded_for_the_old_blob() -> None:
    script = Script()
    script.worker("w", stored("a", 12), stored("b", 12), parallel=1)
    script.resident("a", "w")
    script.passes(60)
    script.asks("r", "b", within=1000)
    unload = script.one(d.Unload)
    script.shows("w", loaded("a", 12), stores=(stored("a", 12), stored("b", 12, model="new")))
    script.ends(unload)
    assert script.none(d.Load)


def test_a_model_that_appears_by_itself_is_not_loaded_a_second_time() -> None:
    script = Script()
    script.worker("w", stored("a", 8), stored("b", 8), stored("c", 8), parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.passes(60)
    script.asks("ra", "a", within=1000)
    script.asks("rb", "b", within=1000)
    script.asks("r", "c", within=1000)
    script.asks("next", "c", within=1000)
    script.passes(6)  # one of them is draining
    script.shows("w", loaded("a", 7), loaded("b", 7), loaded("c", 7))
    assert "r" in [one.request for one in script.some(d.Dispatch)]
    script.done("ra")
    script.done("rb")
    assert not [one for one in script.all if isinstance(one, d.Load) and one.model == "blob-c"]


def test_a_load_that_brought_another_blob_is_a_failed_load() -> None:
    """Names go over the wire: the name moved between the decision and the load."""
    script = Script()
    script.worker("w", stored("a", model="old"))
    script.asks("r", "a")
    load = script.one(d.Load)
    script.tell(
        OperationEnded(operation=load.operation, outcome=OperationOutcome.done, loaded=loaded("a", model="new"))
    )
    assert script.none(d.Dispatch)
    assert script.one(d.Observe).worker == "w"


def test_a_runner_adopted_again_is_booked_as_it_is_seen() -> None:
    script = Script()
    script.worker("w", stored("a", 4))
    script.asks("r", "a", within=1000)
    script.broken(script.one(d.Load), "timeout")
    script.shows("w", loaded("a", 20))
    assert script.seen("w").used_bytes == 20 * GIB


def test_a_runner_that_is_listed_as_leaving_for_ever_is_unloaded_once_more() -> None:
    script = Script(load_backoff_us=5 * S)
    script.worker("w", stored("a", 4))
    script.asks("r", "a", within=1000)
    script.broken(script.one(d.Load), "timeout")
    script.shows("w", loaded("a", 4, expired=True))
    assert script.none(d.Unload)
    script.passes(6)
    script.shows("w", loaded("a", 4, expired=True))
    assert script.one(d.Unload).cause is d.UnloadCause.crashed


def test_a_runner_of_an_unknown_blob_takes_what_the_worker_does_not_show_as_well() -> None:
    script = Script()
    line = loaded("x", 9, model="nobody-knows")
    script.worker("w", stored("a", 12), gib=24, overhead_bytes=GIB, holds=(line,))
    assert script.seen("w").foreign_bytes == 10 * GIB


def test_a_blob_that_no_worker_stores_is_foreign_memory() -> None:
    script = Script()
    line = loaded("x", 9, model="nobody-knows")
    script.worker("w", stored("a", 12), gib=20, holds=(line,))
    assert script.seen("w").foreign_bytes == 9 * GIB
    script.asks("r", "a")
    assert script.one(d.Reject).refusal is d.Refusal.model_does_not_fit
