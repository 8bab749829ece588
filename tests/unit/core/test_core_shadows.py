"""Shadows: what other policies and stock Ollama would have done, and when another policy takes over."""

from __future__ import annotations

from typing import Any

import pytest
from core_script import S, Script, loaded, stored

from bellmare.core import decisions as d
from bellmare.core import ghost_stock, ghosts
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.events import WorkerRemoved
from bellmare.core.eviction.recency import LeastRecentlyUsed
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.shadow_state import Shadow
from bellmare.core.shadows import COMPARE_EVERY_US, SHADOWED, STOCK

HOUR = 3600


class MostRecentlyUsed(LeastRecentlyUsed):
    """Bad for whoever comes back soon: the last one used leaves first."""

    name = "mru"

    def rank(self, fleet, candidates):
        return list(reversed(super().rank(fleet, candidates)))


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "mru", MostRecentlyUsed)


def fleet(*names: str, size: int = 10, workers: int = 1, **limits: Any) -> Script:
    """Workers of 24 GiB that store models of one size; two of 10 GiB fit."""
    script = Script(**({"ahead": False, "eviction": "lru"} | limits))
    script.sound = False
    for number in range(workers):
        script.worker(f"w{number}", *(stored(name, size) for name in names))
    return script


def serve(script: Script, *names: str, gap: float = 60) -> None:
    """One request after another: each is loaded, served at once and gone before the next."""
    for number, name in enumerate(names):
        request = f"r{script.now}-{number}"
        script.asks(request, name, within=1000)
        for _ in range(8):
            pending = [one for one in script.out if isinstance(one, d.Load | d.Unload)]
            if not pending:
                break
            script.passes(1)
            script.ends(pending[0])
        script.done(request)
        script.passes(gap)


def ghost(script: Script, name: str) -> Shadow:
    return script.engine.fleet.state.shadows.ghosts[name]


def held(script: Script, name: str, worker: str = "w0") -> list[str]:
    return sorted(model.removeprefix("blob-") for model in ghost(script, name).bins[worker].held)


def books_agree(script: Script) -> None:
    """Bytes, places and order of every ghost, counted anew."""
    state = script.engine.fleet.state
    for name, shadow in state.shadows.ghosts.items():
        for worker, found in shadow.bins.items():
            assert worker in state.workers
            assert found.used_bytes == sum(one.bytes for one in found.held.values())
        filed = sorted((found.filed, found.index) for found in shadow.bins.values() if found.in_routing)
        assert shadow.room == filed
        if name == STOCK:
            assert len(shadow.ends) == sum(found.connections for found in shadow.bins.values())
        else:
            there = {model: worker for worker, found in shadow.bins.items() for model in found.held}
            assert shadow.where == there


# ---------------------------------------------------------------------- ghosts


def test_there_is_a_ghost_of_each_policy_shadowed_of_the_one_in_use_and_of_stock_ollama() -> None:
    assert set(fleet("a", eviction="lfu").engine.fleet.state.shadows.ghosts) == {*SHADOWED, "lfu", STOCK}


def test_without_shadows_nothing_is_kept_but_what_the_fleet_did() -> None:
    script = fleet("a", shadows=False)
    serve(script, "a")
    report = script.engine.shadows()
    assert report.shadows == ()
    assert script.engine.fleet.state.shadows.ghosts == {}
    assert (report.fleet.cold_starts, report.fleet.loads, report.cold_starts_saved) == (1, 1, 0.0)


def test_a_ghost_evicts_by_its_own_policy() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    serve(script, "a", "b", "c")
    assert held(script, "lru") == ["b", "c"]
    assert held(script, "mru") == ["a", "c"]
    books_agree(script)


def test_a_hit_costs_nothing_and_a_miss_is_a_cold_start_and_a_load() -> None:
    script = fleet("a", "b")
    serve(script, "a", "b", "a", "b", "a")
    for name in SHADOWED:
        tally = ghost(script, name).tally
        assert (tally.cold_starts, tally.loads) == (2, 2)
        assert tally.load_us > 0


def test_a_request_that_comes_while_its_model_is_loaded_is_a_cold_start_without_a_load() -> None:
    script = fleet("a")
    script.asks("r1", "a")
    script.asks("r2", "a")
    for name in (*SHADOWED, STOCK):
        tally = ghost(script, name).tally
        assert (tally.cold_starts, tally.loads) == (2, 1)
    assert script.engine.shadows().fleet.cold_starts == 2


