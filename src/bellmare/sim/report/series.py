"""What the charts of one run need: its waits as a distribution, its cold starts over time. Small, whatever the run."""

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.tally import Tally

BUCKETS = 60
"""Parts of the run's time."""
THRESHOLDS_S = tuple(round(10 ** (step / 8 - 2), 4) for step in range(49))
"""From 10 ms to 10,000 s, eight to a decade."""


class Series(msgspec.Struct, frozen=True):
    within_percent: list[float]
    """Of served requests, for each threshold: waited no longer."""
    cold: list[int]
    """Cold starts in each bucket."""
    requests: list[int]
    """Arrivals in each bucket."""
    span_h: float
    """From the first arrival to the last, in hours."""


def series(tally: Tally) -> Series:
    """Of one finished run."""
    arrivals = tally.workload.arrivals
    begin_us, span_us = arrivals[0].at_us, arrivals[-1].at_us - arrivals[0].at_us + 1
    cold, requests = [0] * BUCKETS, [0] * BUCKETS
    for number, arrival in enumerate(arrivals):
        bucket = (arrival.at_us - begin_us) * BUCKETS // span_us
        requests[bucket] += 1
        cold[bucket] += tally.cold[number]
    waits_us = tally.waits_us()
    within = [
        round(100 * bisect_right(waits_us, int(limit_s * SECOND_US)) / max(1, len(waits_us)), 2)
        for limit_s in THRESHOLDS_S
    ]
    return Series(within, cold, requests, round(span_us / SECOND_US / 3600, 3))


def pooled(found: Iterable[Series]) -> list[float]:
    """The distribution over all seeds, each seed alike. At least one is needed."""
    curves = [one.within_percent for one in found]
    return [round(sum(values) / len(values), 2) for values in zip(*curves, strict=True)]
