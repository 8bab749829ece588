"""A blob that a client sends: written to disk as it comes, its digest computed on the way, nothing kept in memory.

Writing and hashing are done in a thread, one piece of work at a time; the client is held back while too much waits.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO

from bellmare.http.bodies import BodyFlow

BLOB_BYTES_MAX = 1 << 40
"""A terabyte: larger than any model. What bounds it in practice is the free space of the disk."""
WAITING_BYTES_MAX = 4 << 20
"""That wait for the disk; above it the client is not read."""


class Spool:
    """``BodySink`` of one upload. Ends by ``close``, whatever becomes of the client."""

    bytes_max = BLOB_BYTES_MAX

    def __init__(self, digest: str, thread: ThreadPoolExecutor, on_lost: Callable[[], None]) -> None:
        self.digest = digest
        self.size = 0
        self.file: IO[bytes] | None = None
        self.is_lost = False
        self._thread = thread
        self._on_lost = on_lost
        self._flow: BodyFlow | None = None
        self._held_back = False
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._hash = hashlib.sha256()
        self._work: asyncio.Future[None] | None = None
        self._error: OSError | None = None

    # ------------------------------------------------------------------ http.BodySink

    def begin(self, flow: BodyFlow) -> None:
        """See ``BodySink``."""
        self._flow = flow

    def take(self, data: bytes) -> None:
        """See ``BodySink``."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self.size += len(data)
        if self._waiting_bytes > WAITING_BYTES_MAX and not self._held_back and self._flow is not None:
            self._held_back = True
            self._flow.pause_body()
        self._go_on()

    def lost(self) -> None:
        """See ``BodySink``."""
        self.is_lost = True
        self._waiting.clear()
        if self._work is None:
            self.close()

    # ------------------------------------------------------------------ for the route

    async def complete(self) -> str:
        """Wait until all of it is on disk: its digest. Raises OSError."""
        while self._work is not None:
            await asyncio.wait((self._work,))  # a write to a disk that hangs is the system's to end
        if self._error is not None:
            raise self._error
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="bellmare-blob-")  # noqa: SIM115 - lives as long as the upload
        return f"sha256:{self._hash.hexdigest()}"

    def close(self) -> None:
        """The file is needed no more: it vanishes with its last handle."""
        if self._work is not None:
            self.is_lost = True  # it is closed when the write under way has ended
            return
        file, self.file = self.file, None
        if file is not None:
            _close(file, self._thread)
        on_lost, self._on_lost = self._on_lost, _nobody
        on_lost()

    # ------------------------------------------------------------------ inside

    def _go_on(self) -> None:
        if self._work is not None or not self._waiting:
            return
        pieces, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        self._work = asyncio.get_running_loop().run_in_executor(self._thread, self._write, pieces)
        self._work.add_done_callback(self._written)

    def _write(self, pieces: list[bytes]) -> None:
        if self._error is not None:
            return
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="bellmare-blob-")  # noqa: SIM115 - as above
            for piece in pieces:
                self._hash.update(piece)
                self.file.write(piece)
        except OSError as error:
            self._error = error
            file, self.file = self.file, None
            if file is not None:  # the rest may come for hours: the disk is everybody's
                with suppress(OSError):  # what it still holds back does not fit either
                    file.close()

    def _written(self, work: "asyncio.Future[None]") -> None:
        self._work = None
        if self.is_lost:
            self.close()
            return
        if self._held_back and self._waiting_bytes <= WAITING_BYTES_MAX and self._flow is not None:
            self._held_back = False
            self._flow.resume_body()
        self._go_on()


def _close(file: IO[bytes], thread: ThreadPoolExecutor) -> None:
    """To give a hundred gigabytes back to the file system takes seconds."""
    try:
        thread.submit(file.close)
    except RuntimeError:  # the process ends
        file.close()


def _nobody() -> None:
    """Was told already."""
