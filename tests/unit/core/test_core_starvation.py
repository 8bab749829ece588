"""How long one model may keep another from its memory, and what happens to drains that do not end."""

from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core.starvation import DRAIN_DOUBLINGS_MAX


def loads(script: Script) -> list[str]:
    return [one.model for one in script.all if isinstance(one, d.Load)]


def batch(**limits: object) -> Script:
    """Six wait for a, which has just been loaded for them; b waits for a's room."""
    script = Script(**limits)
    script.worker("w", stored("a", 16), stored("b", 16), parallel=1)
    script.asks("a0", "a", within=1000)
    load = script.one(d.Load)
    for number in range(1, 6):
        script.asks(f"a{number}", "a", within=1000)
    script.asks("b", "b", within=1000)
    script.passes(1)
    script.ends(load)
    return script


def serve(script: Script, request: str) -> str:
    """It ends after three seconds; who runs then, or nobody."""
    script.passes(3)
    script.done(request)
    following = script.some(d.Dispatch)
    return following[0].request if following else ""


def test_who_waited_for_a_load_is_served_before_its_model_is_drained() -> None:
    script = batch(drain_after_us=S, batch_max_us=100 * S)
    running, served = "a0", []
    script.asks("late", "a", within=1000)  # after the load: not of the batch
    while running:
        served.append(running)
        if len(served) < 6:
            assert not [one for one in script.all if isinstance(one, d.Drain)]
        running = serve(script, running)
    assert served == [f"a{number}" for number in range(6)]
    assert script.one(d.Unload).wanted_by == "blob-b"


def test_batch_max() -> None:
    """A batch that would take eighteen seconds keeps the others away for seven."""
    script = batch(drain_after_us=S, batch_max_us=7 * S)
    running, served = "a0", []
    while running:
        served.append(running)
        running = serve(script, running)
    assert served == ["a0", "a1", "a2"]
    assert script.one(d.Unload).wanted_by == "blob-b"


def test_a_steady_stream_holds_a_model_that_others_wait_for_no_longer_than_the_bounds() -> None:
    """Hits for a never stop; from b's arrival to its load it takes the drain rule and one answer."""
    script = batch(drain_after_us=5 * S, batch_max_us=7 * S)
    asked = script.now
    running = "a0"
    for number in range(100):
        script.asks(f"more{number}", "a", within=1000)
        running = serve(script, running)
        if not running:
            break
    assert script.one(d.Unload).model == "blob-a"
    assert script.now - asked <= (7 + 3 + 3) * S
    script.ends(script.one(d.Unload))
    assert script.one(d.Load).model == "blob-b"


def long_answer(*, other: bool = False, tries: int = 0) -> Script:
    """a's slots: one very long answer. b waits for its room; ``other``: a second worker has a busy victim as well."""
    script = Script(drain_after_us=5 * S, drain_max_us=30 * S)
    names = (stored("a", 16), stored("b", 16), stored("c", 16))
    script.worker("w1", *names, parallel=2)
    script.resident("a", "w1")
    if other:
        script.worker("w2", *names, parallel=2)
        script.resident("c", "w2")
        script.asks("c1", "c", within=10_000)
        script.asks("c2", "c", within=10_000)
    script.passes(60)
    script.asks("long", "a", within=10_000)
    script.asks("b", "b", within=10_000)
    script.engine.fleet.state.models["blob-b"].drain_tries = tries  # type: ignore[index]
    script.passes(5.1)
    return script


def test_a_drain_that_a_long_answer_holds_up_is_given_up_and_the_victim_serves_again() -> None:
    script = long_answer()
    assert script.one(d.Drain).model == "blob-a"
    script.asks("a2", "a", within=10_000)
    assert script.none(d.Dispatch)
    script.passes(29.8)
    assert script.none(d.Undrain)
    said = script.passes(0.3)
    assert [one.model for one in said if isinstance(one, d.Undrain)] == ["blob-a"]
    assert [one.request for one in said if isinstance(one, d.Dispatch)] == ["a2"]
    assert script.none(d.Unload)


def test_a_drain_that_was_given_up_gets_twice_the_time_after_as_long_a_rest() -> None:
    script = long_answer()
    began = script.now
    said: list[tuple[float, str]] = []
    for _ in range(400):
        heard = [one for one in script.passes(1) if isinstance(one, d.Drain | d.Undrain)]
        said += [(round((script.now - began) / S), type(one).__name__) for one in heard]
    assert said[:5] == [(30, "Undrain"), (60, "Drain"), (120, "Undrain"), (180, "Drain"), (300, "Undrain")]
    assert loads(script) == ["blob-a"], "two busy models never throw each other out"


