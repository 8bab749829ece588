"""Service spans for traces that do not say how long a request takes. Draws, by seed; the same on every machine."""

from collections.abc import Sequence
from random import Random

LOG_MEAN, LOG_DEVIATION = 1.2, 0.7
"""Of seconds: log-normal, 4.2 s on average, median 3.3 s, as ServeGen's clients are given (docs/simulate.md)."""
MILLISECOND_US = 1000


def drawn_us(chance: Random) -> int:
    """One span, rounded to milliseconds so that the last digit of a logarithm decides nothing."""
    return max(1, int(chance.lognormvariate(LOG_MEAN, LOG_DEVIATION) * 1000)) * MILLISECOND_US


def median_us(spans_us: Sequence[int]) -> int:
    """The lower median. At least one span is needed."""
    return sorted(spans_us)[(len(spans_us) - 1) // 2]
