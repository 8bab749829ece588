"""The vocabularies of the fleet's models, asked of a worker once, when first needed, off the hot path."""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import msgspec

from bellmare.context.aside import PAUSE_S
from bellmare.context.encoders import Encoder, Unclaimed, encoder_of
from bellmare.context.learned import Lessons
from bellmare.context.measuring import Yardstick
from bellmare.context.templates import Template, template_of
from bellmare.context.vocabulary import Shown, decoding
from bellmare.protocols.errors import BadAnswer
from bellmare.runtime.tasks import Tasks

ENCODERS_BYTES_MAX = 512 << 20
"""Of all vocabularies together: some ten of the largest; the one unused for the longest time goes first."""
NAMES_MAX = 2_000
"""Names that something is remembered of: as many as the settings allow models."""
OVERHEAD_TOKENS = 512
"""What a template adds at most for a request without tools; that of each message is less than its JSON around it."""
RETRY_S = 60.0
"""After a worker that did not tell."""
SHOW_TIMEOUT_S = 30.0
WAITING_MAX = 64
"""Names whose vocabularies are asked for or wait for it; one is asked for at a time."""


class Identity(NamedTuple):
    """Which model a name means now."""

    blob: str
    digest: str
    """Of the manifest: another one may have another template."""


class Unavailable(Exception):  # noqa: N818 - of the world, not of ours
    """No worker could tell."""


class Source(Protocol):
    """The fleet, as far as it is asked here."""

    def identity(self, name: str) -> Identity | None:
        """None for a name that nobody stores."""
        ...

    async def show(self, name: str, *, verbose: bool, timeout_s: float) -> bytes:
        """The body of a worker's answer to /api/show. Raises Unavailable."""
        ...


class Reading(msgspec.Struct):
    """What is known of how one name reads a prompt."""

    identity: Identity
    lessons: Lessons
    template: Template | None = None
    """None until a worker has told."""
    unclaimed: str = ""
    """Why its counts are estimated although a worker has told."""
    retry_s: float = 0.0
    """On the monotonic clock."""
    waiting: list[Callable[[], None]] = []
    """Called once the loading that is under way has ended, however."""
    loading: bool = False
    overhead: int = 0
    """Bytes of what is said where a conversation has no system message."""


class _Shelf(msgspec.Struct):
    encoder: Encoder
    number: int


class Library:
    """Used on the loop only. ``tasks`` holds the loading; ``report`` hears what went wrong, for the log."""

    def __init__(self, source: Source, tasks: Tasks, *, report: Callable[[str, str], None] = lambda *_: None) -> None:
        self._source = source
        self._tasks = tasks
        self._report = report
        self._readings: dict[str, Reading] = {}
        self._encoders: dict[str, _Shelf] = {}
        """By blob; the one used last is the last."""
        self._numbers = 0
        self._turn = asyncio.Semaphore(1)
        self._loading = 0
        self._thread: ThreadPoolExecutor | None = None
        self.failures = 0
        """Loads that ended without a vocabulary or a template, over the process's life."""

    @property
    def size_bytes(self) -> int:
        """About what all vocabularies take."""
        return sum(shelf.encoder.size_bytes for shelf in self._encoders.values())

    def __len__(self) -> int:
        return len(self._encoders)

    def reading(self, name: str) -> Reading | None:
        """What is known of ``name``; None if nobody stores it."""
        identity = self._source.identity(name)
        if identity is None:
            return None
        reading = self._readings.get(name)
        if reading is None or reading.identity != identity:
            lessons = reading.lessons if reading is not None and reading.identity.blob == identity.blob else Lessons()
            reading = self._readings[name] = Reading(identity, lessons)
            if len(self._readings) > NAMES_MAX:
                del self._readings[next(iter(self._readings))]
        return reading

    def overhead(self, name: str) -> int:
        """Tokens that the template of ``name`` adds at most, as far as is known."""
        reading = self._readings.get(name)
        return OVERHEAD_TOKENS if reading is None else OVERHEAD_TOKENS + reading.overhead

    def yardstick(self, reading: Reading) -> Yardstick | None:
        """To measure with; None if there is none, or none yet."""
        shelf = self._encoders.get(reading.identity.blob)
        if shelf is None or reading.template is None:
            return None
        if next(reversed(self._encoders)) != reading.identity.blob:
            self._encoders[reading.identity.blob] = self._encoders.pop(reading.identity.blob)
        return Yardstick(shelf.encoder, reading.template, shelf.number, reading.lessons)

    def want(self, name: str, reading: Reading) -> bool:
        """Have the vocabulary loaded unless it is there or cannot be had now; whether it is under way."""
        if reading.loading:
            return True
        if self.yardstick(reading) is not None or reading.unclaimed or time.monotonic() < reading.retry_s:
            return False
        if self._loading >= WAITING_MAX:
            return False
        reading.loading = True
        reading.retry_s = time.monotonic() + RETRY_S  # whatever becomes of it
        self._loading += 1
        self._tasks.spawn(self._load(name, reading), name="vocabulary")
        return True

    def close(self) -> None:
        """Nothing is loaded any more; what is under way is cancelled by the owner of the tasks."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    async def _load(self, name: str, reading: Reading) -> None:
        try:
            async with self._turn:
                await self._fetch(name, reading)
        except (Unavailable, BadAnswer) as error:
            self.failures += 1
            self._report(name, str(error))
        finally:
            reading.loading = False
            self._loading -= 1
            waiting, reading.waiting = reading.waiting, []
            for call in waiting:
                call()

    async def _fetch(self, name: str, reading: Reading) -> None:
        blob = reading.identity.blob
        verbose = blob not in self._encoders
        body = await self._source.show(name, verbose=verbose, timeout_s=SHOW_TIMEOUT_S)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="bellmare-vocabulary")
        template, encoder, why = await asyncio.get_running_loop().run_in_executor(self._thread, _read, body, verbose)
        if self._source.identity(name) != reading.identity:
            return  # replaced meanwhile: it is asked for again
        reading.template, reading.unclaimed = template, why
        reading.overhead = len(template.default_system.encode("utf-8", "replace"))
        if why:
            self._report(name, why)
        if encoder is not None:
            self._numbers += 1
            self._encoders[blob] = _Shelf(encoder, self._numbers)
            while self.size_bytes > ENCODERS_BYTES_MAX and len(self._encoders) > 1:
                del self._encoders[next(iter(self._encoders))]


def _pause() -> None:
    time.sleep(PAUSE_S)


def _read(body: bytes, verbose: bool) -> tuple[Template, Encoder | None, str]:
    """In the thread."""
    shown = Shown()
    for step in decoding(body):
        shown = step or shown  # the last one has the result
        _pause()
    template = template_of(shown)
    if shown.vocabulary is None:
        return template, None, "the worker shows no vocabulary" if verbose else ""
    if not verbose:
        return template, None, ""
    try:
        return template, encoder_of(shown.vocabulary, _pause), ""
    except Unclaimed as error:
        return template, None, error.reason
    except (re.error, RecursionError, OverflowError) as error:  # of tokens that nobody in good faith has
        return template, None, f"special tokens that cannot be looked for: {type(error).__name__}"
