"""POST /v1/messages/count_tokens: how many tokens a request's prompt has, without running it.

Who counts is behind :class:`TokenCounter`. A count is no request of the core's and waits in no queue.
"""

from collections.abc import Callable
from typing import Protocol

from bellmare.gateway import replies
from bellmare.gateway.errands.errand import Errand
from bellmare.http.exchange import Exchange
from bellmare.protocols.anthropic_counting import input_tokens_answer
from bellmare.protocols.ollama import ChatRequest
from bellmare.protocols.tokens import estimate_chat_tokens


class TokenCounter(Protocol):
    """Counts the tokens of a prompt as the model's own tokeniser and template make them."""

    def count(self, name: str, request: ChatRequest, answer: Callable[[int], None]) -> None:
        """Have ``answer`` called with the tokens of ``request`` to the model ``name`` (canonical), once: now or later.

        Never fails and always ends: where a model's tokeniser is not known it guesses.
        """


class Estimate:
    """A counter that guesses by bytes."""

    def count(self, name: str, request: ChatRequest, answer: Callable[[int], None]) -> None:
        answer(estimate_chat_tokens(request))


def answer_count(exchange: Exchange, errand: Errand, counter: TokenCounter) -> None:
    """Answer with the tokens of ``errand``, when they are known; to nobody if the client has left by then."""
    assert isinstance(errand.native, ChatRequest), "what the route parses to"
    headers = [replies.JSON, (b"request-id", replies.anthropic_request_id(replies.new_id()).encode())]

    def answer(tokens: int) -> None:
        exchange.respond(200, headers, input_tokens_answer(tokens))

    counter.count(errand.name, errand.native, answer)
