"""The ghost of stock Ollama: the same requests straight to the workers, behind a balancer that knows nothing of models.

keep_alive five minutes, three models per GPU, the victim is who would expire first (ollama.md 3; its ties are by blob),
least connections with ties to the first worker, which is kind to it.
"""

from heapq import heappop, heappush

from bellmare.core.bins import put, refile, room_of, take
from bellmare.core.costs import canonical_num_ctx, load_estimate_us, need_bytes, predicted_bytes, unload_estimate_us
from bellmare.core.fleet import Fleet
from bellmare.core.ghosts import Asked
from bellmare.core.shadow_state import Bin, Held, Shadow
from bellmare.core.state import Model, Worker
from bellmare.core.tallies import book_cold_start, book_load
from bellmare.core.units import SECOND_US, InstantUs

KEEP_ALIVE_US = 300 * SECOND_US
MODELS_MAX = 3
"""OLLAMA_MAX_LOADED_MODELS for one GPU."""
WALKED_MAX = 64
"""Workers looked at by connections for one that stores the model."""
ENDS_MAX = 4_096
"""Requests under way that are remembered: a thousand workers with four slots. Beyond, the first to end has ended."""


def arrived(fleet: Fleet, shadow: Shadow, asked: Asked) -> None:
    """Take in one request, or several at about the same instant: those count as one connection."""
    now_us = fleet.now_us
    model, service_us, times = asked
    _end(fleet, shadow, now_us)
    worker = _pick(fleet, shadow, model)
    if worker is None:
        return
    found = shadow.bins[worker.worker]
    held = found.held.get(model.model)
    if held is None or held.busy_us + KEEP_ALIVE_US <= now_us:
        held = _load(fleet, shadow, worker, model=model)
    if held.ready_us > now_us:
        book_cold_start(shadow.tally, now_us, times)
    end_us = InstantUs(max(held.ready_us, now_us) + service_us)
    held.used_us = now_us
    held.busy_us = max(held.busy_us, end_us)
    heappush(shadow.ends, (end_us, worker.index))
    _connect(shadow, found, 1)
    if len(shadow.ends) > ENDS_MAX:
        _end_first(fleet, shadow)


def _pick(fleet: Fleet, shadow: Shadow, model: Model) -> Worker | None:
    """Least connections among the workers that store the model, as far as ``WALKED_MAX``."""
    for _, index in shadow.room[:WALKED_MAX]:
        worker = fleet.at(index)
        if worker.worker in model.holders:
            return worker
    for index in fleet.preference(model)[:WALKED_MAX]:
        worker = fleet.at(index)
        found = shadow.bins.get(worker.worker)
        if found is not None and found.in_routing:
            return worker
    return None


def _load(fleet: Fleet, shadow: Shadow, worker: Worker, *, model: Model) -> Held:
    """Make room as Ollama does: what has expired is gone, then whoever would expire next, idle before busy."""
    now_us, found = fleet.now_us, shadow.bins[worker.worker]
    for held in [held for held in found.held.values() if held.busy_us + KEEP_ALIVE_US <= now_us]:
        take(found, held.model)
    for one in fleet.family(model):  # another context of a blob is a reload of it
        if one.model in found.held:
            take(found, one.model)
    num_ctx = canonical_num_ctx(fleet, model)
    need, predicted = need_bytes(worker, model, num_ctx), predicted_bytes(worker, model, num_ctx)
    room = room_of(worker)
    begin_us: int = max(now_us, found.loader_us)
    while found.held:
        free = room - found.used_bytes
        fits = need <= free and predicted * 100 <= (free + worker.headroom_bytes) * worker.fit_percent
        if fits and len(found.held) < MODELS_MAX:
            break
        victim = min(found.held.values(), key=lambda held: (held.busy_us, held.model))
        begin_us = max(begin_us, victim.busy_us) + unload_estimate_us(worker)
        take(found, victim.model)
    load_us = load_estimate_us(worker, model)
    book_load(shadow.tally, now_us, load_us)
    ready_us = InstantUs(begin_us + load_us)
    found.loader_us = ready_us
    fresh = Held(model=model.model, bytes=need, used_us=now_us, load_us=load_us, ready_us=ready_us, busy_us=ready_us)
    put(shadow, worker.worker, fresh)
    return fresh


# ---------------------------------------------------------------------- connections


def _end(fleet: Fleet, shadow: Shadow, now_us: InstantUs) -> None:
    while shadow.ends and shadow.ends[0][0] <= now_us:
        _end_first(fleet, shadow)


def _end_first(fleet: Fleet, shadow: Shadow) -> None:
    _, index = heappop(shadow.ends)
    found = shadow.bins.get(fleet.state.roster[index])
    if found is not None and found.connections:
        _connect(shadow, found, -1)


def _connect(shadow: Shadow, found: Bin, change: int) -> None:
    """One request more or less. The order by connections is ``Shadow.room``."""
    found.connections += change
    refile(shadow, found, found.connections)
