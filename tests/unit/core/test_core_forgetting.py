"""What is over is forgotten: models that nothing refers to, and timers that were outlived."""

import msgspec
from core_script import Script, loaded, stored

from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.decisions import Load, Unload
from bellmare.core.events import WorkerRemoved
from bellmare.core.timers import OUTLIVED_MAX


def models(script: Script) -> list[str]:
    return list(script.engine.fleet.state.models)


def indexed(script: Script) -> set[str]:
    fleet = script.engine.fleet
    return {
        model for index in (fleet.queues, fleet.open, fleet.ready_slots, fleet.loading, fleet.live) for model in index
    }


def test_a_thousand_new_pulls_of_a_name_leave_one_model() -> None:
    script = Script()
    script.worker("w", stored("a"))
    for version in range(1000):
        script.shows("w", stores=[stored("a", model=f"blob-{version}")])
    assert models(script) == ["blob-999"]
    assert indexed(script) == {"blob-999"}


def test_a_runner_keeps_its_model_known_until_it_is_gone() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    script.shows("w", loaded("a"), stores=[])
    assert models(script) == ["blob-a"]
    script.passes(1)
    script.shows("w")  # found gone, by an observation begun after it was last changed
    script.shows("w")
    assert models(script) == []
    assert script.engine.check() == []


def test_a_sight_that_is_older_than_the_unload_brings_no_model_back() -> None:
    """While an observation under way may still show the runner, it must be known that it left."""
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    script.unloads("a")
    unload = script.one(Unload)
    script.shows("w", loaded("a"), stores=[])
    asked = script.now
    script.ends(unload)
    assert models(script) == ["blob-a"]
    script.shows("w", loaded("a"), asked=asked, stores=[stored("a")])
    assert script.seen("w").runners == {}
    assert script.seen("w").foreign_bytes == 0


def test_a_request_that_runs_keeps_its_model_known_until_its_end() -> None:
    """Its worker left the fleet: the data plane has not noticed yet."""
    script = Script()
    script.worker("w", stored("a"))
    script.resident("a", "w")
    script.asks("r", "a")
    script.tell(WorkerRemoved(worker="w"))
    assert models(script) == ["blob-a"]
    script.done("r")
    assert models(script) == []


def test_a_load_under_way_keeps_its_model_known_until_what_became_of_it_was_seen() -> None:
    script = Script()
    script.worker("w", stored("a"))
    script.asks("r", "a")
    load = script.one(Load)
    script.shows("w", stores=[])
    script.cancels("r")
    script.broken(load)
    assert models(script) == ["blob-a"]
    script.shows("w")
    assert script.seen("w").runners == {}
    script.shows("w")
    assert models(script) == []


def test_a_forgotten_model_leaves_no_back_off_and_no_configuration() -> None:
    script = Script(CoreConfig(models={"a": ModelConfig(num_ctx=4096)}))
    script.worker("w", stored("a"))
    script.asks("r", "a")
    script.broken(script.one(Load))
    assert script.seen("w").backoff
    script.shows("w", stores=[stored("a")])
    script.shows("w", stores=[])
    script.shows("w", stores=[])
    assert models(script) == []
    assert script.seen("w").backoff == {}
    assert script.engine.fleet.configured == {}
    script.shows("w", stores=[stored("a")])
    assert models(script) == ["blob-a"]


def test_a_snapshot_goes_on_forgetting_at_the_same_events() -> None:
    script = Script()
    script.worker("w", stored("a"), stored("b"))
    script.resident("a", "w")
    script.shows("w", loaded("a"), stores=[stored("b")])
    script.asks("r", "b")
    other = script.copy()
    for one in (script, other):
        one.passes(1)
        one.shows("w")
        one.shows("w")
    assert models(script) == models(other)
    assert script.engine.snapshot() == other.engine.snapshot()


def test_requests_that_leave_at_once_leave_no_timers_behind() -> None:
    script = Script(queue_per_model_max=20_000)
    script.sound = False  # a check of everything at every step would take minutes
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("running", "a")
    most = 0
    for number in range(20_000):
        script.asks(f"r{number}", "a", within=600)
        script.cancels(f"r{number}")
        most = max(most, len(script.engine.fleet.state.timers))
    assert most <= OUTLIVED_MAX + 20
    assert len(script.engine.snapshot()) < 200_000


def test_a_queue_that_empties_at_once_takes_its_timers_along() -> None:
    script = Script(queue_per_model_max=20_000, queue_wait_max_us=10**12)
    script.sound = False
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("running", "a")
    for number in range(5_000):
        script.asks(f"r{number}", "a", within=100_000)
    assert script.engine.fleet.state.waiting == 5_000
    for number in range(5_000):
        script.cancels(f"r{number}")
    assert len(script.engine.fleet.state.timers) <= OUTLIVED_MAX + 20


def test_clearing_timers_changes_no_decision() -> None:
    """A restored engine clears at the same step, and who still waits is refused at its deadline."""
    script = Script()
    script.sound = False
    script.worker("w", stored("a"), parallel=1)
    script.resident("a", "w")
    script.asks("running", "a")
    script.first("running")
    script.asks("waits", "a", within=50)
    other: Script | None = None
    for number in range(2 * OUTLIVED_MAX):
        if number == OUTLIVED_MAX // 2:
            other = script.copy()
            other.sound = False
        for one in (script, other):
            if one is not None:
                one.asks(f"r{number}", "a", within=300)
                one.cancels(f"r{number}")
    assert other is not None
    assert script.engine.snapshot() == other.engine.snapshot()
    said = script.passes(60)
    assert [(d.request, str(d.refusal)) for d in said if hasattr(d, "refusal")] == [("waits", "deadline_passed")]
    assert msgspec.to_builtins(other.passes(60)) == msgspec.to_builtins(said)
