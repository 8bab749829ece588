"""Workers whose requests fail although they answer observations: ejected, on trial, trusted step by step."""

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.decisions import Refusal


def fleet(workers: int = 3, *, parallel: int = 8, **limits: object) -> Script:
    """``a`` is resident on every worker."""
    script = Script(**{"retry_floor": 1000, **limits})
    for number in range(1, workers + 1):
        script.worker(f"w{number}", stored("a"), holds=(loaded("a"),), parallel=parallel)
    return script


def fail_on(script: Script, worker: str, fault: str = "timeout", *, name: str = "x") -> None:
    """Requests arrive until one meets ``worker``, and that one fails there; the others are answered."""
    for number in range(20):
        request = f"{name}-{script.now}-{number}"
        script.asks(request, "a")
        met = script.one(d.Dispatch).worker
        if met == worker:
            script.fails(request, worker, fault)
            again = script.some(d.Dispatch)
            if again:
                script.done(request)
            return
        script.out = []
    raise AssertionError(f"{worker} got no request")


def ejected(script: Script, worker: str) -> bool:
    return script.seen(worker).breaker.until_us >= 0


def eject(script: Script, worker: str) -> None:
    for _ in range(3):
        fail_on(script, worker, "bad_answer")
    assert ejected(script, worker)


@pytest.mark.parametrize("fault", ["bad_answer", "unreachable"])
def test_three_failures_of_transport_in_a_row_eject_a_worker(fault: str) -> None:
    script = fleet()
    for _ in range(2):
        fail_on(script, "w1", fault)
        assert script.seen("w1").healthy
    fail_on(script, "w1", fault)
    change = [one for one in script.all if isinstance(one, d.HealthChange)][-1]
    assert (change.worker, change.healthy, change.reason) == ("w1", False, "failing")


def test_a_success_between_starts_the_row_anew() -> None:
    script = fleet(1, breaker_outcomes=1000)
    for number in range(9):
        script.asks(f"bad{number}", "a")
        script.fails(f"bad{number}", "w1", "bad_answer")
        script.cancels(f"bad{number}")
        if number % 2:
            script.asks(f"good{number}", "a")
            script.done(f"good{number}")
    assert script.seen("w1").cap == 0


@pytest.mark.parametrize("fault", ["busy", "not_found", "crashed", "failed"])
def test_what_is_not_the_transports_fault_ejects_nobody_in_a_row(fault: str) -> None:
    script = fleet()
    for number in range(3):
        script.asks(f"r{number}", "a")
        script.fails(f"r{number}", script.one(d.Dispatch).worker, fault)
    assert not any(ejected(script, worker) for worker in ("w1", "w2", "w3"))


def test_clients_that_leave_count_for_nothing() -> None:
    script = fleet()
    for number in range(60):
        script.asks(f"r{number}", "a")
        script.cancels(f"r{number}")
    assert [script.seen(w).breaker.window_bad for w in ("w1", "w2", "w3")] == [0, 0, 0]
    assert all(script.seen(w).healthy and not script.seen(w).cap for w in ("w1", "w2", "w3"))


def test_half_of_ten_outcomes_eject_a_worker_and_fewer_do_not() -> None:
    for every, gone in ((2, True), (3, False)):
        script = fleet(2, parallel=100)
        script.asks("hold", "a")  # on w1: the rest is put where it is wanted by what runs already
        for number in range(1, 40):
            request = f"r{number}"
            script.asks(request, "a")
            worker = script.one(d.Dispatch).worker
            if worker == "w2" and number % every == 0:
                script.breaks(request, "failed")
            else:
                script.done(request)
            if ejected(script, "w2"):
                break
        assert ejected(script, "w2") is gone


def test_an_ejected_worker_gets_nothing_although_it_answers_observations() -> None:
    script = fleet()
    eject(script, "w1")
    script.passes(1)
    script.shows("w1", loaded("a"))
    assert script.none(d.HealthChange)
    for number in range(10):
        script.asks(f"r{number}", "a")
        assert script.one(d.Dispatch).worker != "w1"


def test_at_the_end_of_its_ejection_a_worker_is_asked_and_gets_one_request_until_that_succeeds() -> None:
    script = fleet()
    eject(script, "w1")
    said = script.passes(7)
    assert [one.worker for one in said if isinstance(one, d.Observe)] == ["w1"]
    script.shows("w1", loaded("a"))
    assert script.one(d.HealthChange).healthy
    met = []
    for number in range(10):
        script.asks(f"r{number}", "a")
        met.append((script.one(d.Dispatch).worker, f"r{number}"))
    probes = [request for worker, request in met if worker == "w1"]
    assert len(probes) == 1
    script.first(probes[0])
    script.asks("second", "a")
    assert script.one(d.Dispatch).worker == "w1"
    script.asks("third", "a")
    assert script.one(d.Dispatch).worker != "w1"


def running_on(script: Script, worker: str) -> int:
    return len(script.runner("a", worker).in_flight)


def test_after_its_trial_a_worker_gets_twice_as_much_every_five_seconds_and_then_all() -> None:
    script = fleet(2, parallel=64)
    for number in range(64):
        script.asks(f"long{number}", "a", within=1000)
    eject_all = list(script.runner("a", "w1").in_flight)
    for request in eject_all[:3]:
        script.fails(request, "w1", "bad_answer")
    assert ejected(script, "w1")
    for request in eject_all[3:]:
        script.done(request)
    script.passes(7)
    script.shows("w1", loaded("a"))
    for number in range(100):
        script.asks(f"more{number}", "a", within=1000)
    assert running_on(script, "w1") == 1
    script.first(next(iter(script.runner("a", "w1").in_flight)))
    seen = [running_on(script, "w1")]
    for _ in range(4):
        script.passes(5.1)
        seen.append(running_on(script, "w1"))
    assert seen == [2, 4, 8, 16, 64]


