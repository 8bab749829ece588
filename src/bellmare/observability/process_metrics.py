"""What the process itself holds, read when scraped: memory, descriptors, tasks, connections, how late its loop is."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class ReloadState:
    """What became of the settings' last reload; start-up counts as one that succeeded."""

    succeeded: bool = True
    succeeded_s: float = 0.0
    """When, in seconds since 1970."""
    reloads: int = 0
    failures: int = 0


@dataclass(slots=True, frozen=True)
class ProcessSource:
    """Where the figures come from."""

    worst_lag_s: Callable[[], float]
    stalled_s: Callable[[], float]
    clients: Callable[[], int]
    """Open connections of clients."""
    workers: Callable[[], int]
    """Open connections to workers."""
    standby: Callable[[], bool]
    reload: Callable[[], ReloadState]


class ProcessMetrics(Collector):
    """Collected by ``Metrics``."""

    def __init__(self, source: ProcessSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        source = self._source
        yield _gauge("event_loop_lag_seconds", "The worst lateness of the last 15 to 30 s", source.worst_lag_s())
        yield _counter(
            "event_loop_stalled_seconds", "Sum of lateness, looked at four times a second", source.stalled_s()
        )
        yield _gauge("tasks", "Tasks of the event loop", len(asyncio.all_tasks()))
        yield _gauge("open_descriptors", "Open files and sockets; -1 without /proc", open_descriptors())
        yield _gauge("resident_bytes", "Resident memory of the process; -1 without /proc", resident_bytes())
        yield _gauge("client_connections", "Open connections of clients", source.clients())
        yield _gauge("worker_connections", "Open connections to workers", source.workers())
        yield _gauge("standby", "1 while another process decides what is resident", int(source.standby()))
        reload = source.reload()
        yield _gauge(
            "config_reload_success", "Whether the last reload of the settings succeeded", int(reload.succeeded)
        )
        yield _gauge("config_reload_success_timestamp_seconds", "When one last did", reload.succeeded_s)
        reloads = CounterMetricFamily("bellmare_config_reloads", "Reloads of the settings", labels=["outcome"])
        reloads.add_metric(["applied"], reload.reloads)
        reloads.add_metric(["refused"], reload.failures)
        yield reloads
        yield _gauge("process_id", "Which process answers: it changes with a restart", os.getpid())


def open_descriptors() -> int:
    """How many are open; -1 where /proc is missing."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - the one that lists is among them
    except OSError:
        return -1


def resident_bytes() -> int:
    """As /proc says; -1 where it is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return -1
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bellmare_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"bellmare_{name}", text, value=value)
