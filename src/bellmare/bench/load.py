"""A bounded load generator: users who keep to a model for a while, against one Ollama address.

Closed loop: each user asks, waits for the whole answer, thinks, asks again. Open loop: questions arrive by chance at a
rate, whatever the server does; what would pass the bound of questions in flight is not sent, but counted. Every
question has a timeout, every retry a bound, and nothing here grows with the length of a run.
"""

import asyncio
import math
import random
from bisect import bisect_right
from itertools import accumulate

import msgspec

from bellmare.bench.answers import Answer, Dialect
from bellmare.http.client import Upstream, UpstreamLimits
from bellmare.runtime.clock import Clock
from bellmare.settings.addresses import parse_worker_url

USERS_MAX = 10_000
RATE_MAX_PER_S = 5_000.0
MODELS_MAX = 2_000
TOKENS_MAX = 100_000
SAMPLES_MAX = 4_096
"""Of each kind of latency; the error of a p95 from so many is about a third of a percent of rank."""
PROBLEMS_MAX = 5
"""Different error texts that are kept."""
SPREAD = 4
"""A drawn length or pause is at most so many times its mean."""
FAILURE_PAUSE_S = 0.25
"""A user whose question failed at once does not ask again at once: a dead server must not cost a whole core."""

_WORDS = ("the", "mare", "leads", "and", "the", "train", "follows", "over", "stone", "and", "river")


class TrafficConfig(msgspec.Struct, frozen=True):
    """What is asked, by whom, how often. Lengths and pauses are drawn exponentially around their means."""

    models: tuple[str, ...]
    """Most asked for first."""
    embedding_models: tuple[str, ...] = ()
    """Those of them that embed: they are asked through /api/embed."""
    users: int = 16
    """Closed loop: questions in flight at most. Open loop: whose sessions they belong to."""
    rate_per_s: float = 0.0
    """Zero: closed loop. Else arrivals per second, exponentially spaced."""
    in_flight_max: int = 1_000
    """Open loop: an arrival that finds so many in flight is skipped."""
    think_s: float = 0.0
    """Closed loop: mean pause between an answer and the next question."""
    ramp_s: float = 0.0
    """Closed loop: the users begin one after another, spread over so long."""
    skew: float = 1.0
    """Zipf's exponent: the k-th model is asked for k**-skew times as often as the first."""
    session_requests: float = 8.0
    """Mean number of questions to one model before a user turns to another."""
    prompt_tokens: int = 200
    output_tokens: int = 100
    openai_share: float = 0.3
    """Of chats through /v1/chat/completions; the others through /api/chat."""
    request_timeout_s: float = 120.0
    """For each attempt, from sending to the end of the answer."""
    retries_max: int = 2
    """After a refusal (429 or 503) that says Retry-After."""
    retry_after_max_s: float = 10.0
    """A longer Retry-After is not waited for: the question counts as refused."""
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for what is out of bounds."""
        bounds: dict[str, tuple[float, float]] = {
            "users": (1, USERS_MAX),
            "rate_per_s": (0, RATE_MAX_PER_S),
            "in_flight_max": (1, USERS_MAX),
            "think_s": (0, 86_400),
            "ramp_s": (0, 86_400),
            "skew": (0, 10),
            "session_requests": (1, 1_000_000),
            "prompt_tokens": (1, TOKENS_MAX),
            "output_tokens": (1, TOKENS_MAX),
            "openai_share": (0, 1),
            "request_timeout_s": (0.001, 86_400),
            "retries_max": (0, 10),
            "retry_after_max_s": (0, 3_600),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value:g}; {least:g} to {most:g} is allowed")
        if not 1 <= len(self.models) <= MODELS_MAX:
            raise ValueError(f"models has {len(self.models)} names; 1 to {MODELS_MAX} are allowed")
        if strangers := set(self.embedding_models) - set(self.models):
            raise ValueError(f"embedding_models names what models does not: {', '.join(sorted(strangers))}")


class Popularity:
    """Zipf's law over ranks: rank k is drawn with a probability proportional to (k + 1) ** -skew."""

    def __init__(self, count: int, *, skew: float) -> None:
        self._sums = list(accumulate((rank + 1) ** -skew for rank in range(count)))

    def draw(self, rng: random.Random) -> int:
        """A rank from 0."""
        return min(bisect_right(self._sums, rng.random() * self._sums[-1]), len(self._sums) - 1)


