"""Generators with the statistics of policy.md 2: sessions of users, functions, clients of a cloud, chains of models.

Each takes a seed and how many requests at most, and says the same on every machine: spans are rounded to milliseconds,
so that the last digit of a logarithm decides nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.workload import Arrival, Workload, build, randomness

HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
MILLISECOND_US = 1000

DAY_CURVE = (
    0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.3, 1.0, 2.4, 3.4, 2.6,
    1.0, 1.6, 2.8, 2.4, 1.9, 1.2, 0.8, 0.8, 0.7, 0.5, 0.3, 0.1,
)  # fmt: skip
"""Sessions by hour of an office: the peak 3.4 times the mean, seven hours nearly dead (policy.md 2)."""
QUIET_DAY = 0.2
"""Share of a usual day's sessions on the seventh."""
SESSION_MODELS = 86
POPULARITY_SHIFT, POPULARITY_SLOPE = 4.0, 2.5
"""Popularity of rank k is (k + 4)^-2.5. With the switches the first 1, 5, 10 and 20 models take 24, 71, 90 and 96 % of
the requests (seen: 31, 70, 87, 94), and 29, 62, 78, 92 % fall on the last 1, 3, 5, 10 models used (seen: 25, 56, 73,
89)."""
SESSIONS_PER_DAY = 254
"""5,850 sessions in 23 days."""
SESSION_LOG_MEAN, SESSION_LOG_DEVIATION = 0.65, 1.25
"""Requests of a session: median 2, 90th percentile 9, mean 4.3 (4.5 seen)."""
SESSION_MAX = 200
GAP_LOG_MEAN, GAP_LOG_DEVIATION = 4.28, 1.09
"""Seconds between the requests of a session: median 67 (seen). Longer than half an hour would be a new session."""
GAP_MAX_S = 1800.0
STAY = 0.73
"""A session goes on with the model of its last request."""
SWITCH_TO_POPULAR = 0.75
POPULAR = 10
"""A switch goes to one of so many most popular models."""
NEW_USER = 0.725
"""Sessions of users never seen before: 4,244 users in 5,850 sessions."""
RETURN_TO_MODEL = 0.5
"""A user who returns begins with his last model: our guess, the findings do not say."""
EXEC_LOG_MEAN, EXEC_LOG_DEVIATION = 3.116, 0.547
"""Seconds of execution: median 22, mean 26; services take 30 % of it unless a scenario says otherwise."""


class Sessions(msgspec.Struct, frozen=True):
    """What may be varied of the session generator."""

    load: int = 1
    """So many times as many sessions a day."""
    service_percent: int = 30
    """Of the execution time: 100 for long requests."""
    requests: int = 10_000
    popularity_shift: float = POPULARITY_SHIFT
    models: int = SESSION_MODELS


class Popularity:
    """Draws a model by rank."""

    def __init__(self, models: int, shift: float) -> None:
        self.weights = [(rank + 1 + shift) ** -POPULARITY_SLOPE for rank in range(models)]
        self._sums = list(accumulate(self.weights))

    def draw(self, chance: Random, first: int | None = None) -> int:
        """Of the ``first`` most popular, or of all."""
        count = len(self._sums) if first is None else first
        return min(bisect_left(self._sums, chance.random() * self._sums[count - 1]), count - 1)


def span_us(chance: Random, mean: float, deviation: float) -> int:
    """A log-normal span of seconds with the given mean and deviation of its logarithm, at least a millisecond."""
    return max(1, int(chance.lognormvariate(mean, deviation) * 1000)) * MILLISECOND_US


