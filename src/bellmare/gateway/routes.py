"""What a path is answered by, and what the head of a request says."""

from collections.abc import Callable
from dataclasses import dataclass

from bellmare.core.events import Priority
from bellmare.gateway.management.spool import Spool
from bellmare.http.exchange import Exchange
from bellmare.protocols.hints import Expected

SMALL_BODY_BYTES_MAX = 64 << 10
CHANGE_BYTES_MAX = 4 << 20
"""Of a request to create a model: its template, its system prompt, its licences."""


@dataclass(slots=True, frozen=True)
class Route:
    """One path: its methods, and who answers."""

    methods: tuple[str, ...]
    answer: Callable[[Exchange], None]
    body_bytes_max: int = SMALL_BODY_BYTES_MAX
    inference: bool = False
    manages: bool = False
    """Changes what the fleet stores: only for clients that have the right."""


class Ticket:
    """What a request's head says, read once for all requests of a connection that have the same."""

    __slots__ = ("cors", "models", "own_id", "priority", "route", "settings", "spool", "tenant")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.settings = -1
        """By which settings the rest was read; -1: not yet."""
        self.tenant = ""
        self.priority = Priority.normal
        self.models: tuple[Expected, ...] = ()
        self.own_id = ""
        """The id that the client gave; empty if it gave none that can be used."""
        self.cors = b""
        """Header lines for a browser that asks for a page."""
        self.spool: Spool | None = None
        """Who takes the body, if it is a blob."""