class Reservoir:
    """A fair sample of all values ever added, of bounded size (Vitter's algorithm R)."""

    def __init__(self, *, samples_max: int = SAMPLES_MAX, seed: int = 0) -> None:
        self.count = 0
        self.largest = 0.0
        self._samples_max = samples_max
        self._samples: list[float] = []
        self._rng = random.Random(seed)  # noqa: S311 - draws, no secrets

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, value: float) -> None:
        self.count += 1
        self.largest = max(self.largest, value)
        if len(self._samples) < self._samples_max:
            self._samples.append(value)
            return
        place = self._rng.randrange(self.count)
        if place < self._samples_max:
            self._samples[place] = value

    def quantiles(self, *shares: float) -> list[float]:
        """The values that these shares of the sample do not pass (nearest rank); zeros without any value."""
        ordered = sorted(self._samples)
        if not ordered:
            return [0.0] * len(shares)
        return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]

    def summary(self) -> "Latency":
        p50, p95, p99 = (round(value, 1) for value in self.quantiles(0.5, 0.95, 0.99))
        return Latency(count=self.count, p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=round(self.largest, 1))


class Latency(msgspec.Struct, frozen=True):
    """Of one phase, in milliseconds, from a question's first attempt on."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class TrafficReport(msgspec.Struct, frozen=True):
    """What came of it so far. Every question asked is completed, refused, failed, cut, or in flight."""

    seconds: float
    completed: int
    refused: int
    """The last answer was a 429, or a 503 with Retry-After: the server's right."""
    failed: int
    cut: int
    """Given up by ourselves at the end of the run."""
    in_flight: int
    skipped: int
    """Open loop: never sent, because too many were in flight."""
    retried: int
    by_status: dict[str, int]
    """All attempts: the HTTP status, or how the attempt broke."""
    by_cache: dict[str, int]
    """Completed questions by what X-Bellmare-Cache said."""
    prompt_tokens: int
    output_tokens: int
    first_token: Latency
    total: Latency
    first_token_by_cache: dict[str, Latency]
    problems: list[str]
    """Some of the errors, each text once."""

    @property
    def ended(self) -> int:
        """Questions of which the outcome is known."""
        return self.completed + self.refused + self.failed


class _Question(msgspec.Struct, frozen=True):
    dialect: Dialect
    body: bytes


class _User:
    """One client: its own chance, and a model that it keeps to for a while."""

    def __init__(self, config: TrafficConfig, popularity: Popularity, *, number: int) -> None:
        self.rng = random.Random(f"{config.seed}/{number}")  # noqa: S311 - draws, no secrets
        self._config = config
        self._popularity = popularity
        self._embedding = frozenset(config.embedding_models)
        self._model = ""

    def draw(self, mean: float) -> float:
        """Around ``mean``, at most ``SPREAD`` times it."""
        return min(self.rng.expovariate(1.0 / mean), SPREAD * mean) if mean > 0 else 0.0

    def length(self, mean: int) -> int:
        return max(1, round(self.draw(mean)))

    def question(self) -> _Question:
        config = self._config
        if not self._model or self.rng.random() < 1.0 / config.session_requests:
            self._model = config.models[self._popularity.draw(self.rng)]
        words = self.length(config.prompt_tokens)
        text = " ".join(_WORDS[index % len(_WORDS)] for index in range(words))
        if self._model in self._embedding:
            return _Question(Dialect.embed, msgspec.json.encode({"model": self._model, "input": text}))
        tokens = self.length(config.output_tokens)
        chat: dict[str, object] = {"model": self._model, "messages": [{"role": "user", "content": text}]}
        if self.rng.random() < config.openai_share:
            chat |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens}
            return _Question(Dialect.openai, msgspec.json.encode(chat))
        return _Question(Dialect.native, msgspec.json.encode({**chat, "options": {"num_predict": tokens}}))


