"""Where a missing model should be loaded: filter, score, pick. Only plans; ``scheduler`` carries a plan out.

The work is bounded, whatever the fleet's size: the tightest fits by free memory, and a walk along the model's own
order of workers (rendezvous hashing), which only breaks ties and limits how many are weighed.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from bellmare.core.costs import canonical_num_ctx, load_estimate_us, need_bytes, predicted_bytes, unload_estimate_us
from bellmare.core.decisions import UnloadCause
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.starvation import may_be_drained
from bellmare.core.state import Model, Placement, Runner, Worker
from bellmare.core.units import SECOND_US, Bytes, SpanUs
from bellmare.core.victims import Claim, Space, Without, cheapest, fits, prefix

FITS_WEIGHED_MAX = 8
"""Workers with enough free memory that are weighed per placement."""
WEIGHED_MAX = 16
"""Workers weighed per placement in all; a fleet of up to so many is searched completely."""
CROWDED_PERCENT = 125
"""A worker with more than so much of the mean of requests in flight is passed over among equal plans."""
WALKED_MAX = 64
"""Workers looked at along the model's order; the rest is found when one of them becomes free."""


class Plan(NamedTuple):
    """Load ``model`` on ``worker`` after ``victims`` have left. Sorts by what it costs: lower is better."""

    busy: int
    """Victims that still serve requests."""
    loss: float
    """By the policy; one that prices in seconds counts the unloads and the load itself, too."""
    load_us: SpanUs
    crowd: int
    """1 if the worker has more than its share of all requests in flight, else 0: bounded-load rendezvous hashing."""
    capacity_bytes: Bytes
    """Of equal places the smallest GPU: only a large one takes a large model."""
    order: int
    worker: Worker
    victims: list[Runner]
    claim: Claim
    num_ctx: int
    lost: float
    """What the victims' going costs by the policy alone."""


def could_ever_fit(worker: Worker, model: Model, need: int, *, foreign_gone: bool = False) -> bool:
    """Whether the worker, emptied, could hold it, beside foreign memory or once that is gone.

    A guessed capacity never says no: only a measurement may.
    """
    room = worker.capacity_bytes - worker.headroom_bytes - (0 if foreign_gone else worker.foreign_bytes)
    return need <= room or not worker.capacity_known


def could_hold(fleet: Fleet, worker: Worker, model: Model, *, foreign_gone: bool = False) -> bool:
    """Whether the worker could ever be given it: large enough, and its blob not pinned there with another context."""
    held = fleet.held_on(worker, model)
    if held is not None and held.model != model.model and fleet.model_config(fleet.state.models[held.model]).pinned:
        return False
    need = need_bytes(worker, model, canonical_num_ctx(fleet, model))
    return could_ever_fit(worker, model, need, foreign_gone=foreign_gone)


def barred(fleet: Fleet, worker: Worker, model: Model) -> bool:
    """Whether the worker must not try a load of it now, because the last one there failed."""
    retry = worker.backoff.get(model.model)
    return retry is not None and retry[1] > fleet.now_us


def plan_on(fleet: Fleet, policy: EvictionPolicy, worker: Worker, *, model: Model, drain: bool) -> Plan | None:
    """The cheapest way to hold ``model`` on ``worker``, or None. ``drain`` allows victims that are busy."""
    sibling = fleet.held_on(worker, model)
    if (sibling is not None and sibling.model == model.model) or barred(fleet, worker, model):
        return None
    least = model.least_bytes  # a quick look first: most workers of a full fleet can make no room at all
    if least > worker.free_bytes and least > room_at_most(fleet, worker, drain=drain):
        return None
    num_ctx = canonical_num_ctx(fleet, model)
    claim = Claim(need_bytes(worker, model, num_ctx), predicted_bytes(worker, model, num_ctx))
    if not could_ever_fit(worker, model, claim.need_bytes):
        return None
    victims: list[Runner] | None = []
    if sibling is not None:
        leaving = victims_on(fleet, worker, drain=drain)
        victims = _beside_sibling(fleet, policy, worker, sibling, claim=claim, leaving=leaving)
    elif not fits(worker, claim):
        victims = _victims(fleet, policy, worker, claim=claim, leaving=victims_on(fleet, worker, drain=drain))
    if victims is None:
        return None
    load_us = load_estimate_us(worker, model)
    lost = _lost(fleet, policy, victims)
    return Plan(
        busy=sum(1 for runner in victims if runner.used),
        loss=lost + _work_s(worker, victims, load_us) if policy.prices else lost,
        load_us=load_us,
        crowd=_crowd(fleet, worker),
        capacity_bytes=worker.capacity_bytes,
        order=crc32(f"{model.model}|{worker.worker}".encode()),
        worker=worker,
        victims=victims,
        claim=claim,
        num_ctx=num_ctx,
        lost=lost,
    )


