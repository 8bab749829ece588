"""One random life from one seed: a world is drawn, things happen until enough requests have arrived, then it heals."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bellmare.core.events import HintSource
from bellmare.sim.swarm.clients import Clients
from bellmare.sim.swarm.draws import Action, change, draw, with_classes
from bellmare.sim.swarm.healing import heal
from bellmare.sim.swarm.marks import Fault
from bellmare.sim.swarm.world import World

CHECK_EVERY = 16
"""Steps between two walks over the core's whole state."""
COPY_STEPS = 300
"""So long a restored engine runs beside the first."""
REPLAYED_EVERY = 8
"""Every so manieth seed is recorded and replayed."""
CHANGED_EVERY = 8
"""In every so manieth seed operators change settings, and other processes take over for a while."""
CHANGE_CHANCE = 0.15
CLASSES_CHANCE = 0.5
"""That context classes change with the settings; else they stay, or go with the other settings of their models."""
STANDBY_CHANCE = 0.05
STANDBY_ENDS_CHANCE = 0.5
"""Each of the three: before so many actions as are drawn at once."""
ACTIONS_AT_ONCE = 64
ACTIONS_PER_REQUEST_MAX = 200
"""A life without clients would never end."""
CLOCKWORK_EVERY = 10
"""In every so manieth life somebody asks by the clock."""
EDGES = (-1, 0, 0, 1, 1)
"""Offsets at which a driver meets a deadline, in microseconds."""


@dataclass
class Life:
    """What came of one seed; plain data that goes from process to process."""

    seed: int
    requests: int = 0
    steps: int = 0
    digest: str = ""
    broken: str = ""
    """The rule that did not hold, with what it was about; empty if all held."""
    seconds: float = 0.0
    met: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)


def table(world: World, clients: Clients, rng: random.Random) -> dict[Action, Callable[[], None]]:
    """What each action does in this world."""
    pick, every = rng.randrange, len(world.names)

    def operate() -> None:
        which = pick(3)
        if which == 0:
            world.ask_load(pick(99), pick(5) - 1)
        elif which == 1:
            world.ask_unload(pick(99), pick(5) - 1)
        else:
            world.release(pick(99))

    def revive() -> None:
        world.revive(pick(99))
        world.report_dead(pick(99))

    def jump() -> None:
        offset = EDGES[pick(len(EDGES))]
        if offset > 0:
            world.fault(Fault.late_timer)
        world.jump(offset)

    return {
        Action.arrive: clients.arrive,
        Action.burst: clients.burst,
        Action.finish: lambda: world.finish(pick(99)),
        Action.first_token: lambda: world.first_token(pick(99)),
        Action.fail: lambda: world.fail_dispatch(pick(99), pick(9)),
        Action.break_off: lambda: world.finish(pick(99), pick(9)),
        Action.cancel: lambda: world.cancel(pick(99)),
        Action.cancel_late: lambda: world.cancel_late(pick(99)),
        Action.end: lambda: world.end_operation(pick(99), short=pick(20) == 0),
        Action.end_badly: lambda: world.end_operation(pick(99), pick(9)),
        Action.lose_end: lambda: world.end_operation(pick(99), pick(2) - 1, lost=True),
        Action.look: lambda: world.look(pick(99), timeout=pick(30) == 0, stored=pick(3) == 0),
        Action.see: lambda: world.arrive_sight(pick(99) if pick(3) == 0 else 0),
        Action.die: lambda: world.kill(pick(99), empties=pick(2) == 0),
        Action.revive: revive,
        Action.add: lambda: world.add_worker(pick(99), pick(1 << every) | pick(1 << every), known=pick(5) > 0),
        Action.remove: lambda: world.remove_worker(pick(99)),
        Action.operate: operate,
        Action.rename: lambda: world.rename(pick(99), pick(99), pick(4)),
        Action.meddle: lambda: world.meddle(pick(99), pick(6), pick(99)),
        Action.hint: clients.hint,
        Action.flood: clients.flood,
        Action.time: lambda: world.pass_time(pick(1, 2 * world.setting.pace_us)),
        Action.jump: jump,
    }


