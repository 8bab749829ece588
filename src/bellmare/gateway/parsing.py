"""Parses large bodies beside the event loop, one at a time, so that nobody else's tokens wait for them.

Who leaves meanwhile costs no more work; every request handed in here is answered, admitted or left exactly once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bellmare.gateway.errands.errand import Errand, prepare
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver

INLINE_BYTES_MAX = 256 << 10
"""Up to here a body is parsed at once: it takes 1 ms (measured: 3.5 ms for each MiB of text full of escapes)."""
WAITING_MAX = 64
"""Bodies that wait for their turn: at some 0.2 s for the largest, more would wait longer than they are worth."""

Parse = Callable[[bytes], Errand]
Parsed = Callable[[Exchange, Errand | BaseException], None]


class LargeBodies:
    """One thread, which starts with the first large body: the interpreter lock lets no second one be of use."""

    def __init__(self, on_left: Callable[[], None], *, waiting_max: int = WAITING_MAX) -> None:
        self._on_left = on_left
        """Told of each client that left before its body was parsed."""
        self._waiting_max = waiting_max
        self._thread: ThreadPoolExecutor | None = None
        self._jobs: dict[Exchange, asyncio.Future[Errand]] = {}

    @property
    def waiting(self) -> int:
        """Bodies handed in and not parsed yet."""
        return len(self._jobs)

    def parse(self, exchange: Exchange, parse: Parse, parsed: Parsed) -> bool:
        """Have ``parsed`` called with the errand, or with what ``parse`` raised; never if the client leaves before.

        False, and nothing happens, if too many wait.
        """
        if len(self._jobs) >= self._waiting_max:
            return False
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="bellmare-parse")
        parts = exchange.request.take_parts()
        job = asyncio.get_running_loop().run_in_executor(self._thread, _join_and_parse, parse, parts)
        self._jobs[exchange] = job
        exchange.listener = Leaver(job)
        job.add_done_callback(partial(self._done, exchange, parsed))
        return True

    def shut(self) -> list[Exchange]:
        """The gateway goes down: give all up. Those that are still to be answered."""
        exchanges = list(self._jobs)
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
        return exchanges

    def _done(self, exchange: Exchange, parsed: Parsed, future: asyncio.Future[Errand]) -> None:
        if self._jobs.pop(exchange, None) is None:
            return  # given up by shut
        exchange.listener = None
        if future.cancelled() or exchange.disconnected:
            self._on_left()
            return
        error = future.exception()
        parsed(exchange, future.result() if error is None else error)


def _join_and_parse(parse: Parse, parts: list[bytes]) -> Errand:
    body = b"".join(parts)
    parts.clear()
    errand = parse(body)
    del body
    return prepare(errand)
