"""Whose turn it is: tenants by weight, priorities with a floor, deadlines at the cost of one's own future."""

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core import fairness
from bellmare.core.config import CoreConfig, TenantConfig
from bellmare.core.events import Priority


def one_slot(config: CoreConfig | None = None, **limits: object) -> Script:
    """One slot, taken by a request of nobody who asks later; every request takes two seconds."""
    script = Script(config, **limits)
    script.worker("w", stored("a"), parallel=1, holds=(loaded("a"),))
    script.asks("teacher", "a", tenant="teacher")
    script.passes(2)
    script.done("teacher")
    script.asks("holds", "a", tenant="holder")
    return script


def turns(script: Script, running: str = "holds", *, seconds: float | dict[str, float] = 2.0, last: int = 999) -> str:
    """Let everybody run, one after the other; the first letters of the requests in the order of their turns."""
    order = []
    for _ in range(last):
        span = seconds if isinstance(seconds, float) else seconds.get(running[0], 2.0)
        script.now += int(span * S)
        script.done(running)
        if script.none(d.Dispatch):
            break
        running = script.one(d.Dispatch).request
        order.append(running)
    return "".join(request[0] for request in order)


def wait(script: Script, letter: str, many: int, *, tenant: str = "", **more: object) -> None:
    for number in range(many):
        script.asks(f"{letter}{number}", "a", tenant=tenant or letter, within=10_000, **more)


def test_tenants_take_turns_however_many_requests_each_sends() -> None:
    script = one_slot()
    wait(script, "a", 6)
    wait(script, "b", 3)
    assert turns(script) == "abababaaa"


def test_a_weight_of_two_gets_twice_as_much() -> None:
    script = one_slot(CoreConfig(tenants={"b": TenantConfig(weight=2)}))
    wait(script, "a", 12)
    wait(script, "b", 12)
    order = turns(script)
    assert order[:12].count("b") == 8
    assert order.count("a") == order.count("b") == 12


def test_the_requests_of_one_tenant_go_in_order_of_arrival() -> None:
    script = one_slot()
    wait(script, "a", 5)
    order = []
    running = "holds"
    for _ in range(5):
        script.done(running)
        running = script.one(d.Dispatch).request
        order.append(running)
    assert order == [f"a{number}" for number in range(5)]


def test_what_a_request_took_counts_and_not_what_was_expected() -> None:
    """Requests of a take three times as long: a gets a third of the turns, and as much time."""
    script = one_slot()
    wait(script, "a", 30)
    wait(script, "b", 30)
    order = turns(script, seconds={"a": 6.0, "b": 2.0}, last=24)
    assert 5 <= order.count("a") <= 7


def test_who_was_idle_gets_no_credit_for_the_past() -> None:
    script = one_slot()
    wait(script, "b", 1)
    wait(script, "a", 30)
    running = turns(script, last=21)
    assert running.count("a") == 20  # b had one turn and left
    wait(script, "b", 9, tenant="b")
    script.asks("z", "a", tenant="a")  # the names b0... were used: the same tenant under other request ids
    order = turns(script, "a19", last=12)
    assert "bbb" not in order
    assert order.count("b") in (6, 7)


def test_who_had_more_than_his_share_pays_when_he_comes_back_while_others_wait() -> None:
    """His one request took five times what was expected, and he left: four turns go by before his next one."""
    script = one_slot()
    wait(script, "a", 1)
    wait(script, "b", 9)
    script.done("holds")
    assert script.one(d.Dispatch).request == "a0"
    script.passes(10)
    script.done("a0")
    script.asks("again", "a", tenant="a", within=10_000)
    assert turns(script, "b0")[:6].index("a") >= 3


def test_a_prefill_that_was_aborted_is_paid_for_as_long_as_it_holds_the_slot() -> None:
    script = one_slot()
    script.asks("long", "a", tenant="a", prompt_tokens=10_000)  # twenty seconds
    wait(script, "b", 12)
    script.done("holds")
    script.cancels("long")
    script.asks("again", "a", tenant="a", within=10_000)
    said = [one.request for one in script.passes(21) if isinstance(one, d.Dispatch)]
    assert said == ["b0"]
    assert turns(script, "b0")[:12].index("a") >= 6


def test_a_higher_priority_goes_first() -> None:
    script = one_slot()
    wait(script, "l", 2, priority=Priority.low)
    wait(script, "n", 2)
    wait(script, "h", 2, priority=Priority.high)
    assert turns(script) == "hhnnll"


def test_a_lower_priority_gets_one_turn_of_eight() -> None:
    script = one_slot()
    wait(script, "l", 3, priority=Priority.low)
    wait(script, "h", 40, priority=Priority.high)
    order = turns(script, last=24)
    assert fairness.LANE_TURN_EVERY == 8
    assert [place for place, who in enumerate(order) if who == "l"] == [7, 15, 23]


def test_two_lower_priorities_get_their_turns_both() -> None:
    script = one_slot()
    wait(script, "l", 9, priority=Priority.low)
    wait(script, "n", 9)
    wait(script, "h", 60, priority=Priority.high)
    order = turns(script, last=48)
    assert order.count("l") == 6
    assert order.count("n") in (5, 6)


def test_within_a_priority_tenants_take_turns() -> None:
    script = one_slot()
    wait(script, "a", 3, priority=Priority.high)
    wait(script, "b", 3, priority=Priority.high)
    wait(script, "n", 1)
    assert turns(script) == "abababn"


