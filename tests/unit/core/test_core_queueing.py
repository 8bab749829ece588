"""Who runs next and where: order, names, retries, slots that an aborted prefill keeps."""

from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import CacheState, Refusal


def pair(**limits: object) -> Script:
    """Two workers with one slot each, and the model on both."""
    script = Script(**limits)
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), parallel=1, holds=(loaded("a"),))
    return script


def test_first_come_first_served() -> None:
    script = pair()
    for number in range(5):
        script.asks(f"r{number}", "a")
    order = []
    for number in range(3):
        script.done(f"r{number}")
        order.append(script.one(d.Dispatch).request)
    assert order == ["r2", "r3", "r4"]


def test_the_least_loaded_runner_serves() -> None:
    script = Script()
    script.worker("w1", stored("a"), parallel=4, holds=(loaded("a"),))
    script.worker("w2", stored("a"), parallel=2, holds=(loaded("a"),))
    took = []
    for number in range(6):
        script.asks(f"r{number}", "a")
        took.append(script.one(d.Dispatch).worker)
    assert took == ["w1", "w2", "w1", "w1", "w2", "w1"]


def test_retry_goes_elsewhere() -> None:
    script = pair()
    script.asks("r", "a")
    first = script.one(d.Dispatch)
    script.fails("r", first.worker)
    second = script.one(d.Dispatch)
    assert second.worker != first.worker
    assert second.attempt == 2


def test_retry_keeps_its_place_in_the_queue() -> None:
    script = pair()
    for number in range(5):
        script.asks(f"r{number}", "a")
    script.fails("r0", "w1", "busy")
    assert script.none(d.Dispatch)
    script.done("r1")
    assert script.one(d.Dispatch).request == "r0"


def test_a_failed_request_may_return_to_its_worker_if_nobody_else_has_the_model() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.fails("r", "w")
    assert script.one(d.Dispatch).worker == "w"


