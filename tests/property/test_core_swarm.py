"""The swarm itself: many seeds keep all rules and meet everything, a seed is one run, a failure can be run again."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.engine import Engine
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.units import InstantUs, ModelId, WorkerId
from bellmare.sim.swarm import __main__ as program
from bellmare.sim.swarm import campaign, marks
from bellmare.sim.swarm.books import Broken, ClaimBook, RunnerBook
from bellmare.sim.swarm.draws import PLAIN
from bellmare.sim.swarm.healing import heal
from bellmare.sim.swarm.life import Life, live, outcome
from bellmare.sim.swarm.oracle import Oracle
from bellmare.sim.swarm.world import Ask, World

SEEDS = int(os.environ.get("BELLMARE_SEEDS", "100"))
REQUESTS = 1_000
HASHED = 6
DIGEST = f"""
from bellmare.sim.swarm.life import live
print([live(seed, 150).digest() for seed in range({HASHED})])
"""
SECOND = 1_000_000
GIB = 1 << 30


@pytest.mark.slow
def test_many_random_fleets_keep_all_rules_and_meet_everything() -> None:
    done = campaign.run(range(SEEDS), REQUESTS, jobs=1, progress=False)
    assert [(life.seed, life.broken) for life in done.broken] == []
    assert marks.unmet(done.met) == []
    assert done.requests >= SEEDS * REQUESTS


@pytest.mark.slow
def test_the_same_seed_gives_the_same_decisions_under_any_hash_seed() -> None:
    said = set()
    for hash_seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        said.add(done.stdout.strip())
    assert len(said) == 1, said
    assert len(said.pop()) > HASHED * 64


@pytest.mark.slow
def test_a_campaign_has_the_same_digest_on_one_process_and_on_two() -> None:
    alone = campaign.run(range(4), 60, jobs=1, progress=False)
    both = campaign.run(range(4), 60, jobs=2, progress=False)
    assert alone.digest == both.digest
    assert alone.checked == both.checked
    assert len(set(alone.digests.values())) == 4, "each seed is a life of its own"


def test_decisions_follow_from_spans_of_time_and_not_from_the_instant() -> None:
    world = live(8, 80, healing=False)
    assert world.log is not None
    later = Engine(world.config)
    moved = 10_000 * SECOND
    for now, event, decided in world.log:
        assert later.step(InstantUs(now + moved), _moved(event, moved)) == decided


def _moved(event: e.Event, by_us: int) -> e.Event:
    changes = {field: getattr(event, field) + by_us for field in ("started_us", "deadline_us") if hasattr(event, field)}
    return msgspec.structs.replace(event, **changes) if changes else event


def test_the_marks_name_every_member_of_the_closed_sets_and_every_exemption_has_a_reason() -> None:
    wanted = marks.wanted()
    assert len(wanted) == len(set(wanted))
    for enum in (d.Refusal, d.LoadCause, d.UnloadCause, d.CacheState, e.FaultKind, e.HintSource, e.Priority):
        assert all(f"{enum.__name__}.{one}" in wanted for one in enum)
    for kind in (*d.Decision.__subclasses__(), *e.Event.__subclasses__()):
        assert kind.__name__ in wanted
    assert all(f"eviction {policy}" in wanted for policy in POLICIES)
    assert set(marks.EXEMPT) <= set(wanted)
    assert all(len(why.split()) > 3 for why in marks.EXEMPT.values())


def test_a_campaign_that_did_not_meet_everything_fails_and_says_what() -> None:
    done = campaign.Campaign(demands_coverage=True)
    done.add(Life(0, requests=1, met={"Dispatch": 1}))
    assert not done.passed
    assert "Load" in done.unmet and "Dispatch" not in done.unmet
    assert "not met: Fault.worker_lost" in campaign.table(done)


def test_an_exemption_that_is_met_all_the_same_is_told() -> None:
    done = campaign.Campaign()
    done.add(Life(0, requests=1, met=dict.fromkeys(marks.EXEMPT, 1)))
    for mark in marks.EXEMPT:
        assert f"{mark}" in campaign.table(done)


def test_a_failing_seed_prints_the_one_line_that_runs_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seed: int, requests: int) -> Life:
        return Life(seed, broken="a rule: (1, 2)" if seed == 3 else "", requests=requests)

    monkeypatch.setattr(campaign, "outcome", broken)
    assert program.main(["--seeds", "5", "--requests", "70"]) == 1
    said = capsys.readouterr()
    assert "python -m bellmare.sim.swarm --seed 3 --requests 70\n" in said.err
    assert "FAILED; seeds: 3" in said.out


def test_one_seed_runs_alone_with_the_digest_that_it_has_among_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--seed", "5", "--requests", "60", "--json"]) == 0
    alone = capsys.readouterr().out
    assert '"seeds": 1' in alone and '"failed": []' in alone
    assert outcome(5, 60).digest == live(5, 60).digest()


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--requests", "0"], ["--jobs", "65"]])
def test_numbers_out_of_bounds_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert "between 1 and" in capsys.readouterr().err


def test_a_core_that_crashes_is_a_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(Engine, "step", crash)
    with pytest.raises(Broken, match="the core does not crash: KeyError"):
        World().add_worker(0, 3)


# ---------------------------------------------------------------------- rules of which no code can break one yet


def served() -> World:
    """One worker with one idle model and time to spare."""
    world = World()
    world.add_worker(0, 0b1111111111)
    for name in list(world.workers):
        world.observe_now(name)
    world.arrive(Ask("gnu"))
    while world.operations:
        world.end_operation(0)
        world.observe_now(WorkerId("w0"))
    world.finish(0)
    world.pass_time(60 * SECOND)
    return world


def ahead(oracle: Oracle, blob: str, cause: d.LoadCause = d.LoadCause.prewarm) -> None:
    """The core begins a load for which nobody waits."""
    worker = oracle.workers[WorkerId("w0")]
    model = ModelId(blob)
    num_ctx = oracle.canonical(model)
    need = oracle.need(worker, model, num_ctx)
    load = d.Load(
        operation=oracle.last_operation + 1, worker=WorkerId("w0"), model=model, name=blob.removeprefix("blob-"),
        num_ctx=num_ctx, cause=cause, reserved_bytes=need, expected_us=10 * SECOND, timeout_us=60 * SECOND,
    )  # fmt: skip
    oracle.decided([load])


@pytest.mark.parametrize("cause", [d.LoadCause.prewarm, d.LoadCause.hint])
def test_a_load_ahead_of_demand_into_free_room_is_allowed(cause: d.LoadCause) -> None:
    oracle = served().oracle
    ahead(oracle, "blob-bee", cause)
    assert oracle.met[f"LoadCause.{cause}"] == 1


def test_a_load_ahead_of_demand_has_no_busy_young_or_awaited_victim() -> None:
    for costly in ("busy", "young", "waited for"):
        oracle = served().oracle
        claim = ClaimBook(0, 0, 0, costly=[f"blob-gnu is {costly}"])
        claim.num_ctx = oracle.canonical(ModelId("blob-bee"))
        oracle.workers[WorkerId("w0")].claims[ModelId("blob-bee")] = claim
        with pytest.raises(Broken, match="a load ahead of demand costs nobody anything"):
            ahead(oracle, "blob-bee")


def test_room_for_a_load_ahead_of_demand_remembers_what_its_victims_were() -> None:
    world = served()
    oracle = world.oracle
    runner = oracle.workers[WorkerId("w0")].runners[ModelId("blob-gnu")]
    runner.ready, runner.load_span = oracle.now, 5 * SECOND
    oracle.ever_pinned[ModelId("blob-jay")] = None  # patience is not what is looked at here
    oracle.decided([d.Drain(WorkerId("w0"), ModelId("blob-gnu"), d.UnloadCause.room, ModelId("blob-jay"))])
    assert oracle.workers[WorkerId("w0")].claims[ModelId("blob-jay")].costly == ["blob-gnu is young"]


def test_what_was_just_evicted_is_not_loaded_again_ahead_of_demand() -> None:
    oracle = served().oracle
    oracle.workers[WorkerId("w0")].evicted[ModelId("blob-bee")] = oracle.now + SECOND
    with pytest.raises(Broken, match="what was just evicted"):
        ahead(oracle, "blob-bee")


def test_loads_ahead_of_demand_beyond_their_budget_are_told() -> None:
    oracle = served().oracle
    oracle.speculative = 10_000
    with pytest.raises(Broken, match="keep to their budget"):
        ahead(oracle, "blob-bee")


@pytest.mark.parametrize("cause", [d.UnloadCause.ahead, d.UnloadCause.replica])
def test_a_busy_or_pinned_runner_does_not_leave_unasked(cause: d.UnloadCause) -> None:
    world = served()
    drain = d.Drain(WorkerId("w0"), ModelId("blob-gnu"), cause)
    runner = world.oracle.workers[WorkerId("w0")].runners[ModelId("blob-gnu")]
    runner.zombies.append(world.now + SECOND)
    with pytest.raises(Broken, match="a busy runner does not leave unasked"):
        world.oracle.decided([drain])
    pinned = served().oracle
    pinned.workers[WorkerId("w0")].runners.setdefault(ModelId("blob-ant"), RunnerBook("ready", GIB, 8192, 1, 0))
    with pytest.raises(Broken, match="a pinned model is no victim"):
        pinned.decided([d.Drain(WorkerId("w0"), ModelId("blob-ant"), cause)])


def test_an_idle_runner_may_leave_ahead_of_need_and_the_last_copy_is_no_replica() -> None:
    drain = d.Drain(WorkerId("w0"), ModelId("blob-gnu"), d.UnloadCause.ahead)
    oracle = served().oracle
    oracle.decided([drain])
    assert oracle.workers[WorkerId("w0")].runners[ModelId("blob-gnu")].state == "draining"
    with pytest.raises(Broken, match="the last copy is no replica"):
        served().oracle.decided([d.Drain(WorkerId("w0"), ModelId("blob-gnu"), d.UnloadCause.replica)])


def test_a_core_that_goes_on_loading_without_arrivals_does_not_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    from bellmare.sim.swarm import healing

    original = World.pass_time

    def restless(world: World, us: int) -> None:
        original(world, us)
        if us == healing.LOOK_US:
            world.actions += 1

    monkeypatch.setattr(World, "pass_time", restless)
    with pytest.raises(Broken, match="without arrivals"):
        heal(served())


def test_the_plain_world_is_within_the_limits_that_hypothesis_can_reach() -> None:
    assert PLAIN.config.queue_per_model_max < PLAIN.config.queue_total_max < 16