def test_who_would_be_lost_by_waiting_his_turn_goes_first() -> None:
    script = one_slot()
    for tenant in "abcdefg":
        wait(script, tenant, 2)
    script.asks("urgent", "a", tenant="u", within=15)  # its turn would come after those of seven others
    order = turns(script)
    assert len(order) == 15
    assert 2 <= order.index("u") <= 6
    assert script.engine.fleet.state.counters.get("refused_deadline_passed") is None


def test_a_hurry_is_borrowed_from_the_tenants_own_future_and_bounded() -> None:
    """All of b's requests are in a hurry; it gets a few of them ahead of its share, not all."""
    script = one_slot()
    wait(script, "a", 40)
    for number in range(6):
        script.asks(f"b{number}", "a", tenant="b", within=25)
    order = turns(script, last=20)
    served = order.count("b")
    ahead = max(order[: n + 1].count("b") - order[: n + 1].count("a") for n in range(len(order)))
    assert served == 6
    assert ahead <= fairness.RESCUE_BORROWED_MAX + 1


def test_idle_tenants_max() -> None:
    """Thousands of tenants come and go while somebody waits: their debts are forgotten, the oldest first."""
    script = Script()
    script.sound = False
    script.worker("w", stored("a"), parallel=4, holds=(loaded("a"),))
    script.asks("stays", "a", tenant="stays")
    for number in range(fairness.IDLE_TENANTS_MAX + 50):
        script.asks(f"r{number}", "a", tenant=f"t{number}")
        script.done(f"r{number}")
    lane = script.engine.fleet.state.models["blob-a"].lanes[Priority.normal]  # type: ignore[index]
    assert len(lane.idle) == fairness.IDLE_TENANTS_MAX
    assert list(lane.idle)[-1] == f"t{fairness.IDLE_TENANTS_MAX + 49}"
    assert set(lane.accounts) == {"stays"}
    script.done("stays")
    assert not lane.idle
    assert not lane.accounts
    assert script.engine.check() == []


def test_a_restored_engine_goes_on_with_the_same_turns() -> None:
    script = one_slot(CoreConfig(tenants={"b": TenantConfig(weight=3)}))
    wait(script, "a", 8)
    wait(script, "b", 8)
    wait(script, "l", 4, priority=Priority.low)
    turns(script, last=5)
    running = next(r for r, q in script.engine.fleet.state.requests.items() if q.phase == "running")
    other = script.copy()
    assert other.engine.check() == []
    assert turns(other, running) == turns(script, running)


def test_a_retry_keeps_its_place_among_those_of_its_tenant() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"), parallel=1, holds=(loaded("a"),))
    for number in range(5):
        script.asks(f"r{number}", "a", tenant="t")
    script.fails("r0", "w1", "busy")
    script.done("r1")
    assert script.one(d.Dispatch).request == "r0"


@pytest.mark.parametrize("tenants", ["aaaaaa", "ababab", "aaabbb", "abcabc"])
def test_the_position_is_the_number_of_the_turn(tenants: str) -> None:
    script = one_slot()
    for number, tenant in enumerate(tenants):
        script.asks(f"{number}{tenant}", "a", tenant=tenant, within=10_000)
    said = {}
    for number, tenant in enumerate(tenants):
        place = script.engine.position(f"{number}{tenant}")  # type: ignore[arg-type]
        assert place is not None
        said[str(number)] = place
    order = turns(script)
    for letter, (position, eta_us) in said.items():
        assert position == order.index(letter) + 1, (order, said)
        assert eta_us == position * 2 * S + position  # two seconds and a microsecond each


def test_the_position_heeds_weights_priorities_and_what_was_served() -> None:
    script = one_slot(CoreConfig(tenants={"b": TenantConfig(weight=2)}))
    for letter, tenant, priority in ("laL", "maL", "abN", "bbN", "caN", "daN", "ebN", "faH"):
        lane = {"L": Priority.low, "N": Priority.normal, "H": Priority.high}[priority]
        script.asks(letter, "a", tenant=tenant, within=10_000, priority=lane)
    said = {letter: script.engine.position(letter) for letter in "lmabcdef"}  # type: ignore[arg-type]
    order = turns(script)
    for letter, place in said.items():
        assert place is not None
        assert abs(place[0] - (order.index(letter) + 1)) <= 1, (order, said)
    assert order[0] == "f"
    assert order[-2:] == "lm"


def test_a_position_is_told_of_who_waits_only() -> None:
    script = one_slot()
    wait(script, "a", 1)
    assert script.engine.position("holds") is None  # type: ignore[arg-type]
    assert script.engine.position("nobody") is None  # type: ignore[arg-type]
    before = script.engine.snapshot()
    assert script.engine.position("a0") is not None  # type: ignore[arg-type]
    assert script.engine.snapshot() == before


def test_one_tenants_flood_does_not_refuse_the_others() -> None:
    """For a thirty seconds of waiting are ahead, for b one turn: only a's next request is refused."""
    script = one_slot(queue_wait_max_us=29 * S)
    wait(script, "a", 15)
    script.asks("too many", "a", tenant="a", within=10_000)
    reject = script.one(d.Reject)
    assert reject.refusal is d.Refusal.wait_too_long
    assert reject.retry_after_us >= 15 * S
    script.asks("b", "a", tenant="b", within=10)
    assert script.none(d.Reject)
    assert turns(script).index("b") <= 1
