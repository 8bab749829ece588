"""Measures prompts by a model's own tokeniser, message by message, with a memory: a chat costs its new turns only."""

from collections.abc import Callable
from hashlib import blake2b

import msgspec

from bellmare.context.counting import Count, Method, Prompted
from bellmare.context.encoders import Encoder
from bellmare.context.learned import Lessons, rough_tokens
from bellmare.context.templates import IMAGE_TOKENS, Template, conversation_of, is_text, tool_text
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message

COUNTED_CHARS_MAX = 4 << 20
"""Of one request, newest first; the rest is judged by the ratio of what was counted. A million tokens: more than any
context in use, and a second or two of work."""
REMEMBERED_MAX = 50_000
"""Counts of messages that are kept, over all models: some 8 MB."""
ROUGH_CHARS = 65_536
"""Of a longer text only so much is looked at for an estimate."""
ROUGH_MESSAGES = 4_096
"""Of more messages only so many, in an estimate that is made on the event loop."""


class Memory:
    """Counts of texts by vocabulary, the newest ``REMEMBERED_MAX``. Texts themselves are not kept."""

    def __init__(self, kept_max: int = REMEMBERED_MAX) -> None:
        self._kept_max = kept_max
        self._counts: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def get(self, key: bytes) -> int | None:
        count = self._counts.pop(key, None)
        if count is not None:
            self._counts[key] = count
        return count

    def keep(self, key: bytes, count: int) -> None:
        self._counts[key] = count
        while len(self._counts) > self._kept_max:
            try:
                del self._counts[next(iter(self._counts))]
            except (KeyError, RuntimeError, StopIteration):  # the other thread was quicker
                return


class Yardstick(msgspec.Struct, frozen=True):
    """What a prompt is measured with. ``number`` is unique to a vocabulary as long as the process lives."""

    encoder: Encoder
    template: Template
    number: int
    lessons: Lessons


class Measuring:
    """One request under measurement. May be used from a thread; ``pause`` is called between steps."""

    def __init__(self, yardstick: Yardstick, memory: Memory, pause: Callable[[], object]) -> None:
        self._yardstick = yardstick
        self._memory = memory
        self._pause = pause
        self._salt = yardstick.number.to_bytes(8, "big")
        self._left = COUNTED_CHARS_MAX
        self._guessed = False
        self._since_pause = 0

    def measure(self, request: Prompted) -> Count:
        """Raises what ``pause`` raises."""
        encoder, template = self._yardstick.encoder, self._yardstick.template
        fixed = encoder.bos + encoder.eos
        if isinstance(request, GenerateRequest):
            if is_text(request):
                text = request.prompt or ""
                images = IMAGE_TOKENS * len(request.images or ())
                return self._count(fixed, [self._tokens(text) + images], request, added=False)
            fixed += len(request.context or ())
            request = conversation_of(request)
        messages = request.messages or []
        fixed += self._tokens(template.opening(request)) + self._tokens(template.closing())
        for tool in request.tools or ():
            fixed += self._tokens(tool_text(tool))
        counts = [self._message(message) for message in reversed(messages)]
        counts.reverse()
        return self._count(fixed, counts, request)

    def _message(self, message: Message) -> int:
        count = self._tokens(self._yardstick.template.message(message))
        return count + IMAGE_TOKENS * len(message.images) if message.images else count

    def _count(self, fixed: int, messages: list[int], request: Prompted, *, added: bool = True) -> Count:
        counted = fixed + sum(messages)
        rough = rough_of(request)
        each = 0
        if added and isinstance(request, ChatRequest):
            lesson = self._yardstick.lessons.added[bool(request.tools)]
            each = round(lesson.each)
            fixed += lesson.tokens(len(messages)) - each * len(messages)
            if each:
                messages = [count + each for count in messages]
        tokens = max(0, fixed + sum(messages))
        exact = not self._guessed and self._yardstick.lessons.exact
        method = Method.exact if exact else Method.learned
        return Count(tokens, fixed, tuple(messages), method, tokens, 0 if self._guessed else counted, rough, each)

    def _tokens(self, text: str) -> int:
        if not text:
            return 0
        if len(text) > self._left:
            self._guessed = True
            return round(rough_text(text) * self._yardstick.lessons.ratio.mean)
        key = blake2b(text.encode("utf-8", "replace"), digest_size=16, key=self._salt).digest()
        count = self._memory.get(key)
        self._since_pause += 64
        if count is None:
            count = 0
            self._left -= len(text)
            for part in self._yardstick.encoder.counting(text):
                count += part
                self._rest(1_024)
            self._memory.keep(key, count)
        self._rest(min(len(text) // 64, 1_024))
        return count

    def _rest(self, cost: int) -> None:
        self._since_pause += cost
        if self._since_pause >= 1_024:
            self._since_pause = 0
            self._pause()


def rough_text(text: str) -> float:
    """As ``rough_tokens``, by the beginning of a long text."""
    if len(text) <= ROUGH_CHARS:
        return rough_tokens(text)
    return rough_tokens(text[:ROUGH_CHARS]) * len(text) / ROUGH_CHARS


def rough_of(request: Prompted) -> float:
    """Tokens of a request by its bytes alone. Bounded work, whatever its size."""
    if isinstance(request, GenerateRequest):
        return rough_text(request.prompt or "") + rough_text(request.system or "")
    messages = request.messages or []
    total = sum(rough_text(message.content) for message in messages[:ROUGH_MESSAGES] if message.content)
    if len(messages) > ROUGH_MESSAGES:
        total *= len(messages) / ROUGH_MESSAGES
    return total


def estimated(request: Prompted, lessons: Lessons) -> Count:
    """By bytes and what was learned of this model, with a margin: rather too high."""
    if isinstance(request, GenerateRequest):
        request = request if is_text(request) else conversation_of(request)
    ratio = lessons.ratio
    rate = ratio.mean * (1 + ratio.margin)
    if isinstance(request, GenerateRequest):
        rough, images = rough_text(request.prompt or ""), len(request.images or ())
        counts = [round(rough * rate) + IMAGE_TOKENS * images]
        fixed = 1
    else:
        messages = request.messages or []
        counts = [_rough_message(message, rate) for message in messages]
        rough = rough_of(request)
        fixed = FRAME_TOKENS + sum(round(rough_text(tool_text(tool)) * rate) for tool in request.tools or ())
    tokens = fixed + sum(counts)
    lowest = round(rough * ratio.mean / (1 + ratio.margin))
    return Count(tokens, fixed, tuple(counts), Method.learned, lowest, 0, rough)


FRAME_TOKENS = 16
"""Begin, default system message, what asks for the answer: of templates in use 5 to 40."""
MESSAGE_TOKENS = 6
"""What a template puts around a message: 4 to 7."""


def _rough_message(message: Message, rate: float) -> int:
    total = MESSAGE_TOKENS + round(rough_text(message.content or "") * rate)
    for call in message.tool_calls or ():
        total += round(rough_text(str(call.function.arguments or "")) * rate) + 16
    return total + IMAGE_TOKENS * len(message.images or ())
