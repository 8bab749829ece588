"""The order in which each policy lets idle runners go, on cases small enough to be worked out by hand."""

from __future__ import annotations

import pytest
from core_arrivals import arrive, fleet_of, model_of
from core_script import GIB, S, Script, stored

from bellmare.core.eviction.frequency import GreedyDualSize, LeastFrequentlyUsed
from bellmare.core.eviction.hazard import HazardValue
from bellmare.core.eviction.histogram import BINS, SEEN_MIN, HybridHistogram
from bellmare.core.eviction.lhd import AGES, CLASSES, FADE, RECOUNT_EVERY, LeastHitDensity
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.eviction.recency import LeastRecentlyUsed, LeastRecentlyUsedTwice
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.state import Experience, Runner


def uses(fleet: Fleet, policy: EvictionPolicy, name: str, *, after_s: float = 0.0, tenant: str = "") -> None:
    """One request for a model, as the engine tells the policy of it."""
    arrive(fleet, name, after_s=after_s, tenant=tenant)
    model = model_of(fleet, name)
    policy.asked(fleet, model, held=bool(model.copies))


def residents(fleet: Fleet, *names: str, gib: int = 4, load_s: int = 10) -> list[Runner]:
    """Idle runners of these models, last used when they were last asked for."""
    return [
        Runner(
            worker=fleet.state.roster[0],
            model=model_of(fleet, name).model,
            name=name,
            residency=Residency.resident,
            num_ctx=8192,
            slots=1,
            bytes=gib * GIB,  # type: ignore[arg-type]
            since_us=fleet.now_us,
            used_us=max(model_of(fleet, name).demand.last_us, 1),  # type: ignore[arg-type]
            load_us=load_s * S,  # type: ignore[arg-type]
        )
        for name in names
    ]


def order(fleet: Fleet, policy: EvictionPolicy, some: list[Runner]) -> list[str]:
    return [runner.name for runner in policy.rank(fleet, some)]


ALL = (
    HazardValue,
    LeastRecentlyUsed,
    LeastRecentlyUsedTwice,
    LeastFrequentlyUsed,
    GreedyDualSize,
    LeastHitDensity,
    HybridHistogram,
)


@pytest.mark.parametrize("kind", ALL)
def test_a_released_model_leaves_first_under_every_policy(kind: type[EvictionPolicy]) -> None:
    fleet, policy = fleet_of("a", "b", "c"), kind(Experience())  # type: ignore[call-arg]
    for name in ("c", "a", "b", "b", "b"):
        uses(fleet, policy, name, after_s=30)
    model_of(fleet, "b").released_us = fleet.now_us
    assert order(fleet, policy, residents(fleet, "a", "b", "c"))[0] == "b"


@pytest.mark.parametrize("kind", ALL)
def test_an_order_depends_on_nothing_but_the_state(kind: type[EvictionPolicy]) -> None:
    fleet, policy = fleet_of("a", "b", "c"), kind(Experience())  # type: ignore[call-arg]
    for name in ("c", "a", "b"):
        uses(fleet, policy, name)
    some = residents(fleet, "a", "b", "c")
    assert order(fleet, policy, some) == order(fleet, policy, some[::-1])


def test_lru_looks_at_the_last_use_and_lru_2_at_the_one_before() -> None:
    fleet = fleet_of("a", "b")
    lru, lru2 = LeastRecentlyUsed(Experience()), LeastRecentlyUsedTwice(Experience())
    for name in ("b", "a", "a", "b"):  # uses of a: 2, 3; of b: 1, 4
        uses(fleet, lru, name, after_s=60)
    some = residents(fleet, "a", "b")
    assert order(fleet, lru, some) == ["a", "b"]
    assert order(fleet, lru2, some) == ["b", "a"]


def test_used_once_only_leaves_before_all_others_in_lru_2() -> None:
    fleet, policy = fleet_of("a", "b"), LeastRecentlyUsedTwice(Experience())
    for name in ("a", "a", "b"):
        uses(fleet, policy, name, after_s=60)
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["b", "a"]


