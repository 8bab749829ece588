"""Settings that change while the fleet runs, and a process that leaves what is resident to another."""

from __future__ import annotations

import msgspec
import pytest
from core_script import GIB, S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import ModelConfig, TenantConfig
from bellmare.core.engine import Engine


def changes(script: Script, **limits: object) -> list[object]:
    config = msgspec.structs.replace(script.engine.config, **limits)
    return script.tell(e.ConfigChanged(config=config))


def restored(script: Script) -> None:
    """A snapshot and the settings in force restore to the same state."""
    copy = Engine.restore(script.engine.config, script.engine.snapshot())
    assert copy.snapshot() == script.engine.snapshot()
    assert copy.check() == []


def test_a_larger_context_leaves_what_is_resident_as_it_is_and_holds_for_the_next_load() -> None:
    script = Script(default_num_ctx=4096)
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a", num_ctx=4096),))
    assert changes(script, default_num_ctx=8192) == []
    script.shows("w", loaded("a", num_ctx=4096))
    assert script.some(d.Drain) == script.some(d.Unload) == []
    script.asks("r1", "a")
    assert script.one(d.Dispatch).num_ctx == 4096
    script.asks("r2", "b")
    assert script.one(d.Load).num_ctx == 8192
    restored(script)


def test_a_context_that_was_wrong_before_still_makes_its_runner_leave() -> None:
    script = Script(default_num_ctx=4096)
    script.worker("w", stored("a"), holds=(loaded("a", num_ctx=2048),))
    assert [drain.cause for drain in script.all if isinstance(drain, d.Drain)] == [d.UnloadCause.shape]


def test_a_smaller_queue_keeps_who_waits_and_refuses_who_comes() -> None:
    script = Script(queue_per_model_max=10)
    script.worker("w", stored("a"), holds=(loaded("a"),), parallel=1)
    for number in range(4):
        script.asks(f"r{number}", "a")
    assert changes(script, queue_per_model_max=2) == []
    script.asks("late", "a")
    assert script.one(d.Reject).refusal is d.Refusal.queue_full
    for number in range(4):
        script.done(f"r{number}")
    served = [decision.request for decision in script.all if isinstance(decision, d.Dispatch)]
    assert served == ["r0", "r1", "r2", "r3"]


def test_a_model_that_is_pinned_from_now_on_is_loaded() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    changes(script, models={"a": ModelConfig(pinned=True)})
    load = script.one(d.Load)
    assert (load.model, load.cause) == ("blob-a", d.LoadCause.pinned)


def test_new_weights_hold_for_those_who_wait_already() -> None:
    script = Script(queue_per_model_max=100)
    script.worker("w", stored("a"), holds=(loaded("a"),), parallel=1)
    script.asks("first", "a", tenant="x")
    for number in range(12):
        script.asks(f"x{number}", "a", tenant="x")
        script.asks(f"y{number}", "a", tenant="y")
    changes(script, tenants={"y": TenantConfig(weight=3)})
    restored(script)
    running, order = "first", []
    for _ in range(12):
        script.now += S
        running = script.done(running)[0].request
        order.append(running[0])
    assert 8 <= order.count("y") <= 10, order


@pytest.mark.parametrize(("spans", "after"), [((30, 2), 2), ((2, 30), 30)])
def test_patience_with_a_busy_victim_is_measured_by_the_new_span(spans: tuple[int, int], after: int) -> None:
    old, new = spans
    script = Script(drain_after_us=old * S)
    script.worker("w", stored("a", 8), stored("b", 8), gib=12, holds=(loaded("a", 9),), parallel=1)
    script.passes(60)
    script.asks("r1", "a")
    script.asks("r2", "b")
    script.passes(1)
    changes(script, drain_after_us=new * S)
    waited = 1
    while not script.some(d.Drain):
        assert waited < 40
        script.passes(1)
        waited += 1
    assert after - 1 <= waited <= after + 1


def test_a_policy_that_the_settings_name_decides_at_once_and_a_change_elsewhere_keeps_the_one_in_use() -> None:
    script = Script(eviction="lru")
    script.worker("w", stored("a"), holds=(loaded("a"),))
    changes(script, eviction="gdsf")
    assert (script.engine.fleet.state.policy, script.engine.policy.name) == ("gdsf", "gdsf")
    script.engine.fleet.state.policy = "lhd"  # as a change by the shadows leaves it
    changes(script, batch_max_us=S)
    assert script.engine.fleet.state.policy == "lhd"
    script.engine.fleet.state.policy = "gdsf"
    for policy in ("histogram", "hv"):
        changes(script, eviction=policy)
        script.asks(f"r-{policy}", "a")
        script.done(f"r-{policy}")
        restored(script)


def test_shadows_stay_as_they_began() -> None:
    for shadows in (True, False):
        script = Script(shadows=shadows)
        changes(script, shadows=not shadows, ahead=False)
        assert script.engine.config.shadows is shadows
        assert script.engine.config.ahead is False


def test_on_standby_what_is_resident_serves_and_nothing_is_loaded_or_unloaded() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a"),))
    script.tell(e.StandbyChanged(standby=True))
    assert script.asks("r1", "a")[0].worker == "w"
    script.asks("r2", "b")
    script.shows("w", loaded("a", pinned=False))  # would be adopted
    script.passes(30)
    assert not any(isinstance(decision, d.Load | d.Unload) for decision in script.all)
    assert not script.loads("a").accepted
    assert not script.unloads("a").accepted
    restored(script)
    assert script.tell(e.StandbyChanged(standby=False))
    loads = [decision for decision in script.out if isinstance(decision, d.Load)]
    script.ends(loads[0], line=loaded("a") if loads[0].cause is d.LoadCause.adopt else None)
    loads += script.some(d.Load)
    assert {(load.model, load.cause) for load in loads} == {
        ("blob-a", d.LoadCause.adopt),
        ("blob-b", d.LoadCause.demand),
    }


def test_going_on_standby_gives_up_room_that_is_being_made_and_lets_operations_end() -> None:
    script = Script(drain_after_us=S)
    script.worker("w", stored("a", 8), stored("b", 8), stored("c", 1), gib=12, holds=(loaded("a", 9),), parallel=1)
    script.passes(60)
    script.asks("r0", "c")
    load = script.one(d.Load)
    script.asks("r1", "a")
    script.asks("r2", "b")
    script.tell(e.StandbyChanged(standby=True))
    script.ends(load)
    assert script.one(d.Dispatch).request == "r0"
    script.done("r0")
    script.passes(20)
    assert not any(isinstance(decision, d.Unload) for decision in script.all)
    state = script.engine.fleet.state
    assert not state.operations and state.workers["w"].placement is None
    assert state.waiting == 1
    assert state.workers["w"].used_bytes < 12 * GIB


def test_the_same_settings_again_change_nothing() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"), holds=(loaded("a"),))
    before = script.engine.snapshot()
    assert changes(script) == []
    assert script.tell(e.StandbyChanged(standby=False)) == []
    assert script.engine.snapshot() == before
