"""Many short random lives of a fleet, and proof that they met everything that the core can decide."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import core_swarm
import msgspec
import pytest
from core_books import Broken

from bellmare.core import decisions as d
from bellmare.core import operations, queueing, reconcile
from bellmare.core.events import FaultKind, OperationEnded, OperationOutcome
from bellmare.core.fairness import Turns
from bellmare.core.fleet import Fleet
from bellmare.core.state import Request, Runner, Worker

SEEDS = int(os.environ.get("BELLMARE_SEEDS", "240"))
EVENTS = 600
HASHED_SEEDS = 8
SITUATIONS = (
    "drained busy",
    "drained idle",
    "zombie",
    "adopted",
    "retried elsewhere",
    "Answer.True",
    "Answer.False",
    "forgotten",
)
ENUMS: tuple[type[StrEnum], ...] = (d.Refusal, d.LoadCause, d.UnloadCause, d.CacheState, FaultKind)


@pytest.mark.slow
def test_many_random_fleets_keep_all_rules_and_meet_everything() -> None:
    met: dict[str, int] = {}
    steps = 0
    for seed in range(SEEDS):
        try:
            world = core_swarm.run(seed, EVENTS)
        except AssertionError as broken:
            raise AssertionError(f"seed {seed}, {EVENTS} events: {broken}") from broken
        steps += world.steps
        for what, times in world.oracle.met.items():
            met[what] = met.get(what, 0) + times
    wanted = [decision.__name__ for decision in d.Decision.__subclasses__()]
    wanted += [f"{enum.__name__}.{one}" for enum in ENUMS for one in enum]
    wanted += SITUATIONS
    assert [what for what in wanted if what not in met] == []
    assert steps > SEEDS * EVENTS // 2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_decisions_under_any_hash_seed() -> None:
    hashes = {}
    for hash_seed in ("0", "1", "4242"):
        said = subprocess.run(
            [sys.executable, str(Path(core_swarm.__file__)), str(HASHED_SEEDS), str(EVENTS)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        hashes[hash_seed] = said.stdout.strip()
    assert len(set(hashes.values())) == 1, hashes
    assert len(hashes["0"]) == 64


def test_a_recorded_life_replays_to_the_same_decisions() -> None:
    for seed in range(3):
        core_swarm.run(seed, 300).replay()


def _breaks(seeds: int) -> str:
    for seed in range(seeds):
        try:
            core_swarm.run(seed, EVENTS, check_every=1_000_000, healing=False)
        except Broken as broken:  # the core's own assertions do not count here
            return str(broken)
        except AssertionError:
            continue
    return ""


def _no_slot_is_ever_taken(patch: pytest.MonkeyPatch) -> None:
    def dispatch_anywhere(fleet: Fleet, request: Request, worker: Worker, *, runner: Runner) -> None:
        original(fleet, request, worker, runner=runner)
        del runner.in_flight[request.request]
        fleet.refresh_open(worker, runner)

    original = queueing.dispatch
    patch.setattr(queueing, "dispatch", dispatch_anywhere)


def _memory_is_free_before_it_is_confirmed(patch: pytest.MonkeyPatch) -> None:
    def believe(fleet: Fleet, worker: Worker, runner: Runner | None, *, event: OperationEnded) -> None:
        if event.fault not in (FaultKind.refused, FaultKind.reset):
            event = msgspec.structs.replace(event, outcome=OperationOutcome.done)
        original(fleet, worker, runner, event=event)

    original = operations._unload_ended
    patch.setattr(operations, "_unload_ended", believe)


def _a_stale_observation_is_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconcile, "_newer", lambda *_, **__: False)


def _a_busy_runner_may_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Runner, "used", property(lambda runner: 0))


def _nobody_is_served_after_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queueing, "_serve_other", lambda *_: False)
    patch.setattr(queueing, "_serve_one", lambda *_, **__: False)


def _the_last_of_a_tenant_is_served_first(patch: pytest.MonkeyPatch) -> None:
    def last(turns: Turns) -> Request | None:
        return next(reversed(list(turns.in_turn())), None)

    patch.setattr(Turns, "alone", last)


@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (_no_slot_is_ever_taken, ("never beyond its slots", "a busy runner is never unloaded")),
        (_memory_is_free_before_it_is_confirmed, ("nothing begins on a worker that is in doubt", "promised twice")),
        (_a_stale_observation_is_believed, ("no model is loaded twice", "only to a resident model", "real memory")),
        (_a_busy_runner_may_go, ("never beyond its slots", "a busy runner is never unloaded")),
        (_nobody_is_served_after_the_first, ("nobody waits beside a free slot",)),
        (_the_last_of_a_tenant_is_served_first, ("a tenant's first comes first",)),
    ],
)
def test_the_oracle_catches_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], rules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    said = _breaks(60)
    assert any(rule in said for rule in rules), said