def test_lfu_keeps_who_was_used_often_until_that_is_long_ago() -> None:
    fleet, policy = fleet_of("a", "b"), LeastFrequentlyUsed(Experience())
    for _ in range(8):
        uses(fleet, policy, "a", after_s=10)
    uses(fleet, policy, "b", after_s=10)
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["b", "a"]
    uses(fleet, policy, "b", after_s=9 * 3_600)  # three time constants: eight uses are worth less than half a use
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["a", "b"]


def test_gdsf_values_load_seconds_per_gib() -> None:
    fleet, policy = fleet_of("a", "b"), GreedyDualSize(Experience())
    model_of(fleet, "a").load_us, model_of(fleet, "b").load_us = 5 * S, 50 * S  # type: ignore[assignment]
    for name in ("b", "a"):
        uses(fleet, policy, name)
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["a", "b"]


def test_gdsf_inflates_to_its_last_victim_and_lets_the_old_sink() -> None:
    experience = Experience()
    fleet, policy = fleet_of("a", "b", "c"), GreedyDualSize(experience)
    for name in ("a", "b", "c"):
        model_of(fleet, name).load_us = 10 * S  # type: ignore[assignment]
    for _ in range(3):
        uses(fleet, policy, "a")
    uses(fleet, policy, "b")
    assert experience.priority["blob-b"] == pytest.approx(10.0, rel=1e-3)
    for number in range(4):  # each victim lifts the floor by one use's worth
        policy.left(fleet, residents(fleet, "b")[0])
        assert experience.inflation == pytest.approx(10.0 * (number + 1), rel=0.01 * (number + 1))
        model_of(fleet, "b").demand.counters = []
        model_of(fleet, "b").demand.arrivals = 0
        uses(fleet, policy, "b")
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["a", "b"]


def test_gdsf_inflation_never_falls() -> None:
    experience = Experience(inflation=7.0, priority={"blob-a": 3.0})  # type: ignore[dict-item]
    fleet = fleet_of("a")
    GreedyDualSize(experience).left(fleet, residents(fleet, "a")[0])
    assert experience.inflation == 7.0


def test_lhd_recounts_hits_to_come_over_the_time_that_they_take() -> None:
    experience = Experience()
    policy = LeastHitDensity(experience)
    experience.hits = [[0.0] * AGES for _ in range(CLASSES)]
    experience.ends = [[0.0] * AGES for _ in range(CLASSES)]
    experience.hits[0][1], experience.ends[0][3] = 3.0, 1.0  # three hits at 1 s, one end at 4 to 8 s
    policy._recount()
    # from the far end: width of octave 3 is 4 s, of 2 is 2 s, of 1 and 0 is 1 s
    life_3 = 4 / 2 * 1
    life_1 = life_3 + 2 * 1 + 1 * 1 + 3 * 1 / 2
    assert experience.density[0][3] == 0.0
    assert experience.density[0][1] == pytest.approx(3 / life_1)
    assert experience.density[0][0] == pytest.approx(3 / (life_1 + 4))
    assert experience.hits[0][1] == pytest.approx(3.0 * FADE)


def test_lhd_counts_anew_every_so_many_events_and_prefers_who_brings_hits() -> None:
    experience = Experience()
    fleet, policy = fleet_of("a", "b"), LeastHitDensity(experience)
    model_of(fleet, "a").copies["w"] = None  # type: ignore[index]
    first = experience.density
    for _ in range(RECOUNT_EVERY):
        uses(fleet, policy, "a", after_s=3)
    assert experience.density is first
    uses(fleet, policy, "a", after_s=3)
    assert experience.density is not first
    uses(fleet, policy, "b")
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["b", "a"]


def test_lhd_lets_the_larger_of_equals_go() -> None:
    fleet, policy = fleet_of("a", "b"), LeastHitDensity(Experience())
    for name in ("a", "b"):
        uses(fleet, policy, name)
    some = [*residents(fleet, "b", gib=12), *residents(fleet, "a", gib=2)]
    assert order(fleet, policy, some) == ["b", "a"]


def steady(fleet: Fleet, policy: EvictionPolicy, name: str, *, gap_s: float) -> None:
    for _ in range(SEEN_MIN + 1):
        uses(fleet, policy, name, after_s=gap_s)


