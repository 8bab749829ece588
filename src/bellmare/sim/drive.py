"""Feeds the engine in virtual time as ``runtime.driver`` feeds it in wall time, and hands its decisions to a world.

Of several things due at one instant the world's come first, then the core's deadlines, then arrivals.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Decision
from bellmare.core.engine import Engine
from bellmare.core.events import Event, RequestArrived, TimePassed
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.units import SECOND_US, InstantUs, SpanUs
from bellmare.sim.hints import TimedHint
from bellmare.sim.tally import Tally
from bellmare.sim.world import FOREVER_US, World, request_id

PATIENCE_US = 24 * 3600 * SECOND_US
"""Requests wait as long as it takes: refusals would make the waits of a bad policy look short."""
WAITING_MAX = 1_000_000
DEADLINES_AT_ONCE_MAX = 10_000
"""``TimePassed`` in a row at one instant, after which the core is stuck: our bug."""
PROGRESS_EVERY = 500
SAMPLE_EVERY = 7
"""One step in so many is timed: a reading of the processor clock costs as much as a cheap step. A prime, so that it
never falls into step with events that come in turn (arrival, first token, end)."""
CLOCK_READINGS = 20
"""So many are tried to learn what a reading itself costs."""

Watcher = Callable[[InstantUs, Event, list[Decision]], None]
Progress = Callable[[int], None]
"""Called now and then with the number of requests that have arrived."""


def core_config(eviction: str = "hv", *, ahead: bool = True, shadows: bool = False) -> CoreConfig:
    """The core's defaults but for the bounds of its queues, and without shadows, which cost time, unless asked for."""
    return CoreConfig(
        queue_per_model_max=WAITING_MAX,
        queue_total_max=WAITING_MAX,
        queue_wait_max_us=SpanUs(PATIENCE_US),
        eviction=eviction,
        ahead=ahead,
        shadows=shadows,
    )


class Drive:
    """One run of one engine."""

    def __init__(
        self,
        engine: Engine,
        world: World,
        tally: Tally,
        *,
        watcher: Watcher | None = None,
        hints: Sequence[TimedHint] = (),
        deadline_us: int = PATIENCE_US,
    ) -> None:  # tidy: what a run consists of
        self.engine = engine
        self.world = world
        self.tally = tally
        self._steps = 0
        self._sampled_ns = 0
        self._reading_ns = _reading_ns()
        self._watcher = watcher
        self._hints = deque(sorted(hints, key=lambda timed: timed.at_us))
        self._deadline_us = deadline_us
        """From each arrival to the instant by which it must have been dispatched."""
        self._now_us = 0

    @property
    def step_cpu_ns(self) -> int:
        """Processor time inside the engine: that of the steps that were timed, scaled to all steps."""
        sampled = -(-self._steps // SAMPLE_EVERY)
        spent_ns = self._sampled_ns - sampled * self._reading_ns
        return max(0, spent_ns) * self._steps // max(1, sampled)

    def run(self, progress: Progress | None = None) -> None:
        """Until every request has ended, or nothing can happen any more."""
        self._join()
        workload, world, tally = self.tally.workload, self.world, self.tally
        arrivals = workload.arrivals
        names = [model.name for model in workload.models]
        count, number = len(arrivals), 0
        while number < count or tally.open:
            arrival_us = arrivals[number].at_us if number < count else FOREVER_US
            world_us = world.due_us()
            hint_us = self._hints[0].at_us if self._hints else FOREVER_US
            core_us = self._core_due_us()
            if hint_us < min(world_us, core_us) and hint_us <= arrival_us:
                self._step(hint_us, self._hints.popleft().hint)
            elif world_us <= core_us and world_us <= arrival_us:
                if world_us == FOREVER_US:
                    return  # requests are left that nobody will ever serve: the report says so
                for event in world.take(world_us):
                    self._step(world_us, event)
            elif core_us <= arrival_us:
                self._pass_time(core_us)
            else:
                arrival = arrivals[number]
                tally.arrived(number, cold=not world.ready(arrival.model))
                self._step(arrival_us, self._arrived(names[arrival.model], number, user=arrival.user))
                number += 1
                if progress is not None and number % PROGRESS_EVERY == 0:
                    progress(number)

    def _arrived(self, name: str, number: int, *, user: int) -> RequestArrived:
        at_us = self.tally.workload.arrivals[number].at_us
        deadline_us = InstantUs(at_us + self._deadline_us)
        return RequestArrived(request=request_id(number), name=name, deadline_us=deadline_us, tenant=f"user-{user}")

    def _join(self) -> None:
        for added in self.world.added():
            self._step(0, added)
            self._step(0, self.world.observed(added.worker, 0))

    def _core_due_us(self) -> int:
        deadline_us = self.engine.next_deadline_us()
        return FOREVER_US if deadline_us is None else max(int(deadline_us), self._now_us)

    def _pass_time(self, now_us: int) -> None:
        for _ in range(DEADLINES_AT_ONCE_MAX):
            self._step(now_us, TimePassed())
            deadline_us = self.engine.next_deadline_us()
            if deadline_us is None or deadline_us > now_us:
                return
        raise AssertionError("the core asks for one instant again and again")

    def _step(self, now_us: int, event: Event) -> None:
        instant = InstantUs(now_us)
        self._now_us = now_us
        if self._steps % SAMPLE_EVERY:
            decisions = self.engine.step(instant, event)
        else:
            began_ns = time.process_time_ns()
            decisions = self.engine.step(instant, event)
            self._sampled_ns += time.process_time_ns() - began_ns
        self._steps += 1
        if self._watcher is not None:
            self._watcher(instant, event, decisions)
        for decision in decisions:
            self.world.act(now_us, decision)


def _reading_ns() -> int:
    """What one reading of the processor clock costs, at its quickest."""
    readings = [time.process_time_ns() for _ in range(CLOCK_READINGS)]
    return min(after - before for before, after in pairwise(readings))


def engine(policy: EvictionPolicy | None = None) -> Engine:
    """The gateway's own core, with another eviction policy if one is given."""
    made = Engine(core_config())
    if policy is not None:
        made.policy = policy
    return made
