"""A text that a regular expression of a JSON schema matches: the shortest repeats, the first branches."""

import re
from re import _constants as constants  # type: ignore[attr-defined] # the only way to a parsed expression
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

REPEATS_MAX = 256
PATTERN_CHARS_MAX = 1_000
_CATEGORIES = {
    constants.CATEGORY_DIGIT: "7",
    constants.CATEGORY_WORD: "m",
    constants.CATEGORY_SPACE: " ",
    constants.CATEGORY_NOT_DIGIT: "m",
    constants.CATEGORY_NOT_SPACE: "m",
    constants.CATEGORY_NOT_WORD: "-",
}
_ANY = "mare07- _.ABCXYZ"


def matching(pattern: str) -> str | None:
    """A text in which ``pattern`` is found; None if it is beyond us."""
    if len(pattern) > PATTERN_CHARS_MAX:
        return None
    try:
        text = "".join(_walk(parser.parse(pattern)))
        return text if re.search(pattern, text) else None
    except (re.error, _Beyond, RecursionError, OverflowError):
        return None


class _Beyond(Exception):  # noqa: N818 - not an error: a limit of ours
    """A construct that is not understood."""


def _walk(tokens: Any) -> list[str]:
    found: list[str] = []
    for kind, value in tokens:
        if kind is constants.LITERAL:
            found.append(chr(value))
        elif kind is constants.ANY:
            found.append("m")
        elif kind is constants.IN:
            found.append(_member(value))
        elif kind is constants.NOT_LITERAL:
            found.append(next(one for one in _ANY if ord(one) != value))
        elif kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            low, high, inner = value
            times = low or min(1, int(high))
            if times > REPEATS_MAX:
                raise _Beyond
            found += _walk(inner) * times
        elif kind is constants.SUBPATTERN:
            found += _walk(value[3])
        elif kind is constants.BRANCH:
            found += _walk(value[1][0])
        elif kind is not constants.AT:
            raise _Beyond
    return found


def _member(choices: Any) -> str:
    """A character of a class."""
    if choices[0][0] is constants.NEGATE:
        for one in _ANY:
            if not any(_holds(choice, one) for choice in choices[1:]):
                return one
        raise _Beyond
    kind, value = choices[0]
    if kind is constants.LITERAL:
        return chr(value)
    if kind is constants.RANGE:
        return chr(value[0])
    return _CATEGORIES[value]


def _holds(choice: Any, one: str) -> bool:
    kind, value = choice
    if kind is constants.LITERAL:
        held = ord(one) == value
    elif kind is constants.RANGE:
        held = value[0] <= ord(one) <= value[1]
    elif value is constants.CATEGORY_DIGIT:
        held = one.isdigit()
    elif value is constants.CATEGORY_SPACE:
        held = one.isspace()
    else:
        held = value is constants.CATEGORY_WORD and (one.isalnum() or one == "_")
    return bool(held)
