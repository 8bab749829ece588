"""Which clients asked for a model lately: whether one that gives it back was its only one."""

from collections.abc import Iterable

from bellmare.core.units import SECOND_US, InstantUs, SpanUs

LATELY_US = SpanUs(300 * SECOND_US)
"""As long as Ollama keeps a model for who has said nothing (OLLAMA_KEEP_ALIVE, 5 minutes)."""
NAMES_MAX = 4000
"""Names that are remembered; the ones used longest ago are forgotten, and then count as used by others."""


class Users:
    """By name, the client that asked last, and when another one did."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, InstantUs]] = {}
        """By canonical name: the last client, and the last instant at which another one asked; -1: never."""

    def used(self, name: str, tenant: str, now_us: InstantUs) -> None:
        """A client asks for a model."""
        known = self._last.get(name)
        if known is None:
            self._last[name] = (tenant, InstantUs(-1))
            if len(self._last) > NAMES_MAX:
                del self._last[next(iter(self._last))]
        elif known[0] != tenant:
            self._last[name] = (tenant, now_us)

    def alone(self, names: Iterable[str], tenant: str, now_us: InstantUs) -> bool:
        """Whether this client, and lately nobody else, has asked for a model by any of its names, as far as known."""
        known = [found for name in names if (found := self._last.get(name)) is not None]
        return bool(known) and all(
            last == tenant and (other_us < 0 or other_us + LATELY_US < now_us) for last, other_us in known
        )
