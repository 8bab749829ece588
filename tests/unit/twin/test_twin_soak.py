"""Many requests in virtual time: the twin's own ledgers hold, equal runs are equal, and the run met what it must."""

import os
import random
import subprocess
import sys
import time

import pytest
from twin_driving import Drive, S, model

from bellmare.twin.config import FOREVER_US, GIB
from bellmare.twin.messages import CrashRunner, Failed, Finished, FirstToken, Granted, Input, LoadReplied

NAMES = "abcdefgh"


def soak(seed: int, *, requests: int) -> Drive:
    """Random traffic over eight models on a card that holds three, with cancels, unloads, crashes, other shapes."""
    rng = random.Random(seed)
    models = [model(f"{name}:1", gib=2 + index, kv_bytes_per_token=50_000) for index, name in enumerate(NAMES)]
    drive = Drive(*models, num_parallel=2, queue_max=3)
    live: list[str] = []
    for _ in range(requests):
        drive.later(rng.choice((0, 0, 0.5, 1, 3, 20)))
        name = f"{rng.choice(NAMES)}:1" if rng.random() < 0.3 else "a:1"
        keep_alive_us = rng.choice((None, None, None, 0, 5 * S, 300 * S, FOREVER_US))
        options = {"num_ctx": 2048} if rng.random() < 0.05 else None
        live.append(
            drive.generate(
                name,
                keep_alive_us=keep_alive_us,
                options=options,
                prompt_tokens=rng.randint(1, 300),
                output_tokens=rng.randint(1, 40),
            )
        )
        if rng.random() < 0.1:
            drive.cancel(live.pop(rng.choice((-1, rng.randrange(len(live))))))
        if rng.random() < 0.02:
            drive.unload(f"{rng.choice(NAMES)}:1")
        if rng.random() < 0.01:
            drive.give(CrashRunner(rng.choice(NAMES)))
        live = live[-50:]
        assert drive.twin.vram_used_bytes <= 24 * GIB
    for _ in range(500):  # then heal: whoever is idle is unloaded until nothing waits
        drive.later(30)
        for name in NAMES:
            drive.unload(f"{name}:1")
    return drive


def test_every_request_ends_once_and_the_memory_comes_back() -> None:
    drive = soak(1, requests=1500)
    ends: dict[str, int] = {}
    for effect in drive.effects:
        if isinstance(effect, Finished | Failed | LoadReplied):
            ends[effect.request] = ends.get(effect.request, 0) + 1
    assert set(ends.values()) == {1}
    counters = drive.twin.counters
    unanswered = counters.cancelled_total
    assert len(ends) + unanswered == 1500
    assert drive.twin.vram_used_bytes == 0
    assert drive.twin.loaded() == ()
    assert not drive.twin.stalled
    met = (
        counters.own_evictions,
        counters.reloads,
        counters.rejected_503,
        counters.semaphore_waits,
        counters.slot_waits,
    )
    assert all(met), met
    assert counters.loads_aborted


def test_instants_never_go_back_and_tokens_follow_their_grant() -> None:
    drive = soak(2, requests=400)
    instants = [effect.at_us for effect in drive.effects]
    assert instants == sorted(instants)
    granted = {effect.request: effect.at_us for effect in drive.all(Granted)}
    assert all(effect.at_us > granted[effect.request] for effect in drive.all(FirstToken))


@pytest.mark.slow
def test_equal_runs_are_equal_under_any_hash_seed() -> None:
    program = "import test_twin_soak as t, zlib; print(zlib.crc32(repr(t.soak(3, requests=300).effects).encode()))"
    answers = set()
    for hash_seed in ("0", "1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=os.path.dirname(__file__),
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([".", *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.add(done.stdout)
    assert len(answers) == 1


@pytest.mark.slow
def test_ten_thousand_requests_take_seconds() -> None:
    start = time.monotonic()
    drive = Drive(num_parallel=4)
    drive.loaded_now("a:1", "b:1", "c:1")
    for index in range(10_000):
        drive.later(0.7)
        drive.generate("abc"[index % 3] + ":1", keep_alive_us=86_400 * S)
    drive.later(1000)
    assert drive.twin.counters.finished_total == 10_000
    assert len(drive.twin._machine._heap) < 1000
    assert time.monotonic() - start < 20


def test_every_input_has_a_handler() -> None:
    """The vocabulary is closed."""
    assert set(Drive().twin._handlers) == set(Input.__subclasses__())
