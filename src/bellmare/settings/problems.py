"""What is wrong with a configuration, one line each: where it stands, which key, why, and what was perhaps meant."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import msgspec

PROBLEMS_MAX = 50
"""A file that is no configuration at all has thousands; nobody reads past one screen."""
QUOTED_MAX = 60
"""Characters of a wrong value that are shown back."""

Path = tuple[str | int, ...]
"""Where a value stands in the tree: ``("workers", 0, "url")``."""


class Problem(msgspec.Struct, frozen=True):
    """One reason why a configuration is refused."""

    where: str
    """``bellmare.yaml:12:5``, ``env BELLMARE_LISTEN``, ``flag listen`` or ``defaults``."""
    key: str
    """Dotted key; empty if the problem is not of one key."""
    reason: str

    def __str__(self) -> str:
        key = "" if self.where == f"flag {self.key}" else self.key
        return ": ".join(part for part in (self.where, key, self.reason) if part)


class SettingsError(Exception):
    """The configuration is refused. ``problems`` holds all that was found, in the order of the sources; never empty."""

    exit_status = 2
    """What a command exits with, as for a wrong flag."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = tuple(problems)
        assert found, "a refusal needs a reason"
        if len(found) > PROBLEMS_MAX:
            left_out = len(found) - PROBLEMS_MAX
            found = (*found[:PROBLEMS_MAX], Problem(found[0].where.split(":")[0], "", f"{left_out} more problems"))
        self.problems = found
        super().__init__("\n".join(map(str, found)))


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def quoted(value: object) -> str:
    """``value`` as one short printable line; control characters cannot reach the terminal."""
    text = repr(value)
    return text if len(text) <= QUOTED_MAX else text[: QUOTED_MAX - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be, or None. Ties go to the first in order."""
    candidates = list(dict.fromkeys(known))
    folded = {candidate.casefold(): candidate for candidate in reversed(candidates)}
    wanted = name.casefold().replace("-", "_")[:100]
    matches = get_close_matches(wanted, list(folded), n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str | None) -> str:
    return f"; did you mean `{name}`?" if name else ""
