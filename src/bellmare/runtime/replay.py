"""Feeds a recorded log to a fresh engine and compares every decision: the proof that the log explains the run."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from bellmare.core.engine import Engine
from bellmare.core.events import AnyEvent
from bellmare.core.units import InstantUs
from bellmare.runtime.recorder import LOG_VERSION, LogHeader

_encoder = msgspec.json.Encoder()


class _Step(msgspec.Struct, frozen=True, rename={"now_us": "t", "event": "e", "decisions": "d"}):
    now_us: InstantUs
    event: AnyEvent
    decisions: msgspec.Raw


class LogError(Exception):
    """A file that is no event log, or is damaged: their error, with the line."""


class Difference(msgspec.Struct, frozen=True):
    """The first step whose decisions are not those of the log."""

    path: str
    line: int
    event: str
    recorded: str
    replayed: str


class Report(msgspec.Struct):
    """What a replay found. ``difference`` is None if every decision was reproduced."""

    files: int = 0
    steps: int = 0
    decisions: int = 0
    truncated: bool = False
    """The last line of a file was cut off, as by a crash; everything before it was compared."""
    difference: Difference | None = None


def log_files(path: Path) -> list[Path]:
    """The files of a log in order: the file itself, or all of a folder."""
    files = sorted(path.glob("events-*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise LogError(f"{path}: no event log there")
    return files


def replay(path: Path) -> Iterator[Report]:
    """Replay a log; yields the growing report now and then (for a progress bar) and once more at the end."""
    report = Report()
    for file in log_files(path):
        report.files += 1
        for _ in _replay_file(file, report):
            yield report
        if report.difference is not None:
            break
    yield report


def _replay_file(path: Path, report: Report) -> Iterator[None]:
    decoder = msgspec.json.Decoder(_Step)
    with path.open("rb") as file:
        header = file.readline()
        if not header.endswith(b"\n") and report.files > 1:
            report.truncated = True  # cut off before its first step, or just begun; the files before it stand
            return
        engine = _engine(path, header)
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                report.truncated = True
                return
            try:
                step = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise LogError(f"{path}:{number}: {error}") from error
            try:
                decisions = engine.step(step.now_us, step.event)
            except AssertionError as error:
                raise LogError(f"{path}:{number}: the core cannot take this step: {error}") from error
            report.steps += 1
            report.decisions += len(decisions)
            replayed = _encoder.encode(decisions)
            if replayed != bytes(step.decisions):
                report.difference = Difference(
                    path=str(path),
                    line=number,
                    event=_encoder.encode(step.event).decode(),
                    recorded=bytes(step.decisions).decode(),
                    replayed=replayed.decode(),
                )
                return
            if report.steps % 1000 == 0:
                yield


def _engine(path: Path, first_line: bytes) -> Engine:
    try:
        header = msgspec.json.decode(first_line, type=LogHeader)
    except msgspec.DecodeError as error:
        raise LogError(f"{path}:1: not an event log of bellmare ({error})") from error
    if header.bellmare_log != LOG_VERSION:
        raise LogError(f"{path}:1: log version {header.bellmare_log}, this program reads {LOG_VERSION}")
    return Engine.restore(header.config, bytes(header.state))
