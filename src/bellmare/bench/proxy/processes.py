"""What a process and all its threads and children have used, from /proc. Linux only."""

from pathlib import Path

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


def cpu_us(pid: int) -> float:
    """User and system microseconds of all threads of the tree, by the scheduler's own nanoseconds.

    ``stat`` counts in ticks of 10 ms. Threads that have ended are not in it.
    """
    total_ns = 0
    for member in tree(pid):
        for schedstat in (_PROC / str(member) / "task").glob("*/schedstat"):
            try:
                total_ns += int(schedstat.read_text().split()[0])
            except OSError:
                continue
    return total_ns / 1000


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
