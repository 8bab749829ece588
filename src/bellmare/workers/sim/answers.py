"""Answers under way: each waits for the twin's effects and writes to one exchange. A client that leaves is a
``Cancel``.
"""

import asyncio
from collections.abc import Callable

from bellmare.http.listening import Unpaced
from bellmare.http.server import Exchange
from bellmare.twin.messages import Failed, Finished, FirstToken, Input, LoadReplied, Stalled, UnloadReplied
from bellmare.workers.sim.driver import Driver, RequestEffect
from bellmare.workers.sim.render import JSON, JSON_V1, Voice, encode

LINES_MAX = 64
"""Lines of one write: how much a late or resumed answer catches up before it looks whether the client still takes it.
"""


class Answer(Unpaced):
    """Base: one request of the twin, one exchange; nothing is written but what the twin's effects cause."""

    def __init__(self, exchange: Exchange, driver: Driver) -> None:
        self.exchange = exchange
        self.driver = driver
        self.request = driver.new_id()

    def begin(self, given: Input) -> None:
        """Ask the twin; ``given`` carries this answer's ``request``."""
        self.exchange.listener = self
        self.driver.ask(given, self.request, waiter=self)

    def on_effect(self, effect: RequestEffect) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Nothing more to write than ``on_effect`` did."""

    def on_disconnect(self) -> None:
        self.driver.leave(self.request)


class ShortAnswer(Answer):
    """Everything that answers with one JSON object: load, unload, embeddings. ``render`` gets the good end."""

    def __init__(
        self, exchange: Exchange, driver: Driver, *, render: Callable[[RequestEffect], object], crash_status: int = 500
    ) -> None:
        super().__init__(exchange, driver)
        self._render = render
        self._crash_status = crash_status
        """/api/embed answers 400 where others answer 500 (ollama.md 1.6)."""

    def on_effect(self, effect: RequestEffect) -> None:
        if isinstance(effect, Failed):
            status = self._crash_status if effect.status == 500 else effect.status
            self.exchange.respond(status, JSON, encode({"error": effect.text}))
        elif isinstance(effect, Finished | LoadReplied | UnloadReplied):
            self.exchange.respond(200, JSON, encode(self._render(effect)))


class GenerationAnswer(Answer):
    """A generation, streamed at the twin's pace or whole. No byte leaves before the first token (ollama.md 1.5)."""

    def __init__(self, exchange: Exchange, driver: Driver, *, voice: Voice, stream: bool) -> None:
        super().__init__(exchange, driver)
        self._voice = voice
        self._stream = stream
        self._first: FirstToken | None = None
        self._end: Finished | Failed | None = None
        self._tokens = 0
        """Tokens that may ever leave, as far as is known."""
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None

    def on_effect(self, effect: RequestEffect) -> None:
        if isinstance(effect, FirstToken):
            self._first = effect
            self._tokens = effect.tokens
            self._voice.speech.shorten(effect.tokens)
        elif isinstance(effect, Stalled):
            self._tokens = effect.tokens
        elif isinstance(effect, Finished | Failed):
            self._end = effect
            if isinstance(effect, Failed):
                self._tokens = effect.tokens

    def flush(self) -> None:
        if self._stream and self._first is not None:
            if not self.exchange.started:
                self.exchange.start(200, self._voice.stream_headers)
            self._pump()
        elif self._end is not None:
            self._respond(self._end)

    def on_disconnect(self) -> None:
        self._stop_timer()
        super().on_disconnect()

    def on_resume(self) -> None:
        if self.exchange.started:
            self._pump()

    def _respond(self, end: Finished | Failed) -> None:
        if isinstance(end, Failed):
            headers = JSON_V1 if self._stream else self._voice.json_headers
            self.exchange.respond(end.status, headers, self._voice.error(end.status, end.text))
        else:
            self.exchange.respond(200, self._voice.json_headers, self._voice.whole(end))

    def _due(self) -> int:
        """Tokens that should have left by now."""
        if self._end is not None:
            return self._tokens
        assert self._first is not None
        passed_us = self.driver.now_us - self._first.at_us
        return min(self._tokens, 1 + max(0, passed_us) // self._first.token_us)

    def _pump(self) -> None:
        """Write what is due while the client takes it; for one that does not, only the next number is kept."""
        self._stop_timer()
        exchange, voice = self.exchange, self._voice
        if exchange.finished:
            return
        due = self._due()
        while self._sent < due:
            if exchange.paused or exchange.disconnected:
                return
            stop = min(due, self._sent + LINES_MAX)
            lines = b"".join([voice.piece(index) for index in range(self._sent, stop)])
            self._sent = stop
            exchange.write(lines)
        if exchange.disconnected:
            return
        if self._end is not None:
            end = self._end
            exchange.write(voice.last(end) if isinstance(end, Finished) else voice.broken(end.text))
            exchange.finish()
        elif self._sent < self._tokens:
            assert self._first is not None
            next_us = self._first.at_us + self._sent * self._first.token_us
            self._timer = self.driver.loop.call_at(self.driver.clock.loop_time(next_us), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.driver.catch_up()
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
