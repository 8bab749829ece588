"""Random driving of the core without Hypothesis: a seed picks a fleet and a mix of actions; thousands of events follow.

Run as a program it prints the hash of all decisions: ``python core_swarm.py SEEDS EVENTS``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from core_healing import heal
from core_world import NAMES, World

ACTIONS = (
    "arrive",
    "burst",
    "finish",
    "first_token",
    "fail",
    "break_off",
    "cancel",
    "end",
    "end_badly",
    "lose_end",
    "look",
    "see",
    "die",
    "revive",
    "add",
    "remove",
    "operate",
    "rename",
    "meddle",
    "time",
    "jump",
)
WEIGHTS = (18, 2, 12, 8, 4, 2, 3, 12, 2, 1, 8, 9, 1, 2, 1, 0.2, 2, 1.5, 2, 10, 6)

RARER = ("fail", "break_off", "end_badly", "lose_end", "die", "rename", "meddle", "operate")


def actions(world: World, rng: random.Random) -> dict[str, Callable[[], object]]:
    pick = rng.randrange

    def burst() -> None:
        name = pick(len(NAMES))
        for _ in range(pick(1, 9)):
            world.arrive(name, pick(1, 200), 0, pick(3000))

    def operate() -> None:
        which = pick(3)
        if which == 0:
            world.ask_load(pick(10), pick(5) - 1)
        elif which == 1:
            world.ask_unload(pick(10), pick(5) - 1)
        else:
            world.release(pick(10))

    return {
        "arrive": lambda: world.arrive(pick(len(NAMES) + 1), pick(0, 150), pick(4), pick(20_000)),
        "burst": burst,
        "finish": lambda: world.finish(pick(99)),
        "first_token": lambda: world.first_token(pick(99)),
        "fail": lambda: world.fail_dispatch(pick(99), pick(8)),
        "break_off": lambda: world.finish(pick(99), pick(8)),
        "cancel": lambda: world.cancel(pick(99)),
        "end": lambda: world.end_operation(pick(99), short=pick(20) == 0),
        "end_badly": lambda: world.end_operation(pick(99), pick(8)),
        "lose_end": lambda: world.end_operation(pick(99), pick(2) - 1, lost=True),
        "look": lambda: world.look(pick(99), timeout=pick(30) == 0, stored=pick(3) == 0),
        "see": lambda: world.arrive_sight(pick(99) if pick(3) == 0 else 0),
        "die": lambda: world.kill(pick(99), empties=pick(2) == 0),
        "revive": lambda: (world.revive(pick(99)), world.report_dead(pick(99))),
        "add": lambda: world.add_worker(pick(99), pick(1 << len(NAMES)), known=pick(5) > 0),
        "remove": lambda: world.remove_worker(pick(99)),
        "operate": operate,
        "rename": lambda: world.rename(pick(99), pick(99), pick(4)),
        "meddle": lambda: world.meddle(pick(99), pick(6), pick(99)),
        "time": lambda: world.pass_time(pick(1, 4_000_000)),
        "jump": lambda: world.jump(pick(3) - 1),
    }


def run(seed: int, events: int, *, check_every: int = 16, healing: bool = True) -> World:
    """One world from one seed: a random subset of the rarer actions, then healing."""
    rng = random.Random(seed)
    world = World(check_every=check_every)
    act = actions(world, rng)
    off = {name for name in RARER if rng.random() < 0.4}
    weights = [0.0 if name in off else weight for name, weight in zip(ACTIONS, WEIGHTS, strict=True)]
    for _ in range(rng.randrange(1, 4)):
        world.add_worker(rng.randrange(99), rng.randrange(1 << len(NAMES)) | 3, known=rng.randrange(5) > 0)
    for name in list(world.workers):
        world.observe_now(name)
    copy_at = rng.randrange(events)
    for number, name in enumerate(rng.choices(ACTIONS, weights, k=events)):
        if number == copy_at:
            world.copy_engine()
        act[name]()
    if healing:
        heal(world)
    return world


def decision_hash(world: World) -> str:
    digest = sha256()
    for now, _, decisions in world.log:
        digest.update(str(now).encode())
        for decision in decisions:
            digest.update(msgspec.json.encode(decision))
    return digest.hexdigest()


def main(seeds: int, events: int) -> None:
    digest = sha256()
    for seed in range(seeds):
        digest.update(decision_hash(run(seed, events)).encode())
    print(digest.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
