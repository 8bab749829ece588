"""A model that its only client gives back leaves at once; while others use it, it stays and goes first for room."""

from core_script import Script, stored

from bellmare.core import decisions as d
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.events import ConfigChanged, ModelReleased, StandbyChanged


def holding() -> Script:
    """Two workers that hold a, the first also b."""
    script = Script()
    for worker in ("v", "w"):
        script.worker(worker, stored("a", 8), stored("b", 8), parallel=1)
        script.resident("a", worker)
    script.resident("b", "v")
    script.passes(60)
    return script


def test_what_was_its_alone_leaves_every_worker_at_once() -> None:
    script = holding()
    script.tell(ModelReleased(name="a", alone=True))
    unloads = script.some(d.Unload)
    assert {(unload.worker, unload.model, unload.cause) for unload in unloads} == {
        ("v", "blob-a", d.UnloadCause.released),
        ("w", "blob-a", d.UnloadCause.released),
    }
    assert all(unload.wanted_by is None for unload in unloads)


def test_what_others_use_stays() -> None:
    script = holding()
    script.tell(ModelReleased(name="a"))
    assert script.none(d.Drain, d.Unload)


def test_who_is_served_is_not_disturbed() -> None:
    script = holding()
    script.asks("r", "a")
    dispatched = script.one(d.Dispatch)
    script.tell(ModelReleased(name="a", alone=True))
    assert {unload.worker for unload in script.some(d.Unload)} == {"v", "w"} - {dispatched.worker}


def test_nor_who_waits_for_it() -> None:
    script = holding()
    for request in ("r", "s", "t"):
        script.asks(request, "a")
    script.tell(ModelReleased(name="a", alone=True))
    assert script.none(d.Drain, d.Unload)


def test_a_pinned_model_stays() -> None:
    script = holding()
    script.tell(ConfigChanged(config=CoreConfig(models={"a": ModelConfig(pinned=True)})))
    script.tell(ModelReleased(name="a", alone=True))
    assert script.none(d.Drain, d.Unload)


def test_nothing_leaves_while_another_process_decides() -> None:
    script = holding()
    script.tell(StandbyChanged(standby=True))
    script.tell(ModelReleased(name="a", alone=True))
    assert script.none(d.Drain, d.Unload)


def test_an_unknown_name_is_nobodys() -> None:
    script = holding()
    script.tell(ModelReleased(name="zzz", alone=True))
    assert script.none(d.Drain, d.Unload)
