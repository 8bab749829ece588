"""Which workers are in routing, what takes them out, and what brings them back."""

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import Refusal
from bellmare.core.events import WorkerRemoved


def test_an_unobserved_worker_gets_nothing() -> None:
    script = Script()
    script.joins("w")
    assert script.none(d.HealthChange)
    script.shows("w", stores=(stored("a"),))
    assert script.one(d.HealthChange).healthy


def test_unreachable_max() -> None:
    script = Script(unreachable_max=3)
    script.worker("w", stored("a"))
    for _ in range(2):
        script.unreachable("w", "timeout")
        assert script.none(d.HealthChange)
    script.unreachable("w", "timeout")
    assert not script.one(d.HealthChange).healthy


def test_an_answer_starts_the_count_anew() -> None:
    script = Script(unreachable_max=2)
    script.worker("w", stored("a"))
    for _ in range(5):
        script.unreachable("w", "timeout")
        script.shows("w")
        assert script.none(d.HealthChange)


@pytest.mark.parametrize("fault", ["refused", "reset"])
def test_a_dead_connection_takes_a_worker_out_at_once(fault: str) -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.unreachable("w", fault)
    assert not script.one(d.HealthChange).healthy
    script.passes(2)
    script.asks("r", "a")
    assert script.one(d.Reject).refusal is Refusal.no_healthy_worker


def test_who_arrives_just_after_the_loss_waits_for_its_cause_to_be_known() -> None:
    script = Script(worker_lost_grace_us=10 * S, suspicion_us=2 * S)
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.unreachable("w", "reset")
    script.passes(1.9)
    script.asks("r", "a")
    assert script.none(d.Reject, d.Dispatch)
    script.shows("w", loaded("a"))
    assert script.one(d.Dispatch).request == "r"


def test_a_connection_that_is_late_is_looked_into_and_no_loss_yet() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.fails("r", "w1", "unreachable")
    assert script.one(d.Observe).worker == "w1"
    assert script.none(d.HealthChange)
    assert script.one(d.Dispatch).worker == "w2"


def test_a_request_that_met_a_dead_connection_takes_its_worker_out_and_goes_elsewhere() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.fails("r", "w1", "refused")
    assert script.one(d.HealthChange).worker == "w1"
    assert script.one(d.Dispatch).worker == "w2"


def test_an_answer_asked_for_before_the_loss_does_not_bring_a_worker_back() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    asked = script.now + 1
    script.passes(1)
    script.asks("r", "a")
    script.fails("r", "w", "reset")
    script.shows("w", loaded("a"), asked=asked)
    assert script.none(d.HealthChange, d.Dispatch)
    script.shows("w", loaded("a"))
    assert script.one(d.HealthChange).healthy
    assert script.one(d.Dispatch).request == "r"


def test_a_failed_poll_is_not_answered_by_an_older_one() -> None:
    script = Script()
    script.worker("w", stored("a"))
    asked = script.now + 1
    script.passes(1)
    script.unreachable("w")
    script.shows("w", asked=asked)
    assert not script.seen("w").healthy


def test_out_of_routing_costs_no_model_its_place() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.unreachable("w")
    script.shows("w", loaded("a"))
    script.asks("r", "a")
    assert script.one(d.Dispatch).cache is d.CacheState.hit
    assert not [one for one in script.all if isinstance(one, d.Load | d.Unload)]


def test_worker_lost_grace() -> None:
    script = Script(worker_lost_grace_us=10 * S)
    script.worker("w", stored("a"))
    script.asks("r", "a")
    script.unreachable("w")
    assert script.none(d.Reject)
    assert not [one for one in script.passes(9.9) if isinstance(one, d.Reject)]
    said = script.passes(0.2)
    reject = next(one for one in said if isinstance(one, d.Reject))
    assert reject.refusal is Refusal.no_healthy_worker
    assert reject.retry_after_us > 0


def test_a_worker_that_returns_within_the_grace_serves_those_who_waited() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),), parallel=1)
    script.asks("runs", "a")
    script.asks("waits", "a")
    script.unreachable("w")
    script.fails("runs", "w", "reset")
    script.passes(5)
    script.shows("w", loaded("a"))
    assert script.one(d.Dispatch).request == "runs"


def test_a_lost_worker_gives_up_its_placement() -> None:
    script = Script()
    names = (stored("a", 12), stored("b", 12))
    script.worker("w1", *names, parallel=1)
    script.resident("a", "w1")
    script.passes(60)
    script.asks("busy", "a", within=1000)
    script.asks("r", "b", within=1000)
    script.passes(6)
    script.unreachable("w1")
    assert script.one(d.Undrain).model == "blob-a"
    script.worker("w2", *names)
    assert script.one(d.Load).worker == "w2"


def test_a_removed_worker_leaves_nothing_behind_and_may_join_again() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a"),))
    script.asks("runs", "a")
    script.asks("waits", "b")
    load = script.one(d.Load)
    asked = script.now + 1
    script.passes(1)
    script.tell(WorkerRemoved(worker="w"))  # type: ignore[arg-type]
    script.ends(load)
    script.fails("runs", "w", "reset")
    script.joins("w")
    script.shows("w", loaded("a"), stores=(stored("a"),), asked=asked)  # of its earlier life
    assert script.none(d.HealthChange)
    script.shows("w", loaded("a"), stores=(stored("a"),))
    assert script.one(d.Dispatch).request == "runs"


def test_a_model_that_is_not_found_puts_its_worker_in_doubt_but_not_out() -> None:
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),))
    script.asks("r", "a")
    script.fails("r", "w", "not_found")
    assert script.one(d.Observe).worker == "w"
    assert script.none(d.HealthChange)