def test_who_is_refused_is_in_nobodys_books() -> None:
    script = fleet("a", queue_per_model_max=1)
    script.asks("r1", "a")
    script.asks("r2", "a")
    assert script.one(d.Reject).refusal is d.Refusal.queue_full
    assert ghost(script, "lru").tally.cold_starts == 1
    assert script.engine.shadows().fleet.cold_starts == 1


def test_a_model_in_use_is_no_victim_while_another_is_left() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    serve(script, "a", gap=600)
    serve(script, "b", gap=0)
    in_use = ghost(script, "mru").bins["w0"].held["blob-b"]
    assert in_use.busy_us > script.now
    script.asks("r", "c")
    assert held(script, "mru") == ["b", "c"]


def test_a_model_in_use_leaves_if_nothing_else_is_left() -> None:
    script = fleet("a", "b", size=20)
    script.asks("r1", "a")
    script.asks("r2", "b")
    assert held(script, "lru") == ["b"]


def test_a_pinned_model_is_no_victim_of_a_ghost() -> None:
    script = fleet("a", "b", "c", models={"a": ModelConfig(pinned=True)})
    script.ends(script.one(d.Load))
    serve(script, "a", "b", "c")
    assert held(script, "lru") == ["a", "c"]


def test_a_bin_is_as_large_as_its_worker_without_headroom_and_foreign_memory() -> None:
    script = fleet("a", "b")
    serve(script, "a")
    script.shows("w0", foreign=8)
    serve(script, "b")
    assert held(script, "lru") == ["b"]


def test_room_is_looked_for_on_all_workers_before_anybody_leaves() -> None:
    script = fleet(*"abcdef", workers=3)
    serve(script, *"abcdef")
    assert ghost(script, "lru").tally.loads == 6
    assert len(ghost(script, "lru").where) == 6
    books_agree(script)


def test_a_lost_worker_takes_its_bin_out_and_a_removed_one_its_books() -> None:
    script = fleet("a", "b", workers=2)
    serve(script, "a", "b")
    there = ghost(script, "lru").where["blob-a"]
    script.unreachable(there)
    serve(script, "a")
    assert ghost(script, "lru").where["blob-a"] != there
    books_agree(script)
    script.tell(WorkerRemoved(worker=there))
    assert list(ghost(script, "lru").bins) == [w for w in ("w0", "w1") if w != there]
    books_agree(script)


def _removed(worker: str) -> Any:
    from bellmare.core.events import WorkerRemoved

    return WorkerRemoved(worker=worker)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_bin_held_is_gone_only_if_the_worker_comes_back_with_nothing(kept: bool) -> None:
    script = fleet("a")
    serve(script, "a")
    runner = script.runner("a", "w0")
    line = _line("a", runner.bytes)
    script.unreachable("w0")
    script.shows("w0", *([line] if kept else []))
    assert held(script, "lru") == (["a"] if kept else [])
    books_agree(script)


def _line(name: str, size: int) -> Any:

    return loaded(name, size / (1 << 30))


def test_a_bin_begins_with_what_its_worker_holds() -> None:
    script = Script(eviction="lru", ahead=False)
    script.worker("w0", stored("a", 10), holds=(_line("a", 11 << 30),))
    serve(script, "a")
    assert [figures.cold_starts for figures in script.engine.shadows().shadows] == [0] * (len(SHADOWED) + 1)


def test_a_forgotten_model_is_forgotten_by_every_ghost() -> None:
    script = fleet("a", "b", eviction="gdsf")
    serve(script, "a", "b")
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.shows("w0", _line("b", script.runner("b", "w0").bytes), stores=(stored("b", 10),))
    script.passes(60)
    script.shows("w0", _line("b", script.runner("b", "w0").bytes), stores=(stored("b", 10),))
    assert "blob-a" not in script.engine.fleet.state.models
    assert held(script, "lru") == ["b"]
    assert list(script.engine.fleet.state.experience.priority) == ["blob-b"]
    books_agree(script)


def test_lhd_counts_the_hits_of_each_cache_by_itself() -> None:
    """What the ghost holds counts, not what the fleet holds."""
    script = fleet("a", "b", "c", eviction="mru")
    serve(script, "a", "b", "c")
    before = sum(map(sum, ghost(script, "lhd").experience.hits))
    there = "a" if "blob-a" in ghost(script, "lhd").where else "b"
    gone = "b" if there == "a" else "a"
    serve(script, there)
    after_hit = sum(map(sum, ghost(script, "lhd").experience.hits))
    assert after_hit == pytest.approx(before + 1)
    serve(script, gone)
    assert sum(map(sum, ghost(script, "lhd").experience.hits)) == pytest.approx(after_hit)