def test_a_probe_that_fails_ejects_again_for_twice_as_long() -> None:
    script = fleet()
    eject(script, "w1")
    spans = []
    for _ in range(4):
        mind = script.seen("w1").breaker
        spans.append((mind.until_us - script.now) / S)
        script.passes(spans[-1] + 0.1)
        script.shows("w1", loaded("a"))
        assert script.seen("w1").healthy
        fail_on(script, "w1", "bad_answer")
        assert ejected(script, "w1")
    for nominal, span in zip((5, 10, 20, 40), spans, strict=True):
        assert nominal * 0.8 - 0.1 <= span <= nominal * 1.2 + 0.1


def test_a_spans_length_is_bounded_and_differs_from_worker_to_worker() -> None:
    script = fleet(40, ejection_max_us=20 * S)
    spans = {}
    for number in range(1, 9):
        worker = f"w{number}"
        script.seen(worker).breaker.ejections = 30
        script.seen(worker).breaker.back_us = script.now
        for _ in range(3):
            fail_on_directly(script, worker)
        spans[worker] = script.seen(worker).breaker.until_us - script.now
    assert len(set(spans.values())) > 4
    assert max(spans.values()) <= 24 * S


def fail_on_directly(script: Script, worker: str) -> None:
    for number in range(80):
        request = f"d{script.now}-{number}"
        script.asks(request, "a")
        if script.one(d.Dispatch).worker == worker:
            script.fails(request, worker, "bad_answer")
            script.cancels(request)
            return
    raise AssertionError(worker)


def test_never_more_than_half_are_ejected_and_who_would_be_one_too_many_is_put_on_trial() -> None:
    script = fleet(3)
    eject(script, "w1")
    for _ in range(3):
        fail_on(script, "w2", "bad_answer")
    for _ in range(2):
        assert not ejected(script, "w2")
        assert script.seen("w2").healthy
        assert script.seen("w2").at_cap, "it rests"
        script.passes(1.1)
        assert (script.seen("w2").cap, script.seen("w2").at_cap) == (1, False)
        fail_on(script, "w2", "bad_answer")


def test_a_worker_that_is_alone_is_never_ejected() -> None:
    script = fleet(1)
    for number in range(10):
        script.asks(f"r{number}", "a")
        script.fails(f"r{number}", "w1", "bad_answer")
        script.cancels(f"r{number}")
    assert script.seen("w1").healthy
    assert script.engine.fleet.state.counters["breaker_panic"] > 0
    script.asks("ok", "a")
    assert script.none(d.Dispatch, d.Reject), "it waits for the next trial"
    said = script.passes(1.1)
    assert [one.request for one in said if isinstance(one, d.Dispatch)] == ["ok"]
    script.first("ok")
    script.passes(30)
    assert script.seen("w1").cap == 0


def test_all_that_a_dying_worker_had_under_way_is_one_failure() -> None:
    script = fleet(2)
    for number in range(12):
        script.asks(f"r{number}", "a")
    for request in list(script.runner("a", "w1").in_flight):
        script.fails(request, "w1", "reset")
    assert script.seen("w1").breaker.row == 1
    script.shows("w1", loaded("a"))
    assert script.seen("w1").healthy
    assert not ejected(script, "w1")


def test_a_worker_that_answers_observations_and_resets_every_request_is_ejected_at_the_third() -> None:
    script = fleet(2)
    for _ in range(3):
        fail_on(script, "w1", "reset")
        script.shows("w1", loaded("a"))
    assert ejected(script, "w1")
    assert not script.seen("w1").healthy


def test_a_worker_that_was_good_for_long_begins_with_the_shortest_ejection() -> None:
    script = fleet(2)
    eject(script, "w1")
    script.passes(7)
    script.shows("w1", loaded("a"))
    script.asks("probe", "a")
    script.first("probe")
    script.done("probe")
    script.passes(400)
    script.shows("w1", loaded("a"))
    assert script.seen("w1").cap == 0
    eject(script, "w1")
    assert script.seen("w1").breaker.ejections == 1


def test_who_waits_for_a_worker_on_trial_is_served_when_the_trial_is_passed() -> None:
    script = Script(retry_floor=1000)
    script.worker("w1", stored("a"), stored("b"), holds=(loaded("a"), loaded("b")), parallel=2)
    script.seen("w1").cap = 1
    for model in ("a", "b"):
        script.engine.fleet.refresh_open(script.seen("w1"), script.runner(model, "w1"))
    script.asks("probe", "a")
    assert script.one(d.Dispatch).request == "probe"
    script.asks("other", "b")
    assert script.none(d.Dispatch)
    script.first("probe")
    assert script.one(d.Dispatch).request == "other"


def test_an_ejection_survives_a_snapshot() -> None:
    script = fleet()
    eject(script, "w1")
    other = script.copy()
    for one in (script, other):
        one.passes(7)
        one.shows("w1", loaded("a"))
        one.asks("probe", "a")
    assert script.out == other.out
    assert other.seen("w1").cap == 1


def test_the_last_one_with_a_model_is_away_and_that_is_told() -> None:
    script = Script(suspicion_us=0, retry_floor=1000)
    script.worker("w1", stored("a"), holds=(loaded("a"),))
    script.worker("w2", stored("b"), holds=(loaded("b"),))
    for number in range(3):
        script.asks(f"r{number}", "a")
        script.fails(f"r{number}", "w1", "bad_answer")
        script.cancels(f"r{number}")
    script.asks("late", "a")
    reject = script.one(d.Reject)
    assert reject.refusal is Refusal.no_healthy_worker
    assert reject.retry_after_us > 0
