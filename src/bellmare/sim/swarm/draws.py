"""What a seed draws: machines, models, limits, who asks how, and which of the rarer things happen at all."""

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from bellmare.core.config import CoreConfig, ModelConfig, TenantConfig
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.units import SpanUs
from bellmare.sim.swarm.books import GIB, MIB, SECOND

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark", "mole", "newt")
TWINS = {"cat": "dog"}
"""Names over the blob of another."""
RARE = 0.4
"""The chance that a seed does without one of the rarer actions: what is always there hides what its absence shows."""


@dataclass(frozen=True)
class Machine:
    """One kind of worker that may join."""

    capacity_gib: int
    headroom_gib: int
    overhead_mib: int
    parallel: int
    runners_max: int = 0
    fit_percent: int = 100


@dataclass(frozen=True)
class Size:
    """What a name's blob needs."""

    weights: int
    kv_bytes_per_token: int = 0
    context_max: int = 0
    parallel_max: int = 0
    embedding: bool = False


class Action(StrEnum):
    """What happens next in a random life. The value is its name in the table of ``life``."""

    arrive = "arrive"
    burst = "burst"
    finish = "finish"
    first_token = "first_token"  # noqa: S105 no secret
    fail = "fail"
    break_off = "break_off"
    cancel = "cancel"
    cancel_late = "cancel_late"
    end = "end"
    end_badly = "end_badly"
    lose_end = "lose_end"
    look = "look"
    see = "see"
    die = "die"
    revive = "revive"
    add = "add"
    remove = "remove"
    operate = "operate"
    rename = "rename"
    meddle = "meddle"
    hint = "hint"
    flood = "flood"
    time = "time"
    jump = "jump"


