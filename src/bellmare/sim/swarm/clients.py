"""Who asks, how, and what he does when refused: bursts, deadlines, cancels, retries, hints of what comes next."""

import random
from dataclasses import replace

from bellmare.core import events as e
from bellmare.core.units import RequestId, SpanUs
from bellmare.sim.swarm.books import SECOND
from bellmare.sim.swarm.marks import Habit
from bellmare.sim.swarm.world import UNHEARD_OF, Ask, World

KINDS = (e.RequestKind.generation, e.RequestKind.generation, e.RequestKind.embedding, e.RequestKind.load)
TRIES_MAX = 3
"""A refused client comes back so often, and then gives up."""
RETRIES_OPEN_MAX = 64
"""Refused clients that mean to come back; the others give up, so that a refusal breeds no storm without end."""
UNKNOWN_SHARE = 0.02
"""Requests for a name that nobody stores."""
UNKNOWN_CLASS = 77
POISON = "hemlock"
"""What some requests say, under which runners die."""
FLOOD = 24
"""Hints in a row from one who does not know what he wants."""
CLOCKWORK_EVERY_US = 34 * SECOND
CLOCKWORK_STRIKES = 60
GIVEN = (
    e.HintSource.prepare,
    e.HintSource.next_header,
    e.HintSource.show,
    e.HintSource.tags,
    e.HintSource.body,
)
"""Hints that come from outside."""


class Clients:
    """All clients of one world. ``rng`` is theirs alone."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.asked: dict[RequestId, tuple[Ask, int]] = {}
        """Who may have to come back: what he asked for, and for the how manieth time."""
        self._coming_back = 0
        self._by_the_clock = ""
        """The model of whoever asks by the clock."""
        self._choice = random.Random("bellmare classes")  # noqa: S311 of classes alone
        self._usual = [rng.randrange(len(world.names)) for _ in range(world.setting.tenants)]

    def arrive(self) -> None:
        """One request of one tenant."""
        known = self.rng.random() >= UNKNOWN_SHARE
        self.ask(self._ask(self.rng.randrange(len(self.world.names)) if known else len(self.world.names)))

    def burst(self) -> None:
        """Several requests for one model at one instant."""
        name = self.rng.randrange(len(self.world.names))
        self.world.habit(Habit.burst)
        for _ in range(self.rng.randrange(2, 9)):
            self.ask(self._ask(name, usual=False))

    def clockwork(self) -> None:
        """One tenant asks for one model again and again, at equal gaps, and nobody else does. Draws nothing."""
        self._by_the_clock = self.world.name(len(self.world.names) - 1)
        ask = Ask(name=self._by_the_clock, wait_us=60 * SECOND, tokens=10, tenant="clockwork")

        def strike(left: int) -> None:
            self.world.habit(Habit.clockwork)
            self.ask(ask)
            if left:
                self.world.later(CLOCKWORK_EVERY_US, lambda: strike(left - 1))

        self.world.later(CLOCKWORK_EVERY_US, lambda: strike(CLOCKWORK_STRIKES))

    def _ask(self, name: int, *, usual: bool = True) -> Ask:
        rng, setting = self.rng, self.world.setting
        tenant = rng.randrange(setting.tenants)
        if usual and rng.random() < setting.sticky:
            name = self._usual[tenant]
        wait_us = rng.randrange(10 * SECOND, 150 * SECOND)
        if rng.random() < setting.short_share:
            wait_us = rng.choice((0, 1, SECOND // 2, 3 * SECOND))
            self.world.habit(Habit.short_deadline if wait_us else Habit.past_deadline)
        chance = rng.random()
        priority = e.Priority.normal
        if chance < setting.low_share:
            priority = e.Priority.low
        elif chance > 1 - setting.high_share:
            priority = e.Priority.high
        return Ask(
            name=self._class_of(self.world.name(name)),
            wait_us=wait_us,
            kind=KINDS[rng.randrange(len(KINDS))],
            tokens=rng.choice((0, 10, 100, 1_000, 20_000)),
            tenant=f"tenant-{tenant}",
            priority=priority,
            content=f"{POISON} {name}" if rng.random() < setting.poison_share else "",
        )

    def _class_of(self, name: str) -> str:
        """One of its context classes, sometimes; now and then one that it has not."""
        classes = self.world.classes_of(name)
        if not classes or self._choice.random() >= self.world.setting.class_share:
            return name
        return self._choice.choice(classes) if self._choice.random() > UNKNOWN_SHARE else f"{name}#{UNKNOWN_CLASS}"

    def ask(self, ask: Ask, tries: int = 1) -> None:
        if ask.name == self._by_the_clock and ask.tenant != "clockwork":
            ask = replace(ask, name=self.world.name(0))
        request = self.world.arrive(ask)
        self.asked[request] = (ask, tries)
        self.read_refusals()

    def read_refusals(self) -> None:
        """Who was refused for a while comes back: when he was told to, or at once, or never."""
        world = self.world
        for refusal in world.refusals:
            ask, tries = self.asked.pop(refusal.request, (None, TRIES_MAX))
            if ask is None or tries >= TRIES_MAX or not refusal.retry_after_us:
                continue
            chance = self.rng.random()
            honouring = chance < world.setting.honouring
            if self._coming_back >= RETRIES_OPEN_MAX or not (
                honouring or chance > 1 - (1 - world.setting.honouring) / 2
            ):
                continue
            self._coming_back += 1
            span_us = refusal.retry_after_us if honouring else 0
            world.later(span_us, lambda ask=ask, tries=tries, kept=honouring: self._return(ask, tries + 1, kept=kept))  # type: ignore[misc]
        world.refusals.clear()
        if len(self.asked) > 4 * len(world.oracle.requests) + 64:
            self.asked = {request: asked for request, asked in self.asked.items() if request in world.oracle.requests}

    def _return(self, ask: Ask, tries: int, *, kept: bool) -> None:
        self._coming_back -= 1
        self.world.habit(Habit.retry_honouring if kept else Habit.retry_at_once)
        self.ask(ask, tries)

    # ------------------------------------------------------------------ hints

    def hint(self) -> None:
        """Somebody says what will be asked for: rightly, wrongly, too late, or of what nobody knows."""
        rng, world = self.rng, self.world
        source = GIVEN[rng.randrange(len(GIVEN))]
        ask = self._ask(rng.randrange(len(world.names)))
        span_us = rng.choice((0, SECOND, 5 * SECOND, 15 * SECOND))
        habit = rng.choice((Habit.hint_right, Habit.hint_right, Habit.hint_wrong, Habit.hint_late, Habit.hint_unknown,
                            Habit.hint_usual))  # fmt: skip
        name = {Habit.hint_unknown: UNHEARD_OF, Habit.hint_usual: ""}.get(habit, ask.name)
        world.habit(habit)
        if habit is Habit.hint_late:
            self.ask(ask)
        ttl_us = rng.choice((0, 10 * SECOND, 60 * SECOND))
        world.hint(
            e.HintGiven(source=source, name=name, tenant=ask.tenant, in_us=SpanUs(span_us), ttl_us=SpanUs(ttl_us))
        )
        if habit in (Habit.hint_right, Habit.hint_usual):
            world.later(span_us, lambda: self.ask(ask))

    def flood(self) -> None:
        """Hints for everything, again and again."""
        self.world.habit(Habit.hint_flood)
        for number in range(FLOOD):
            name = self.world.name(number % (len(self.world.names) + 1))
            self.world.hint(
                e.HintGiven(source=e.HintSource.prepare, name=name, tenant="tenant-0", in_us=SpanUs(SECOND))
            )