def test_a_drain_is_given_up_for_another_worker_at_once() -> None:
    """Its victim has a long answer; on the other worker one that ends soon."""
    script = long_answer(other=True)
    first = script.one(d.Drain)
    script.passes(30)
    second = script.one(d.Drain)
    assert {first.worker, second.worker} == {"w1", "w2"}
    assert script.one(d.Undrain).worker == first.worker
    for request in ("c1", "c2") if second.worker == "w2" else ("long",):
        script.done(request)
    assert script.one(d.Unload).worker == second.worker
    script.ends(script.one(d.Unload))
    assert script.one(d.Load).worker == second.worker


def test_a_loader_that_a_drain_gave_back_serves_others() -> None:
    """A small model needs only the idle runner's room, and gets it as soon as the large one's drain is over."""
    script = Script(drain_after_us=5 * S, drain_max_us=30 * S)
    names = (stored("a", 10), stored("b", 21), stored("i", 8), stored("s", 6))
    script.worker("w", *names, parallel=1)
    script.resident("a", "w")
    script.passes(60)
    script.asks("long", "a", within=10_000)
    script.asks("b", "b", within=10_000)
    script.passes(5.1)
    assert script.one(d.Drain).model == "blob-a"
    script.asks("s", "s", within=10_000)
    assert script.none(d.Load)
    script.passes(30)
    assert [one.model for one in script.out if isinstance(one, d.Load)] == ["blob-s"]


def test_the_waiting_model_is_loaded_at_last_however_long_the_answer() -> None:
    script = long_answer()
    script.passes(2000)
    assert script.seen("w1").runners["blob-a"].in_flight  # type: ignore[index]
    script.done("long")
    for _ in range(2000):
        under_way = script.engine.fleet.state.operations
        for one in script.all:
            if isinstance(one, d.Unload | d.Load) and one.operation in under_way:
                script.ends(one)
                break
        script.passes(1)
    assert [one.request for one in script.all if isinstance(one, d.Dispatch)][-1] == "b"
    assert loads(script) == ["blob-a", "blob-b"]
    assert script.engine.fleet.state.models["blob-b"].drain_tries == 0  # type: ignore[index]


def test_drain_doublings_max() -> None:
    """However often a drain was given up, the next lasts no longer than 2 ** 7 times the first."""
    script = long_answer(tries=60)
    assert DRAIN_DOUBLINGS_MAX == 7
    assert not [one for one in script.passes(30 * 128 - 1) if isinstance(one, d.Undrain)]
    assert [one for one in script.passes(2) if isinstance(one, d.Undrain)]


def test_a_drain_given_up_early_spends_no_patience_with_other_busy_ones() -> None:
    """Its victim was idle when it was chosen; it is found again, and busy, after an unload that broke."""
    script = Script(drain_after_us=20 * S, drain_max_us=2 * S)
    script.worker("w", stored("a", 8), stored("b", 8), stored("c", 12), parallel=1)
    script.resident("a", "w")
    script.resident("b", "w")
    script.passes(60)
    script.asks("busy", "b", within=1000)
    script.asks("r", "c", within=1000)
    script.asks("again", "a", within=1000)
    script.broken(next(one for one in script.all if isinstance(one, d.Unload)))
    script.shows("w", loaded("a", 8.2), loaded("b", 8.2))
    assert script.one(d.Dispatch).request == "again"
    early = script.passes(15)
    assert [one for one in early if isinstance(one, d.Undrain)]
    assert not [one for one in early if isinstance(one, d.Drain)]
    assert [one for one in script.passes(10) if isinstance(one, d.Drain)]


def test_the_patience_of_an_operators_drain_is_not_that_of_who_came_later() -> None:
    script = Script(drain_after_us=5 * S, drain_max_us=10 * S)
    for worker, name in (("w1", "x"), ("w2", "y")):
        script.worker(worker, stored(name, 12), stored("b", 14), parallel=1)
        script.resident(name, worker)
    script.passes(60)
    for name in ("x", "y"):
        script.asks(f"busy-{name}", name, within=1000)
    script.loads("b", "w1")
    assert script.one(d.Drain).model == "blob-x"
    script.passes(9)
    script.asks("late", "b", within=1000)
    said = script.passes(3)
    assert [one.model for one in said if isinstance(one, d.Undrain)] == ["blob-x"], "given up after ten seconds"
    assert not [one for one in said if isinstance(one, d.Drain)], "it has waited for three"
    said = script.passes(6)
    assert [one.model for one in said if isinstance(one, d.Drain)] == ["blob-y"]
