"""The event log: every step as one JSON line, in files that each replay on their own.

A file begins with the core's configuration and a snapshot of its state, so that older files may be deleted. Writing
happens in a thread of its own; if the disk cannot keep up, the log breaks off and goes on in a new file with a new
snapshot, and the gap is counted. Prompts and answers are never in it: the core does not see them.
"""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import AnyDecision, Decision
from bellmare.core.events import AnyEvent, Event
from bellmare.core.units import MIB, InstantUs

LOG_VERSION = 1
FILE_BYTES_MAX = 64 * MIB
FILES_MAX = 8
BACKLOG_BYTES_MAX = 16 * MIB
"""What may wait for the disk before the log breaks off."""
FLUSH_S = 0.2


class LogHeader(msgspec.Struct, frozen=True):
    """First line of a file. ``state`` is what ``Engine.snapshot`` wrote."""

    bellmare_log: int
    version: str
    config: CoreConfig
    state: msgspec.Raw


class LogStep(msgspec.Struct, frozen=True, rename={"now_us": "t", "event": "e", "decisions": "d"}):
    now_us: InstantUs
    event: AnyEvent
    decisions: list[AnyDecision]


class _Line(msgspec.Struct, frozen=True, rename={"now_us": "t", "event": "e", "decisions": "d"}):
    now_us: InstantUs
    event: Event
    decisions: list[Decision]


_encoder = msgspec.json.Encoder()


def encode_step(now_us: InstantUs, event: Event, decisions: list[Decision]) -> bytes:
    return _encoder.encode(_Line(now_us, event, decisions)) + b"\n"


class Recorder:
    """Writes the log. ``append`` costs one encoding and never waits."""

    def __init__(
        self,
        folder: Path,
        *,
        header: Callable[[], bytes],
        file_bytes_max: int = FILE_BYTES_MAX,
        files_max: int = FILES_MAX,
    ) -> None:
        """``header`` is called on the writer's side of the core, between two steps, whenever a file begins."""
        self.folder = folder
        self.dropped = 0
        """Steps that are in no file because the disk did not keep up."""
        self._header = header
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._chunks: deque[bytes | None] = deque()
        """Lines to write; None begins a new file."""
        self._backlog_bytes = 0
        self._file_bytes = 0
        """Steps in the newest file; its header does not count, else a large state would begin a file at every step."""
        self._rotate_at_bytes = file_bytes_max
        self._broken = False
        self._stop = False
        self._wake = threading.Event()
        self._numbers = _next_number(folder)
        self.error: str = ""
        """Why writing failed last; empty if all is well."""
        folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self._thread = threading.Thread(target=self._write, name="event-log", daemon=True)
        self._thread.start()

    def append(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        """Take down one step; it was taken after everything appended before."""
        if self._broken:
            if self._backlog_bytes > BACKLOG_BYTES_MAX // 2:
                self.dropped += 1
                return
            self._broken = False
            self._begin()  # the snapshot is of the state after this very step
            return
        line = encode_step(now_us, event, decisions)
        if self._backlog_bytes + len(line) > BACKLOG_BYTES_MAX:
            self._broken = True
            self.dropped += 1
            return
        self._put(line)
        if self._file_bytes > self._rotate_at_bytes:
            self._begin()

    def _begin(self) -> None:
        header = self._header()
        self._chunks.append(None)
        self._put(header)
        self._file_bytes = 0
        self._rotate_at_bytes = max(self._file_bytes_max, len(header))

    def _put(self, line: bytes) -> None:
        self._file_bytes += len(line)
        self._backlog_bytes += len(line)
        self._chunks.append(line)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and end the thread."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout_s)

    # ------------------------------------------------------------------ the writer's thread

    def _write(self) -> None:
        stopping = False
        while not stopping:
            self._wake.wait(FLUSH_S)
            stopping = self._stop
            try:
                self._drain()
            except OSError as error:
                self.error = str(error)

    def _drain(self) -> None:
        lines: list[bytes] = []
        while self._chunks:
            chunk = self._chunks.popleft()
            if chunk is not None:
                lines.append(chunk)
                continue
            self._flush(lines)
            lines = []
            self._numbers += 1
            self._prune()
        self._flush(lines)

    def _flush(self, lines: list[bytes]) -> None:
        if not lines:
            return
        data = b"".join(lines)
        self._backlog_bytes -= len(data)
        with self._path(self._numbers).open("ab") as file:
            file.write(data)
        self.error = ""

    def _path(self, number: int) -> Path:
        return self.folder / f"events-{number:06d}.jsonl"

    def _prune(self) -> None:
        for path in sorted(self.folder.glob("events-*.jsonl"))[: -self._files_max + 1 or None]:
            path.unlink(missing_ok=True)


def _next_number(folder: Path) -> int:
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob("events-*.jsonl") if path.stem[-1].isdigit()]
    return max(numbers, default=0)


def header_line(version: str, config: CoreConfig, state: bytes) -> bytes:
    """The first line of a file; ``state`` is ``Engine.snapshot()``."""
    header = LogHeader(LOG_VERSION, version, config, msgspec.Raw(state))
    return _encoder.encode(header) + b"\n"
