"""The closed loop: each connection asks, waits for its answer, thinks, and asks again. Says what is asked and when.

What the n-th request of a connection is depends on the seed alone, not on who serves it: both sides are asked alike.
"""

import hashlib
import heapq
from typing import NamedTuple

from bellmare.core.events import HintGiven, HintSource
from bellmare.core.units import SECOND_US, SpanUs
from bellmare.sim.claims.conditions import (
    LOG_NORMAL,
    OUTPUT_MAX,
    PROMPT_MAX,
    STAY_PERCENT,
    ZIPF,
    Setup,
    kind_of,
)
from bellmare.sim.hints import TimedHint
from bellmare.sim.tally import NEVER, Tally
from bellmare.sim.workload import START_US, SimModel, Workload, randomness
from bellmare.sim.world import FOREVER_US

HINT_LEAD_US = 15 * SECOND_US
HINT_TTL_US = 30 * SECOND_US
"""As ``hints.HintPlan``."""
STAGGER_S = 1.0
"""Without pauses the connections begin within so long; with them within a mean pause."""


class Ask(NamedTuple):
    """One request."""

    connection: int
    model: int
    prompt_tokens: int
    output_tokens: int


class LoopTally(Tally):
    """Books of a run whose requests are not known before: each is entered when it is made."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        assert not workload.arrivals, "a closed loop has no arrivals of its own"
        self.asks: list[Ask] = []
        self.asked_us: list[int] = []
        self.first_us: list[int] = []
        """Of the first token."""
        self.open_max = 0
        self.fresh: list[int] = []
        """Ended since the loop last looked."""

    def asked(self, ask: Ask, at_us: int, *, cold: bool) -> int:
        """A request is made; returns its number."""
        number = len(self.asks)
        self.asks.append(ask)
        self.asked_us.append(at_us)
        self.first_us.append(NEVER)
        self.start_us.append(NEVER)
        self.end_us.append(NEVER)
        self.cold.append(cold)
        self.arrived_count += 1
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        return number

    def started(self, request: int, at_us: int) -> None:
        """As in the base class, against the loop's own instants."""
        self._must(self.end_us[request] == NEVER, "only who waits starts", request)
        self._must(at_us >= self.asked_us[request], "nobody starts before he asks", request)
        self.start_us[request] = at_us

    def answered(self, request: int, at_us: int) -> None:
        """Its first token came."""
        self._must(at_us >= self.asked_us[request], "no token comes before it is asked for", request)
        self.first_us[request] = at_us

    def _close(self, request: int, at_us: int) -> None:
        super()._close(request, at_us)
        self.fresh.append(request)


class Loop:
    """The connections. ``take`` and ``settle`` are all that moves them."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.models = _models(setup)
        self.busy: dict[int, None] = {}
        """Connections that wait for an answer."""
        self._horizon_us = int(setup.horizon_s * SECOND_US)
        self._weights = [1.0 / (1 + rank) ** ZIPF for rank in range(setup.models)]
        self._chance = [randomness(setup.seed, f"connection {n}") for n in range(setup.connections)]
        self._hinting = randomness(setup.seed, "closed loop hints")
        self._last: dict[int, int] = {}
        """The model that each asked last."""
        self._asks: list[tuple[int, Ask]] = []
        self._hints: list[tuple[int, Ask]] = []
        """Both by their instants."""
        for connection, chance in enumerate(self._chance):
            within_s = chance.random() * (setup.think_s or STAGGER_S)
            self._plan(connection, 0, START_US + int(within_s * SECOND_US))

    def workload(self) -> Workload:
        """The models, and no arrivals."""
        return Workload(
            name="closed loop", seed=self.setup.seed, models=self.models, arrivals=(), slots=self.setup.parallel
        )

    def ask_due_us(self) -> int:
        """When the next request is made; ``FOREVER_US`` after the horizon."""
        return self._asks[0][0] if self._asks else FOREVER_US

    def hint_due_us(self) -> int:
        """When the next request is announced."""
        return self._hints[0][0] if self._hints else FOREVER_US

    def take(self) -> Ask:
        """The next request, which is made now."""
        ask = heapq.heappop(self._asks)[1]
        assert ask.connection not in self.busy, "a connection asks one thing at a time"
        self.busy[ask.connection] = None
        return ask

    def take_hint(self) -> TimedHint:
        """The next announcement."""
        at_us, ask = heapq.heappop(self._hints)
        hint = HintGiven(
            source=HintSource.prepare,
            name=self.models[ask.model].name,
            tenant=f"user-{ask.connection}",
            in_us=SpanUs(HINT_LEAD_US),
            ttl_us=SpanUs(HINT_TTL_US),
        )
        return TimedHint(at_us, hint)

    def settle(self, tally: LoopTally) -> None:
        """Let the connections go on whose requests have ended."""
        ended, tally.fresh = tally.fresh, []
        for number in ended:
            connection, end_us = tally.asks[number].connection, tally.end_us[number]
            del self.busy[connection]
            mean_s = self.setup.think_s
            think_s = self._chance[connection].expovariate(1.0 / mean_s) if mean_s else 0.0
            self._plan(connection, end_us, end_us + int(think_s * SECOND_US))

    def _plan(self, connection: int, now_us: int, at_us: int) -> None:
        """The connection's next request, drawn whether it is still made or not."""
        ask = self._drawn(connection)
        if at_us > self._horizon_us:
            return
        heapq.heappush(self._asks, (at_us, ask))
        if self._hinting.random() * 100 < self.setup.hints_percent:
            heapq.heappush(self._hints, (max(now_us, at_us - HINT_LEAD_US, 1), ask))

    def _drawn(self, connection: int) -> Ask:
        chance, setup = self._chance[connection], self.setup
        model = self._last.get(connection)
        if model is None or chance.random() * 100 >= STAY_PERCENT:
            model = chance.choices(range(setup.models), self._weights)[0]
        self._last[connection] = model
        prompt, output = LOG_NORMAL[setup.lengths]
        prompt_tokens = min(PROMPT_MAX, max(1, round(chance.lognormvariate(*prompt))))
        output_tokens = min(OUTPUT_MAX, max(1, round(chance.lognormvariate(*output))))
        return Ask(connection, model, prompt_tokens, output_tokens)


def _models(setup: Setup) -> tuple[SimModel, ...]:
    """Blobs are drawn by seed: stock Ollama breaks ties of eviction by them."""
    found = []
    for number in range(setup.models):
        name = f"claim-{number:02d}:latest"
        blob = hashlib.sha256(f"{setup.seed} {name}".encode()).hexdigest()
        found.append(SimModel(name, blob, kind_of(setup, number).weights_bytes))
    return tuple(found)