def test_a_request_that_failed_twice_still_finds_the_third_worker() -> None:
    script = Script()
    for worker in ("w1", "w2", "w3"):
        script.worker(worker, stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("r", "a")
    seen = []
    for _ in range(2):
        seen.append(script.one(d.Dispatch).worker)
        script.fails("r", seen[-1], "reset")
    seen.append(script.one(d.Dispatch).worker)
    assert sorted(seen) == ["w1", "w2", "w3"]


def test_attempts_max() -> None:
    script = pair(attempts_max=2)
    script.asks("r", "a")
    script.fails("r", "w1")
    script.fails("r", "w2")
    assert script.one(d.Reject).refusal is Refusal.worker_failed


def test_two_crashes_end_a_request_however_many_attempts_are_left() -> None:
    script = pair(attempts_max=9)
    script.asks("r", "a")
    script.fails("r", "w1", "crashed")
    script.fails("r", "w2", "crashed")
    assert script.one(d.Reject).refusal is Refusal.worker_failed


def test_a_retry_waits_no_longer_than_its_deadline() -> None:
    """It ran at once and had no deadline to watch; once it waits again, it has."""
    script = Script()
    script.worker("w", stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("r", "a", within=20)
    script.fails("r", "w", "timeout")  # its runner leaves, and nothing is known until an observation
    assert script.none(d.Reject)
    said = script.passes(21)
    assert [one.refusal for one in said if isinstance(one, d.Reject)] == [Refusal.deadline_passed]


def test_a_retry_after_the_grace_of_lost_workers_is_refused_at_once() -> None:
    script = Script(worker_lost_grace_us=10 * S)
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.unreachable("w")
    script.passes(60)
    script.fails("r", "w", "reset")
    assert script.one(d.Reject).refusal is Refusal.no_healthy_worker


def test_two_names_over_one_blob_share_a_runner() -> None:
    script = Script()
    script.worker("w", stored("a", model="x"), stored("b", model="x"), parallel=2)
    script.asks("r1", "a")
    script.asks("r2", "b")
    script.ends(script.all[-1])
    assert [decision.request for decision in script.some(d.Dispatch)] == ["r1", "r2"]
    assert len([decision for decision in script.all if isinstance(decision, d.Load)]) == 1


def test_a_name_is_served_only_where_it_means_the_blob() -> None:
    script = Script()
    script.worker("w1", stored("a", model="x"), holds=(loaded("a", model="x"),))
    script.worker("w2", stored("b", model="x"), holds=(loaded("b", model="x"),))
    script.asks("r", "b")
    assert script.one(d.Dispatch).worker == "w2"


def test_the_majority_serves_a_name() -> None:
    script = Script()
    script.worker("w1", stored("a", model="old"))
    script.worker("w2", stored("a", model="new"))
    script.worker("w3", stored("a", model="new"))
    script.asks("r", "a")
    load = script.one(d.Load)
    assert load.model == "new"
    assert load.worker in ("w2", "w3")


def test_requests_under_another_name_do_not_hide_a_free_slot() -> None:
    """Forty wait for one worker's name; the other name has a slot on the other worker."""
    script = Script()
    script.worker("w1", stored("a", model="x"), parallel=1, holds=(loaded("a", model="x"),))
    script.worker("w2", stored("b", model="x"), parallel=1, holds=(loaded("b", model="x"),))
    for number in range(40):
        script.asks(f"a{number}", "a", within=1000)
    script.asks("b1", "b")
    assert script.one(d.Dispatch).worker == "w2"
    script.asks("b2", "b")
    assert script.none(d.Dispatch, d.Reject)
    script.done("b1")
    assert script.one(d.Dispatch).request == "b2"


def test_a_head_that_nobody_may_serve_keeps_no_other_from_a_copy() -> None:
    script = Script()
    script.worker("w1", stored("a", model="x"), parallel=1)
    script.worker("w2", stored("b", model="x"), parallel=1)
    script.asks("lost", "a")
    load = script.one(d.Load)
    script.unreachable("w1")
    assert load.worker == "w1"
    script.asks("fine", "b")
    script.passes(1)
    loads = [decision.worker for decision in script.all if isinstance(decision, d.Load)]
    assert loads == ["w1", "w2"]


def test_a_name_that_comes_to_a_worker_with_a_free_runner_is_served_there() -> None:
    script = Script()
    script.worker("w1", stored("a", model="x"), stored("b", model="x"), parallel=1, holds=(loaded("a", model="x"),))
    script.worker("w2", stored("b", model="x"), parallel=1, holds=(loaded("b", model="x"),))
    script.asks("r1", "a")
    script.asks("r2", "a")
    script.shows("w2", loaded("b", model="x"), stores=(stored("a", model="x"), stored("b", model="x")))
    assert script.one(d.Dispatch).request == "r2"


def test_a_failed_request_returns_to_its_worker_when_the_name_leaves_the_other_one() -> None:
    script = Script()
    both = (stored("a", model="x"), stored("b", model="x"))
    script.worker("w1", *both, parallel=2, holds=(loaded("a", model="x"),))
    script.worker("w2", *both, parallel=1, holds=(loaded("a", model="x"),))
    for number in range(3):
        script.asks(f"r{number}", "a")
    script.fails("r0", "w1")
    assert script.none(d.Dispatch)
    script.shows("w2", loaded("a", model="x"), stores=(stored("b", model="x"),))
    assert script.one(d.Dispatch).worker == "w1"


def test_a_prefill_that_was_aborted_keeps_its_slot() -> None:
    script = Script()
    script.worker("w", stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("r", "a", prompt_tokens=5000)
    script.cancels("r")  # ten seconds of prefill are left
    script.asks("s", "a")
    assert script.none(d.Dispatch)
    assert not [decision for decision in script.passes(9) if isinstance(decision, d.Dispatch)]
    script.passes(1.1)
    dispatch = script.one(d.Dispatch)
    assert (dispatch.request, dispatch.cache) == ("s", CacheState.queued)


def test_a_cancelled_decode_frees_its_slot_at_once() -> None:
    script = Script()
    script.worker("w", stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("r", "a", prompt_tokens=5000)
    script.first("r")
    script.cancels("r")
    script.asks("s", "a")
    assert script.one(d.Dispatch).request == "s"


def test_zombie_max() -> None:
    script = Script(zombie_max_us=7 * S)
    script.worker("w", stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("r", "a", prompt_tokens=1_000_000)
    script.cancels("r")
    script.asks("s", "a")
    script.passes(7.1)
    assert script.one(d.Dispatch).request == "s"


def test_a_busy_answer_takes_one_slot_away_for_a_second_beside_any_older_zombie() -> None:
    """Each zombie has its own timer: a later one must not be waited for instead."""
    script = Script()
    script.worker("w", stored("a"), parallel=2, holds=(loaded("a"),))
    script.asks("long", "a", prompt_tokens=50_000)
    script.asks("refused", "a")
    script.cancels("long")
    script.fails("refused", "w", "busy")
    assert script.none(d.Dispatch)
    script.passes(1.1)
    assert script.one(d.Dispatch).request == "refused"


def test_misses_never_block_hits() -> None:
    script = Script()
    names = [stored(name, 8) for name in "abc"]
    script.worker("w", *names, parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.asks("runs", "a")
    for number in range(20):
        script.asks(f"miss{number}", "c")
    for number in range(3):
        script.done("runs" if number == 0 else f"hit{number - 1}")
        script.asks(f"hit{number}", "a")
        assert script.one(d.Dispatch).cache is CacheState.hit


def test_a_hit_runs_beside_a_load_on_the_same_worker() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a"),))
    script.asks("miss", "b")
    assert script.one(d.Load).model == "blob-b"
    script.asks("hit", "a")
    assert script.one(d.Dispatch).cache is CacheState.hit


def test_a_cancelled_request_is_never_heard_of_again() -> None:
    script = pair()
    for number in range(4):
        script.asks(f"r{number}", "a")
    script.cancels("r2")
    script.done("r0")
    assert script.one(d.Dispatch).request == "r3"
    script.cancels("r2")
    assert script.out == []


def test_the_queue_holds_no_entry_of_who_left() -> None:
    """A head that waits long must not let thousands of cancelled entries pile up behind it."""
    script = pair(queue_per_model_max=5)
    for number in range(3):
        script.asks(f"r{number}", "a", within=10_000)
    for number in range(200):
        script.asks(f"x{number}", "a", within=10_000)
        script.cancels(f"x{number}")
    assert len(script.engine.fleet.queues["blob-a"]) == 1  # type: ignore[index]


def test_a_worker_that_is_back_may_have_a_request_again_that_it_failed() -> None:
    """Another worker stores the model too, but can never hold it: without an end the exclusion would block all."""
    script = Script(exclusion_us=5 * S)
    script.worker("small", stored("a", 14), gib=8)
    script.worker("big", stored("a", 14), holds=(loaded("a", 15),))
    script.asks("r", "a")
    script.fails("r", "big", "reset")
    script.passes(2)
    script.shows("big")
    script.asks("s", "a")
    assert script.none(d.Load)
    script.passes(5)
    (load,) = [decision for decision in script.all if isinstance(decision, d.Load)]
    assert load.worker == "big"
    script.ends(load)
    assert {one.request for one in script.some(d.Dispatch)} == {"r", "s"}
