"""Which tool a simulated model calls, and with what. The rules, in order, for a request with ``tools``:

1. the last message is a tool's result: no call, the answer quotes the results;
2. the last user message holds ``TOOL_MARKER``: the first tool;
3. it names tools (``get_weather``, ``getWeather`` or "get weather"): those, in the order of their names in it;
4. it shares words with one tool's name (at least one, common verbs apart): the tool with most of them;
5. it holds as many numbers as some tool needs that takes numbers only: that tool;
6. else no call.

Arguments are an instance of the tool's ``parameters`` (``schema``), with the message's numbers, quoted words and names.
"""

import re
from typing import Any

import msgspec

from bellmare.workers.sim.schema import Hints, instance

TOOL_MARKER = "[[call a tool]]"
CALLS_MAX = 16
_RESULT_CHARS_MAX = 2_000
_COMMON = frozenset(
    {"get", "set", "the", "tool", "function", "call", "use", "for", "and", "make", "run", "with", "args"}
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LETTERS = re.compile(r"[^\W\d_]+")


class Call(msgspec.Struct, frozen=True):
    """One call; ``arguments`` is an object."""

    name: str
    arguments: dict[str, Any]


def calls_for(tools: list[Any], messages: list[Any]) -> list[Call]:
    """The calls that answer ``messages``; empty: talk."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return []
    text = last.get("content")
    text = text if isinstance(text, str) else ""
    functions = [one for one in map(_function, tools) if one is not None]
    chosen = _chosen(functions, text)
    return [Call(one["name"], _arguments(one, text.replace(TOOL_MARKER, ""))) for one in chosen[:CALLS_MAX]]


def result_text(messages: list[Any]) -> str:
    """What is said after tools have answered; empty if they have not."""
    results: list[str] = []
    for message in reversed(messages):
        if not isinstance(message, dict) or message.get("role") != "tool":
            break
        content = message.get("content")
        results.append((content if isinstance(content, str) else "")[:_RESULT_CHARS_MAX])
    if not results:
        return ""
    return f"The result is {' and '.join(reversed(results))}."


def _function(tool: object) -> dict[str, Any] | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _chosen(functions: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if TOOL_MARKER in text:
        return functions[:1]
    named = [(_place(one["name"], text), index) for index, one in enumerate(functions)]
    found = [functions[index] for place, index in sorted(named) if place >= 0]
    if found:
        return found
    words = {word.casefold() for word in _LETTERS.findall(text)}
    scored = [(len(words & _words(one["name"])), -index) for index, one in enumerate(functions)]
    best, index = max(scored, default=(0, 0))
    if best:
        return [functions[-index]]
    numbers = len(Hints(text).numbers)
    return [one for one in functions if 0 < _numbers_needed(one) <= numbers][:1]


def _place(name: str, text: str) -> int:
    """Where ``text`` names a tool, as it is spelled or as words; negative: it does not."""
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) if name else None
    if found is None:
        spelled = " ".join(_WORD.findall(name)).casefold()
        found = re.search(rf"(?<!\w){re.escape(spelled)}(?!\w)", text.casefold()) if " " in spelled else None
    return found.start() if found else -1


def _words(name: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(name) if len(word) > 2} - _COMMON


def _numbers_needed(function: dict[str, Any]) -> int:
    """How many numbers the function takes; 0 if it takes anything else."""
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict):
        return 0
    kinds = [part.get("type") if isinstance(part, dict) else None for part in properties.values()]
    return len(kinds) if all(kind in ("integer", "number") for kind in kinds) else 0


def _arguments(function: dict[str, Any], text: str) -> dict[str, Any]:
    parameters = function.get("parameters")
    if not isinstance(parameters, dict):
        return {}
    # A number in the name of the tool is not one of its arguments.
    found = instance({"type": "object"} | parameters, Hints(text.replace(function["name"], " ")))
    return found if isinstance(found, dict) else {}
