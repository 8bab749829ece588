"""Progress lines of create, pull and push: NDJSON as they come, or the last one alone (ollama.md 1.6, traps)."""

from typing import Any

from bellmare.http.server import Exchange
from bellmare.workers.sim.render import JSON, NDJSON, encode


class Lines:
    """Writes to one exchange. After ``end`` or ``fail`` nothing is written."""

    def __init__(self, exchange: Exchange, *, stream: bool) -> None:
        self.exchange = exchange
        self._stream = stream

    def say(self, line: dict[str, Any]) -> None:
        if not self._stream:
            return
        if not self.exchange.started:
            self.exchange.start(200, NDJSON)
        self.exchange.write(encode(line) + b"\n")

    def end(self) -> None:
        """The good end."""
        if self._stream:
            self.say({"status": "success"})
            self.exchange.finish()
        else:
            self.exchange.respond(200, JSON, encode({"status": "success"}))

    def fail(self, text: str) -> None:
        """A last line, or a status where nothing was said before."""
        if self.exchange.started:
            self.say({"error": text})
            self.exchange.finish()
        else:
            self.exchange.respond(500, JSON, encode({"error": text}))
