"""The memory of workers as shadows fill it: plain books, and their order by free bytes. Decides nothing."""

from bisect import bisect_left, insort

from bellmare.core.knowledge import Experience
from bellmare.core.shadow_state import Bin, Held, Shadow
from bellmare.core.state import State, Worker
from bellmare.core.units import InstantUs, ModelId, WorkerId


class Space:
    """A bin with the real worker's limits, where ``victims`` expects a worker. Lives for one look."""

    __slots__ = ("bin", "capacity_known", "fit_percent", "free_bytes", "headroom_bytes", "runners", "runners_max",
                 "unload_us", "worker")  # fmt: skip

    def __init__(self, worker: Worker, held: Bin) -> None:
        self.worker = worker
        self.bin = held
        self.runners = held.held
        self.capacity_known = worker.capacity_known
        self.runners_max = worker.runners_max
        self.fit_percent = worker.fit_percent
        self.headroom_bytes = worker.headroom_bytes
        self.unload_us = worker.unload_us
        self.free_bytes = room_of(worker) - held.used_bytes


def room_of(worker: Worker) -> int:
    """What all runners together may take on the real worker."""
    return worker.capacity_bytes - worker.headroom_bytes - worker.foreign_bytes


def open_bin(shadow: Shadow, found: Bin, *, key: int) -> None:
    """Put the bin in routing, filed under ``key``."""
    if not found.in_routing:
        found.in_routing = True
        found.filed = key
        insort(shadow.room, (key, found.index))


def close_bin(shadow: Shadow, worker: WorkerId) -> None:
    """Out of routing; what it holds stays until it is known to be gone."""
    found = shadow.bins.get(worker)
    if found is not None and found.in_routing:
        _unfile(shadow, found)
        found.in_routing = False


def drop_bin(shadow: Shadow, worker: WorkerId) -> None:
    """The worker left the fleet."""
    close_bin(shadow, worker)
    found = shadow.bins.pop(worker, None)
    if found is not None:
        for model in found.held:
            shadow.where.pop(model, None)


def empty_bin(shadow: Shadow, found: Bin) -> None:
    """What it held is gone."""
    for model in found.held:
        shadow.where.pop(model, None)
    found.held = {}
    found.used_bytes = 0
    found.loader_us = InstantUs(0)


def refile(shadow: Shadow, found: Bin, key: int) -> None:
    """Its free bytes, or its connections, are ``key`` now."""
    if found.filed != key and found.in_routing:
        _unfile(shadow, found)
        found.filed = key
        insort(shadow.room, (key, found.index))


def _unfile(shadow: Shadow, found: Bin) -> None:
    del shadow.room[bisect_left(shadow.room, (found.filed, found.index))]


def put(shadow: Shadow, worker: WorkerId, held: Held) -> None:
    found = shadow.bins[worker]
    found.held[held.model] = held
    found.used_bytes += held.bytes


def take(found: Bin, model: ModelId) -> None:
    found.used_bytes -= found.held.pop(model).bytes


def forget(state: State, model: ModelId) -> None:
    """The core knows the model no more: no shadow holds it, no policy remembers it."""
    _unlearn(state.experience, model)
    for shadow in state.shadows.ghosts.values():
        _unlearn(shadow.experience, model)
        shadow.where.pop(model, None)
        for found in shadow.bins.values():
            if model in found.held:
                take(found, model)


def _unlearn(experience: Experience, model: ModelId) -> None:
    experience.priority.pop(model, None)
    experience.histogram.pop(model, None)
