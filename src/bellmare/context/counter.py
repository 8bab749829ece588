"""Counts prompts: at once where that is quick, else beside the loop; by bytes where there is no vocabulary."""

import asyncio
from collections.abc import Callable
from functools import partial

from bellmare.context.aside import Aside, GivenUp, Job
from bellmare.context.counting import Count, Prompted
from bellmare.context.learned import Lessons
from bellmare.context.library import Library, Reading
from bellmare.context.measuring import Measuring, Memory, Yardstick, estimated
from bellmare.protocols.ollama import GenerateRequest

INLINE_CHARS_MAX = 1_024
"""Up to here a prompt is counted at once: half a millisecond (measured), and a thread's turn costs a tenth of that."""
INLINE_MESSAGES_MAX = 32
ESTIMATED_CHARS_MAX = 256 << 10
"""Up to here an estimate is made at once, whatever waits."""
WAITING_MAX = 256
"""Counts that wait for the thread; at some 50 ms for a long prompt, more would be past their deadline."""
COUNT_TIMEOUT_S = 5.0
VOCABULARY_WAIT_S = 2.0
"""The first long prompt of a model waits so long for the vocabulary; it takes some tenths of a second."""

Done = Callable[[Count], None]


class _Pending:
    """A count under way; a ``counting.Waiting``."""

    __slots__ = ("done", "job", "lessons", "others", "request", "timer")

    def __init__(self, others: "dict[_Pending, None]", request: Prompted, lessons: Lessons, done: Done) -> None:
        self.others = others
        """Those under way, of which it is one as long as it waits."""
        self.request = request
        self.lessons = lessons
        self.done: Done | None = done
        self.job: Job | None = None
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        self.done = None
        self.others.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
        if self.job is not None:
            self.job.cancel()

    def end(self, count: Count) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(count)


class Counter:
    """A ``counting.TokenCounter``. One for each process, on its loop."""

    def __init__(self, library: Library, *, waiting_max: int = WAITING_MAX) -> None:
        self.library = library
        self.overhead = library.overhead
        """Tokens that a request for a name has at most beyond its bytes, without tools and images. Quick."""
        self.overloads = 0
        """Counts that were estimated because too many waited."""
        self.late = 0
        """Counts that were estimated because their time was over."""
        self._memory = Memory()
        self._aside: Aside[Count] = Aside("bellmare-count", waiting_max=waiting_max)
        self._pending: dict[_Pending, None] = {}

    @property
    def waiting(self) -> int:
        """Counts handed in and not ended."""
        return len(self._pending)

    def count(self, name: str, request: Prompted, done: Done, *, ask: bool = True) -> _Pending | None:
        """See ``counting.TokenCounter``. Without ``ask`` no worker is asked for a vocabulary that is not there."""
        reading = self.library.reading(name)
        lessons = reading.lessons if reading is not None else Lessons()
        pending = _Pending(self._pending, request, lessons, done)
        if reading is None:
            return self._by_bytes(pending)
        yardstick = self.library.yardstick(reading)
        if yardstick is not None:
            return self._measure(pending, yardstick)
        if not ask or not self.library.want(name, reading):
            return self._by_bytes(pending)
        self._pending[pending] = None
        go_on = partial(self._loaded, pending, reading)
        reading.waiting.append(go_on)
        pending.timer = asyncio.get_running_loop().call_later(VOCABULARY_WAIT_S, go_on)
        return pending

    def figures(self) -> dict[str, int]:
        """For the metrics."""
        library = self.library
        return {
            "vocabularies": len(library),
            "vocabulary_bytes": library.size_bytes,
            "vocabulary_failures": library.failures,
            "counts_waiting": self.waiting,
            "count_overloads": self.overloads,
            "count_timeouts": self.late,
        }

    def learn(self, name: str, request: Prompted, count: Count, *, tokens: int) -> float | None:
        """``tokens`` is what a worker counted of the whole prompt. How far ``count`` was off, as a share."""
        reading = self.library.reading(name)
        if reading is None or tokens <= 0:
            return None
        lessons = reading.lessons
        lessons.ratio.learn(count.rough, tokens)
        error = (count.tokens - tokens) / tokens
        if count.counted:
            lessons.errors.append(abs(error))
            if not isinstance(request, GenerateRequest):
                lessons.added[bool(request.tools)].learn(len(request.messages or ()), tokens - count.counted)
        return error

    def close(self) -> None:
        """Give all up."""
        for pending in list(self._pending):
            pending.cancel()
        self._pending.clear()
        self._aside.shut()
        self.library.close()

    def _loaded(self, pending: _Pending, reading: Reading) -> None:
        """The vocabulary is there, or will not be in time."""
        if pending not in self._pending:
            return
        del self._pending[pending]
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.done is None:
            return
        yardstick = self.library.yardstick(reading)
        if yardstick is not None:
            self._measure(pending, yardstick)
        else:
            self._by_bytes(pending)

    def _measure(self, pending: _Pending, yardstick: Yardstick) -> _Pending | None:
        if is_small(pending.request, INLINE_CHARS_MAX, INLINE_MESSAGES_MAX):
            pending.end(Measuring(yardstick, self._memory, _no_pause).measure(pending.request))
            return None
        request, memory = pending.request, self._memory
        return self._begin(pending, lambda job: Measuring(yardstick, memory, job.pause).measure(request))

    def _by_bytes(self, pending: _Pending) -> _Pending | None:
        request, lessons = pending.request, pending.lessons
        if is_small(request, ESTIMATED_CHARS_MAX, INLINE_MESSAGES_MAX * 32):
            pending.end(estimated(request, lessons))
            return None
        return self._begin(pending, lambda _: estimated(request, lessons))

    def _begin(self, pending: _Pending, work: Callable[[Job], Count]) -> _Pending | None:
        pending.job = self._aside.begin(work, partial(self._ended, pending), timeout_s=COUNT_TIMEOUT_S)
        if pending.job is None:
            self.overloads += 1
            pending.end(estimated(pending.request, pending.lessons))
            return None
        self._pending[pending] = None
        return pending

    def _ended(self, pending: _Pending, result: Count | BaseException) -> None:
        self._pending.pop(pending, None)
        if isinstance(result, Count):
            pending.end(result)
            return
        self.late += isinstance(result, GivenUp)
        pending.end(estimated(pending.request, pending.lessons))
        if not isinstance(result, GivenUp):
            raise result


def _no_pause() -> None:
    """For what takes no longer than a step."""


def is_small(request: Prompted, chars_max: int, messages_max: int) -> bool:
    """Whether a request has at most so many characters in so many messages. Quick for any."""
    if isinstance(request, GenerateRequest):
        return len(request.prompt or "") + len(request.system or "") <= chars_max
    messages = request.messages or ()
    if len(messages) > messages_max or request.tools:
        return False
    total = 0
    for message in messages:
        total += len(message.content or "")
        if total > chars_max or message.tool_calls:
            return False
    return True
