"""The eviction policy in use is told of its victims: each once, and of nobody else."""

from __future__ import annotations

from core_script import Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.eviction.recency import LeastRecentlyUsed
from bellmare.core.knowledge import Experience


class Listening(LeastRecentlyUsed):
    """LRU that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(Experience())
        self.gone: list[str] = []
        self.heard: list[tuple[str, bool]] = []

    def asked(self, fleet, model, *, held) -> None:
        self.heard.append((model.stored.name, held))

    def left(self, fleet, resident) -> None:
        self.gone.append(resident.model)


def listening() -> tuple[Script, Listening]:
    script = Script(eviction="lru", ahead=False)
    policy = Listening()
    script.engine.policy = policy
    script.worker("w1", stored("a", 12), stored("b", 12))
    script.asks("r1", "a")
    script.ends(script.one(d.Load))
    script.done("r1")
    script.passes(60)
    return script, policy


def test_a_victim_is_told_of_when_its_unload_begins() -> None:
    script, policy = listening()
    script.asks("r2", "b")
    assert script.one(d.Unload).cause is d.UnloadCause.room
    assert policy.gone == ["blob-a"]


def test_an_unload_that_is_tried_again_is_told_of_once() -> None:
    script, policy = listening()
    script.asks("r2", "b")
    script.broken(script.one(d.Unload))
    unloads = []
    for _ in range(4):
        script.shows("w1", loaded("a", 13))
        unloads += script.some(d.Unload)
        unloads += [decision for decision in script.passes(10) if isinstance(decision, d.Unload)]
    assert unloads
    assert policy.gone == ["blob-a"]


def test_who_leaves_for_his_own_sake_is_no_victim() -> None:
    script, policy = listening()
    script.unloads("a")
    assert script.one(d.Unload).cause is d.UnloadCause.operator
    assert policy.gone == []


def test_an_arrival_says_whether_the_cache_holds_the_model() -> None:
    script, policy = listening()
    script.asks("r2", "a")
    script.asks("r3", "b")
    assert policy.heard == [("a", False), ("a", True), ("b", False)]