def test_the_histogram_lets_go_who_is_not_expected_any_more() -> None:
    fleet, policy = fleet_of("a", "b"), HybridHistogram(Experience())
    uses(fleet, policy, "b")  # once: nobody knows when it is expected
    steady(fleet, policy, "a", gap_s=120)
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["b", "a"]
    fleet.now_us += 100 * 60 * S  # type: ignore[assignment]
    assert order(fleet, policy, residents(fleet, "a", "b")) == ["a", "b"]


def test_the_histogram_tells_before_within_and_after_the_window() -> None:
    fleet, policy = fleet_of("a"), HybridHistogram(Experience())
    steady(fleet, policy, "a", gap_s=30 * 60)
    model = model_of(fleet, "a").model
    said = {}
    for minutes in (0, 10, 30, 31, 40):
        fleet.now_us = model_of(fleet, "a").demand.last_us + minutes * 60 * S  # type: ignore[assignment]
        said[minutes] = policy._expected(fleet, model)
    assert said == {0: 2, 10: 1, 30: 2, 31: 0, 40: 0}


def test_few_idle_times_are_no_histogram_and_long_ones_fall_into_the_last_bin() -> None:
    experience = Experience()
    fleet, policy = fleet_of("a"), HybridHistogram(experience)
    for _ in range(SEEN_MIN):
        uses(fleet, policy, "a", after_s=10 * 3_600)
    model = model_of(fleet, "a").model
    fleet.now_us += 600 * S  # type: ignore[assignment]
    assert policy._expected(fleet, model) == 2
    assert experience.histogram[model][BINS - 1] == SEEN_MIN - 1
    assert sum(experience.histogram[model]) == SEEN_MIN - 1


def test_hv_lets_go_who_will_hardly_be_asked_for_and_of_equals_the_cheaper_to_load() -> None:
    fleet, policy = fleet_of("a", "b", "c"), HazardValue(Experience())
    uses(fleet, policy, "b")
    for _ in range(20):
        uses(fleet, policy, "a", after_s=30)
    uses(fleet, policy, "b", after_s=1)
    some = residents(fleet, "a", "b")
    assert order(fleet, policy, some) == ["b", "a"]
    assert policy.value(fleet, some[0]) == pytest.approx(10 * policy.soon(fleet, some[0].model, 0.3 * 1_200), rel=0.01)
    slow = residents(fleet, "b", load_s=1_000)
    assert order(fleet, policy, [some[0], *slow]) == ["a", "b"]


def test_hv_a_model_that_is_ready_elsewhere_too_is_worth_a_tenth() -> None:
    script = Script()
    for worker in ("w1", "w2"):
        script.worker(worker, stored("a"))
    script.resident("a", "w1")
    script.asks("r", "a")
    script.done("r")
    policy, fleet = HazardValue(Experience()), script.engine.fleet
    alone = policy.loss(fleet, [script.runner("a", "w1")])
    script.resident("a", "w2")
    assert alone > 0
    assert policy.loss(fleet, [script.runner("a", "w1")]) == pytest.approx(alone / 10, rel=0.1)


def test_classics_say_how_recent_a_loss_is_and_price_nothing() -> None:
    fleet, policy = fleet_of("a", "b"), LeastRecentlyUsed(Experience())
    uses(fleet, policy, "a")
    some = residents(fleet, "a")
    fresh = policy.loss(fleet, some)
    fleet.now_us += 99 * S  # type: ignore[assignment]
    assert fresh == pytest.approx(100 * policy.loss(fleet, some))
    assert policy.ahead(fleet, fleet.state.workers["w"]) is None  # type: ignore[index]
    assert not policy.prices


def test_hv_a_resident_is_weighed_by_the_span_that_its_absent_rivals_are_weighed_by() -> None:
    """By what its own last load took, two models could push each other out for ever."""
    fleet, policy = fleet_of("a"), HazardValue(Experience())
    model_of(fleet, "a").load_us = 10 * S  # type: ignore[assignment]
    uses(fleet, policy, "a")
    quick, slow = residents(fleet, "a", load_s=0), residents(fleet, "a", load_s=100)
    assert policy.loss(fleet, quick) == policy.loss(fleet, slow) > 0
