"""What a process and all its threads and children have used, from /proc. Linux only."""

from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """``pid`` and all its descendants that are alive."""
    found = [pid]
    for parent in found:
        for listing in (_PROC / str(parent) / "task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue  # the thread has ended
    return found


class Used(NamedTuple):
    """What the threads of a tree had, in microseconds."""

    cpu_us: float = 0.0
    """User and system time, by the scheduler's own nanoseconds: ``stat`` counts in ticks of 10 ms."""
    waited_us: float = 0.0
    """Ready to run, while something else had the core."""


def used(pid: int) -> Used:
    """By all threads of the tree that are alive. Nothing for pid 0, which is nobody."""
    cpu_ns = waited_ns = 0
    if not pid:
        return Used()
    for member in tree(pid):
        for schedstat in (_PROC / str(member) / "task").glob("*/schedstat"):
            try:
                ran, waited, _ = schedstat.read_text().split()
            except (OSError, ValueError):
                continue  # the thread has ended
            cpu_ns += int(ran)
            waited_ns += int(waited)
    return Used(cpu_ns / 1000, waited_ns / 1000)


def memory_bytes(pid: int) -> int:
    """Proportional set size of the tree; resident size where the kernel does not tell."""
    total = 0
    for member in tree(pid):
        folder = _PROC / str(member)
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            total += _resident_bytes(folder)
    return total


def _resident_bytes(folder: Path) -> int:
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def measurable() -> bool:
    """Whether this machine tells what is needed."""
    return (_PROC / "self" / "schedstat").exists()