class _Tally:
    """Everything counted; bounded by statuses, cache states and sample sizes."""

    def __init__(self, seed: int) -> None:
        self.outcomes = dict.fromkeys(("completed", "refused", "failed", "cut"), 0)
        self.skipped = 0
        self.retried = 0
        self.by_status: dict[str, int] = {}
        self.by_cache: dict[str, int] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.first_token = Reservoir(seed=seed)
        self.total = Reservoir(seed=seed)
        self.first_by_cache = {state: Reservoir(seed=seed) for state in ("hit", "queued", "cold")}
        self.problems: dict[str, None] = {}

    def attempt(self, answer: Answer) -> None:
        key = answer.broke if answer.broke else str(answer.status)
        self.by_status[key] = self.by_status.get(key, 0) + 1

    def completed(self, answer: Answer, began_us: int, *, ended_us: int) -> None:
        self.prompt_tokens += answer.prompt_tokens
        self.output_tokens += answer.output_tokens
        self.total.add((ended_us - began_us) / 1000)
        cache = answer.cache if answer.cache in self.first_by_cache else "unknown"
        self.by_cache[cache] = self.by_cache.get(cache, 0) + 1
        if answer.first_token_us < 0:
            return
        first_ms = (answer.first_token_us - began_us) / 1000
        self.first_token.add(first_ms)
        if cache in self.first_by_cache:
            self.first_by_cache[cache].add(first_ms)

    def problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems[text] = None


