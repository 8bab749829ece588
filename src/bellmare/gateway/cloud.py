"""Requests for ollama.com's models, where the operator allows them: passed on to a worker, which passes them on.

They take no memory and no slot of ours, so the core hears nothing of them: no queue, no second try.
"""

import asyncio
from collections.abc import Callable

from bellmare.core.units import WorkerId
from bellmare.gateway import replies
from bellmare.gateway.conversation import GatewayTimeouts
from bellmare.gateway.errands.errand import Errand, Stamp
from bellmare.gateway.faults import BROKEN_TEXT, FAILED_TEXT, STATUS_LEFT, public_text
from bellmare.gateway.shelf import Shelf
from bellmare.http.call import Call, UpstreamFailure
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Paced
from bellmare.http.messages import HeaderLines, header_lines
from bellmare.protocols.errors import BadAnswer, upstream_error_text
from bellmare.protocols.ndjson import LineTooLong
from bellmare.protocols.ollama import encode_for_cloud

TALKS_MAX = 256
"""At once, over all clients: each holds a connection to a worker, and nothing else bounds them."""
ERROR_BYTES_MAX = 64 << 10
NOBODY = "no worker is reachable that could pass it on to ollama.com"
TOO_MANY = "too many requests for ollama.com are under way: try again in 1 s"

Ended = Callable[["CloudTalk"], None]


class Cloud:
    """Carries them out."""

    def __init__(self, shelf: Shelf, on_end: Ended) -> None:
        self._shelf = shelf
        self._on_end = on_end
        self._next = 0
        self.talks: dict[CloudTalk, None] = {}
        """Under way."""

    def take(self, exchange: Exchange, errand: Errand, *, public_id: str, timeouts: GatewayTimeouts) -> None:
        """Answer it, or refuse it."""
        ports = self._shelf.healthy()
        talk = CloudTalk(exchange, errand, public_id, arrived_us=self._shelf.driver.clock.now_us())
        if not ports or len(self.talks) >= TALKS_MAX:
            status, text = (503, NOBODY) if not ports else (429, TOO_MANY)
            talk.refuse(status, text, headers=replies.retry_headers(1_000_000))
            self._on_end(talk)
            return
        self._next += 1
        port = ports[self._next % len(ports)]
        self.talks[talk] = None
        talk.worker = port.worker
        talk.on_end_of_it = self._ended
        if errand.prepared is None:
            talk.send(port.upstream, encode_for_cloud(errand.native), timeouts)
            return
        exchange.listener = talk
        # Of megabytes: not on the event loop.
        self._shelf.fleet.tasks.spawn(self._encode(talk, port.upstream, timeouts), name="encode for ollama.com")

    async def _encode(self, talk: "CloudTalk", upstream: Upstream, timeouts: GatewayTimeouts) -> None:
        body = await asyncio.to_thread(encode_for_cloud, talk.errand.native)
        if not talk.ended:
            talk.send(upstream, body, timeouts)

    def _ended(self, talk: "CloudTalk") -> None:
        del self.talks[talk]
        self._on_end(talk)

    def shut(self, text: str) -> None:
        """The gateway goes down: tell those that still wait."""
        for talk in list(self.talks):
            talk.shut(text)


class CloudTalk(Paced):
    """Receiver of the worker's answer, ExchangeListener of the client; ends once, in ``_end``."""

    def __init__(self, exchange: Exchange, errand: Errand, public_id: str, *, arrived_us: int) -> None:
        self.exchange = exchange
        self.errand = errand
        self.public_id = public_id
        self.arrived_us = arrived_us
        self.worker = WorkerId("")
        self.status = 0
        """What the client got; 499 if it left before."""
        self.ended = False
        self.on_end_of_it: Ended = _nobody
        model = errand.native.model
        self.translator = errand.translator(Stamp(public_id, arrived_us // 1_000_000, model, model))
        self._call: Call | None = None
        self._status = 0
        self._error = b""

    def send(self, upstream: Upstream, body: bytes, timeouts: GatewayTimeouts) -> None:
        """Ask the worker."""
        self.exchange.listener = self
        self._call = upstream.send(
            "POST",
            self.errand.upstream_path,
            body=body,
            receiver=self,
            first_byte_timeout_s=timeouts.first_token_s if self.errand.stream else timeouts.answer_s,
            idle_timeout_s=timeouts.token_s,
        )

    # ------------------------------------------------------------------ the worker's side

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        if self._status != 200:
            self._error = (self._error + data)[:ERROR_BYTES_MAX]
            return
        try:
            ready = self.translator.feed(data)
            if ready:
                if not self.exchange.started:
                    self.exchange.start(200, self._headers())
                self.exchange.write(ready)
        except (LineTooLong, BadAnswer, ValueError):
            self.drop_call()
            self._broken(FAILED_TEXT)

    def on_end(self) -> None:
        self._call = None
        translator = self.translator
        if self._status != 200:
            self.refuse(self._status if self._status >= 400 else 502, upstream_error_text(self._error))
            self._end()
            return
        try:
            rest = translator.end()
        except (BadAnswer, ValueError):
            self._broken(FAILED_TEXT)
            return
        if translator.error is not None or translator.final is None:
            self._broken(public_text(500, translator.error) if translator.error else BROKEN_TEXT)
        elif translator.streams:
            self.exchange.finish()
            self._end()
        else:
            self.exchange.respond(200, self._headers(), rest)
            self._end()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._call = None
        self._broken(BROKEN_TEXT if self.exchange.started else FAILED_TEXT)

    # ------------------------------------------------------------------ the client's side

    def on_disconnect(self) -> None:
        if self.ended:
            return
        self.status = STATUS_LEFT
        self.drop_call()
        self._end()

    # ------------------------------------------------------------------ ways to end

    def refuse(self, status: int, text: str, *, headers: replies.Headers | None = None) -> None:
        """Answer with an error: nothing was sent yet."""
        self.status = status
        begin, body = replies.error_answer(
            self.errand.dialect, status, public_text(status, text), public_id=self.public_id
        )
        self.exchange.respond(status, [*begin, (b"x-request-id", self.public_id.encode()), *(headers or [])], body)

    def shut(self, text: str) -> None:
        """The gateway goes down and cannot wait for it."""
        self.drop_call()
        self._broken(text, status=503)

    def _broken(self, text: str, *, status: int = 502) -> None:
        if self.exchange.started:
            self.exchange.write(self.translator.cut(text))
            self.exchange.finish()
        else:
            self.refuse(status, text)
        self._end()

    def _end(self) -> None:
        assert not self.ended, "a request ends once"
        self.ended = True
        self.status = self.status or 200
        self.exchange.listener = None
        self.on_end_of_it(self)

    def _headers(self) -> HeaderLines:
        lines = header_lines([(b"x-bellmare-worker", self.worker.encode()), (b"x-request-id", self.public_id.encode())])
        return HeaderLines(self.translator.headers + lines)


def _nobody(talk: CloudTalk) -> None:
    """Nobody waits for its end."""
