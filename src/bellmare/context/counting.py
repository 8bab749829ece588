"""The interface: how many tokens a request's prompt has. Whoever needs counts depends on this and nothing behind it."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from bellmare.protocols.ollama import ChatRequest, GenerateRequest

Prompted = ChatRequest | GenerateRequest


class Method(StrEnum):
    """How a count came about."""

    exact = "exact"
    """By the model's own tokeniser and its template: what the worker will say, but for 2 % at most."""
    learned = "learned"
    """By bytes, with what earlier requests have taught; includes a margin, so that it is rather too high."""


class Count(msgspec.Struct, frozen=True):
    """Tokens of one prompt. The sum of ``fixed`` and ``messages`` is ``tokens``."""

    tokens: int
    fixed: int
    """Of what is there whatever the messages: begin, tools, default system message, what asks for the answer."""
    messages: tuple[int, ...]
    """Of each message in its template; one entry for /api/generate."""
    method: Method
    lowest: int
    """No fewer: for ``learned`` without any margin; to refuse only what is surely too long."""
    counted: int = 0
    """By the tokeniser alone, before what was learned of the template: what there is to learn from. 0 if it was not."""
    rough: float = 0.0
    """By bytes alone."""
    each: int = 0
    """Of what was learned, the part in each of ``messages``."""


class Waiting(Protocol):
    """A count that is under way."""

    def cancel(self) -> None:
        """``done`` will not be called; nothing more is computed. Nothing happens if it was called."""


class TokenCounter(Protocol):
    """Counts prompts; on the event loop's thread only.

    ``done`` is called exactly once with the count unless the returned ``Waiting`` is cancelled before; it may be called
    before this returns (then None is returned). It never fails and takes at most some seconds: on overload, without a
    vocabulary or past its deadline the learned estimate is given. ``name`` is canonical; nobody need store it.
    /v1/messages/count_tokens wants ``Count.tokens``, and should say so if ``Count.method`` is ``learned``.
    """

    def count(self, name: str, request: Prompted, done: Callable[[Count], None]) -> Waiting | None: ...
