"""Part E of the fault catalogue in virtual time: what load does to the core, in numbers that follow from spans."""

from __future__ import annotations

import pytest
from core_script import S, Script, loaded, stored
from virtual_load import Load

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.decisions import Refusal

BAD = e.FaultKind.bad_answer


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("fault", [BAD, e.FaultKind.reset, e.FaultKind.timeout, e.FaultKind.unreachable])
def test_e05_attempts_are_at_most_a_tenth_more_than_requests_even_if_every_worker_fails(fault):
    fleet = Load(workers=3, parallel=4, suspicion_us=0)
    fleet.fails = lambda _: fault
    fleet.stream(100, 60)
    fleet.run(140)
    retries = len(fleet.dispatched) - fleet.firsts
    print(f"{fault}: {len(fleet.dispatched)} attempts of {fleet.firsts} requests: "
          f"{len(fleet.dispatched) / fleet.firsts:.3f}; refused {dict(fleet.refusals())}")  # fmt: skip
    windows = 14
    exempt = 12 * windows if fault is e.FaultKind.reset else 0
    assert fleet.firsts >= 10
    assert retries <= max(0.10 * fleet.firsts, 10 * windows) + exempt
    assert len(fleet.arrived) == len(fleet.refused) == 6000, "everybody is told"


def test_e05_an_overloaded_fleet_that_fails_everywhere_is_asked_1_10_times_at_most():
    fleet = Load(workers=3, parallel=4, breaker_failures=10**6, breaker_outcomes=10**6, queue_per_model_max=2000)
    fleet.fails = lambda _: BAD
    fleet.stream(500, 40)
    fleet.run(60)
    ratio = len(fleet.dispatched) / fleet.firsts
    print(f"without a breaker: {len(fleet.dispatched)} attempts of {fleet.firsts} requests: {ratio:.3f}")
    assert 1.05 < ratio <= 1.10


