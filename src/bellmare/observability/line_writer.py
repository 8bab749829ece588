"""A thread that writes lines to a stream, so that a stuck terminal or pipe never stops the event loop.

Whoever logs appends to a list and mostly goes on without a lock or a call of the system: the writer comes by itself
while there are lines, and is called only when it sleeps, when many wait or when one must not wait.
"""

import atexit
import threading
from collections import deque
from typing import TextIO

LINES_MAX = 8192
"""Waiting lines: some seconds of a busy gateway, a few MiB."""
BATCH_MAX = 256
"""Lines per write: one system call and one turn of the interpreter lock for many."""
GATHER_S = 0.1
"""So long lines gather before they are written: nobody reads faster, and waking a thread costs as much as ten lines."""


class LineWriter:
    """Writes lines to ``stream`` from a thread of its own; ``put`` never waits."""

    def __init__(self, stream: TextIO, *, lines_max: int = LINES_MAX) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._lines_max = lines_max
        self._crowded = lines_max // 4
        """More lines are not left to gather: at the peak the writer must not come too late for the bound."""
        self._quiet_max = 0
        """With more lines waiting the writer wants to be called: 0 while it sleeps, all once it is called or writes."""
        self._wake = threading.Event()
        self._urgent = False
        self._closed = False
        self.dropped = 0
        """Lines lost so far, because too many waited or the stream is broken. Never falls."""
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="bellmare-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def full(self) -> bool:
        """The next line would be lost."""
        return len(self._lines) >= self._lines_max

    def put(self, line: bytes) -> None:
        """Have ``line`` (UTF-8, no line break at its end) written after all that was put before."""
        lines = self._lines
        if len(lines) >= self._lines_max:
            self._lost(1)
            return
        lines.append(line)
        if len(lines) > self._quiet_max:
            self._call()

    def hurry(self) -> None:
        """Have what waits written now: the process may not live long."""
        self._urgent = True
        self._call()

    def close(self, *, timeout_s: float = 1.0, last: bytes | None = None) -> None:
        """Write what waits and then ``last``, for at most ``timeout_s``. May be called twice."""
        if self._closed:
            return
        if last is not None:
            self._lines.append(last)  # one above the bound, if need be
        self._lines_max = 0
        self._closed = True
        self._wake.set()
        atexit.unregister(self.close)
        self._thread.join(timeout_s)  # if the stream is stuck, the daemon thread ends with the process

    def _call(self) -> None:
        self._quiet_max = self._lines_max  # once is enough
        self._wake.set()

    def _lost(self, lines: int) -> None:
        with self._counting:  # both threads lose lines
            self.dropped += lines

    def _run(self) -> None:
        """Sleep, gather, write.

        ``put`` adds its line and then reads ``_quiet_max``; here that is set and then lines are looked for: one of the
        two sees the other, and no line is slept over.
        """
        while True:
            self._wake.clear()
            self._quiet_max = 0
            if not self._lines and not self._closed:
                self._wake.wait()
            self._wake.clear()
            self._quiet_max = self._crowded
            if len(self._lines) <= self._crowded and not self._urgent and not self._closed:
                self._wake.wait(GATHER_S)
            self._quiet_max = self._lines_max
            self._urgent = False
            ends = self._closed  # read before the last lines are: none comes after
            self._write()
            if ends:
                return

    def _write(self) -> None:
        lines = self._lines
        while lines:
            batch = [lines.popleft() for _ in range(min(len(lines), BATCH_MAX))]
            batch.append(b"")
            try:
                self._stream.write(b"\n".join(batch).decode())
                self._stream.flush()
            except (OSError, ValueError):  # a closed pipe, a closed file
                self._lost(len(batch) - 1)
