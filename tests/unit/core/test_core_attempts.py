"""Whether a request that a worker failed is tried again: attempts, the budget of all retries, poison."""

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core import poison
from bellmare.core.decisions import Refusal


def fleet(workers: int = 3, *, parallel: int = 8, **limits: object) -> Script:
    script = Script(**{"breaker_failures": 10_000, "breaker_outcomes": 100_000, **limits})
    for number in range(1, workers + 1):
        script.worker(f"w{number}", stored("a"), stored("b"), holds=(loaded("a"), loaded("b")), parallel=parallel)
    return script


def fails_everywhere(script: Script, request: str, fault: str = "bad_answer", **more: object) -> int:
    """It fails wherever it is sent; how often that was."""
    script.asks(request, "a", **more)
    tries = 0
    while script.some(d.Dispatch):
        tries += 1
        script.fails(request, script.one(d.Dispatch).worker, fault)
    return tries


@pytest.mark.parametrize(("requests", "most"), [(50, 10), (1000, 100)])
def test_retries_are_a_tenth_of_all_requests_or_ten_in_ten_seconds_even_if_everything_fails(
    requests: int, most: int
) -> None:
    script = fleet()
    tries = sum(fails_everywhere(script, f"r{number}") for number in range(requests))
    assert requests < tries <= requests + most
    refusals = {one.refusal for one in script.all if isinstance(one, d.Reject)}
    assert Refusal.retries_spent in refusals


def test_who_is_not_tried_again_is_told_when_the_budget_is_renewed() -> None:
    script = fleet(retry_floor=0)
    script.asks("r", "a")
    script.fails("r", "w1", "bad_answer")
    reject = script.one(d.Reject)
    assert reject.refusal is Refusal.retries_spent
    assert 8 * S <= reject.retry_after_us <= 12 * S


def test_the_next_window_has_its_own_retries_and_knows_how_many_asked_in_the_last() -> None:
    script = fleet()
    for number in range(500):
        fails_everywhere(script, f"r{number}")
    script.passes(10)
    again = 0
    for number in range(60):
        again += fails_everywhere(script, f"s{number}") - 1
    assert 40 <= again <= 50, "a tenth of the five hundred before, though only sixty asked now"


def test_a_long_pause_counts_for_as_many_windows_as_it_lasted() -> None:
    script = fleet()
    for number in range(500):
        fails_everywhere(script, f"r{number}")
    script.passes(1000)
    assert sum(fails_everywhere(script, f"s{number}") - 1 for number in range(60)) == 10


@pytest.mark.parametrize("fault", ["reset", "refused"])
def test_what_ran_on_a_worker_when_it_was_lost_goes_elsewhere_beside_the_budget(fault: str) -> None:
    script = fleet(2, parallel=30, retry_floor=0, retry_percent=0)
    for number in range(40):
        script.asks(f"r{number}", "a")
    lost = list(script.runner("a", "w1").in_flight)
    assert len(lost) == 20
    for request in lost[:10]:
        script.fails(request, "w1", fault)
        assert script.one(d.Dispatch).worker == "w2"
    script.shows("w1", loaded("a"))
    script.asks("new", "a")
    script.fails("new", script.one(d.Dispatch).worker, "timeout")
    assert script.one(d.Reject).refusal is Refusal.retries_spent


def test_a_worker_that_is_lost_again_and_again_has_no_more_than_one_such_loss_in_ten_seconds() -> None:
    script = fleet(2, retry_floor=0, retry_percent=0)
    told = []
    for number in range(6):
        script.asks(f"hold{number}", "a")
        worker = script.one(d.Dispatch).worker
        script.fails(f"hold{number}", worker, "reset")
        told.append(not script.some(d.Reject))
        if told[-1]:
            script.done(f"hold{number}")
        assert worker == "w1"
        script.shows(worker, loaded("a"))
    assert told == [True] + 5 * [False]


def test_requests_of_a_worker_that_left_the_fleet_go_elsewhere_beside_the_budget() -> None:
    script = fleet(2, retry_floor=0, retry_percent=0)
    script.asks("r", "a")
    script.tell(e.WorkerRemoved(worker="w1"))  # type: ignore[arg-type]
    script.fails("r", "w1", "refused")
    assert script.one(d.Dispatch).worker == "w2"


def test_attempts_that_are_spent_on_silence_are_told_as_such() -> None:
    for fault, refusal in (("timeout", Refusal.worker_timed_out), ("bad_answer", Refusal.worker_failed)):
        script = fleet(attempts_max=2)
        assert fails_everywhere(script, "r", fault) == 2
        assert script.one(d.Reject).refusal is refusal


# ---------------------------------------------------------------------- poison


def crashes(script: Script, request: str, worker: str, fingerprint: str = "ff") -> None:
    script.tell(
        e.DispatchFailed(request=request, worker=worker, fault=e.FaultKind.crashed, fingerprint=fingerprint)  # type: ignore[arg-type]
    )


