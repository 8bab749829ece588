"""The event log: every step as one JSON line, in files that each replay on their own.

A file begins with the core's configuration and a snapshot of its state, so that older files may be deleted. Writing
happens in a thread of its own; if the disk cannot keep up, or fails, the log breaks off and goes on in a new file with
a new snapshot, and the gap is counted. A file has one writer for its whole life: it is created, never appended to.
Prompts and answers are never in it: the core does not see them.
"""

import re
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

import msgspec

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision
from bellmare.core.events import Event
from bellmare.core.units import MIB, SECOND_US, InstantUs

try:
    import fcntl

    _LOCKS = True
except ImportError:  # not POSIX: pruning relies on files that are open not being deletable there
    _LOCKS = False

LOG_VERSION = 1
FILE_BYTES_MAX = 64 * MIB
FILES_MAX = 8
BACKLOG_BYTES_MAX = 16 * MIB
"""Steps that may wait for the disk before the log breaks off. Snapshots do not count: one may be larger than that."""
HEADERS_WAITING_MAX = 2
"""Snapshots that may wait for the disk when the log begins anew after a gap."""
RETRY_US = SECOND_US
"""While the disk goes on failing, a new snapshot is taken at most so often."""
FLUSH_S = 0.2
OPEN_TRIES_MAX = 100
"""Names that other processes may take before us while we look for a free one."""

_NAME = re.compile(r"events-(\d+)\.jsonl")


class LogHeader(msgspec.Struct, frozen=True):
    """First line of a file. ``state`` is what ``Engine.snapshot`` wrote."""

    bellmare_log: int
    version: str
    config: CoreConfig
    state: msgspec.Raw


class _Line(msgspec.Struct, frozen=True, rename={"now_us": "t", "event": "e", "decisions": "d"}):
    now_us: InstantUs
    event: Event
    decisions: list[Decision]


class _Begin(msgspec.Struct, frozen=True):
    """In the queue to the writer: from here on a new file."""

    header: bytes


_encoder = msgspec.json.Encoder()


_encode = _encoder.encode


