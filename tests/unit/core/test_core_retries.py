"""When nothing can be loaded for a while: who may wait for the next try, and who is told at once when to come back."""

from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import Refusal


def broken(workers: int = 1, **limits: object) -> Script:
    """Every worker has just failed to load a, and is in back-off for it."""
    script = Script(**{"load_backoff_us": 20 * S, "load_failures_max": 9, **limits})
    for number in range(workers):
        script.worker(f"w{number}", stored("a"))
    script.asks("first", "a")
    for _ in range(workers):
        load = next(one for one in reversed(script.all) if isinstance(one, d.Load))
        script.broken(load)
        script.shows(load.worker)
    assert [one.refusal for one in script.all if isinstance(one, d.Reject)] == [Refusal.load_failed]
    script.all.clear()
    return script


def test_who_cannot_wait_for_the_end_of_the_back_off_is_told_when_to_come_back() -> None:
    for workers in (1, 3):
        script = broken(workers)
        script.asks("hasty", "a", within=10)
        reject = script.one(d.Reject)
        assert reject.refusal is Refusal.load_failed
        assert 15 * S <= reject.retry_after_us <= 25 * S


def test_who_can_wait_is_served_at_the_end_of_the_back_off() -> None:
    script = broken(2)
    script.asks("patient", "a", within=60)
    assert script.none(d.Reject, d.Load)
    script.passes(19)
    assert script.none(d.Load)
    script.passes(2)
    script.ends(next(one for one in script.out if isinstance(one, d.Load)))
    assert script.one(d.Dispatch).request == "patient"


def test_one_worker_that_has_not_failed_is_reason_enough_to_wait() -> None:
    script = broken(1)
    script.worker("fresh", stored("a"))
    script.asks("hasty", "a", within=10)
    assert script.none(d.Reject)
    assert script.one(d.Load).worker == "fresh"


def test_those_who_wait_are_told_once_only_failed_workers_are_left() -> None:
    script = broken(1, load_backoff_us=100 * S)
    script.worker("full", stored("a"), stored("x", 20), parallel=1)
    script.resident("x", "full")
    script.asks("busy", "x", within=1000)
    script.shows("full", loaded("x", 21), foreign=2)
    script.asks("hasty", "a", within=30)
    script.asks("patient", "a", within=500)
    assert script.none(d.Reject)
    script.unreachable("full")
    reject = script.one(d.Reject)
    assert (reject.request, reject.refusal) == ("hasty", Refusal.load_failed)
    assert reject.retry_after_us > 0


def test_a_model_that_fits_once_foreign_memory_is_gone_may_be_asked_for_again() -> None:
    script = Script()
    script.worker("w", stored("a", 10), gib=24)
    script.shows("w", foreign=16)
    script.asks("r", "a")
    reject = script.one(d.Reject)
    assert reject.refusal is Refusal.model_does_not_fit
    assert reject.retry_after_us >= 20 * S
    script.shows("w", foreign=0)
    script.asks("s", "a")
    assert script.one(d.Load).worker == "w"


def test_a_model_that_fits_nowhere_even_then_is_refused_for_good() -> None:
    script = Script()
    script.worker("w", stored("a", 30), gib=24)
    script.shows("w", foreign=16)
    script.asks("r", "a")
    reject = script.one(d.Reject)
    assert (reject.refusal, reject.retry_after_us) == (Refusal.model_does_not_fit, 0)
