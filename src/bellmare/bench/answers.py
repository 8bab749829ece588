"""One attempt of a generated question: reads the answer as it comes, and says whether it was whole."""

import asyncio
from collections import deque
from enum import StrEnum

import msgspec

from bellmare.http.client import UpstreamFailure
from bellmare.http.messages import find_header
from bellmare.protocols.errors import upstream_error_text
from bellmare.protocols.ndjson import LineSplitter, LineTooLong
from bellmare.runtime.clock import Clock

BODY_BYTES_MAX = 1 << 20
"""Kept of an embedding or an error."""


class Dialect(StrEnum):
    """How a question is asked; the value is its path."""

    native = "/api/chat"
    openai = "/v1/chat/completions"
    embed = "/api/embed"


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None
    thinking: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Text = _Text()


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Line(msgspec.Struct, frozen=True):
    """A line of either dialect, as far as it matters here."""

    message: _Text = _Text()
    choices: list[_Choice] = []
    done: bool = False
    error: msgspec.Raw = msgspec.Raw(b"")
    usage: _Usage | None = None
    prompt_eval_count: int = 0
    eval_count: int = 0

    @property
    def speaks(self) -> bool:
        texts = [self.message, *(choice.delta for choice in self.choices)]
        return any(text.content or text.thinking or text.reasoning for text in texts)


_lines = msgspec.json.Decoder(_Line)


class Answer:
    """Receiver of one attempt. Decodes lines up to the first token and the last two, so that a token costs little."""

    def __init__(self, dialect: Dialect, clock: Clock) -> None:
        self.dialect = dialect
        self.status = 0
        self.ended = asyncio.Event()
        self.broke = ""
        """How the attempt failed to bring a whole answer; empty if it brought one."""
        self.problem = ""
        """The error text, for people."""
        self.first_token_us = -1
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._clock = clock
        self._headers: list[tuple[bytes, bytes]] = []
        self._splitter = LineSplitter()
        self._tail: deque[bytes] = deque(maxlen=2)
        self._body = b""
        """The beginning of what is no stream."""

    def header(self, name: bytes) -> bytes | None:
        return find_header(self._headers, name)

    @property
    def cache(self) -> str:
        """``hit``, ``queued`` or ``cold`` if bellmare answered; empty if it was another server."""
        return (self.header(b"x-bellmare-cache") or b"").decode("ascii", "replace")

    def give_up(self, broke: str, problem: str) -> None:
        """End it from our side; without effect once it has ended."""
        if not self.ended.is_set():
            self.broke, self.problem = broke, problem
            self.ended.set()

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self._headers = status, headers

    def on_data(self, data: bytes) -> None:
        if self.ended.is_set():
            return
        if self.status != 200 or self.dialect is Dialect.embed:
            self._body += data[: BODY_BYTES_MAX - len(self._body)]
            return
        try:
            lines = self._splitter.feed(data)
        except LineTooLong as error:
            self.give_up("bad_answer", str(error))
            return
        for line in lines:
            text = line.removeprefix(b"data: ") if self.dialect is Dialect.openai else line
            if text:
                self._tail.append(text)
                if self.first_token_us < 0 and self._read(text).speaks:
                    self.first_token_us = self._clock.now_us()

    def on_end(self) -> None:
        if self.ended.is_set():
            return
        if self.status != 200:
            self.problem = f"{self.status} {upstream_error_text(self._body)}"
        elif self.dialect is Dialect.embed:
            self.prompt_tokens = self._read(self._body).prompt_eval_count
        else:
            self._close()
        self.ended.set()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.give_up(str(failure.kind), f"{failure.kind}: {failure.detail}")

    def _close(self) -> None:
        """A stream is whole only if its last line says so (ollama.md 1.6)."""
        last = self._tail[-1] if self._tail else b""
        whole = last == b"[DONE]" if self.dialect is Dialect.openai else self._read(last).done
        for text in self._tail:
            line = self._read(text)
            if line.error:
                whole, self.problem = False, upstream_error_text(text)
            if line.usage is not None:
                self.prompt_tokens, self.output_tokens = line.usage.prompt_tokens, line.usage.completion_tokens
            elif line.done:
                self.prompt_tokens, self.output_tokens = line.prompt_eval_count, line.eval_count
        if not whole:
            self.broke, self.problem = "cut_short", self.problem or "the stream ended before its end"

    @staticmethod
    def _read(text: bytes) -> _Line:
        try:
            return _lines.decode(text)
        except msgspec.DecodeError:
            return _Line()  # `[DONE]`, or nonsense: then the end is missing too
