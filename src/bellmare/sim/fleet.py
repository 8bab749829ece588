"""The machines of a run: how many workers, how much memory each, how fast they load. Numbers only."""

import re

import msgspec

from bellmare.core.units import MIB, SECOND_US, WorkerId
from bellmare.sim.workload import SimModel

WORKERS_MAX = 1_000
UNITS = {"GB": 1_000_000_000, "GIB": 1 << 30}
_FLEET = re.compile(r"(\d{1,4})x(\d{1,4}(?:\.\d{1,3})?)(GB|GiB)", re.IGNORECASE)
FOOTPRINT_PERCENT = 108
FOOTPRINT_BYTES = 512 * MIB
"""A runner takes weights x 1.08 + 0.5 GiB (policy.md 3): KV cache at a usual context, compute buffers, CUDA context."""


class FleetError(ValueError):
    """A fleet that cannot be read, with the reason."""


class SimFaults(msgspec.Struct, frozen=True):
    """How often machines fail (policy.md 6, S10). What comes of it is in ``faults``."""

    lost_per_day: float = 0.0
    """Losses per worker and day; what was loaded there is gone."""
    away_min_us: int = 20 * SECOND_US
    away_max_us: int = 300 * SECOND_US
    """A server that restarts, and a machine that boots."""
    load_failed_percent: float = 0.0
    load_slow_percent: float = 0.0
    slow_factor: int = 4
    """A slow load takes so many times as long: a disk that others use too."""


class SimFleet(msgspec.Struct, frozen=True):
    """Equal workers of one GPU each. Spans and rates are those of policy.md 3."""

    workers: int
    vram_bytes: int
    host_cache_bytes: int = 0
    """Page cache per worker that keeps weights files, least recently loaded out first; zero: none."""
    spawn_us: int = SECOND_US
    unload_us: int = 750_000
    disk_bytes_per_s: int = 2_000_000_000
    host_bytes_per_s: int = 6_000_000_000
    """From the page cache to the GPU."""
    faults: SimFaults | None = None

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return f"{self.workers}x{self.vram_bytes / UNITS['GB']:g}GB"

    def names(self) -> tuple[WorkerId, ...]:
        """Ids of the workers in order."""
        return tuple(WorkerId(f"gpu-{number:03d}") for number in range(self.workers))


def read_fleet(text: str) -> SimFleet:
    """``4x24GB``: four workers of 24 GB. GB are powers of ten, GiB of two. Raises ``FleetError``."""
    found = _FLEET.fullmatch(text.strip())
    if found is None:
        raise FleetError(f"fleet '{text}': write the number of workers and the memory of each, as in 4x24GB")
    workers, vram_bytes = int(found[1]), int(float(found[2]) * UNITS[found[3].upper()])
    if not 1 <= workers <= WORKERS_MAX:
        raise FleetError(f"fleet '{text}': between 1 and {WORKERS_MAX} workers")
    if not vram_bytes:
        raise FleetError(f"fleet '{text}': a worker needs memory")
    return SimFleet(workers=workers, vram_bytes=vram_bytes)


def footprint_bytes(model: SimModel) -> int:
    """What a runner of ``model`` takes on the GPU."""
    return model.weights_bytes * FOOTPRINT_PERCENT // 100 + FOOTPRINT_BYTES


def load_us(fleet: SimFleet, model: SimModel, *, cached: bool) -> int:
    """From the load call to a ready runner."""
    rate = fleet.host_bytes_per_s if cached else fleet.disk_bytes_per_s
    return fleet.spawn_us + model.weights_bytes * SECOND_US // rate
