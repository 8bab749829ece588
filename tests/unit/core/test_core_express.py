"""The express lane saves work, never a decision: what it leaves for later is in the books before it can matter."""

from __future__ import annotations

import random

import pytest
from core_script import Script, loaded, stored

from bellmare.core import events as e
from bellmare.core.decisions import CacheState, Dispatch
from bellmare.core.engine import Engine
from bellmare.core.express import BURST_US, Express
from bellmare.core.units import SECOND_US

MS = 1_000


def _busy(**more: int) -> Script:
    script = Script(**more)
    script.worker("w0", stored("a"), stored("b"), holds=(loaded("a"), loaded("b")), parallel=4)
    script.worker("w1", stored("a"), stored("b"), holds=(loaded("a"),), parallel=4)
    return script


def _slow(script: Script) -> None:
    """Without the lane everything goes the general way."""
    script.engine._lanes = {}


@pytest.mark.parametrize("seed", range(12))
def test_with_and_without_the_lane_the_same_is_decided(seed: int) -> None:
    fast, slow = _busy(), _busy()
    _slow(slow)
    rng = random.Random(seed)
    running: list[str] = []
    for number in range(400):
        chance = rng.random()
        if chance < 0.55 or not running:
            name, more = rng.choice("aaab"), {"tenant": f"t{rng.randrange(3)}"}
            pair = [script.asks(f"r{number}", name, **more) for script in (fast, slow)]
            running.append(f"r{number}")
        elif chance < 0.9:
            request = running.pop(rng.randrange(len(running)))
            if any(request == decision.request for decision in fast.all if isinstance(decision, Dispatch)):
                pair = [script.done(request) for script in (fast, slow)]
            else:
                pair = [script.cancels(request) for script in (fast, slow)]
        elif chance < 0.96:
            request = rng.choice(running)
            pair = [script.first(request) for script in (fast, slow)]
        else:
            for script in (fast, slow):
                script.now += rng.randrange(1, 3) * BURST_US // 2 if script is fast else fast.now - script.now
            continue
        assert pair[0] == pair[1]
        assert fast.now == slow.now
    assert fast.all == slow.all
    fast.shows("w0", loaded("a"), loaded("b"))
    slow.shows("w0", loaded("a"), loaded("b"))
    ours, theirs = fast.engine.fleet.state, slow.engine.fleet.state
    plain = [{k: v for k, v in state.counters.items() if "hint" not in k} for state in (ours, theirs)]
    assert plain[0] == plain[1]  # chains inside a burst are not seen
    assert ours.service_us == theirs.service_us
    assert ours.activity == pytest.approx(theirs.activity, rel=0.01)
    for model_id, model in theirs.models.items():
        mine = ours.models[model_id]
        assert mine.demand.arrivals == model.demand.arrivals
        assert mine.demand.last_us == model.demand.last_us
        assert mine.demand.counters == pytest.approx(model.demand.counters, rel=0.01)
        assert mine.service_us == model.service_us
        assert mine.lanes == model.lanes
    assert set(ours.recent) == set(theirs.recent)


def test_a_burst_is_in_the_statistics_before_anything_else_is_decided() -> None:
    script = _busy()
    for number in range(5):
        script.asks(f"r{number}", "a", tenant="t")
    demand = script.engine.fleet.state.models["blob-a"].demand
    assert demand.arrivals == 1
    assert script.engine.fleet.state.bursts["a"].count == 4
    script.asks("other", "b")
    assert demand.arrivals == 5
    assert script.engine.fleet.state.bursts["a"].count == 0


def test_models_in_turn_keep_their_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    arrived = Express.arrived
    monkeypatch.setattr(Express, "arrived", lambda self, event: _note(taken, arrived(self, event)))
    script = _busy()
    for number in range(100):
        script.asks(f"r{number}", "ab"[number % 2], tenant="t")
        script.done(f"r{number}")
    assert sum(decisions is None for decisions in taken) <= 2
    script.shows("w0", loaded("a"), loaded("b"))
    demands = [script.engine.fleet.state.models[model].demand for model in ("blob-a", "blob-b")]
    assert [demand.arrivals for demand in demands] == [50, 50]
    assert script.engine.fleet.state.bursts


