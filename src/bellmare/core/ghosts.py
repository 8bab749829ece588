"""A ghost: what the fleet would hold if one policy decided on demand only, one copy of each model. Metadata only.

It sees the requests that the real fleet took in, knows what the core knows of bytes and times, and chooses victims by
the same rules. It never changes what the real fleet does.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from bellmare.core.bins import Space, put, refile, room_of, take
from bellmare.core.costs import canonical_num_ctx, load_estimate_us, need_bytes, predicted_bytes, unload_estimate_us
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.fleet import Fleet
from bellmare.core.shadow_state import Bin, Held, Shadow
from bellmare.core.state import Model, Worker
from bellmare.core.tallies import book_cold_start, book_load
from bellmare.core.units import InstantUs, SpanUs
from bellmare.core.victims import Claim, cheapest, fits, prefix

WEIGHED_MAX = 3
"""Full bins whose victims are compared for one load: each costs some 20 us, and the third seldom wins."""
FITS_LOOKED_MAX = 8
"""Bins with room that are looked at for one whose worker stores the model."""
WALKED_MAX = 64
"""Workers looked at along the model's own order, as ``placement`` does."""


class Asked(NamedTuple):
    """What a ghost is told: requests for one model, and how long each holds a slot."""

    model: Model
    service_us: SpanUs
    times: int = 1


class Place(NamedTuple):
    """Where a model would be loaded, and who would leave."""

    space: Space
    claim: Claim
    victims: list[Held]


def arrived(fleet: Fleet, shadow: Shadow, policy: EvictionPolicy, *, asked: Asked) -> None:
    """Take in one request, or several at about the same instant."""
    now_us = fleet.now_us
    model, service_us, times = asked
    place = shadow.where.get(model.model)
    found = shadow.bins[place] if place is not None else None
    if found is not None and found.in_routing:
        held = found.held[model.model]
        policy.asked(fleet, model, held=True)
        held.used_us = now_us
        start_us = now_us
        if held.ready_us > now_us:
            book_cold_start(shadow.tally, now_us, times)
            start_us = held.ready_us
        held.busy_us = InstantUs(max(held.busy_us, start_us + service_us))
        return
    if found is not None:  # on a worker that is away: loaded again elsewhere
        take(found, model.model)
        del shadow.where[model.model]
    policy.asked(fleet, model, held=False)
    book_cold_start(shadow.tally, now_us, times)
    _load(fleet, shadow, policy, model=model, service_us=service_us)


def _load(fleet: Fleet, shadow: Shadow, policy: EvictionPolicy, *, model: Model, service_us: SpanUs) -> None:
    place = _choose(fleet, shadow, policy, model=model)
    if place is None:
        return  # it fits nowhere now, such as when only a lost worker is large enough
    now_us = fleet.now_us
    worker, found = place.space.worker, place.space.bin
    for victim in place.victims:
        policy.left(fleet, victim)
        take(found, victim.model)
        del shadow.where[victim.model]
    if model.context or model.classes:
        _let_siblings_go(fleet, shadow, policy, model=model, found=found)
    load_us = load_estimate_us(worker, model)
    book_load(shadow.tally, now_us, load_us)
    begin_us = max(now_us, found.loader_us) + len(place.victims) * unload_estimate_us(worker)
    found.loader_us = InstantUs(begin_us + load_us)
    put(
        shadow,
        worker.worker,
        Held(
            model=model.model,
            bytes=place.claim.need_bytes,
            used_us=now_us,
            load_us=load_us,
            ready_us=found.loader_us,
            busy_us=InstantUs(found.loader_us + service_us),
        ),
    )
    shadow.where[model.model] = worker.worker
    refile(shadow, found, room_of(worker) - found.used_bytes)


def _let_siblings_go(fleet: Fleet, shadow: Shadow, policy: EvictionPolicy, *, model: Model, found: Bin) -> None:
    """A worker runs a blob once: its other contexts leave for this one, used or not, and cost the ghost no time."""
    for one in fleet.family(model):
        held = found.held.get(one.model)
        if held is not None:
            policy.left(fleet, held)
            take(found, one.model)
            del shadow.where[one.model]


def _choose(fleet: Fleet, shadow: Shadow, policy: EvictionPolicy, *, model: Model) -> Place | None:
    """The tightest bin with room, else the cheapest victims of the first few along the model's own order."""
    num_ctx = canonical_num_ctx(fleet, model)
    for worker in _with_room(fleet, shadow, model):
        space, claim = _look(shadow, worker, model=model, num_ctx=num_ctx)
        if fits(space, claim):
            return Place(space, claim, [])
        refile(shadow, space.bin, space.free_bytes)
    best: Place | None = None
    best_price = 0.0
    weighed = 0
    for index in fleet.preference(model)[:WALKED_MAX]:
        worker = fleet.at(index)
        found = shadow.bins.get(worker.worker)
        if found is None or not found.in_routing:
            continue
        space, claim = _look(shadow, worker, model=model, num_ctx=num_ctx)
        victims = [] if fits(space, claim) else _victims(fleet, policy, space, claim=claim)
        if victims is None:
            continue
        price = policy.loss(fleet, victims) if victims else 0.0
        if best is None or price < best_price:
            best, best_price = Place(space, claim, victims), price
        weighed += 1
        if weighed == WEIGHED_MAX or not victims:
            break
    return best


def _with_room(fleet: Fleet, shadow: Shadow, model: Model) -> Iterator[Worker]:
    start = bisect_left(shadow.room, (int(model.least_bytes), -1))
    for _, index in shadow.room[start : start + FITS_LOOKED_MAX]:
        worker = fleet.at(index)
        if worker.worker in model.holders:
            yield worker


def _look(shadow: Shadow, worker: Worker, *, model: Model, num_ctx: int) -> tuple[Space, Claim]:
    claim = Claim(need_bytes(worker, model, num_ctx), predicted_bytes(worker, model, num_ctx))
    return Space(worker, shadow.bins[worker.worker]), claim


def _victims(fleet: Fleet, policy: EvictionPolicy, space: Space, *, claim: Claim) -> list[Held] | None:
    """Who leaves for the load: idle ones by the policy, those in use only if nothing else is left; None: in vain."""
    now_us = fleet.now_us
    idle: list[Held] = []
    busy: list[Held] = []
    for held in space.runners.values():
        if fleet.configured and fleet.model_config(fleet.state.models[held.model]).pinned:
            continue
        (busy if held.busy_us > now_us else idle).append(held)
    if policy.prices:
        chosen = cheapest(fleet, policy, space, claim=claim, idle=idle)
        if chosen is not None or not busy:
            return chosen
    return prefix(space, claim, policy.rank(fleet, idle) + (policy.rank(fleet, busy) if busy else []))