def sessions(seed: int, chosen: Sessions) -> Workload:
    """GenTD-like: users come for sessions, stay with their model or switch, in the rhythm of an office."""
    chance = randomness(seed, "sessions")
    ranks = Popularity(chosen.models, chosen.popularity_shift)
    numbers = list(range(chosen.models))
    chance.shuffle(numbers)  # sizes are drawn in the order of numbers: popularity must not follow it
    last_model: list[int] = []
    arrivals: list[Arrival] = []
    for begin_us in _session_starts(chance, chosen.load):
        if len(arrivals) > chosen.requests and begin_us > arrivals[chosen.requests].at_us:
            arrivals.sort()
            if begin_us > arrivals[chosen.requests].at_us:
                break
        new = not last_model or chance.random() < NEW_USER
        user = len(last_model) if new else chance.randrange(len(last_model))
        model = ranks.draw(chance)
        if new:
            last_model.append(model)
        elif chance.random() < RETURN_TO_MODEL:
            model = last_model[user]
        at_us = begin_us
        for _ in range(_session_length(chance)):
            exec_us = span_us(chance, EXEC_LOG_MEAN, EXEC_LOG_DEVIATION)
            arrivals.append(Arrival(at_us, numbers[model], exec_us * chosen.service_percent // 100, user))
            last_model[user] = model
            at_us += min(span_us(chance, GAP_LOG_MEAN, GAP_LOG_DEVIATION), int(GAP_MAX_S * SECOND_US))
            if chance.random() >= STAY:
                model = _another(chance, ranks, model)
    arrivals.sort()
    return build("sessions", seed=seed, arrivals=arrivals[: chosen.requests])


def _another(chance: Random, ranks: Popularity, model: int) -> int:
    first = POPULAR if chance.random() < SWITCH_TO_POPULAR else None
    while (drawn := ranks.draw(chance, first)) == model:
        pass
    return drawn


def _session_length(chance: Random) -> int:
    return min(max(1, round(chance.lognormvariate(SESSION_LOG_MEAN, SESSION_LOG_DEVIATION))), SESSION_MAX)


def _session_starts(chance: Random, load: int) -> Iterator[int]:
    """Without end: Poisson by the day curve, thinned from its peak."""
    peak = max(DAY_CURVE)
    rate_per_us = SESSIONS_PER_DAY * load * peak / DAY_US
    at_us = 0
    while True:
        at_us += max(1, int(chance.expovariate(rate_per_us)))
        day, hour = at_us // DAY_US, at_us % DAY_US // HOUR_US
        weight = DAY_CURVE[hour] * (QUIET_DAY if day % 7 == 6 else 1.0)
        if chance.random() * peak < weight:
            yield at_us


FUNCTIONS = 40
CALLS_MIN, CALLS_MAX = 6, 400
PERIODIC = 0.3
"""Functions called by a timer; the others come in bursts."""
BURST_MEAN = 4
BURST_GAP_LOG_MEAN, BURST_GAP_LOG_DEVIATION = 3.0, 1.2
"""Seconds between the calls of a burst: median 20."""


def functions(seed: int, requests: int) -> Workload:
    """AzFn-like: 40 functions stand for models, 6 to 400 calls a day, 1 to 8 s each; timers and bursts; one day."""
    chance = randomness(seed, "functions")
    arrivals: list[Arrival] = []
    for number in range(FUNCTIONS):
        calls = int(CALLS_MIN * (CALLS_MAX / CALLS_MIN) ** chance.random())
        service_us = int((1.0 + 7.0 * chance.random() ** 2) * 1000) * MILLISECOND_US
        times = _timer(chance, calls) if chance.random() < PERIODIC else _bursts(chance, calls)
        arrivals.extend(Arrival(at_us, number, service_us, number) for at_us in times if at_us < DAY_US)
    arrivals.sort()
    return build("functions", seed=seed, arrivals=arrivals[:requests])


def _timer(chance: Random, calls: int) -> list[int]:
    period_us = DAY_US // calls
    offset_us = chance.randrange(period_us)
    return [offset_us + period_us * call + chance.randrange(SECOND_US) for call in range(calls)]


def _bursts(chance: Random, calls: int) -> list[int]:
    times: list[int] = []
    while len(times) < calls:
        at_us = chance.randrange(DAY_US)
        for _ in range(1 + int(chance.expovariate(1 / BURST_MEAN))):
            times.append(at_us)
            at_us += span_us(chance, BURST_GAP_LOG_MEAN, BURST_GAP_LOG_DEVIATION)
    return times[:calls]


CLIENTS = 40
CLIENT_SLOTS = 8
CLIENT_RATE_LOG_MEAN, CLIENT_RATE_LOG_DEVIATION = -8.2, 1.6
"""Requests per second of one client: median one in an hour, the largest some in a minute."""
CLIENT_BURST_CHOICES = (1.0, 1.0, 1.5, 2.5, 4.0)
"""Coefficients of variation between requests: few clients are very bursty, most are steady (ServeGen)."""
CLIENT_SERVICE_LOG_MEAN, CLIENT_SERVICE_LOG_DEVIATION = 1.2, 0.7


def clients(seed: int, requests: int) -> Workload:
    """ServeGen-like: 40 clients stand for models; gamma gaps by rate and burstiness, the rate by hour; eight slots."""
    chance = randomness(seed, "clients")
    arrivals: list[Arrival] = []
    for number in range(CLIENTS):
        rate = chance.lognormvariate(CLIENT_RATE_LOG_MEAN, CLIENT_RATE_LOG_DEVIATION)
        shape = 1 / chance.choice(CLIENT_BURST_CHOICES) ** 2
        phase = chance.randrange(24)
        at_us = 0
        for _ in range(requests):
            busy = 0.5 + DAY_CURVE[(at_us // HOUR_US + phase) % 24] / 2
            gap_s = chance.gammavariate(shape, 1 / (rate * busy * shape))
            at_us += max(1, int(gap_s * 1000)) * MILLISECOND_US
            if at_us >= 7 * DAY_US:
                break
            service_us = span_us(chance, CLIENT_SERVICE_LOG_MEAN, CLIENT_SERVICE_LOG_DEVIATION)
            arrivals.append(Arrival(at_us, number, service_us, number))
    arrivals.sort()
    return build("clients", seed=seed, arrivals=arrivals[:requests], slots=CLIENT_SLOTS)


CHAIN_MODELS = 18
CHAINS_PER_DAY = 500
EMBEDDERS = (0, 1)
RERANKERS = (2, 3)
CHATTERS = (4, 5, 6, 7, 8, 9)
PLANNERS = (10, 11)
CODERS = (12, 13, 14, 15)
CHECKERS = (16, 17)
RAG = 0.6
"""Share of chains that answer a question: embed, rerank, chat. The others are agents: plan, then code and check."""
ROUNDS_MAX = 5


def chains(seed: int, requests: int) -> Workload:
    """RAG and agents: 18 models called one after another by chains, each user with his own of each kind."""
    chance = randomness(seed, "chains")
    arrivals: list[Arrival] = []
    for user, begin_us in enumerate(_session_starts(chance, CHAINS_PER_DAY // SESSIONS_PER_DAY + 1)):
        if len(arrivals) > requests and begin_us > sorted(arrivals)[requests].at_us:
            break
        steps = _rag if chance.random() < RAG else _agent
        at_us = begin_us
        for model, service_us in steps(chance):
            arrivals.append(Arrival(at_us, model, service_us, user))
            at_us += service_us + span_us(chance, 0.0, 0.8)
    arrivals.sort()
    return build("chains", seed=seed, arrivals=arrivals[:requests])


def _rag(chance: Random) -> Iterator[tuple[int, int]]:
    """One or more questions; the chat follows its retrieval at once, the next question after some thought."""
    embedder, reranker, chatter = (_favourite(chance, models) for models in (EMBEDDERS, RERANKERS, CHATTERS))
    for _ in range(1 + int(chance.expovariate(1.0))):
        yield embedder, span_us(chance, -1.6, 0.4)
        yield reranker, span_us(chance, -0.7, 0.4)
        yield chatter, span_us(chance, 1.8, 0.6)


def _agent(chance: Random) -> Iterator[tuple[int, int]]:
    planner, coder, checker = (_favourite(chance, models) for models in (PLANNERS, CODERS, CHECKERS))
    yield planner, span_us(chance, 1.6, 0.5)
    for _ in range(1 + chance.randrange(ROUNDS_MAX)):
        yield coder, span_us(chance, 2.2, 0.6)
        yield checker, span_us(chance, 1.0, 0.5)


def _favourite(chance: Random, models: tuple[int, ...]) -> int:
    """The first of its kind is used half the time, the second half of the rest, and so on."""
    for model in models[:-1]:
        if chance.random() < 0.5:
            return model
    return models[-1]


Generator = Callable[[int, int], Workload]
"""Seed and number of requests at most."""
