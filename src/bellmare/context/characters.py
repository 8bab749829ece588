"""Patterns over Unicode categories as llama.cpp understands them, for Python's ``re``, which has no ``\\p``.

What differs from other engines is kept: ``\\s`` is white space of the Unicode standard and nothing else, ``\\d`` is
ASCII. ``~`` is a symbol; to builds before autumn 2026 it was none, one token more or less behind a space.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

_PLANES = (range(0x323B0), range(0xE0000, 0xE01F0))
"""Where characters with a category are; beyond is private use."""
WHITE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
"""White space, as part of a class."""
FOREIGN_SPACES = dict.fromkeys(
    (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000), "\v"
)
"""Where llama.cpp uses a pattern without categories, it sees these as vertical tabs."""
_NAMES = "LMNPS"
STEP_CODES = 512
"""Characters looked up between two pauses."""


_ranges: dict[str, str] = {}
"""By main category, its characters as part of a class. ``U`` are letters but a to z, ``W`` letters but A to Z."""


def learn_categories(pause: Callable[[], object] = lambda: None) -> None:
    """Look all characters up, once in a process: a tenth of a second, with a pause after each millisecond."""
    if _ranges:
        return
    found: dict[str, list[list[int]]] = {name: [] for name in _NAMES}
    category = unicodedata.category
    for plane in _PLANES:
        for code in plane:
            if not code % STEP_CODES:
                pause()
            name = category(chr(code))[0]
            ranges = found.get(name)
            if ranges is None:
                continue
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    others = [pair for pair in found["L"] if pair[0] > 0x7F]
    found["U"] = [[0x41, 0x5A], *others]
    found["W"] = [[0x61, 0x7A], *others]
    _ranges.update((name, "".join(_span(*pair) for pair in pairs)) for name, pairs in found.items())


def _span(first: int, last: int) -> str:
    return f"\\U{first:08x}" if first == last else f"\\U{first:08x}-\\U{last:08x}"


def translated(pattern: str) -> str:
    """``pattern``, which has ``\\p{L}`` and its like, ``\\s``, ``\\S`` and ``\\d``, as Python's ``re`` reads it."""
    learn_categories()
    pieces: list[str] = []
    inside = False
    at = 0
    while at < len(pattern):
        two = pattern[at : at + 2]
        if two == "\\p":
            name = pattern[at + 3]
            assert pattern[at + 2] == "{" and pattern[at + 4] == "}", pattern
            pieces.append(_ranges[name] if inside else f"[{_ranges[name]}]")
            at += 5
        elif two in ("\\s", "\\d"):
            characters = WHITE if two == "\\s" else "0-9"
            pieces.append(characters if inside else f"[{characters}]")
            at += 2
        elif two == "\\S":
            assert not inside, pattern
            pieces.append(f"[^{WHITE}]")
            at += 2
        elif two.startswith("\\"):
            pieces.append(two)
            at += 2
        else:
            if two[0] == "[" and inside:
                pieces.append("\\")
            inside = two[0] != "]" and (inside or two[0] == "[")
            pieces.append(two[0])
            at += 1
    return "".join(pieces)


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """``pattern``, :func:`translated`, in one group: to split a text into what matches and what is between."""
    return re.compile(f"({translated(pattern)})")


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """One group that matches the longest of ``texts``; None if there is none. Some thousands of them cost no more.

    As a tree by first characters: alternatives are tried one after the other.
    """
    root: _Tree = {}
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    root.pop("", None)
    return re.compile(f"({_alternatives(root)})") if root else None


_Tree = dict[str, "_Tree"]


def _alternatives(root: _Tree) -> str:
    """Without recursion over the length of a text: only branches nest."""
    pieces: list[str] = []
    for first, node in root.items():
        if first == "":
            continue
        prefix, at = re.escape(first), node
        while len(at) == 1 and "" not in at:
            ((character, at),) = at.items()
            prefix += re.escape(character)
        if set(at) == {""}:
            pieces.append(prefix)
        else:
            pieces.append(f"{prefix}(?:{_alternatives(at)}){'?' if '' in at else ''}")
    return "|".join(pieces)
