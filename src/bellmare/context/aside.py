"""Work beside the event loop: one thread, a bounded queue, an end for every job. Knows nothing of tokens.

The interpreter lock lets no second thread be of use; jobs give it back between steps by :meth:`Job.pause`.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PAUSE_S = 0.0003
"""Between steps of 1 ms: the loop gets its turn four times as often as by the interpreter's own 5 ms."""


class GivenUp(Exception):  # noqa: N818 - what happened, not an error
    """The job was cancelled, or its time is over."""


class Job:
    """One piece of work, handed in and not ended."""

    __slots__ = ("deadline_s", "future", "given_up")

    def __init__(self, timeout_s: float) -> None:
        self.deadline_s = time.monotonic() + timeout_s
        self.given_up = False
        self.future: asyncio.Future[Any] | None = None

    def cancel(self) -> None:
        """On the loop: its ``done`` will not be called, and it ends at its next pause."""
        self.given_up = True
        if self.future is not None:
            self.future.cancel()

    def pause(self) -> None:
        """In the thread, between steps. Raises GivenUp."""
        time.sleep(PAUSE_S)
        if self.given_up or time.monotonic() > self.deadline_s:
            raise GivenUp


class Aside(Generic[T]):
    """One thread, which starts with the first job."""

    def __init__(self, name: str, *, waiting_max: int) -> None:
        self._name = name
        self._waiting_max = waiting_max
        self._thread: ThreadPoolExecutor | None = None
        self._jobs: dict[Job, None] = {}

    @property
    def waiting(self) -> int:
        """Jobs handed in and not ended."""
        return len(self._jobs)

    def begin(
        self, work: Callable[[Job], T], done: Callable[[T | BaseException], None], *, timeout_s: float
    ) -> Job | None:
        """Have ``work`` done, and ``done`` called on the loop with its result or what it raised, unless cancelled.

        None, and nothing happens, if too many wait. ``work`` must pause; it is given up ``timeout_s`` from now.
        """
        if len(self._jobs) >= self._waiting_max:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        job = Job(timeout_s)
        job.future = asyncio.get_running_loop().run_in_executor(self._thread, work, job)
        self._jobs[job] = None
        job.future.add_done_callback(partial(self._ended, job, done))
        return job

    def _ended(self, job: Job, done: Callable[[T | BaseException], None], future: "asyncio.Future[T]") -> None:
        known = self._jobs.pop(job, False) is None
        if not known or job.given_up or future.cancelled():
            return
        error = future.exception()
        done(future.result() if error is None else error)

    def shut(self) -> None:
        """Give all up."""
        for job in list(self._jobs):
            job.cancel()
        self._jobs.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
