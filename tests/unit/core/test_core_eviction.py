"""Who leaves for whom: idle before busy, never the pinned, no more than needed, and nobody if the need has gone."""

import pytest
from core_script import GIB, S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.events import ModelReleased


def full(*, config: CoreConfig | None = None, **limits: object) -> Script:
    """One worker of 24 GiB that holds a (used first) and b (used last), and stores a large c."""
    script = Script(config, **limits)
    script.worker("w", stored("a", 8), stored("b", 8), stored("c", 12), stored("d", 20), parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.passes(60)
    return script


def test_an_idle_victim_leaves_at_once_and_the_load_follows_its_confirmed_end() -> None:
    script = full()
    script.asks("r", "c")
    drain, unload = script.one(d.Drain), script.one(d.Unload)
    assert (drain.model, drain.wanted_by) == ("blob-a", "blob-c")
    assert (unload.model, unload.cause, unload.wanted_by) == ("blob-a", d.UnloadCause.room, "blob-c")
    assert script.none(d.Load)
    script.ends(unload)
    assert script.one(d.Load).model == "blob-c"


def test_the_least_recently_used_leaves_first() -> None:
    script = full()
    script.asks("r", "a")
    script.done("r")
    script.asks("s", "c")
    assert script.one(d.Unload).model == "blob-b"


def test_a_released_model_leaves_before_one_used_longer_ago() -> None:
    script = full()
    script.tell(ModelReleased(name="b"))
    assert script.none(d.Drain, d.Unload)
    script.asks("s", "c")
    assert script.one(d.Unload).model == "blob-b"


def test_no_victim_that_is_not_needed() -> None:
    script = Script()
    script.worker("w", stored("a", 2), stored("b", 12), stored("c", 14), parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.passes(60)
    script.asks("r", "c")
    assert [drain.model for drain in script.some(d.Drain)] == ["blob-b"]


def test_nobody_leaves_for_a_model_that_could_not_fit_anyway() -> None:
    script = full()
    script.shows("w", loaded("a", 8.2), loaded("b", 8.2), foreign=6)
    script.asks("r", "d")
    script.passes(30)
    assert script.none(d.Drain, d.Unload)


def test_a_busy_runner_is_never_a_victim() -> None:
    script = full()
    script.asks("ra", "a")
    script.asks("rb", "b")
    script.asks("r", "c")
    assert script.none(d.Drain, d.Unload)
    script.passes(4.9)
    assert script.none(d.Drain, d.Unload)


def test_drain_after_five_seconds_the_cheapest_busy_runner_and_unload_it_when_idle() -> None:
    script = full()
    script.asks("ra", "a")
    script.asks("rb", "b")
    script.asks("r", "c")
    script.passes(5.1)
    drain = script.one(d.Drain)
    assert (drain.model, drain.cause, drain.wanted_by) == ("blob-a", d.UnloadCause.room, "blob-c")
    assert script.none(d.Unload)
    script.asks("ra2", "a")
    assert script.none(d.Dispatch)
    script.done("ra")
    assert script.one(d.Unload).model == "blob-a"


def test_undrain_when_the_waiting_request_leaves() -> None:
    script = full()
    script.asks("ra", "a")
    script.asks("rb", "b")
    script.asks("r", "c")
    script.passes(5.1)
    script.one(d.Drain)
    script.cancels("r")
    assert script.one(d.Undrain).model == "blob-a"
    script.done("ra")
    script.asks("again", "a")
    assert script.one(d.Dispatch).worker == "w"


def test_undrain_does_not_wait_for_an_operation_of_another_runner() -> None:
    script = full()
    script.asks("ra", "a")
    script.asks("r", "d")  # wants the room of both
    script.passes(5.1)
    assert {drain.model for drain in script.some(d.Drain)} == {"blob-a", "blob-b"}
    assert script.one(d.Unload).model == "blob-b"
    script.cancels("r")
    assert script.one(d.Undrain).model == "blob-a"


def test_an_idle_runner_stays_as_long_as_its_load_took_or_until_somebody_has_waited_long_enough() -> None:
    script = Script()
    script.worker("w", stored("a", 16), stored("b", 16))
    script.loads("a")
    load = script.one(d.Load)
    script.passes(20)
    script.ends(load)
    script.asks("r", "b")
    assert script.none(d.Drain)
    script.passes(4.9)
    assert script.none(d.Drain)
    script.passes(0.2)
    assert script.one(d.Unload).model == "blob-a"


def test_a_busy_runner_stays_as_long_as_its_load_took_whoever_waits() -> None:
    script = Script()
    script.worker("w", stored("a", 16), stored("b", 16))
    script.loads("a")
    load = script.one(d.Load)
    script.passes(20)
    script.ends(load)
    script.asks("busy", "a")
    script.asks("r", "b")
    script.passes(19.9)
    assert script.none(d.Drain)
    script.passes(0.2)
    assert script.one(d.Drain).model == "blob-a"


def test_a_pinned_model_is_loaded_at_once_and_never_a_victim() -> None:
    config = CoreConfig(models={"a": ModelConfig(pinned=True)})
    script = Script(config)
    script.worker("w", stored("a", 16), stored("b", 16))
    load = script.one(d.Load)
    assert (load.model, load.cause) == ("blob-a", d.LoadCause.pinned)
    script.ends(load)
    script.asks("r", "b")
    script.passes(60)
    assert not [decision for decision in script.all if isinstance(decision, d.Drain)]


def test_what_is_said_about_one_name_holds_for_the_blob_under_all_its_names() -> None:
    config = CoreConfig(models={"a": ModelConfig(pinned=True, num_ctx=4096)})
    script = Script(config)
    script.worker("w", stored("b", 16, model="x"), stored("a", 16, model="x"), stored("c", 16))
    load = script.one(d.Load)
    assert (load.model, load.num_ctx, load.cause) == ("x", 4096, d.LoadCause.pinned)


def test_runners_max() -> None:
    script = Script()
    script.worker("w", *[stored(name) for name in "abcd"], runners_max=3, gib=80)
    for name in "abc":
        script.resident(name, "w")
    script.passes(60)
    script.asks("r", "d")
    assert script.one(d.Unload).model == "blob-a"


@pytest.mark.parametrize(("percent", "evicts"), [(80, True), (100, False)])
def test_ollamas_80_percent_rule(percent: int, evicts: bool) -> None:
    """9.5 GiB are free beside a runner; Ollama's prediction of 8 is more than four fifths of that."""
    script = Script()
    script.worker("w", stored("a", 9), stored("b", 8), gib=20, fit_percent=percent)
    script.resident("a", "w", line=loaded("a", 10.5))
    script.passes(60)
    script.asks("r", "b")
    assert script.none(d.Unload) is not evicts


def test_the_80_percent_rule_does_not_hold_for_an_empty_worker() -> None:
    script = Script()
    script.worker("w", stored("a", 9), gib=11, fit_percent=80)
    script.asks("r", "a")
    assert script.one(d.Load).model == "blob-a"


def test_headroom_is_kept_free() -> None:
    script = Script()
    script.worker("w", stored("a", 8), stored("b", 8), gib=20, headroom_bytes=3 * GIB)
    script.resident("a", "w", line=loaded("a", 8.6))
    script.passes(60)
    script.asks("r", "b")
    assert script.one(d.Unload).model == "blob-a"


def test_a_victim_that_will_not_leave_is_given_up_and_tried_again_later() -> None:
    script = Script(load_backoff_us=5 * S)
    script.worker("w", stored("a", 12), stored("b", 12))
    script.resident("a", "w")
    script.passes(60)
    script.asks("r", "b", within=1000)
    for _ in range(3):
        script.broken(script.one(d.Unload))
        script.shows("w", loaded("a", 12))
    assert script.none(d.Unload, d.Drain)
    script.asks("hit", "a")
    assert script.one(d.Dispatch).worker == "w"
    script.done("hit")
    assert script.none(d.Unload, d.Drain)
    script.passes(5.1)
    assert script.one(d.Unload).model == "blob-a"


def test_a_replica_is_loaded_where_it_costs_nobody_anything_when_the_queue_outlasts_a_load() -> None:
    script = Script()
    script.worker("w1", stored("a", 4), parallel=1)
    script.worker("w2", stored("a", 4), parallel=1)
    script.resident("a", "w1")
    for number in range(8):
        script.asks(f"r{number}", "a")
    loads = [load for load in script.all if isinstance(load, d.Load) and load.cause is d.LoadCause.replica]
    assert [load.worker for load in loads] == ["w2"]


def test_of_many_blocked_models_the_one_that_fits_is_found() -> None:
    """Those that wait longer but are too large for the worker must not hide it."""
    script = Script()
    script.worker("big", *[stored(f"m{n}", 30) for n in range(12)], gib=40, parallel=1)
    script.worker("small", *[stored(f"m{n}", 30) for n in range(12)], stored("k", 3), stored("s", 3), gib=6, parallel=1)
    script.resident("k", "small")
    script.asks("holds", "m0")
    script.ends(script.one(d.Load))
    script.asks("busy", "k")
    script.passes(10)
    for number in range(1, 12):
        script.asks(f"r{number}", f"m{number}")
    script.asks("wanted", "s")
    script.done("busy")
    assert script.one(d.Unload).wanted_by == "blob-s"