def test_e05_clients_that_ignore_retry_after_take_nothing_from_goodput():
    fleet = Load(workers=2, parallel=4, queue_per_model_max=16)
    storms = 0

    def again(_: str, decision: d.Reject) -> None:
        nonlocal storms
        storms += 1
        fleet.later(S // 20, lambda: fleet.ask() and None)

    fleet.on_refusal = again
    fleet.stream(16, 60)
    fleet.run(60)
    goodput = fleet.finished(5, 60) / 55 / 8
    print(f"retry storm: {storms} refusals, goodput {goodput:.3f} of capacity")
    assert storms > 1000
    assert goodput >= 0.95


# ---------------------------------------------------------------------- overload


def test_e06_at_ten_times_its_capacity_goodput_stays_and_all_is_as_before_soon_after():
    fleet = Load(workers=2, parallel=4, queue_per_model_max=64)
    fleet.stream(80, 60, within_s=20)
    fleet.run(60)
    goodput = fleet.finished(5, 60) / 55 / 8
    at_once = sum(at == fleet.arrived[one] for one, (at, _) in fleet.refused.items()) / len(fleet.refused)
    longest = max(fleet.waits(fleet.done))
    after = list(fleet.arrived)[-1]
    fleet.run(20)  # one queue timeout
    fleet.stream(4, 20)
    fleet.run(30)
    later = [one for one in fleet.arrived if int(one[1:]) > int(after[1:])]
    waits = fleet.waits(later)
    print(f"overload x10: goodput {goodput:.3f}, {at_once:.3f} of refusals at once, longest wait {longest:.1f} s, "
          f"afterwards {max(waits):.2f} s")  # fmt: skip
    assert goodput >= 0.95
    assert at_once >= 0.99, "who cannot be served is told at once"
    assert longest <= 21
    assert len(waits) == len(later) == 80
    assert max(waits) <= 1.01


def test_e12_refused_clients_are_not_told_to_come_back_at_the_same_time():
    fleet = Load(workers=1, parallel=1, queue_per_model_max=32, service_s=4)
    fleet.run(1)
    fleet.ask()
    fleet.run(5)
    for _ in range(232):
        fleet.ask(within_s=1000)
    told = [decision.retry_after_us for _, decision in fleet.refused.values()]
    print(f"Retry-After of {len(told)}: {min(told) / S:.1f} to {max(told) / S:.1f} s, {len(set(told))} different")
    assert len(told) >= 150
    assert len(set(told)) >= 20
    assert max(told) >= 1.2 * min(told) or max(told) == 60 * S


# ---------------------------------------------------------------------- cold models


def test_e02_a_thousand_requests_for_one_cold_model_are_one_load_and_a_bounded_queue():
    fleet = Load(workers=3, parallel=4, resident=(), queue_wait_max_us=10_000 * S, queue_per_model_max=512)
    for _ in range(1000):
        fleet.ask(within_s=3600)
    assert len(fleet.loads) == 1
    fleet.run(1)
    assert len(fleet.loads) == 1, "one flight, however many wait"
    assert fleet.engine.fleet.state.waiting == 512
    assert fleet.refusals() == {"queue_full": 488}
    assert all(decision.retry_after_us >= S for _, decision in fleet.refused.values())
    fleet.run(400)
    places = [one.worker for one in fleet.loads]
    print(f"herd: {len(fleet.loads)} loads on {places}, {len(fleet.done)} answered, {len(fleet.refused)} refused")
    assert len(places) == len(set(places)) <= 3, "one load for each replica"
    assert len(fleet.done) == 512


def test_e03_fifty_cold_models_at_once_load_one_after_another_and_hot_requests_go_on():
    cold = [f"c{number}" for number in range(50)]
    fleet = Load(workers=4, parallel=4, models=("a", *cold), resident=("a",), size_gib=6, queue_wait_max_us=10_000 * S)
    fleet.stream(4, 60)
    fleet.run(10)
    for name in cold:
        fleet.ask(name, within_s=600)
    most = 0
    for _ in range(500):
        fleet.run(0.1)
        busy = [one.operation for one in fleet.engine.fleet.state.workers.values() if one.operation is not None]
        most = max(most, len(busy))
    hot = [one.request for one in fleet.dispatched if one.model == "blob-a"]
    waits = sorted(fleet.waits(hot))
    print(f"cold storm: at most {most} loads at once on 4 workers, hot p99 {waits[int(len(waits) * 0.99)]:.2f} s")
    assert most <= 4
    assert waits[int(len(waits) * 0.99)] <= 1.1
    assert "a" in {name for held in fleet.held.values() for name in held}


def test_e08_a_cold_model_is_served_beside_a_hot_one_that_fills_the_only_worker():
    fleet = Load(workers=1, parallel=2, models=("hot", "cold"), resident=("hot",), size_gib=14, service_s=0.5)
    fleet.stream(8, 120, "hot", within_s=60)
    fleet.run(20)
    cold = fleet.ask("cold", within_s=60)
    fleet.run(70)
    assert cold in fleet.done or cold in fleet.refused
    assert cold in fleet.done
    assert fleet.waits([cold])[0] <= 60
    assert len(fleet.done) > 300, "and the hot one goes on"


def test_e09_two_models_in_turns_with_room_for_one_do_not_throw_each_other_out_with_each_request():
    fleet = Load(workers=1, parallel=4, models=("a", "b"), resident=("a",), size_gib=14, service_s=0.2, load_s=3.0)
    for number in range(600):
        fleet.later(number * S // 5, lambda name="ab"[number % 2]: fleet.ask(name, within_s=60) and None)
    fleet.run(180)
    print(f"ping-pong: {len(fleet.loads)} loads for {len(fleet.arrived)} requests in turns, {len(fleet.done)} answered")
    assert len(fleet.loads) <= 120 / 3.5, "each stays at least as long as its load took"
    assert len(fleet.loads) <= len(fleet.arrived) / 10, "batches, not single requests"
    assert len(fleet.done) + len(fleet.refused) == len(fleet.arrived)
    assert len(fleet.done) >= 0.7 * len(fleet.arrived)


def test_e10_one_client_that_touches_everything_once_does_not_drive_out_what_is_hot():
    cold = [f"c{number}" for number in range(60)]
    fleet = Load(workers=1, parallel=4, models=("a", "b", *cold), resident=("a", "b"), size_gib=5, service_s=0.2)
    fleet.stream(2, 400, "a")
    fleet.stream(2, 400, "b")
    fleet.run(60)
    for number, name in enumerate(cold):
        fleet.later(number * 5 * S, lambda name=name: fleet.ask(name, tenant="scanner", within_s=60) and None)
    fleet.run(330)
    hot = [one for one in fleet.dispatched if one.model in ("blob-a", "blob-b")]
    share = sum(one.cache is d.CacheState.hit for one in hot) / len(hot)
    print(f"scan: {share:.3f} of {len(hot)} hot requests were hits; {len(fleet.loads)} loads")
    assert share >= 0.95


# ---------------------------------------------------------------------- who suffers for whom


def test_e07_a_waiting_request_of_high_priority_waits_for_one_slot_and_no_more():
    script = Script()
    script.worker("w", stored("a"), holds=(loaded("a"),), parallel=1)
    script.asks("long", "a", priority=e.Priority.low)
    for number in range(5):
        script.asks(f"low{number}", "a", priority=e.Priority.low)
    script.asks("high", "a", priority=e.Priority.high)
    script.done("long")
    assert script.one(d.Dispatch).request == "high"


def test_e11_a_tenant_that_sends_a_hundred_times_as_much_makes_the_other_wait_for_a_turn_only():
    alone = Load(workers=1, parallel=4, queue_wait_max_us=20 * S)
    both = Load(workers=1, parallel=4, queue_wait_max_us=20 * S)
    for fleet in (alone, both):
        fleet.stream(0.5, 60, tenant="quiet", within_s=300)
    both.stream(50, 60, tenant="noisy", within_s=300)
    quiet: dict[int, list[float]] = {}
    for number, fleet in enumerate((alone, both)):
        asked: list[str] = []
        original = fleet.ask

        def ask(name: str = "a", *, asked=asked, original=original, **more):
            request = original(name, **more)
            if more.get("tenant") == "quiet":
                asked.append(request)
            return request

        fleet.ask = ask  # type: ignore[method-assign]
        fleet.run(120)
        assert all(one in fleet.done for one in asked), "the noisy one's flood refuses nobody else"
        quiet[number] = sorted(fleet.waits(asked))
    print(f"noisy tenant: the other's longest wait {quiet[0][-1]:.2f} s alone, {quiet[1][-1]:.2f} s beside it")
    assert len(quiet[1]) == 30
    assert quiet[1][-1] <= 2.1, "its own service, and at most one more for a slot to become free"


def test_e13_hints_that_are_always_wrong_never_drive_out_what_is_used():
    fleet = Load(workers=1, parallel=4, models=("a", "x", "y", "z"), resident=("a",), size_gib=9, service_s=0.2)
    fleet.stream(2, 300, "a", tenant="t")
    names = ("x", "y", "z")
    for number in range(150):
        hint = e.HintGiven(source=e.HintSource.prepare, name=names[number % 3], tenant="liar", in_us=5 * S)  # type: ignore[arg-type]
        fleet.later(number * 2 * S, lambda hint=hint: fleet.feed(hint))
    fleet.run(310)
    hits = sum(one.cache is d.CacheState.hit for one in fleet.dispatched)
    print(f"wrong hints: {hits} hits of {len(fleet.dispatched)}, {len(fleet.loads)} loads for nothing")
    assert hits == len(fleet.dispatched) == 600
    assert not [one for one in fleet.unloads if one.model == "blob-a"]
    assert len(fleet.loads) <= 40


def test_e14_one_good_worker_among_bad_ones_does_what_it_can_and_is_not_overrun():
    fleet = Load(workers=4, parallel=4, queue_per_model_max=32)
    fleet.fails = lambda decision: None if decision.worker == "w3" else BAD
    fleet.stream(20, 120, within_s=20)
    most = 0
    for _ in range(1200):
        fleet.run(0.1)
        workers = fleet.engine.fleet.state.workers.values()
        ejected = sum(one.breaker.until_us > fleet.now for one in workers)
        assert ejected <= 2, "never more than half"
        most = max(most, sum(len(r.in_flight) for r in fleet.engine.fleet.state.workers["w3"].runners.values()))  # type: ignore[index]
    goodput = fleet.finished(20, 120) / 100 / 4
    print(f"one good of four: goodput {goodput:.3f} of its capacity, at most {most} at once on it")
    assert most <= 4
    assert goodput >= 0.95


# ---------------------------------------------------------------------- poison


def test_e01_a_request_that_kills_runners_takes_down_two_and_the_rest_goes_on():
    fleet = Load(workers=5, parallel=2)
    poisoned: set[str] = set()
    fleet.fails = lambda decision: e.FaultKind.crashed if decision.request in poisoned else None
    feed = fleet.feed

    def with_fingerprint(event: e.Event) -> None:
        if isinstance(event, e.DispatchFailed):
            event = e.DispatchFailed(event.request, event.worker, event.fault, fingerprint="ff")
        feed(event)

    fleet.feed = with_fingerprint  # type: ignore[method-assign]
    fleet.stream(3, 30)
    fleet.run(5)
    poisoned.add(f"r{len(fleet.arrived)}")
    first = fleet.ask()
    fleet.run(1)
    assert fleet.refused[first][1].refusal is Refusal.poison_suspected
    later = [fleet.ask(fingerprint="ff") for _ in range(20)]
    assert {fleet.refused[one][1].refusal for one in later} == {Refusal.poison_suspected}
    met = {one.worker for one in fleet.dispatched if one.request in poisoned}
    assert len(met) == 2
    fleet.run(40)
    assert len(fleet.done) == 90, "all others are answered"
