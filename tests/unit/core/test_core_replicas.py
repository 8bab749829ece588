"""One more copy where it pays, and the copy that is not needed as the first to leave."""

import pytest
from core_script import Script, loaded, stored

from bellmare.core import decisions as d


def replicas(script: Script) -> list[d.Load]:
    return [one for one in script.all if isinstance(one, d.Load) and one.cause is d.LoadCause.replica]


def hot(*, idle_s: float, uses: int = 1, eviction: str = "hv") -> Script:
    """a is resident on w1 with one slot; w2 is full of c, which was used so often and has been idle for so long."""
    script = Script(eviction=eviction)
    script.worker("w1", stored("a", 16), parallel=1)
    script.resident("a", "w1")
    script.worker("w2", stored("a", 16), stored("c", 16), parallel=1)
    script.loads("c", "w2")
    load = script.one(d.Load)
    script.passes(10)
    script.ends(load)
    script.passes(20)
    for number in range(uses):
        script.asks(f"used-{number}", "c")
        script.passes(1)
        script.done(f"used-{number}")
    script.passes(idle_s)
    return script


def test_a_queue_that_outlasts_a_load_gets_a_copy_in_place_of_a_model_that_nobody_uses() -> None:
    script = hot(idle_s=600)
    for number in range(12):
        script.asks(f"r{number}", "a", within=1000)
    unload = script.one(d.Unload) if script.some(d.Unload) else next(o for o in script.all if isinstance(o, d.Unload))
    assert (unload.worker, unload.model, unload.wanted_by) == ("w2", "blob-c", "blob-a")
    script.ends(unload)
    assert [load.worker for load in replicas(script)] == ["w2"]


@pytest.mark.parametrize(("eviction", "uses"), [("lru", 1), ("hv", 30)])
def test_a_copy_never_takes_the_place_of_a_model_that_is_hotter_than_the_relief(eviction: str, uses: int) -> None:
    """The queue saves a few seconds; the policy says that losing the victim costs nine."""
    script = hot(idle_s=0.1, uses=uses, eviction=eviction)
    for number in range(4):
        script.asks(f"r{number}", "a", within=1000)
    script.passes(2)
    assert not [one for one in script.all if isinstance(one, d.Unload)]
    assert not replicas(script)


def test_a_copy_never_drains_a_busy_model() -> None:
    script = hot(idle_s=600)
    script.asks("busy", "c", within=1000)
    for number in range(30):
        script.asks(f"r{number}", "a", within=1000)
    script.passes(100)
    assert not [one for one in script.all if isinstance(one, d.Drain)]
    assert not replicas(script)


def test_places_for_copies_are_looked_for_once_a_second_and_found_then() -> None:
    script = hot(idle_s=600)
    script.asks("busy", "c", within=1000)
    for number in range(12):
        script.asks(f"r{number}", "a", within=1000)
    script.done("busy")  # its runner is idle now, but was used just now
    script.passes(60)
    assert not [one for one in script.all if isinstance(one, d.Unload)]
    script.done("r0")
    assert [one.model for one in script.all if isinstance(one, d.Unload)] == ["blob-c"]


def two_copies() -> Script:
    """a on both workers, used later than c, which has one copy; everything has been idle for long."""
    script = Script()
    names = (stored("a", 8), stored("b", 12), stored("c", 8))
    script.worker("w1", *names, parallel=1)
    script.worker("w2", *names, parallel=1)
    for name, worker in (("c", "w1"), ("a", "w1"), ("a", "w2")):
        script.resident(name, worker)
    script.passes(60)
    return script


def test_an_idle_copy_that_its_model_does_not_need_leaves_before_any_models_only_one() -> None:
    script = two_copies()
    script.worker("w3", stored("z"), gib=1)
    script.shows("w2", loaded("a", 7.7), foreign=12)  # no room there, whoever leaves
    script.asks("r", "b")
    drain, unload = script.one(d.Drain), script.one(d.Unload)
    assert (unload.worker, unload.model) == ("w1", "blob-a")  # c was used longest ago, but it is the only copy
    assert drain.cause is unload.cause is d.UnloadCause.replica
    assert unload.wanted_by == "blob-b"


def test_nothing_is_unloaded_only_because_it_is_one_copy_too_many() -> None:
    script = two_copies()
    script.passes(100_000)
    assert not [one for one in script.all if isinstance(one, d.Unload)]


def test_the_last_copy_is_no_spare_one() -> None:
    script = two_copies()
    script.shows("w2", loaded("a", 7.7), foreign=12)
    script.asks("busy", "a", within=1000)  # one of the copies is taken: the other one is needed
    script.asks("r", "b", within=1000)
    causes = {one.cause for one in script.all if isinstance(one, d.Unload)}
    assert causes <= {d.UnloadCause.room}


@pytest.mark.parametrize("small", ["s1", "s2", "s3", "s4", "s5", "s6"])
@pytest.mark.parametrize("large_first", [True, False])
def test_a_small_model_goes_to_the_small_gpu_while_there_is_room(small: str, large_first: bool) -> None:
    script = Script()
    for worker, gib in (("big", 48), ("small", 24)) if large_first else (("small", 24), ("big", 48)):
        script.worker(worker, stored(small, 6), stored("large", 40), gib=gib)
    script.asks("r", small)
    assert script.one(d.Load).worker == "small"


def test_a_large_model_finds_its_large_gpu_whatever_stands_there() -> None:
    script = Script()
    names = (stored("small", 6), stored("other", 16), stored("large", 40))
    script.worker("small", *names, gib=24)
    script.worker("big", *names, gib=48)
    script.resident("other", "small")
    script.resident("small", "big")
    script.passes(60)
    script.asks("r", "large")
    assert (script.one(d.Unload).worker, script.one(d.Unload).model) == ("big", "blob-small")
    script.ends(script.one(d.Unload))
    assert (script.one(d.Load).worker, script.one(d.Load).model) == ("big", "blob-large")


def first_choice(busy: tuple[str, ...] = (), requests: int = 10) -> str:
    """Where a model goes among four equal workers; those of ``busy`` run requests of another model."""
    script = Script()
    for number in range(4):
        script.worker(f"w{number}", *(stored(f"x{n}") for n in range(4)), stored("m"), parallel=20)
        script.resident(f"x{number}", f"w{number}")
    for worker in busy:
        for number in range(requests):
            script.asks(f"{worker}-{number}", f"x{worker[1:]}")
    script.asks("r", "m")
    return str(script.one(d.Load).worker)


def test_of_equal_places_the_models_own_order_decides_but_a_crowded_worker_is_passed_over() -> None:
    chosen = first_choice()
    other = next(f"w{n}" for n in range(4) if f"w{n}" != chosen)
    assert first_choice() == chosen
    assert first_choice(busy=(other,)) == chosen
    assert first_choice(busy=(chosen,)) != chosen


def test_a_worker_with_its_share_of_the_load_is_not_crowded() -> None:
    chosen = first_choice()
    assert first_choice(busy=("w0", "w1", "w2", "w3")) == chosen
    assert first_choice(busy=("w0", "w1", "w2", "w3"), requests=1) == chosen
