"""Shows a fetch on standard error: a bar on a terminal, else one line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bellmare.workers.embedded.fetch import Report

LINE_EVERY_S = 5.0


@contextmanager
def progress_on_stderr(title: str) -> Iterator[Report]:
    """Yield a callback for :func:`fetch.fetch_model`. Nothing is shown if nothing is fetched."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: list[TaskID] = []

        def report(done_bytes: int, total_bytes: int) -> None:
            if not tasks:
                tasks.append(progress.add_task(title, total=total_bytes))
            progress.update(tasks[0], completed=done_bytes)

        yield report


def _lines(title: str) -> Report:
    next_s = 0.0
    told = -1

    def report(done_bytes: int, total_bytes: int) -> None:
        nonlocal next_s, told
        now_s = time.monotonic()
        if done_bytes != told and (now_s >= next_s or done_bytes == total_bytes):
            next_s, told = now_s + LINE_EVERY_S, done_bytes
            print(f"{title}: {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB", file=sys.stderr, flush=True)

    return report
