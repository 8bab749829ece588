"""POST /v1/messages/count_tokens: how many tokens a request's prompt has, without running it.

Who counts is behind :class:`TokenCounter`; without one the errand's own estimate is the answer. A count is no request
of the core's and waits in no queue.
"""

from collections.abc import Callable
from typing import Protocol

from bellmare.gateway import replies
from bellmare.gateway.errands.errand import Errand
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver
from bellmare.protocols.anthropic_counting import input_tokens_answer
from bellmare.protocols.ollama import ChatRequest

ESTIMATED = "estimated"


class Counted(Protocol):
    """Tokens of one prompt, and how they were found (``exact``, ``learned``, ``estimated``)."""

    @property
    def tokens(self) -> int: ...

    @property
    def method(self) -> str: ...


class Waiting(Protocol):
    """A count under way."""

    def cancel(self) -> None:
        """Nobody wants it any more."""


class TokenCounter(Protocol):
    """Counts the tokens of a prompt as the model's own tokeniser and template make them."""

    def count(self, name: str, request: ChatRequest, done: Callable[[Counted], None]) -> Waiting | None:
        """Have ``done`` called once with the tokens of ``request`` to the model ``name`` (canonical), unless cancelled.

        It may be called before this returns, and then there is nothing to wait for. Never fails and always ends.
        """


def answer_count(exchange: Exchange, errand: Errand, counter: TokenCounter | None) -> None:
    """Answer with the tokens of ``errand``, when they are known; to nobody if the client has left by then."""
    assert isinstance(errand.native, ChatRequest), "what the route parses to"
    if counter is None:
        _answer(exchange, errand.prompt_tokens, ESTIMATED)
        return
    waiting = counter.count(errand.name, errand.native, lambda count: _answer(exchange, count.tokens, count.method))
    if waiting is not None:
        exchange.listener = Leaver(waiting)


def _answer(exchange: Exchange, tokens: int, method: str) -> None:
    exchange.listener = None
    request_id = replies.anthropic_request_id(replies.new_id())
    headers = [replies.JSON, (b"request-id", request_id.encode()), (b"x-bellmare-count", method.encode())]
    exchange.respond(200, headers, input_tokens_answer(tokens))