WEIGHTS: dict[Action, float] = {
    Action.arrive: 11, Action.burst: 1.5, Action.finish: 17, Action.first_token: 8, Action.fail: 3,
    Action.break_off: 2, Action.cancel: 3, Action.cancel_late: 0.3, Action.end: 16, Action.end_badly: 2,
    Action.lose_end: 1, Action.look: 9, Action.see: 10, Action.die: 0.8, Action.revive: 2.5, Action.add: 1,
    Action.remove: 0.2, Action.operate: 1.5, Action.rename: 1, Action.meddle: 2, Action.hint: 3,
    Action.flood: 0.1, Action.time: 14, Action.jump: 5,
}  # fmt: skip
RARER = (
    Action.fail, Action.break_off, Action.cancel, Action.end_badly, Action.lose_end, Action.die, Action.remove,
    Action.operate, Action.rename, Action.meddle, Action.hint, Action.flood, Action.burst, Action.jump,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One seed's world. The defaults are the fixed world that Hypothesis drives."""

    config: CoreConfig
    machines: tuple[Machine, ...]
    sizes: dict[str, Size]
    workers_max: int = 4
    real_percent: int = 95
    """What a runner really takes of what was reserved for it."""
    tenants: int = 1
    sticky: float = 0.0
    """The chance that a tenant asks for his usual model."""
    low_share: float = 0.0
    high_share: float = 0.0
    honouring: float = 0.5
    """Of refused clients, who come back when Retry-After says; half of the others come back at once."""
    short_share: float = 0.1
    """Requests with a deadline of a few seconds, or none left."""
    poison_share: float = 0.0
    """Requests that may take down their runner, and say so."""
    class_share: float = 0.5
    """Of requests for a model that has context classes, those that ask for one of them."""
    broken: tuple[str, ...] = ()
    """Names whose files are damaged: no load of them succeeds until the world heals."""
    pace_us: int = 2 * SECOND
    """How far time goes at once, on average."""
    weights: dict[Action, float] = field(default_factory=lambda: dict(WEIGHTS))


MACHINES = (
    Machine(24, 1, 512, 2),
    Machine(12, 1, 256, 1, fit_percent=80),
    Machine(8, 0, 0, 4, runners_max=2),
    Machine(16, 2, 512, 3, runners_max=3, fit_percent=80),
    Machine(6, 0, 0, 1),
)
PLAIN = Setting(
    config=CoreConfig(
        queue_per_model_max=6,
        queue_total_max=14,
        queue_wait_max_us=SpanUs(40 * SECOND),
        drain_after_us=SpanUs(5 * SECOND),
        load_timeout_us=SpanUs(60 * SECOND),
        unload_timeout_us=SpanUs(20 * SECOND),
        zombie_max_us=SpanUs(30 * SECOND),
        ejection_max_us=SpanUs(20 * SECOND),
        models={
            "ant": ModelConfig(pinned=True, context_classes=(32_768,)),
            "dog": ModelConfig(context_classes=(2048, 16_384)),
            "eel": ModelConfig(num_ctx=4096, context_classes=(16_384,)),
        },
    ),
    machines=MACHINES,
    sizes={
        name: Size(
            weights=(3 if name in ("cat", "dog") else number + 1) * GIB,
            context_max=16_384 if name == "fox" else 0,
            parallel_max=1 if name == "bee" else 0,
            embedding=name == "bee",
        )
        for number, name in enumerate(NAMES[:10])
    },
)


def draw(rng: random.Random) -> Setting:
    """Everything that is fixed for one seed."""
    names = NAMES[: rng.choice((4, 7, 10, 10, 14))]
    weights = dict(WEIGHTS)
    for action in RARER:
        if rng.random() < RARE:
            weights[action] = 0.0
    weights[Action.arrive] *= rng.choice((0.5, 1, 1, 2))
    weights[Action.finish] *= rng.choice((0.5, 1, 1, 2))
    return Setting(
        config=_limits(rng, names),
        machines=tuple(_machine(rng) for _ in range(rng.randrange(1, 5))),
        sizes=_sizes(rng, names),
        workers_max=rng.choice((1, 2, 3, 4, 6)),
        real_percent=rng.choice((85, 95, 100)),
        tenants=rng.choice((1, 1, 2, 3, 8)),
        sticky=rng.choice((0.0, 0.7)),
        low_share=rng.choice((0.0, 0.0, 0.3)),
        high_share=rng.choice((0.0, 0.0, 0.2)),
        honouring=rng.choice((0.2, 0.8)),
        short_share=rng.choice((0.0, 0.1, 0.3)),
        poison_share=rng.choice((0.0, 0.3, 0.6)),
        broken=tuple(name for name in names if rng.random() < 0.25) if rng.random() < 0.3 else (),
        pace_us=rng.choice((200_000, SECOND, 2 * SECOND, 5 * SECOND)),
        weights=weights,
    )


def with_classes(rng: random.Random, config: CoreConfig, names: tuple[str, ...]) -> CoreConfig:
    """The same with context classes of some models; mostly without."""
    said = dict(config.models)
    often = rng.choice((0.0, 0.0, 0.2, 0.5))
    for name in names:
        if rng.random() < often:
            classes = tuple(rng.sample(CLASSES, rng.choice((1, 1, 2, 3))))
            said[name] = msgspec.structs.replace(said.get(name, ModelConfig()), context_classes=classes)
    return msgspec.structs.replace(config, models=said)


CLASSES = (2048, 4096, 16_384, 32_768)


def _machine(rng: random.Random) -> Machine:
    return Machine(
        capacity_gib=rng.choice((6, 8, 12, 16, 24, 24, 48)),
        headroom_gib=rng.choice((0, 0, 1, 2)),
        overhead_mib=rng.choice((0, 256, 512)),
        parallel=rng.choice((1, 1, 2, 4, 8)),
        runners_max=rng.choice((0, 0, 2, 3)),
        fit_percent=rng.choice((80, 100)),
    )


def _sizes(rng: random.Random, names: tuple[str, ...]) -> dict[str, Size]:
    sizes: dict[str, Size] = {}
    for name in names:
        sizes[name] = Size(
            weights=rng.choice((512 * MIB, GIB, 2 * GIB, 3 * GIB, 4 * GIB, 5 * GIB, 8 * GIB, 14 * GIB)),
            kv_bytes_per_token=rng.choice((0, 0, 32_768, 131_072)),
            context_max=rng.choice((0, 0, 0, 4096, 16_384)),
            parallel_max=rng.choice((0, 0, 0, 0, 1)),
            embedding=rng.random() < 0.15,
        )
    for name, other in TWINS.items():
        if name in sizes and other in sizes:
            sizes[name] = sizes[other]
    return sizes


def _limits(rng: random.Random, names: tuple[str, ...]) -> CoreConfig:
    """Limits that a short life can reach."""
    said: dict[str, ModelConfig] = {}
    for name in names:
        if rng.random() < 0.15:
            said[name] = ModelConfig(num_ctx=rng.choice((0, 2048, 4096, 32_768)), pinned=rng.random() < 0.4)
    spans: dict[str, Any] = {
        "queue_wait_max_us": rng.choice((10, 40, 120)),
        "retry_after_max_us": rng.choice((5, 30, 60)),
        "exclusion_us": rng.choice((1, 5, 10)),
        "drain_after_us": rng.choice((1, 5, 10)),
        "suspicion_us": rng.choice((1, 2)),
        "worker_lost_grace_us": rng.choice((3, 10, 20)),
        "load_timeout_us": rng.choice((5, 20, 60)),
        "unload_timeout_us": rng.choice((3, 20)),
        "operation_grace_us": rng.choice((1, 10)),
        "load_backoff_us": rng.choice((1, 5)),
        "load_backoff_max_us": rng.choice((10, 60)),
        "adopt_every_us": rng.choice((5, 30)),
        "zombie_max_us": rng.choice((5, 30)),
        "batch_max_us": rng.choice((1, 5, 15)),
        "drain_max_us": rng.choice((2, 10, 30)),
        "switch_dwell_us": rng.choice((20, 60, 60)),
        "breaker_window_us": rng.choice((10, 30)),
        "ejection_us": rng.choice((1, 5)),
        "ejection_max_us": rng.choice((4, 60)),
        "slow_start_us": rng.choice((4, 20)),
        "retry_window_us": rng.choice((10, 30)),
        "poison_us": rng.choice((10, 60)),
    }
    limits: dict[str, Any] = {name: SpanUs(seconds * SECOND) for name, seconds in spans.items()}
    return CoreConfig(
        default_num_ctx=rng.choice((2048, 8192)),
        queue_per_model_max=rng.choice((2, 6, 6, 20, 64)),
        queue_total_max=rng.choice((8, 14, 40, 200)),
        attempts_max=rng.choice((1, 2, 3, 3)),
        load_failures_max=rng.choice((1, 3)),
        unreachable_max=rng.choice((1, 2, 3)),
        breaker_failures=rng.choice((2, 3, 100)),
        breaker_outcomes=rng.choice((3, 10)),
        retry_percent=rng.choice((0, 10)),
        retry_floor=rng.choice((0, 1, 10)),
        eviction=rng.choice(sorted(POLICIES)),
        models=said,
        ahead=rng.random() < 0.8,
        shadows=rng.random() < 0.95,
        switch_policy=rng.random() < 0.95,
        switch_loads_min=rng.choice((2, 4)),
        **limits,
    )


SETTABLE = (
    "default_num_ctx", "queue_per_model_max", "queue_total_max", "queue_wait_max_us", "drain_after_us", "drain_max_us",
    "batch_max_us", "load_timeout_us", "worker_lost_grace_us", "exclusion_us", "eviction", "ahead", "switch_policy",
    "models",
)  # fmt: skip
"""What an operator may change in mid-life; of the tenants the weights."""


def change(rng: random.Random, config: CoreConfig, names: tuple[str, ...]) -> CoreConfig:
    """Some of the settings anew."""
    drawn = _limits(rng, names)
    some = {name: getattr(drawn, name) for name in SETTABLE if rng.random() < 0.4}
    if rng.random() < 0.4:
        some["tenants"] = {f"tenant-{number}": TenantConfig(weight=rng.choice((1, 2, 7))) for number in range(3)}
    return msgspec.structs.replace(config, **some)
