"""What a client hears while it waits: whose turn it is and for about how long, as headers and as heartbeats.

A heartbeat is what every official client reads as nothing (ollama.md 7): a blank in NDJSON, a comment among server-sent
events. With the first one the status is 200 for good, so there are none unless the operator wants them, and none in
answers that are not streamed.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from bellmare.core.units import InstantUs, SpanUs
from bellmare.gateway.conversation import Conversation
from bellmare.http.messages import header_lines
from bellmare.protocols.errors import Dialect

SWEEP_S = 0.5
"""How late a heartbeat may be, so how exact its interval is."""
POSITIONS_MAX = 2000
"""Waiting requests above which heartbeats say no position: each costs a look at every tenant that waits."""
TURN_US = 3_000
"""Of the loop's time for heartbeats in one go: 2,000 positions among as many tenants would take half a second."""
BREATH_S = 0.005
"""Between two turns."""

_BLANK = b" "

Place = tuple[int, SpanUs]
"""Whose turn it is (1: the next) and in about what time it will run."""


def beat(dialect: Dialect, place: Place | None) -> bytes:
    """One heartbeat of a stream; None: the request waits no more in our queue, but for its model."""
    if dialect is Dialect.ollama:
        return _BLANK
    if place is None:
        return b": waiting for the first token\n\n"
    return b": queue position=%d eta_ms=%d\n\n" % (place[0], place[1] // 1000)


class Heart:
    """Beats for all conversations of a gateway, with one timer, and only while there are to be heartbeats."""

    def __init__(
        self,
        conversations: Callable[[], Iterable[Conversation]],
        place_of: Callable[[Conversation], Place | None],
        now_us: Callable[[], InstantUs],
    ) -> None:
        self._conversations = conversations
        self._place_of = place_of
        self._now_us = now_us
        self._every_us = SpanUs(0)
        self._timer: asyncio.TimerHandle | None = None

    def set(self, every_us: SpanUs) -> None:
        """From now on a waiting stream hears something every so often; zero: nothing."""
        self._every_us = every_us
        if self._timer is None and every_us:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def stop(self) -> None:
        """Beat no more."""
        self._every_us = SpanUs(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        if self._every_us:
            due_us = self._now_us() - self._every_us
            due = [one for one in self._conversations() if one.errand.stream and one.silent_since(due_us)]
            self._go_on(iter(due), due_us, tell=len(due) <= POSITIONS_MAX)

    def _go_on(self, due: Iterator[Conversation], due_us: int, *, tell: bool) -> None:
        """Beat for some of those that are left, and for the others a moment later."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SWEEP_S, self._sweep)  # first: a bug in one answer must not silence all
        until_us = self._now_us() + TURN_US
        for conversation in due:
            if conversation.silent_since(due_us):  # still
                self._beat(conversation, tell=tell)
                if self._now_us() > until_us:
                    self._timer.cancel()
                    self._timer = loop.call_later(BREATH_S, partial(self._go_on, due, due_us, tell=tell))
                    return

    def _beat(self, conversation: Conversation, *, tell: bool) -> None:
        place = self._place_of(conversation) if tell else None
        first = None
        if not conversation.exchange.started:
            first = header_lines(
                []
                if place is None
                else [
                    (b"x-bellmare-queue-position", b"%d" % place[0]),
                    (b"x-bellmare-eta-ms", b"%d" % (place[1] // 1000)),
                ]
            )
        conversation.beat(beat(conversation.errand.dialect, place), first)