def _lost(fleet: Fleet, policy: EvictionPolicy, victims: list[Runner]) -> float:
    """What the victims' going costs; a copy that its model does not need costs nothing."""
    missed = [runner for runner in victims if not is_spare(fleet, runner)]
    return policy.loss(fleet, missed) if missed else 0.0


def _work_s(worker: Worker, victims: list[Runner], load_us: SpanUs) -> float:
    return (len(victims) * unload_estimate_us(worker) + load_us) / SECOND_US


def _crowd(fleet: Fleet, worker: Worker) -> int:
    running = len(fleet.state.requests) - fleet.state.waiting
    here = sum(len(runner.in_flight) for runner in worker.runners.values())
    return int(here * 100 * len(fleet.state.workers) > CROWDED_PERCENT * (running + 1))


def is_spare(fleet: Fleet, runner: Runner) -> bool:
    """Whether it is an idle copy beside others of which one has a free slot, unused for as long as its load took."""
    if runner.used or len(fleet.open[runner.model]) < 2 or runner.residency is not Residency.resident:
        return False
    return runner.used_us + runner.load_us <= fleet.now_us


Leaving = tuple[list[Runner], list[Runner]]
"""Who could leave: idle runners, and busy ones."""


def _beside_sibling(
    fleet: Fleet, policy: EvictionPolicy, worker: Worker, sibling: Runner, *, claim: Claim, leaving: Leaving
) -> list[Runner] | None:  # tidy: as ``_victims``, and who leaves in any case
    """The same blob is there with another context: it has to leave, by the rules for all, and then whoever else."""
    idle, busy = ([runner for runner in some if runner is not sibling] for some in leaving)
    if len(idle) + len(busy) == len(leaving[0]) + len(leaving[1]):
        return None
    space = Without(worker, sibling)
    if fits(space, claim):
        return [sibling]
    others = _victims(fleet, policy, space, claim=claim, leaving=(idle, busy))
    return None if others is None else [sibling, *others]


def _victims(
    fleet: Fleet, policy: EvictionPolicy, worker: Space, *, claim: Claim, leaving: Leaving
) -> list[Runner] | None:
    """The set that makes room at least cost, idle runners before busy ones; inclusion-minimal."""
    idle, busy = leaving
    leaving_bytes = sum(runner.bytes for runner in idle) + sum(runner.bytes for runner in busy)
    if not fits(worker, claim, leaving_bytes=leaving_bytes, leaving=len(idle) + len(busy)):
        return None
    if policy.prices:
        chosen = cheapest(fleet, policy, worker, claim=claim, idle=idle)
        if chosen is not None or not busy:
            return chosen
    spare = [runner for runner in idle if is_spare(fleet, runner)]
    if spare:
        idle = [runner for runner in idle if not is_spare(fleet, runner)]
    return prefix(worker, claim, policy.rank(fleet, spare) + policy.rank(fleet, idle) + policy.rank(fleet, busy))