def live(seed: int, requests: int, *, check_every: int = CHECK_EVERY, healing: bool = True) -> World:
    """Run one seed until ``requests`` have arrived. Raises ``AssertionError``: the oracle's ``Broken``, or the core's.

    The same seed and number of requests give the same run on every machine and under every hash seed.
    """
    rng = random.Random(f"bellmare swarm {seed}")  # noqa: S311 a simulation, not a secret
    setting = draw(rng)
    classes = random.Random(f"bellmare classes {seed}")  # noqa: S311 their own: lives without them stay what they are
    config = with_classes(classes, setting.config, tuple(setting.sizes))
    world = World(replace(setting, config=config), check_every=check_every)
    run(world, rng, seed=seed, requests=requests)
    if healing:
        heal(world)
    if world.log is not None:
        world.replay()
    return world


def run(world: World, rng: random.Random, *, seed: int, requests: int) -> None:
    """The part of a life in which things go wrong."""
    world.oracle.meet(f"eviction {world.config.eviction}")
    clients = Clients(world, rng)
    if seed % CLOCKWORK_EVERY == 0:
        clients.clockwork()
    act = table(world, clients, rng)
    if seed % REPLAYED_EVERY:
        world.log = None
    for _ in range(rng.randrange(1, 4)):
        world.add_worker(rng.randrange(99), rng.randrange(1 << len(world.names)) | 3, known=rng.randrange(5) > 0)
    for name in list(world.workers):
        world.observe_now(name)
    names, weights = list(world.setting.weights), list(world.setting.weights.values())
    copy_at = rng.randrange(requests)
    copied = 0
    operator = None if seed % CHANGED_EVERY else random.Random(f"bellmare operator {seed}")  # noqa: S311 as above
    for _ in range(requests * ACTIONS_PER_REQUEST_MAX // ACTIONS_AT_ONCE + 1):
        if operator is not None:
            operate(world, operator)
        for action in rng.choices(names, weights, k=ACTIONS_AT_ONCE):
            if world.next_request >= requests:
                return
            if not copied and world.next_request >= copy_at:
                world.copy_engine()
                copied = world.steps
            elif world.copy is not None and world.steps > copied + COPY_STEPS:
                world.copy = None
            act[action]()
            if world.refusals:
                clients.read_refusals()


def operate(world: World, rng: random.Random) -> None:
    """Perhaps the settings change, perhaps another process takes over or gives back."""
    if rng.random() < CHANGE_CHANCE:
        config = change(rng, world.oracle.config, world.names)
        world.change_settings(with_classes(rng, config, world.names) if rng.random() < CLASSES_CHANCE else config)
    if rng.random() < (STANDBY_ENDS_CHANCE if world.oracle.standby else STANDBY_CHANCE):
        world.stand_by(not world.oracle.standby)


def outcome(seed: int, requests: int) -> Life:
    """Run one seed and tell what came of it; a broken rule is told, not raised."""
    life = Life(seed)
    began = time.perf_counter()
    world: World | None = None
    try:
        world = live(seed, requests)
    except AssertionError as broken:
        life.broken = str(broken) or "an assertion of the core's own, without words"
    life.seconds = time.perf_counter() - began
    if world is not None:
        life.requests, life.steps, life.digest = world.next_request, world.steps, world.digest()
        life.met, life.checked, life.decided = world.oracle.met, world.oracle.checked, world.oracle.decided_kinds
        counters = world.engine.fleet.state.counters
        for source in HintSource:  # the core itself tells of those that it gives itself
            outcomes = {how: counters.get(f"hint_{how}_{source}", 0) for how in ("right", "wrong")}
            life.met[f"HintSource.{source}"] = life.met.get(f"HintSource.{source}", 0) + sum(outcomes.values())
            for how, count in outcomes.items():
                life.met[f"hint {how}"] = life.met.get(f"hint {how}", 0) + count
    return life
