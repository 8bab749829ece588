"""Passes requests on to the process that takes over, byte for byte: what still waits here, and what still comes here.

It decides nothing and reads nothing but heads; the other process queues, answers and accounts.
"""

from bellmare.core.units import SECOND_US
from bellmare.gateway import replies
from bellmare.http.call import Call, UpstreamFailure
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Paced

PASSED_ON = frozenset({b"content-type", b"authorization", b"x-api-key", b"x-request-id", b"user-agent"})
PASSED_ON_PREFIX = b"x-bellmare-"
OURS = frozenset({b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"date"})
"""Headers of an answer that frame it: this connection has its own."""
NOT_REACHED = "the gateway is being restarted: try again"


class Relay:
    """To one successor. ``timeout_s`` bounds its silence: it has shorter timeouts of its own."""

    def __init__(self, upstream: Upstream, *, timeout_s: float) -> None:
        self.upstream = upstream
        self.passed = 0
        """Requests passed on so far."""
        self._timeout_s = timeout_s

    def take(self, exchange: Exchange) -> None:
        """Have the successor answer a complete request of which nothing has been answered yet."""
        self.passed += 1
        _Passed(self.upstream, exchange, self._timeout_s)


class _Passed(Paced):
    """Receiver of the successor's answer, ExchangeListener of the client."""

    __slots__ = ("_call", "_exchange")

    def __init__(self, upstream: Upstream, exchange: Exchange, timeout_s: float) -> None:
        request = exchange.request
        exchange.listener = self
        self._exchange = exchange
        self._call: Call | None = upstream.send(
            request.method,
            request.target,
            body=request.body,
            headers=[
                (name, value)
                for name, value in request.headers
                if name in PASSED_ON or name.startswith(PASSED_ON_PREFIX)
            ],
            receiver=self,
            first_byte_timeout_s=timeout_s,
            idle_timeout_s=timeout_s,
        )

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._exchange.start(status, [header for header in headers if header[0] not in OURS])

    def on_data(self, data: bytes) -> None:
        self._exchange.write(data)

    def on_end(self) -> None:
        self._call = None
        self._exchange.finish()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._call = None
        exchange = self._exchange
        if exchange.started:
            exchange.abort()  # what was sent is a part only: the client must see that
            return
        headers, body = replies.error_answer(replies.dialect_of(exchange.request.path), 503, NOT_REACHED)
        exchange.respond(503, [*headers, *replies.retry_headers(SECOND_US)], body)

    def on_disconnect(self) -> None:
        self.drop_call()