def victims_on(fleet: Fleet, worker: Worker, *, drain: bool) -> Leaving:
    """Who could leave: idle runners, and busy ones if ``drain``.

    Before it has stayed as long as its load took, nobody leaves at once: an idle runner only for who has waited long
    enough to drain, a busy one not at all.
    """
    idle: list[Runner] = []
    busy: list[Runner] = []
    for runner in worker.runners.values():
        if runner.residency is not Residency.resident or (runner.used and not drain):
            continue
        stayed = fleet.evictable_us(runner) <= fleet.now_us and (not runner.used or may_be_drained(fleet, runner))
        if (stayed or (drain and not runner.used)) and evictable(fleet, worker, runner):
            (busy if runner.used else idle).append(runner)
    return idle, busy


def room_at_most(fleet: Fleet, worker: Worker, *, drain: bool) -> int:
    """No load of more bytes can be made to fit, whoever leaves."""
    if not worker.capacity_known:
        return worker.capacity_bytes + (1 << 62)  # an empty worker of unknown size is tried with anything
    idle, busy = victims_on(fleet, worker, drain=drain)
    return worker.free_bytes + sum(runner.bytes for runner in idle) + sum(runner.bytes for runner in busy)


def evictable(fleet: Fleet, worker: Worker, runner: Runner) -> bool:
    """Not pinned by the operator, nobody waits for it, and a name still reaches it."""
    model = fleet.state.models[runner.model]
    if fleet.model_config(model).pinned or (model.waiting and not runner.used):
        return False
    return fleet.name_on(worker, runner.model, prefer=runner.name) is not None


def why_gone(fleet: Fleet, placement: Placement, victim: Runner) -> UnloadCause:
    """For what a victim of a placement is unloaded."""
    models = fleet.state.models
    if models[victim.model].blob == models[placement.model].blob:
        return UnloadCause.context
    return UnloadCause.replica if victim.model in placement.spares else UnloadCause.room


def choose(fleet: Fleet, policy: EvictionPolicy, model: Model, *, drain: bool) -> Plan | None:
    """The best plan over the workers that are weighed, or None if none of them can make room now."""
    best: Plan | None = None
    for worker in _candidates(fleet, model):
        plan = plan_on(fleet, policy, worker, model=model, drain=drain)
        if plan is not None and (best is None or plan[:6] < best[:6]):
            best = plan
    return best


def choose_free(fleet: Fleet, policy: EvictionPolicy, model: Model) -> Plan | None:
    """A plan for one more copy that costs nobody anything: only workers with room to spare."""
    head = fleet.wanting(model)
    for worker in _tightest(fleet, model):
        if head is not None and not fleet.acceptable(worker, head):
            continue
        plan = plan_on(fleet, policy, worker, model=model, drain=False)
        if plan is not None and not plan.victims:
            return plan
    return None


def _candidates(fleet: Fleet, model: Model) -> Iterator[Worker]:
    head = fleet.wanting(model)
    seen: dict[int, None] = {}
    weighed = 0
    for worker in _in_order(fleet, model):
        if weighed == WEIGHED_MAX:
            return
        if worker.index in seen or worker.worker not in model.holders or not fleet.available(worker):
            continue
        if head is not None and not fleet.acceptable(worker, head):
            continue
        seen[worker.index] = None
        weighed += 1
        yield worker


def _in_order(fleet: Fleet, model: Model) -> Iterator[Worker]:
    yield from _tightest(fleet, model)
    if len(fleet.room) <= WEIGHED_MAX:
        for _, index in list(fleet.room):
            yield fleet.at(index)
        return
    for index in fleet.preference(model)[:WALKED_MAX]:
        yield fleet.at(index)


def _tightest(fleet: Fleet, model: Model) -> Iterator[Worker]:
    """Workers that can hold it without a victim, the tightest fit first, so that large rooms stay for large models."""
    if len(model.holders) <= WEIGHED_MAX:
        near = [fleet.state.workers[worker] for worker in model.holders]
        near = [worker for worker in near if worker.free_bytes >= model.least_bytes and fleet.available(worker)]
        yield from sorted(near, key=lambda worker: (worker.free_bytes, worker.index))
        return
    need = model.least_bytes
    start = bisect_left(fleet.room, (need, -1))
    for _, index in fleet.room[start : start + FITS_WEIGHED_MAX]:
        worker = fleet.at(index)
        if worker.worker in model.holders:
            yield worker
