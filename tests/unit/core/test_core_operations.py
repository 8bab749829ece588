"""How loads and unloads end: once, at a price, and never with a stampede."""

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import Refusal
from bellmare.core.events import TimePassed


def test_one_operation_at_a_time_on_a_worker() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), stored("c"))
    script.asks("ra", "a")
    first = script.one(d.Load)
    script.asks("rb", "b")
    assert script.none(d.Load)
    script.ends(first)
    assert script.one(d.Load).model == "blob-b"


def test_an_operation_ends_once() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "a")
    load = script.one(d.Load)
    script.ends(load)
    script.ends(load)
    script.broken(load)
    assert script.out == []


def test_an_operation_carries_its_timeout_and_its_expectation() -> None:
    script = Script(load_timeout_us=77 * S, unload_timeout_us=33 * S)
    script.worker("w", stored("a", 3))
    script.asks("r", "a")
    load = script.one(d.Load)
    assert load.timeout_us == 77 * S
    assert 2 * S < load.expected_us < 5 * S
    script.ends(load)
    script.done("r")
    script.unloads("a")
    assert script.one(d.Unload).timeout_us == 33 * S


def test_the_time_of_a_load_is_learned() -> None:
    script = Script()
    script.worker("w", stored("a", 3))
    script.asks("r", "a")
    load = script.one(d.Load)
    script.passes(40)
    script.ends(load)
    assert script.one(d.Dispatch).load_us == pytest.approx(40 * S, rel=0.01)
    script.done("r")
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.asks("s", "a")
    assert script.one(d.Load).expected_us == pytest.approx(40 * S, rel=0.01)


def test_a_failed_load_is_tried_on_another_worker() -> None:
    script = Script()
    script.worker("w1", stored("a"))
    script.worker("w2", stored("a"))
    script.asks("r", "a")
    load = script.one(d.Load)
    script.broken(load)
    other = script.one(d.Load)
    assert other.worker != load.worker
    script.ends(other)
    assert script.one(d.Dispatch).request == "r"


def test_without_another_place_those_who_wait_are_told_at_once() -> None:
    script = Script()
    script.worker("w1", stored("a"))
    script.worker("too small", stored("a"), gib=1)
    script.asks("r", "a")
    script.broken(script.one(d.Load))
    reject = script.one(d.Reject)
    assert (reject.refusal, reject.detail) == (Refusal.load_failed, "oh")


def test_load_failures_max() -> None:
    script = Script(load_failures_max=3)
    for number in range(5):
        script.worker(f"w{number}", stored("a"))
    script.asks("r", "a")
    for _ in range(2):
        script.broken(script.one(d.Load))
        assert script.none(d.Reject)
    script.broken(script.one(d.Load))
    assert script.one(d.Reject).refusal is Refusal.load_failed


def test_load_backoff_doubles_up_to_its_max() -> None:
    script = Script(load_backoff_us=5 * S, load_backoff_max_us=15 * S)
    script.worker("w", stored("a"))
    waits = []
    for number in range(4):
        script.asks(f"r{number}", "a", within=1000)
        if number:
            assert script.none(d.Load)
            began = script.now
            while script.none(d.Load):
                script.passes(0.5)
            waits.append((script.now - began) / S)
        script.broken(script.one(d.Load))
        script.shows("w")
    assert waits == pytest.approx([5, 10, 15], abs=0.6)


def test_a_worker_that_dies_of_a_load_is_not_asked_for_it_again_at_once() -> None:
    """A model that takes its server down must not do so in a loop, with all other models on it."""
    script = Script(load_backoff_us=5 * S)
    script.worker("w", stored("a"), stored("b"), holds=(loaded("b"),))
    script.asks("r", "a", within=1000)
    script.broken(script.one(d.Load), "reset")
    script.asks("s", "a", within=1000)
    script.shows("w", loaded("b"))
    assert script.none(d.Load)
    assert not [one for one in script.passes(4) if isinstance(one, d.Load)]
    script.asks("s2", "a", within=1000)
    assert [one.model for one in script.passes(2) if isinstance(one, d.Load)] == ["blob-a"]


def test_a_refused_connection_says_nothing_about_the_model() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "a", within=1000)
    script.broken(script.one(d.Load), "refused")
    assert script.none(d.Reject)
    script.shows("w")
    assert script.one(d.Load).model == "blob-a"


def test_nothing_is_placed_on_a_worker_in_doubt_until_it_was_seen() -> None:
    script = Script()
    script.worker("w", stored("a", 20), stored("b", 20))
    script.asks("r", "a", within=1000)
    script.broken(script.one(d.Load), "timeout")
    asked = script.now
    script.asks("s", "b", within=1000)
    assert script.none(d.Load)
    script.shows("w", asked=asked)  # in the same instant: perhaps before
    assert script.none(d.Load)
    script.shows("w")
    assert script.one(d.Load).model == "blob-b"


def test_memory_of_a_broken_load_stays_booked_until_an_observation() -> None:
    script = Script()
    script.worker("w", stored("a", 12))
    script.asks("r", "a")
    script.broken(script.one(d.Load), "timeout")
    assert script.seen("w").used_bytes > 0
    script.shows("w")
    assert script.seen("w").used_bytes == 0


def test_a_crashed_runner_is_drained_and_unloaded_and_its_worker_is_looked_at() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.asks("s", "a")
    script.fails("r", "w", "crashed")
    assert script.one(d.Drain).cause is d.UnloadCause.crashed
    assert script.one(d.Observe).worker == "w"
    assert script.none(d.Unload)
    script.fails("s", "w", "crashed")
    assert script.one(d.Unload).cause is d.UnloadCause.crashed
    script.ends(script.one(d.Unload))
    assert script.one(d.Load).model == "blob-a"


@pytest.mark.parametrize("step_us", [-1, 0])
def test_a_lost_operation_is_given_up_exactly_at_its_deadline(step_us: int) -> None:
    script = Script(load_timeout_us=60 * S, operation_grace_us=10 * S)
    script.worker("w", stored("a"))
    script.asks("r", "a", within=1000)
    began = script.now
    script.now = began + 70 * S + step_us - 1
    script.tell(TimePassed())
    assert bool(script.some(d.Observe)) == (step_us == 0)


def test_an_embedding_model_is_loaded_as_one() -> None:
    script = Script()
    script.worker("w", stored("a", embedding=True, parallel_max=1), parallel=4)
    script.asks("r", "a")
    load = script.one(d.Load)
    assert load.embedding
    script.ends(load)
    assert script.runner("a", "w").slots == 1


def test_a_copy_more_that_cannot_be_loaded_refuses_nobody_whom_the_others_serve() -> None:
    script = Script(load_failures_max=1)
    script.worker("w1", stored("a"), holds=(loaded("a"),), parallel=1)
    script.worker("w2", stored("a"))
    script.asks("runs", "a")
    script.asks("waits", "a")
    script.loads("a", "w2")
    script.broken(script.one(d.Load), "reset")
    assert script.none(d.Reject)
    script.done("runs")
    assert script.one(d.Dispatch).request == "waits"