def poisoned(workers: int = 4) -> Script:
    script = fleet(workers)
    script.asks("r", "a")
    crashes(script, "r", script.one(d.Dispatch).worker)
    crashes(script, "r", script.one(d.Dispatch).worker)
    return script


def test_a_request_that_took_down_two_workers_is_tried_on_no_third() -> None:
    script = poisoned()
    reject = script.one(d.Reject)
    assert (reject.refusal, reject.retry_after_us) == (Refusal.poison_suspected, 0)
    assert script.none(d.Dispatch)
    whole = [w for w in ("w1", "w2", "w3", "w4") if script.runner("a", w).residency == "resident"]
    assert len(whole) == 2


def test_equal_requests_are_refused_at_once_and_others_are_not() -> None:
    script = poisoned()
    script.asks("same", "a", fingerprint="ff")
    assert script.one(d.Reject).refusal is Refusal.poison_suspected
    script.asks("other", "a", fingerprint="00")
    assert script.one(d.Dispatch)


def test_after_ten_minutes_it_may_try_again() -> None:
    script = poisoned()
    script.passes(601)
    for worker in ("w1", "w2", "w3", "w4"):
        script.shows(worker, loaded("a"), loaded("b"))
    script.asks("same", "a", fingerprint="ff")
    assert script.one(d.Dispatch)
    assert script.engine.fleet.state.poison == {}


def test_equal_requests_that_wait_are_refused_with_it() -> None:
    script = fleet(2, parallel=1)
    script.asks("r", "a")
    script.asks("hold", "a")
    script.asks("same", "a", fingerprint="ff")
    script.asks("other", "a", fingerprint="00")
    crashes(script, "r", "w1")
    crashes(script, "hold", "w2")
    assert {(one.request, one.refusal) for one in script.some(d.Reject)} == {
        ("hold", Refusal.poison_suspected),
        ("same", Refusal.poison_suspected),
        ("r", Refusal.poison_suspected),
    }


def test_streams_that_broke_by_a_crash_count_too() -> None:
    script = fleet()
    for number, worker in enumerate(("w1", "w2")):
        script.asks(f"r{number}", "a")
        assert script.one(d.Dispatch).worker == worker
        script.first(f"r{number}")
        script.tell(
            e.RequestFinished(
                request=f"r{number}",  # type: ignore[arg-type]
                outcome=e.Outcome.failed,
                fault=e.FaultKind.crashed,
                fingerprint="ff",
            )
        )
    script.asks("same", "a", fingerprint="ff")
    assert script.one(d.Reject).refusal is Refusal.poison_suspected


def test_two_crashes_on_one_worker_say_as_much_about_the_worker() -> None:
    script = fleet()
    for number in range(2):
        script.asks(f"r{number}", "b" if number else "a")
        assert script.one(d.Dispatch).worker == "w1"
        crashes(script, f"r{number}", "w1")
    assert script.none(d.Reject)
    assert script.engine.fleet.state.poison == {}


def test_an_equal_request_that_was_answered_clears_the_suspicion() -> None:
    script = fleet()
    script.asks("r", "a")
    crashes(script, "r", "w1")
    script.done("r")
    assert script.engine.fleet.state.suspects == {}
    script.asks("s", "a")
    crashes(script, "s", script.one(d.Dispatch).worker)
    assert script.one(d.Dispatch)


def test_both_tables_are_bounded_and_the_oldest_goes_first() -> None:
    script = fleet()
    fleet_ = script.engine.fleet
    for number in range(poison.SUSPECTS_MAX + 5):
        poison.crashed(fleet_, f"s{number}", "w1")  # type: ignore[arg-type]
    assert len(fleet_.state.suspects) == poison.SUSPECTS_MAX
    assert "s4" not in fleet_.state.suspects and "s5" in fleet_.state.suspects
    for number in range(poison.POISON_MAX + 5):
        for worker in ("w1", "w2"):
            poison.crashed(fleet_, f"p{number}", worker)  # type: ignore[arg-type]
    assert len(fleet_.state.poison) == poison.POISON_MAX
    assert "p4" not in fleet_.state.poison and "p5" in fleet_.state.poison


def test_an_equal_request_that_fails_otherwise_meanwhile_is_not_tried_again() -> None:
    script = fleet(4, parallel=2)
    script.asks("r", "a")
    first = script.one(d.Dispatch).worker
    crashes(script, "r", first)
    second = script.one(d.Dispatch).worker
    script.asks("equal", "a", fingerprint="ff")  # suspected, not refused: it may run
    elsewhere = script.one(d.Dispatch).worker
    crashes(script, "r", second)
    assert script.one(d.Reject).request == "r"
    script.fails("equal", elsewhere, "bad_answer")
    assert [(one.request, one.refusal) for one in script.some(d.Reject)] == [("equal", Refusal.poison_suspected)]