def encode_step(now_us: InstantUs, event: Event, decisions: list[Decision]) -> bytes:
    return _encode(_Line(now_us, event, decisions)) + b"\n"


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
        """``header`` is called on the thread of ``append``, between two steps, whenever a file begins."""
        self.folder = folder
        self.error: str = ""
        """Why writing failed last; empty if all is well."""
        self._header = header
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._chunks: deque[bytes | _Begin] = deque()
        # Each count has one thread that changes it: ``+=`` of two threads would lose some.
        self._put_bytes = self._taken_bytes = 0
        self._put_headers = self._taken_headers = 0
        self._left_out = self._lost = 0
        self._file_bytes = 0
        """Steps in the newest file; its header does not count, else a large state would begin a file at every step."""
        self._rotate_at_bytes = file_bytes_max
        self._broken = False
        self._retry_us = InstantUs(0)
        self._failed = False
        """Set by the writer: what it has been given since is in no file. Taken back by ``append``."""
        self._stop = False
        self._wake = threading.Event()
        self._file: FileIO | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self._thread = threading.Thread(target=self._write, name="event-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Steps that are in no file because the disk failed or did not keep up, or because the log broke off."""
        return self._left_out + self._lost

    def append(self, now_us: InstantUs, event: Event, decisions: list[Decision]) -> None:
        """Take down one step; it was taken after everything appended before."""
        if self._failed:
            self._failed = False
            self._broken = True
        if self._broken:
            self._left_out += 1
            if self._may_begin_anew(now_us):
                self._broken = False
                self._retry_us = InstantUs(now_us + RETRY_US)
                self._begin()  # the snapshot is of the state after this very step
            return
        line = encode_step(now_us, event, decisions)
        size = len(line)
        put = self._put_bytes + size
        if put - self._taken_bytes > BACKLOG_BYTES_MAX:
            self._broken = True
            self._left_out += 1
            return
        self._file_bytes += size
        self._put_bytes = put
        self._chunks.append(line)
        if self._file_bytes > self._rotate_at_bytes:
            self._begin()

    def break_off(self) -> None:
        """What comes next does not follow from what was written: the next step begins a new file."""
        self._broken = True

    @property
    def _backlog_bytes(self) -> int:
        return self._put_bytes - self._taken_bytes

    def _may_begin_anew(self, now_us: InstantUs) -> bool:
        headers = self._put_headers - self._taken_headers
        return (
            now_us >= self._retry_us and headers < HEADERS_WAITING_MAX and self._backlog_bytes <= BACKLOG_BYTES_MAX // 2
        )

    def _begin(self) -> None:
        header = self._header()
        self._put_headers += 1
        self._chunks.append(_Begin(header))
        self._file_bytes = 0
        self._rotate_at_bytes = max(self._file_bytes_max, len(header))

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
            self._drain()
        self._shut()

    def _drain(self) -> None:
        lines: list[bytes] = []
        while self._chunks:
            chunk = self._chunks.popleft()
            if isinstance(chunk, bytes):
                lines.append(chunk)
                continue
            self._flush(lines)
            lines = []
            self._taken_headers += 1
            self._open(chunk.header)
        self._flush(lines)

    def _open(self, header: bytes) -> None:
        """Create the next file, with ``header`` whole in it or not at all."""
        self._shut()
        path: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file, path = _create(self.folder)
            _write_all(self._file, header)
        except OSError as error:
            self._fail(error)
            if path is not None:
                with suppress(OSError):
                    path.unlink()
            return
        self.error = ""
        _prune(self.folder, self._files_max)

    def _flush(self, lines: list[bytes]) -> None:
        if not lines:
            return
        data = b"".join(lines)
        self._taken_bytes += len(data)
        if self._file is None:
            self._lost += len(lines)
            return
        start = self._file.tell()
        try:
            _write_all(self._file, data)
        except OSError as error:
            whole = data.rfind(b"\n", 0, self._file.tell() - start) + 1
            with suppress(OSError):
                self._file.truncate(start + whole)  # half a line would be all that a reader finds wrong
            self._lost += data.count(b"\n", whole)
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """The file cannot be gone on with: a gap would make its steps mean something else."""
        self.error = str(error) or type(error).__name__
        self._shut()
        self._failed = True

    def _shut(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _write_all(file: FileIO, data: bytes) -> None:
    """``write`` of an unbuffered file may take a part only, as on a disk that is nearly full."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _create(folder: Path) -> tuple[FileIO, Path]:
    """A file that nobody else writes, under the next free number, and locked as long as it is open."""
    number = max((_number(path) for path in _log_files(folder)), default=0)
    for _ in range(OPEN_TRIES_MAX):
        number += 1
        path = folder / f"events-{number:06d}.jsonl"
        try:
            file = FileIO(path, "xb")
        except FileExistsError:
            continue
        if _lock(file):
            return file, path
        file.close()
    raise OSError(f"{folder}: no free file name")


def _lock(file: FileIO) -> bool:
    """Take the file for this process; False if another has it. Where files cannot be locked, nobody has."""
    if not _LOCKS:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _prune(folder: Path, files_max: int) -> None:
    """Delete the oldest files beyond ``files_max``, save those that a living process still writes."""
    paths = sorted(_log_files(folder), key=_number)
    for path in paths[: max(0, len(paths) - files_max)]:
        with suppress(OSError):
            with FileIO(path, "rb") as file:
                free = _lock(file)
            if free:
                path.unlink()


def _log_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("events-*.jsonl") if _NAME.fullmatch(path.name)]


def _number(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None, "only files of the log are counted"
    return int(found[1])


def header_line(version: str, config: CoreConfig, state: bytes) -> bytes:
    """The first line of a file; ``state`` is ``Engine.snapshot()``."""
    header = LogHeader(LOG_VERSION, version, config, msgspec.Raw(state))
    return _encoder.encode(header) + b"\n"
