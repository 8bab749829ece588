"""What is learned of a model's counts from its workers' own ``prompt_eval_count``: a ratio of text to tokens, and what
the chat template adds. Pure: plain numbers, no clock."""

from collections import deque
from statistics import median

import msgspec

ASCII_TOKENS = 0.30
"""Tokens of a character of plain text or code: 3.3 characters each, between prose (4.2) and code (2.9) (measured)."""
OTHER_TOKENS = 0.45
"""Tokens of a byte of other text: between Cyrillic (0.25) and Chinese with a small vocabulary (0.9) (measured)."""
MARGIN_FIRST = 0.25
"""Added to an estimate before anything is known of a model: prose and code of one model differ by so much."""
MARGIN_MIN = 0.05
MARGIN_MAX = 1.0
_WEIGHT = 0.15
"""Of the newest observation."""
KEPT_MAX = 24
"""Observations of which the template's part is computed: a few hundred pairs at most."""
EXACT_SHARE = 0.02
"""A count that is off by no more is as promised."""


def rough_tokens(text: str) -> float:
    """Tokens of ``text`` by its bytes, before anything is learned."""
    characters = len(text)
    if text.isascii():
        return characters * ASCII_TOKENS
    bytes_ = len(text.encode("utf-8", "replace"))
    others = (bytes_ - characters) * 1.5 if bytes_ < 2 * characters else float(bytes_)
    others = min(others, float(bytes_))
    return (bytes_ - others) * ASCII_TOKENS + others * OTHER_TOKENS


class Ratio(msgspec.Struct):
    """Real tokens to :func:`rough_tokens` of one model, and how far single requests are from it."""

    mean: float = 1.0
    spread: float = MARGIN_FIRST / 2.5
    """Mean distance of single requests, as a share."""
    seen: int = 0

    @property
    def margin(self) -> float:
        """What is added so that hardly any prompt is longer than thought."""
        return min(MARGIN_MAX, max(MARGIN_MIN, 2.5 * self.spread))

    def learn(self, rough: float, tokens: int) -> None:
        """``tokens`` is what the worker counted."""
        if rough <= 0 or tokens <= 0:
            return
        ratio = min(10.0, max(0.1, tokens / rough))
        weight = max(_WEIGHT, 1 / (self.seen + 1))
        distance = abs(ratio / self.mean - 1) if self.seen else MARGIN_FIRST / 2.5
        self.mean += weight * (ratio - self.mean)
        self.spread += _WEIGHT * (distance - self.spread)
        self.seen += 1


class Added(msgspec.Struct):
    """What the template adds beyond what was counted: so much for a request, so much for each message."""

    fixed: float = 0.0
    each: float = 0.0
    observed: list[tuple[int, int]] = []
    """Messages, and tokens that were missing; the newest."""

    def tokens(self, messages: int) -> int:
        """To be added for a request of so many messages; negative if too much was counted."""
        return round(self.fixed + self.each * messages)

    def learn(self, messages: int, missing: int) -> None:
        """``missing``: what the worker counted, less what we counted without this."""
        self.observed.append((messages, missing))
        if len(self.observed) > KEPT_MAX:
            del self.observed[0]
        if self.tokens(messages) == missing and len(self.observed) > 1:
            return
        # Theil and Sen: the median of all slopes; a third of the observations may be anything.
        points = self.observed
        slopes = [
            (right[1] - left[1]) / (right[0] - left[0])
            for index, left in enumerate(points)
            for right in points[index + 1 :]
            if right[0] != left[0]
        ]
        self.each = median(slopes) if len(slopes) >= 2 else 0.0
        self.fixed = median(missing - self.each * count for count, missing in points)


class Lessons(msgspec.Struct):
    """Everything learned of one name."""

    ratio: Ratio = msgspec.field(default_factory=Ratio)
    added: dict[bool, Added] = msgspec.field(default_factory=lambda: {False: Added(), True: Added()})
    """By whether tools are offered: their preamble is long and only there."""
    errors: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=8))
    """Of the newest counts by the tokeniser, as shares."""

    @property
    def exact(self) -> bool:
        """Whether the newest counts were as promised, but for one; true before there are any."""
        return sum(error > EXACT_SHARE for error in self.errors) <= 1
