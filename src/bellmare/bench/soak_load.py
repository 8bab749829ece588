"""The load of a soak: streams, short answers, embeddings, clients that leave at any moment, clients that read slowly.

Each request ends in exactly one book: answered (by status), broken, or left. A fixed number of users, each with one
request at a time, so that nothing here grows with the length of a run.
"""

import asyncio
import random
from collections import Counter
from enum import StrEnum

import msgspec

from bellmare.bench.load import Reservoir
from bellmare.http.call import Call, UpstreamFailure
from bellmare.http.client import Upstream

TAIL_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = 120.0
SILENCE_TIMEOUT_S = 60.0
LEAVE_WITHIN_S = 0.5
"""A client that leaves does so within this, evenly: while it connects, waits, loads, or reads."""
SLOW_PAUSE_S = 0.4
SLOW_PAUSES = 4
PAUSE_S = 0.05
REFUSED_PAUSE_S = 0.2
"""Between two requests of a user; longer after a refusal: a storm is another test's business."""
PROBLEMS_MAX = 10


class Kind(StrEnum):
    stream = "stream"
    short = "short"
    embed = "embed"
    leave = "leave"
    slow = "slow"


SHARES = {Kind.stream: 35, Kind.short: 30, Kind.embed: 15, Kind.leave: 15, Kind.slow: 5}


class Books(msgspec.Struct):
    """What became of every request so far."""

    sent: int = 0
    left: int = 0
    """Given up by the client itself."""
    answered: Counter[str] = msgspec.field(default_factory=Counter)
    """By status; a stream that ended with an error in words is a 200."""
    cut: int = 0
    """Of these: streams that ended with an error in words."""
    broken: Counter[str] = msgspec.field(default_factory=Counter)
    """Neither answered nor left, by how."""
    wrong: int = 0
    """Streams that ended in order with neither an end nor an error."""
    problems: list[str] = []

    @property
    def ended(self) -> int:
        return self.left + self.answered.total() + self.broken.total()

    def note(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


class _Attempt:
    """Receiver of one answer."""

    def __init__(self, began: float, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.first_s = -1.0
        self.tail = b""
        self.failure: UpstreamFailure | None = None
        self.ended: asyncio.Future[None] = loop.create_future()
        self._began = began
        self._loop = loop

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.first_s = self._loop.time() - self._began

    def on_data(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL_BYTES_MAX:]

    def on_end(self) -> None:
        self._end()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.failure = failure
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class SoakLoad:
    """``users`` on one gateway; ``run`` until ``stop``."""

    def __init__(self, port: int, *, users: int, models: tuple[str, ...], embedder: str, seed: int = 0) -> None:
        self.books = Books()
        self.in_flight = 0
        self.first_byte = Reservoir(seed=seed)
        """Seconds to the head of short answers; renewed by ``window``."""
        self._upstream = Upstream("127.0.0.1", port)
        self._users = users
        self._models = models
        self._embedder = embedder
        self._rng = random.Random(f"soak {seed}")  # noqa: S311 - draws, no secrets
        self._seed = seed
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Ask until ``stop``; what runs then ends by itself."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._users):
                    group.create_task(self._use(random.Random(f"soak {self._seed}/{number}")), name="soak user")  # noqa: S311
        finally:
            await self._upstream.close()

    def stop(self) -> None:
        self._stopping.set()

    def window(self) -> Reservoir:
        """The first bytes since the last call."""
        seen, self.first_byte = self.first_byte, Reservoir(seed=self._seed)
        return seen

    async def _use(self, rng: random.Random) -> None:
        kinds, weights = list(SHARES), list(SHARES.values())
        while not self._stopping.is_set():
            good = await self._ask(rng, rng.choices(kinds, weights)[0])
            await self._pause(PAUSE_S * rng.random() if good else REFUSED_PAUSE_S)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass  # the pause is over

    async def _ask(self, rng: random.Random, kind: Kind) -> bool:
        """One request to its end; whether it was answered as asked."""
        path, body = self._request(rng, kind)
        attempt = _Attempt(self._loop.time(), self._loop)
        self.books.sent += 1
        self.in_flight += 1
        call = self._upstream.send(
            "POST",
            path,
            body=body,
            headers=[(b"content-type", b"application/json")],
            receiver=attempt,
            first_byte_timeout_s=ANSWER_TIMEOUT_S,
            idle_timeout_s=SILENCE_TIMEOUT_S,
        )
        try:
            if kind is Kind.leave and await self._leaves(rng, call, attempt):
                return True
            if kind is Kind.slow:
                await self._read_slowly(call, attempt)
            await attempt.ended
        finally:
            call.abort()
            self.in_flight -= 1
        return self._book(kind, attempt)

    def _request(self, rng: random.Random, kind: Kind) -> tuple[str, bytes]:
        model = rng.choice(self._models)
        if kind is Kind.embed:
            return "/api/embed", msgspec.json.encode({"model": self._embedder, "input": "the mare leads the train"})
        streams = kind is not Kind.short
        tokens = 8 if kind is Kind.short else rng.choice((20, 100, 400))
        if kind is Kind.slow:
            tokens = 4_000
        messages = [{"role": "user", "content": "the mare leads"}]
        if rng.random() < 0.3:
            chat = {"model": model, "messages": messages, "stream": streams, "max_tokens": tokens}
            return "/v1/chat/completions", msgspec.json.encode(chat)
        body = {"model": model, "messages": messages, "stream": streams, "options": {"num_predict": tokens}}
        return "/api/chat", msgspec.json.encode(body)

    async def _leaves(self, rng: random.Random, call: Call, attempt: _Attempt) -> bool:
        """Leave at any moment; False if the answer was faster."""
        try:
            async with asyncio.timeout(rng.random() * LEAVE_WITHIN_S):
                await asyncio.shield(attempt.ended)
        except TimeoutError:
            call.abort()
            self.books.left += 1
            return True
        return False

    async def _read_slowly(self, call: Call, attempt: _Attempt) -> None:
        for _ in range(SLOW_PAUSES):
            if attempt.ended.done():
                return
            call.pause()
            await asyncio.sleep(SLOW_PAUSE_S)
            if not attempt.ended.done():
                call.resume()
            await asyncio.sleep(SLOW_PAUSE_S / 4)

    def _book(self, kind: Kind, attempt: _Attempt) -> bool:
        books, failure = self.books, attempt.failure
        if failure is not None:
            books.broken[str(failure.kind)] += 1
            books.note(f"{kind}: {failure.kind}: {failure.detail}")
            return False
        books.answered[str(attempt.status)] += 1
        if attempt.status != 200:
            return False
        if kind is Kind.short:
            self.first_byte.add(attempt.first_s)
        if kind in (Kind.short, Kind.embed):
            return True
        if b'"done":true' in attempt.tail or b"data: [DONE]" in attempt.tail:
            return True
        if b'"error"' in attempt.tail:
            books.cut += 1
        else:
            books.wrong += 1
            books.note(f"{kind}: ended in order without an end: {attempt.tail[-120:]!r}")
        return False
