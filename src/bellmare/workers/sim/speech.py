"""What one generation says, token by token: thinking, then calls of tools, JSON, a quotation of results, or a story."""

import re
from typing import Any, Protocol

import msgspec

from bellmare.workers.sim.schema import Hints, instance
from bellmare.workers.sim.text import Story, natural_length, seed_of
from bellmare.workers.sim.tools import Call, calls_for, result_text

TOOL_TOKENS = 8
"""Tokens of one call."""
STOP_SEARCH_TOKENS = 20_000
"""A stop sequence that would come later is not noticed: stories have no end of their own."""
KEYS_SCAN_CHARS = 20_000
"""Of a prompt only its end is searched for keys."""
_PIECE_CHARS = 4
_THINKING_SHARE = 4
"""One token in so many is thinking, where a model thinks."""


class Text(Protocol):
    """Tokens of the answer proper."""

    length: int

    def token(self, index: int) -> str: ...


class Fixed:
    """A text that is known beforehand, four characters a token."""

    __slots__ = ("_text", "length")

    def __init__(self, text: str) -> None:
        self._text = text
        self.length = max(1, -(-len(text) // _PIECE_CHARS))

    def token(self, index: int) -> str:
        return self._text[index * _PIECE_CHARS : (index + 1) * _PIECE_CHARS]


class Stopped:
    """A text cut before a stop sequence. The tokens that make it up are counted but not said, as llama-server does."""

    __slots__ = ("_tokens", "length")

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self.length = len(tokens)

    def token(self, index: int) -> str:
        return self._tokens[index]


class Speech:
    """``thinking`` tokens of thought, then ``text``, or ``calls``. ``cut``: a limit ends it, not its own end."""

    __slots__ = ("_calls", "_story", "_text", "call_ids", "cut", "thinking")

    def __init__(self, text: Text, *, thinking: int = 0, seed: int = 0, calls: tuple[Call, ...] = ()) -> None:
        self.thinking = thinking
        self.cut = False
        self.call_ids = [f"call_{seed_of(seed, number, call.name):08x}" for number, call in enumerate(calls)]
        """Equal requests get equal ids, so that two answers can be compared."""
        self._text = text
        self._story = Story(seed_of(seed, "thinking"), thinking)
        self._calls = calls

    @property
    def length(self) -> int:
        return self.thinking + (len(self._calls) * TOOL_TOKENS if self._calls else self._text.length)

    @property
    def plain(self) -> bool:
        """Nothing but text: the way of most answers, and the cheap one."""
        return not self.thinking and not self._calls

    def shorten(self, tokens: int) -> None:
        """No more than so many tokens: the context's limit. Suffixes go on the last token that is left."""
        if not self._calls:
            self._text.length = max(0, min(self._text.length, tokens - self.thinking))

    def thought(self, index: int) -> str:
        return self._story.token(index) if index < self.thinking else ""

    def said(self, index: int) -> str:
        """The text of token ``index``; empty while thinking or calling."""
        index -= self.thinking
        return "" if index < 0 or self._calls or index >= self._text.length else self._text.token(index)

    def call(self, index: int) -> dict[str, Any] | None:
        """The call that is complete with token ``index``, as Ollama writes it."""
        index -= self.thinking
        if index < 0 or not self._calls or (index + 1) % TOOL_TOKENS:
            return None
        number = index // TOOL_TOKENS
        call = self._calls[number]
        function = {"index": number, "name": call.name, "arguments": call.arguments}
        return {"id": self.call_ids[number], "function": function}


class Asked(msgspec.Struct, frozen=True):
    """What a speech depends on. ``limit``: num_predict, zero or less for none."""

    seed: int
    text: str
    messages: list[Any] = []
    tools: list[Any] = []
    form: Any = None
    """``format``: None, "json" or a schema."""
    thinks: bool = False
    limit: int = 0
    stops: tuple[str, ...] = ()


def speech(asked: Asked) -> Speech:
    """Compose. A limit is used up by stories: load tests want a known number of tokens."""
    calls = tuple(calls_for(asked.tools, asked.messages)) if asked.tools else ()
    text, cut = _text(asked)
    natural = text.length
    thinking = max(1, natural // _THINKING_SHARE) if asked.thinks else 0
    if cut:  # thoughts count, too: the limit is for all
        text.length = natural - thinking
    made = Speech(_stopped(text, asked.stops), thinking=thinking, seed=asked.seed, calls=calls)
    made.cut = cut and not calls and made.length >= natural
    if asked.limit > 0 and made.length > asked.limit:
        made.shorten(asked.limit)
        made.cut = not calls
    return made


def _text(asked: Asked) -> tuple[Text, bool]:
    """The answer proper, and whether the limit makes its length."""
    if isinstance(asked.form, dict):
        said = msgspec.json.encode(instance(asked.form, Hints(_question(asked)))).decode()
        return Fixed(said), False
    keys = _keys(_question(asked)) if asked.form else []
    if keys:
        wanted = {"type": "object", "required": keys}
        return Fixed(msgspec.json.encode(instance(wanted, Hints(""))).decode()), False
    quoted = result_text(asked.messages)
    if quoted and not asked.form:
        return Fixed(quoted), False
    limited = asked.limit > 0
    length = asked.limit if limited else natural_length(asked.seed)
    return Story(asked.seed, length, as_json=bool(asked.form)), limited


def _keys(text: str) -> list[str]:
    """The keys of the object that ``format: "json"`` is to give, where a sentence has ``keys 'a' and 'b'``."""
    sentences = re.split(r"[.\n]", text[-KEYS_SCAN_CHARS:])
    said = next((one for one in sentences if re.search(r"\bkeys?\b", one)), "")
    return list(dict.fromkeys(re.findall(r"['\"`]([\w-]{1,64})['\"`]", said)))


def _question(asked: Asked) -> str:
    """The last user's words: what stands before, a system message with the schema perhaps, is no source of values."""
    for message in reversed(asked.messages):
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return asked.text


def _stopped(text: Text, stops: tuple[str, ...]) -> Text:
    """``text`` up to the first of ``stops``; itself if none is met."""
    stops = tuple(stop for stop in stops if stop)
    if not stops:
        return text
    longest = max(map(len, stops))
    tokens: list[str] = []
    said = ""
    for index in range(min(text.length, STOP_SEARCH_TOKENS)):
        token = text.token(index)
        start = max(0, len(said) - longest)
        said += token
        tokens.append(token)
        places = [place for place in (said.find(stop, start) for stop in stops) if place >= 0]
        if places:
            return Stopped(_before(tokens, min(places)))
    return text


def _before(tokens: list[str], chars: int) -> list[str]:
    """The same number of tokens with only the first ``chars`` characters."""
    kept = []
    for token in tokens:
        kept.append(token[: max(0, chars)])
        chars -= len(token)
    return kept
