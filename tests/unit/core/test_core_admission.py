"""Which requests may come in: each limit of the configuration is met, and every refusal says the truth."""

import pytest
from core_script import GIB, S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import CacheState, Refusal
from bellmare.core.events import TimePassed


def refusal(script: Script) -> Refusal:
    return script.one(d.Reject).refusal


def test_an_unknown_name_is_refused_at_once() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "b")
    assert refusal(script) is Refusal.unknown_model


def test_before_any_worker_was_seen_a_name_is_not_called_unknown() -> None:
    script = Script()
    script.joins("w")
    script.asks("r", "a")
    assert refusal(script) is Refusal.no_healthy_worker
    assert script.one(d.Reject).retry_after_us > 0


def test_hit_queued_and_cold_are_what_the_request_met_on_arrival() -> None:
    script = Script()
    script.worker("w", stored("a"), parallel=1)
    script.asks("cold", "a")
    script.ends(script.one(d.Load))
    assert script.one(d.Dispatch).cache is CacheState.cold
    script.asks("queued", "a")
    script.done("cold")
    assert script.one(d.Dispatch).cache is CacheState.queued
    script.done("queued")
    script.asks("hit", "a")
    assert script.one(d.Dispatch).cache is CacheState.hit


def test_queue_per_model_max() -> None:
    script = Script(queue_per_model_max=3)
    script.worker("w", stored("a"), stored("b"))
    for number in range(3):
        script.asks(f"r{number}", "a")
        assert script.none(d.Reject)
    script.asks("one too many", "a")
    assert refusal(script) is Refusal.queue_full
    script.asks("other model", "b")
    assert script.none(d.Reject)
    script.cancels("r1")
    script.asks("room again", "a")
    assert script.none(d.Reject)


def test_queue_total_max() -> None:
    script = Script(queue_total_max=2)
    script.worker("w", stored("a"), stored("b"), stored("c"))
    script.asks("r1", "a")
    script.asks("r2", "b")
    script.asks("r3", "c")
    assert refusal(script) is Refusal.queue_full
    assert script.one(d.Reject).retry_after_us > 0


def test_queue_wait_max() -> None:
    script = Script(queue_wait_max_us=10 * S)
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("teacher", "a")
    script.passes(6)
    script.done("teacher")  # a request takes six seconds
    for number in range(3):
        script.asks(f"r{number}", "a")
        assert script.none(d.Reject)
    script.asks("late", "a")
    assert refusal(script) is Refusal.wait_too_long
    wait = script.one(d.Reject).retry_after_us
    assert 0.5 * 12 * S <= wait <= 1.2 * 12 * S + S


def test_a_wait_beyond_the_own_deadline_is_refused_now_and_not_later() -> None:
    script = Script()
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("runs", "a")
    script.asks("waits", "a")
    script.asks("hopeless", "a", within=1)
    assert refusal(script) is Refusal.wait_too_long


def test_retry_after_max_and_its_spread() -> None:
    script = Script(queue_per_model_max=1, retry_after_max_us=4 * S)
    script.worker("w", stored("a", 20))
    script.asks("r", "a")
    waits = []
    for number in range(20):
        script.asks(f"x{number}", "a")
        waits.append(script.one(d.Reject).retry_after_us)
    assert max(waits) == 4 * S
    script = Script(queue_per_model_max=1)
    script.worker("w", stored("a", 20))
    script.asks("r", "a")
    waits = []
    for number in range(20):
        script.asks(f"x{number}", "a")
        waits.append(script.one(d.Reject).retry_after_us)
    assert len(set(waits)) > 5
    assert max(waits) < 2 * min(waits)


def test_a_deadline_is_met_exactly_at_its_instant() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "a", within=5)
    deadline = script.now + 5 * S
    assert script.engine.next_deadline_us() == deadline
    script.now = deadline - 2
    script.tell(TimePassed())
    assert script.none(d.Reject)
    script.tell(TimePassed())
    assert refusal(script) is Refusal.deadline_passed


def test_a_request_whose_deadline_has_passed_may_still_hit_but_not_wait() -> None:
    script = Script()
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("hit", "a", within=0)
    assert script.one(d.Dispatch).request == "hit"
    script.asks("waits", "a", within=-1)
    assert refusal(script) is Refusal.deadline_passed


def test_a_model_larger_than_every_worker_that_stores_it_is_refused_at_once() -> None:
    script = Script()
    script.worker("small", stored("a", 30), gib=24)
    script.worker("large", stored("b", 1), gib=80)
    script.asks("r", "a")
    assert refusal(script) is Refusal.model_does_not_fit
    assert script.one(d.Reject).retry_after_us == 0


def test_no_healthy_worker_is_about_the_very_name() -> None:
    script = Script()
    script.worker("w1", stored("a", model="x"))
    script.worker("w2", stored("b", model="x"))
    script.unreachable("w1")
    script.asks("r", "a")
    assert refusal(script) is Refusal.no_healthy_worker
    script.asks("s", "b")
    assert script.one(d.Load).worker == "w2"


def test_the_first_bound_that_is_met_is_named_before_any_other() -> None:
    script = Script(queue_per_model_max=1)
    script.worker("w", stored("a"))
    script.asks("r", "a")
    script.unreachable("w")
    script.passes(2)
    script.asks("s", "a")
    assert refusal(script) is Refusal.no_healthy_worker


@pytest.mark.parametrize("copies", [1, 100])
def test_the_predicted_wait_counts_the_slots_of_all_copies(copies: int) -> None:
    script = Script(queue_wait_max_us=20 * S)
    script.sound = False
    for number in range(copies):
        script.worker(f"w{number}", stored("a"), parallel=1, holds=(loaded("a"),))
    for number in range(copies):
        script.asks(f"r{number}", "a")
    waiting = 0
    while waiting < 2000:
        script.asks(f"q{waiting}", "a", within=1000)
        if not script.none(d.Reject):
            break
        waiting += 1
    assert refusal(script) in (Refusal.wait_too_long, Refusal.queue_full)
    assert waiting == min(512, 20 * copies // 3 + 1)  # three seconds each, before anything was learned


def test_capacity_is_what_is_left_beside_foreign_memory() -> None:
    script = Script()
    script.worker("w", stored("a", 10), gib=24)
    script.shows("w", foreign=16)
    script.asks("r", "a")
    assert refusal(script) is Refusal.model_does_not_fit
    assert script.seen("w").foreign_bytes == 16 * GIB