def test_what_may_change_the_meaning_of_a_name_ends_its_burst() -> None:
    script = _busy()
    script.asks("r0", "a")
    assert script.engine.fleet.state.bursts
    script.shows("w0", loaded("a"), loaded("b"), stores=(stored("a", model="blob-new"), stored("b")))
    assert not script.engine.fleet.state.bursts


def test_hints_come_true_by_a_burst() -> None:
    script = _busy()
    script.asks("r0", "a", tenant="t")
    script.tell(e.HintGiven(source=e.HintSource.prepare, name="a", tenant="t", in_us=SECOND_US, ttl_us=60 * SECOND_US))
    script.asks("r1", "a", tenant="t")
    assert script.engine.fleet.state.models["blob-a"].demand.hints
    script.asks("r2", "b", tenant="t")
    assert not script.engine.fleet.state.models["blob-a"].demand.hints
    assert script.engine.fleet.state.counters["hint_right_prepare"] == 1


def test_a_burst_ends_by_itself() -> None:
    script = _busy()
    script.asks("r0", "a")
    script.now += BURST_US
    script.asks("r1", "a")
    assert script.engine.fleet.state.models["blob-a"].demand.arrivals == 2
    assert script.engine.fleet.state.bursts["a"].count == 0


def test_a_runner_that_became_idle_in_a_burst_is_looked_at_when_it_ends() -> None:
    script = _busy()
    script.asks("r0", "a")
    script.done("r0")
    state = script.engine.fleet.state
    assert list(state.rested) == ["w0"]
    assert script.engine.next_deadline_us() == state.bursts["a"].began_us + BURST_US
    script.passes(1)
    assert not script.engine.fleet.state.rested


def test_a_long_quiet_runner_is_looked_at_at_once() -> None:
    script = _busy()
    script.asks("r0", "a")
    script.now += 2 * BURST_US
    script.done("r0")
    assert not script.engine.fleet.state.rested


def test_a_full_runner_leaves_the_lane_to_the_queue() -> None:
    script = _busy()
    for number in range(8):
        script.asks(f"r{number}", "a")
        assert isinstance(script.out[0], Dispatch)
    assert script.asks("late", "a") == []
    script.done("r0")
    assert [(d.request, d.cache) for d in script.out] == [("late", CacheState.queued)]


def test_the_least_loaded_copy_is_taken() -> None:
    script = _busy()
    workers = [script.asks(f"r{number}", "a")[0].worker for number in range(8)]
    assert sorted(workers) == ["w0"] * 4 + ["w1"] * 4
    assert workers[:2] in (["w0", "w1"], ["w1", "w0"])


def test_a_restored_core_goes_on_in_the_middle_of_a_burst() -> None:
    script = _busy()
    for number in range(3):
        script.asks(f"r{number}", "a", tenant="t")
    twin = Engine.restore(script.config, script.engine.snapshot())
    for engine in (script.engine, twin):
        assert engine.fleet.state.bursts["a"].count == 2
    event = script.engine.story._steps[-1][1]
    other = type(event)(request="next", name="a", deadline_us=script.now + 10**8, tenant="t")
    now = script.now + MS
    assert script.engine.step(now, other) == twin.step(now, other)
    assert script.engine.snapshot() == twin.snapshot()


def test_most_of_a_busy_models_requests_take_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    arrived, finished = Express.arrived, Express.finished
    monkeypatch.setattr(Express, "arrived", lambda self, event: _note(taken, arrived(self, event)))
    monkeypatch.setattr(Express, "finished", lambda self, event: _note(taken, finished(self, event)))
    script = _busy()
    for number in range(100):
        script.asks(f"r{number}", "a")
        script.done(f"r{number}")
    assert len(taken) == 200
    assert sum(decisions is None for decisions in taken) <= 2


def _note(taken: list[object], decisions: object) -> object:
    taken.append(decisions)
    return decisions