@pytest.mark.parametrize("bound", ["WEIGHED_MAX", "WALKED_MAX"])
def test_only_so_many_bins_are_looked_at_for_a_load(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(ghosts, bound, 1)
    looked: list[str] = []
    look = ghosts._look
    monkeypatch.setattr(ghosts, "_look", lambda *args, **more: (looked.append("one"), look(*args, **more))[1])
    script = fleet(*"abcdefgh", workers=3, eviction="lru")
    serve(script, *"abcdef")
    looked.clear()
    serve(script, "g")
    assert len(looked) == len(SHADOWED)


@pytest.mark.parametrize("most", [1, 2])
def test_only_so_many_bins_with_room_are_looked_at(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Foreign memory came into the first three of four; a bin is filed anew when that is found out."""
    monkeypatch.setattr(ghosts, "FITS_LOOKED_MAX", most)
    script = fleet("a", workers=4)
    for number in range(3):
        script.shows(f"w{number}", foreign=20)
    serve(script, "a")
    filed = [found.filed for found in ghost(script, "lru").bins.values()]
    assert [one < 5 << 30 for one in filed[:3]] == [number < most for number in range(3)]


# ---------------------------------------------------------------------- stock Ollama


def test_stock_ollama_keeps_a_model_for_five_minutes_after_its_last_request() -> None:
    script = fleet("a")
    serve(script, "a", gap=ghost_stock.KEEP_ALIVE_US // S - 10)
    serve(script, "a", gap=ghost_stock.KEEP_ALIVE_US // S + 10)
    assert ghost(script, STOCK).tally.loads == 1
    serve(script, "a")
    assert ghost(script, STOCK).tally.loads == 2
    assert ghost(script, "lru").tally.loads == 1


def test_stock_ollama_holds_three_models_per_worker_and_sends_away_who_would_expire_first() -> None:
    script = fleet(*"abcd", size=1)
    serve(script, "a", "b", "c", "a", "d", gap=10)
    assert held(script, STOCK) == ["a", "c", "d"]
    assert held(script, "lru") == ["a", "b", "c", "d"]
    books_agree(script)


def test_of_equals_stock_ollama_sends_away_the_first_by_blob() -> None:
    script = fleet(*"badc", size=1)
    for name in "bad":
        script.asks(f"r{name}", name)
    for one in ghost(script, STOCK).bins["w0"].held.values():
        one.busy_us = script.now  # type: ignore[assignment]
    script.asks("rc", "c")
    assert held(script, STOCK) == ["b", "c", "d"]


def test_stock_ollama_stands_behind_least_connections() -> None:
    script = fleet("a", workers=2)
    script.asks("r1", "a")
    script.asks("r2", "a")
    assert [held(script, STOCK, worker) for worker in ("w0", "w1")] == [["a"], ["a"]]
    script.passes(60)
    script.asks("r3", "a")
    assert [found.connections for found in ghost(script, STOCK).bins.values()] == [1, 0]
    books_agree(script)


def test_stock_ollamas_ghost_remembers_only_so_many_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost_stock, "ENDS_MAX", 3)
    script = fleet("a")
    for number in range(6):
        script.asks(f"r{number}", "a")
    assert len(ghost(script, STOCK).ends) == 3
    books_agree(script)


# ---------------------------------------------------------------------- what is saved


def test_what_is_saved_is_stock_ollamas_less_the_fleets_own_and_fades() -> None:
    script = fleet("a")
    serve(script, *"aaa", gap=HOUR / 6)
    report = script.engine.shadows()
    assert report.fleet.cold_starts == 1
    assert report.shadows[-1].policy == STOCK
    assert report.shadows[-1].cold_starts == 3
    assert 1.8 < report.cold_starts_saved < 2.0
    assert report.load_seconds_saved > 0
    script.passes(6 * HOUR)
    script.shows("w0", _line("a", script.runner("a", "w0").bytes))
    assert script.engine.shadows().cold_starts_saved == pytest.approx(report.cold_starts_saved / 2.71828, rel=0.2)


def test_regret_is_the_fleets_loading_beyond_the_best_ghosts() -> None:
    script = fleet("a", "b", "c", eviction="mru", switch_policy=False)
    serve(script, *"abcbcbcbc")
    report = script.engine.shadows()
    best = min(figures.recent_load_seconds for figures in report.shadows[:-1])
    assert report.regret_ratio == pytest.approx(report.fleet.recent_load_seconds / best - 1)
    assert report.regret_ratio > 0.5


# ---------------------------------------------------------------------- another policy takes over


def badly(script: Script, hours: float, gap: float = 60) -> list[tuple[float, d.PolicySwitch]]:
    """Two models in turn, which MRU never keeps together once a third was there: switches, with seconds since then."""
    begun = script.now
    serve(script, "a", gap=gap)
    found: list[tuple[float, d.PolicySwitch]] = []
    while script.now < begun + hours * HOUR * S:
        seen = len(script.all)
        serve(script, "b", "c", gap=gap)
        found += [((script.now - begun) / S, one) for one in script.all[seen:] if isinstance(one, d.PolicySwitch)]
    return found


def test_a_clearly_better_policy_takes_over_once_and_not_before_its_time() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    found = badly(script, 1.5, gap=20)
    assert any("PolicySwitch" in line for line in script.engine.explain("mru"))
    assert badly(script, 2, gap=20) == []
    assert len(found) == 1
    at_s, switch = found[0]
    assert at_s >= HOUR
    assert switch.before == "mru"
    assert switch.policy in SHADOWED
    assert switch.loads >= CoreConfig().switch_loads_min
    assert switch.saved_percent > 10
    assert script.engine.policy.name == script.engine.fleet.state.policy == switch.policy
    assert script.engine.fleet.state.counters["policy_switch"] == 1


def test_too_few_loads_change_nothing() -> None:
    assert badly(fleet("a", "b", "c", eviction="mru", switch_loads_min=10_000), 3, gap=30) == []


def test_a_policy_stays_if_the_operator_wants_it() -> None:
    assert badly(fleet("a", "b", "c", eviction="mru", switch_policy=False), 3, gap=30) == []


def test_a_ghost_that_is_hardly_better_changes_nothing() -> None:
    """Of eleven load-seconds it would have saved one: less than a tenth of them."""
    script = fleet("a", "b", "c", eviction="mru")
    badly(script, 0.9, gap=30)
    shadows = script.engine.fleet.state.shadows
    own = shadows.ghosts["mru"].tally
    for name in SHADOWED:
        tally = shadows.ghosts[name].tally
        tally.recent_load_s, tally.recent_squares, tally.at_us = 0.91 * own.recent_load_s, 0.0, own.at_us
    own.recent_squares = 0.0
    script.passes(HOUR / 5)
    script.asks("r", "a")
    assert shadows.compared_us == script.now
    assert script.none(d.PolicySwitch)


def test_a_difference_that_may_be_chance_changes_nothing() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    badly(script, 0.9, gap=30)
    shadows = script.engine.fleet.state.shadows
    own = shadows.ghosts["mru"].tally
    own.recent_squares = own.recent_load_s**2
    script.passes(HOUR / 5)
    script.asks("r", "a")
    assert shadows.compared_us == script.now
    assert script.none(d.PolicySwitch)


def test_policies_are_compared_once_a_minute() -> None:
    script = fleet("a")
    serve(script, "a", gap=COMPARE_EVERY_US // S - 10)
    first = script.engine.fleet.state.shadows.compared_us
    serve(script, "a", gap=0)
    assert script.engine.fleet.state.shadows.compared_us == first
    script.passes(20)
    serve(script, "a")
    assert script.engine.fleet.state.shadows.compared_us > first


def test_the_new_policy_goes_on_with_a_copy_of_what_its_ghost_has_learned() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    for name in SHADOWED:
        if name != "gdsf":
            ghost(script, name).tally.recent_load_s = 1e12
    badly(script, 2, gap=20)
    state = script.engine.fleet.state
    assert state.policy == "gdsf"
    assert state.experience.priority
    assert state.experience is not state.shadows.ghosts["gdsf"].experience


def test_a_snapshot_goes_on_with_its_ghosts_and_with_the_policy_in_use() -> None:
    script = fleet("a", "b", "c", eviction="mru")
    badly(script, 2, gap=20)
    assert script.engine.fleet.state.policy != "mru"
    copy = script.copy()
    copy.sound = False
    assert copy.engine.policy.name == script.engine.policy.name
    for one in (script, copy):
        serve(one, *"cabbacab", gap=30)
    assert copy.engine.snapshot() == script.engine.snapshot()
    assert copy.engine.shadows() == script.engine.shadows()


def test_shadows_change_nothing_that_the_fleet_does() -> None:
    plain = fleet("a", "b", "c", workers=2, shadows=False)
    shadowed = fleet("a", "b", "c", workers=2, switch_policy=False)
    for one in (plain, shadowed):
        serve(one, *"abcacbbac", gap=30)
    assert shadowed.all == plain.all
