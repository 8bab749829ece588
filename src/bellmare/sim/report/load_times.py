"""Shows how long loads took in a recorded fleet, and which fleet on the command line is as slow."""

from collections.abc import Sequence

from rich.table import Table

from bellmare.sim.workloads.gentd26 import LoadTimes


def load_times_table(found: Sequence[LoadTimes]) -> Table:
    """One line for each kind of load."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("loads of")
    for title in ("count", "p50 s", "p90 s", "p99 s"):
        shown.add_column(title, justify="right")
    shown.add_column("a fleet whose median load is as long")
    for line in found:
        rate = "-" if line.disk_bytes_per_s is None else f"--fleet 1x24GB,disk={line.disk_bytes_per_s / 1e9:.3f}GB/s"
        shown.add_row(line.kind, str(line.loads), f"{line.p50_s:.1f}", f"{line.p90_s:.1f}", f"{line.p99_s:.1f}", rate)
    return shown
