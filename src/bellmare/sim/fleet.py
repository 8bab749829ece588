"""The machines of a run: the memory of each worker, how fast it loads. Numbers only; fleets may be unequal."""

import re
from collections.abc import Callable
from itertools import groupby

import msgspec

from bellmare.core.units import MIB, SECOND_US, WorkerId
from bellmare.sim.workload import SimModel

WORKERS_MAX = 1_000
GROUPS_MAX = 100
"""Parts of one fleet, joined by ``+``."""
UNITS = {"GB": 1_000_000_000, "GIB": 1 << 30}
SPAN_MAX_S = 3600.0
"""Longest spawn or unload that may be asked for: longer is a slip of the pen."""
FOOTPRINT_PERCENT = 108
FOOTPRINT_BYTES = 512 * MIB
"""A runner takes weights x 1.08 + 0.5 GiB (policy.md 3): KV cache at a usual context, compute buffers, CUDA context."""
HOW = "write the number of workers and the memory of each, as in 4x24GB, 2x24GB+1x48GB or 1x24GB,ram=64GB,disk=2GB/s"

_GROUP = re.compile(r"(\d{1,4})x(\d{1,4}(?:\.\d{1,3})?)(GB|GiB)", re.IGNORECASE)
_BYTES = re.compile(r"(\d{1,5}(?:\.\d{1,4})?)(GB|GiB)", re.IGNORECASE)
_RATE = re.compile(r"(\d{1,5}(?:\.\d{1,4})?)(GB|GiB)/s", re.IGNORECASE)
_SPAN = re.compile(r"(\d{1,4}(?:\.\d{1,3})?)s", re.IGNORECASE)


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


class SimMachine(msgspec.Struct, frozen=True):
    """One worker of one GPU. Spans and rates are those of policy.md 3."""

    vram_bytes: int
    host_cache_bytes: int = 0
    """Page cache that keeps weights files, least recently loaded out first; zero: none."""
    spawn_us: int = SECOND_US
    unload_us: int = 750_000
    disk_bytes_per_s: int = 2_000_000_000
    host_bytes_per_s: int = 6_000_000_000
    """From the page cache to the GPU."""
    faults: SimFaults | None = None

    @property
    def text(self) -> str:
        """As it is written on the command line, without the number of such machines."""
        usual = SimMachine(self.vram_bytes)
        said = [_gb(self.vram_bytes)]
        for name, field, _, write in _OPTIONS:
            if getattr(self, field) != getattr(usual, field):
                said.append(f"{name}={write(getattr(self, field))}")
        return ",".join(said)


class SimFleet(msgspec.Struct, frozen=True):
    """Workers in order, each with a machine of its own."""

    machines: tuple[SimMachine, ...]
    faults: SimFaults | None = None
    """Not part of ``text``: they belong to a scenario."""

    @property
    def workers(self) -> int:
        """How many."""
        return len(self.machines)

    @property
    def text(self) -> str:
        """As it is written on the command line; :func:`read_fleet` reads it back."""
        return "+".join(f"{len(list(same))}x{machine.text}" for machine, same in groupby(self.machines))

    def names(self) -> tuple[WorkerId, ...]:
        """Ids of the workers in order."""
        return tuple(WorkerId(f"gpu-{number:03d}") for number in range(self.workers))

    def by_name(self) -> dict[WorkerId, SimMachine]:
        """The machine of each worker, in order."""
        return dict(zip(self.names(), self.machines, strict=True))


def read_fleet(text: str) -> SimFleet:
    """``4x24GB``: four workers of 24 GB. GB are powers of ten, GiB of two. Raises ``FleetError``.

    Groups are joined by ``+``, and each may go on with options after commas: ``ram=64GB`` (page cache), ``disk=2GB/s``,
    ``bus=6GB/s`` (page cache to GPU), ``spawn=1s``, ``unload=0.75s``.
    """
    groups = text.split("+")
    if len(groups) > GROUPS_MAX:
        raise FleetError(f"fleet of {len(groups)} groups: at most {GROUPS_MAX}")
    machines: list[SimMachine] = []
    for group in groups:
        count, machine = _read_group(group, whole=text)
        if not 1 <= count <= WORKERS_MAX - len(machines):
            raise FleetError(f"fleet '{text}': between 1 and {WORKERS_MAX} workers")
        machines.extend([machine] * count)
    return SimFleet(tuple(machines))


def _read_group(group: str, *, whole: str) -> tuple[int, SimMachine]:
    head, *options = group.strip().split(",")
    found = _GROUP.fullmatch(head)
    if found is None:
        raise FleetError(f"fleet '{whole}': {HOW}")
    vram_bytes = int(float(found[2]) * UNITS[found[3].upper()])
    if not vram_bytes:
        raise FleetError(f"fleet '{whole}': a worker needs memory")
    changes: dict[str, int] = {}
    for option in options:
        name, _, value = option.strip().partition("=")
        known = next((entry for entry in _OPTIONS if entry[0] == name), None)
        if known is None:
            raise FleetError(f"fleet '{whole}': no option '{name}'; there are {', '.join(o[0] for o in _OPTIONS)}")
        number = known[2](value)
        if number is None:
            raise FleetError(f"fleet '{whole}': '{value}' is no value of {name}; {HOW}")
        changes[known[1]] = number
    return int(found[1]), msgspec.structs.replace(SimMachine(vram_bytes), **changes)


def _gb(size: int) -> str:
    return f"{size / UNITS['GB']:.9f}".rstrip("0").rstrip(".") + "GB"


def _read_bytes(text: str) -> int | None:
    found = _BYTES.fullmatch(text)
    return None if found is None else int(float(found[1]) * UNITS[found[2].upper()])


def _read_rate(text: str) -> int | None:
    found = _RATE.fullmatch(text)
    rate = 0 if found is None else int(float(found[1]) * UNITS[found[2].upper()])
    return rate or None  # at no bytes a second nothing would ever be loaded


def _read_span(text: str) -> int | None:
    found = _SPAN.fullmatch(text)
    span_s = None if found is None else float(found[1])
    return None if span_s is None or span_s > SPAN_MAX_S else int(span_s * SECOND_US)


def _write_span(span_us: int) -> str:
    return f"{span_us / SECOND_US:g}s"


_OPTIONS: tuple[tuple[str, str, Callable[[str], int | None], Callable[[int], str]], ...] = (
    ("ram", "host_cache_bytes", _read_bytes, _gb),
    ("disk", "disk_bytes_per_s", _read_rate, lambda rate: f"{_gb(rate)}/s"),
    ("bus", "host_bytes_per_s", _read_rate, lambda rate: f"{_gb(rate)}/s"),
    ("spawn", "spawn_us", _read_span, _write_span),
    ("unload", "unload_us", _read_span, _write_span),
)
"""Name on the command line, field of the machine, how it is read and written."""


def footprint_bytes(model: SimModel) -> int:
    """What a runner of ``model`` takes on the GPU."""
    return model.weights_bytes * FOOTPRINT_PERCENT // 100 + FOOTPRINT_BYTES


def load_us(machine: SimMachine, model: SimModel, *, cached: bool) -> int:
    """From the load call to a ready runner."""
    rate = machine.host_bytes_per_s if cached else machine.disk_bytes_per_s
    return machine.spawn_us + model.weights_bytes * SECOND_US // rate