class Traffic:
    """One run of load. ``run`` once; ``report`` and ``stop`` at any time. Raises ValueError for a bad configuration."""

    def __init__(self, base_url: str, config: TrafficConfig, *, allow_remote: bool = False) -> None:
        config.check()
        self._url = parse_worker_url(base_url)
        if not self._url.loopback and not allow_remote:
            raise ValueError(f"{base_url} is not this machine; load on others' servers must be asked for explicitly")
        self.config = config
        self._popularity = Popularity(len(config.models), skew=config.skew)
        self._clock = Clock()
        self._tally = _Tally(config.seed)
        self._answers: dict[Answer, None] = {}
        """In flight; at most ``users``, or ``in_flight_max`` of an open loop."""
        self._asking = 0
        self._asked = 0
        self._asked_max: int | None = None
        self._grace_s: float | None = None
        self._stopping = asyncio.Event()
        self._cutting: asyncio.TimerHandle | None = None
        self._upstream: Upstream | None = None
        self._began_us = 0
        self._ended_us = 0

    async def run(
        self, *, seconds: float | None = None, requests: int | None = None, grace_s: float | None = None
    ) -> TrafficReport:
        """Ask until ``seconds`` have passed, ``requests`` questions have been asked, or ``stop``.

        What is in flight then is cut off after ``grace_s``; None: each may end within its own timeout.
        """
        assert self._upstream is None, "a run is made once"
        self._asked_max = requests
        self._grace_s = grace_s
        limits = UpstreamLimits(connect_timeout_s=min(5.0, self.config.request_timeout_s))
        self._upstream = Upstream(self._url.host, self._url.port, limits=limits, base_path=self._url.path)
        self._began_us = self._clock.now_us()
        timer = asyncio.get_running_loop().call_later(seconds, self.stop) if seconds is not None else None
        users = [_User(self.config, self._popularity, number=number) for number in range(self.config.users)]
        try:
            async with asyncio.TaskGroup() as group:
                if self.config.rate_per_s:
                    group.create_task(self._arrive(users, group), name="arrivals")
                else:
                    for number, user in enumerate(users):
                        begin_s = self.config.ramp_s * number / len(users)
                        group.create_task(self._use(user, begin_s), name="user")
        finally:
            for handle in (timer, self._cutting):
                if handle is not None:
                    handle.cancel()
            self._ended_us = self._clock.now_us()
            await self._upstream.close()
        return self.report()

    def stop(self) -> None:
        """Ask no more; what is in flight gets the run's grace. May be called at any time, also before ``run``."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._upstream is not None and self._grace_s is not None:
            self._cutting = asyncio.get_running_loop().call_later(self._grace_s, self._cut)

    def report(self) -> TrafficReport:
        """What came of it so far."""
        tally = self._tally
        until_us = self._ended_us or (self._clock.now_us() if self._began_us else 0)
        return TrafficReport(
            seconds=round((until_us - self._began_us) / 1e6, 3),
            **tally.outcomes,
            in_flight=self._asking,
            skipped=tally.skipped,
            retried=tally.retried,
            by_status=dict(sorted(tally.by_status.items())),
            by_cache=dict(sorted(tally.by_cache.items())),
            prompt_tokens=tally.prompt_tokens,
            output_tokens=tally.output_tokens,
            first_token=tally.first_token.summary(),
            total=tally.total.summary(),
            first_token_by_cache={state: found.summary() for state, found in tally.first_by_cache.items()},
            problems=list(tally.problems),
        )

    # ------------------------------------------------------------------ users

    async def _use(self, user: _User, begin_s: float) -> None:
        """Closed loop: one user's life, which begins after ``begin_s`` and a part of a pause."""
        stopping = await self._pause(begin_s + user.rng.random() * self.config.think_s)
        while not stopping and self._take():
            outcome = await self._ask(user.question())
            pause_s = user.draw(self.config.think_s)
            stopping = await self._pause(max(pause_s, FAILURE_PAUSE_S) if outcome == "failed" else pause_s)

    async def _arrive(self, users: list[_User], group: asyncio.TaskGroup) -> None:
        """Open loop: arrivals by chance, each of a user drawn by chance."""
        rng = random.Random(f"{self.config.seed}/arrivals")  # noqa: S311 - draws, no secrets
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s += rng.expovariate(self.config.rate_per_s)
            if await self._pause(max(0.0, due_s - loop.time())) or not self._take():
                return
            question = rng.choice(users).question()
            if self._asking < self.config.in_flight_max:
                group.create_task(self._ask(question), name="question")
                await asyncio.sleep(0)  # let it begin, so that it is counted as in flight before the next arrival
            else:
                self._tally.skipped += 1

    def _take(self) -> bool:
        """Whether one more question may be asked; the last one stops the run."""
        if self._stopping.is_set() or (self._asked_max is not None and self._asked >= self._asked_max):
            return False
        self._asked += 1
        if self._asked == self._asked_max:
            self.stop()
        return True

    async def _pause(self, span_s: float) -> bool:
        """Wait so long, or until the run stops; whether it has stopped."""
        if span_s > 0 and not self._stopping.is_set():
            try:
                async with asyncio.timeout(span_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass
        return self._stopping.is_set()

    # ------------------------------------------------------------------ one question

    async def _ask(self, question: _Question) -> str:
        """Ask, and ask again if refused with a Retry-After; the outcome, which has been counted."""
        began_us = self._clock.now_us()
        self._asking += 1
        try:
            answer = await self._attempt(question)
            for _ in range(self.config.retries_max):
                wait_s = retry_after_s(answer)
                if wait_s is None or wait_s > self.config.retry_after_max_s or await self._pause(wait_s):
                    break
                self._tally.retried += 1
                answer = await self._attempt(question)
        finally:
            self._asking -= 1
        outcome = _outcome(answer)
        self._tally.outcomes[outcome] += 1
        if outcome == "completed":
            self._tally.completed(answer, began_us, ended_us=self._clock.now_us())
        elif outcome == "failed":
            self._tally.problem(answer.problem or f"status {answer.status}")
        return outcome

    async def _attempt(self, question: _Question) -> Answer:
        assert self._upstream is not None
        timeout_s = self.config.request_timeout_s
        answer = Answer(question.dialect, self._clock)
        call = self._upstream.send(
            "POST",
            question.dialect.value,
            body=question.body,
            receiver=answer,
            first_byte_timeout_s=timeout_s,
            idle_timeout_s=timeout_s,
        )
        self._answers[answer] = None
        try:
            async with asyncio.timeout(timeout_s):
                await answer.ended.wait()
        except TimeoutError:
            answer.give_up("timeout", f"no whole answer in {timeout_s:g} s")
        finally:
            del self._answers[answer]
            call.abort()
        self._tally.attempt(answer)
        return answer

    def _cut(self) -> None:
        for answer in tuple(self._answers):
            answer.give_up("cut", "the run ended")


def retry_after_s(answer: Answer) -> float | None:
    """Seconds after which a refused question may be asked again; None if it was not refused, or should not be."""
    if answer.broke or answer.status not in (429, 503) or answer.header(b"x-should-retry") == b"false":
        return None
    for name, unit_s in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        value = answer.header(name)
        if value is not None and value.isdigit() and len(value) < 10:
            return int(value) * unit_s
    return None


def _outcome(answer: Answer) -> str:
    if answer.broke:
        return "cut" if answer.broke == "cut" else "failed"
    if answer.status == 429 or (answer.status == 503 and answer.header(b"retry-after") is not None):
        return "refused"
    return "completed" if answer.status == 200 else "failed"
