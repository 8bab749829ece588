"""`bellmare replay`: the log against a fresh core, with progress, and the first difference in full."""

import json
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bellmare.runtime.replay import LogError, Report, log_files, replay

EXIT_DIFFERENT = 1
EXIT_NO_LOG = 2


def replay_command(path: Path, *, as_json: bool) -> int:
    """Exit status: 0 all decisions reproduced, 1 a difference, 2 no readable log."""
    try:
        report = _run(path)
    except LogError as error:
        sys.stderr.write(f"bellmare: {error}\n")
        return EXIT_NO_LOG
    except OSError as error:
        sys.stderr.write(f"bellmare: {path}: {error.strerror}\n")
        return EXIT_NO_LOG
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _tell(report)
    return EXIT_DIFFERENT if report.difference is not None else 0


def _run(path: Path) -> Report:
    report = Report()
    files = len(log_files(path))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[steps]} steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying", total=files, steps=0)
        for report in replay(path):
            progress.update(task, completed=report.files - 1, steps=report.steps)
    return report


def _tell(report: Report) -> None:
    out = sys.stdout.write
    if report.difference is None:
        out(f"{report.steps} steps, {report.decisions} decisions in {report.files} files: all reproduced\n")
        if report.truncated:
            out("the last line was cut off (as by a crash) and left out\n")
        return
    difference = report.difference
    out(f"{difference.path}:{difference.line}: decisions differ after {report.steps - 1} equal steps\n")
    out(f"  event     {difference.event}\n")
    out(f"  recorded  {_pretty(difference.recorded)}\n")
    out(f"  replayed  {_pretty(difference.replayed)}\n")


def _pretty(text: str) -> str:
    return ("\n" + " " * 12).join(json.dumps(item) for item in json.loads(text)) or "nothing"
