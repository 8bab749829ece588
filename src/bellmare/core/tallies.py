"""Cold starts and loads over all time and over about the last six hours, decayed."""

from bellmare.core.numeric import decay
from bellmare.core.shadow_state import Tally
from bellmare.core.units import SECOND_US, InstantUs, SpanUs

WINDOW_S = 6 * 3_600.0
"""Time constant: long enough for 50 loads of a quiet fleet, short enough to follow a day (policy findings 5.6)."""


def book_cold_start(tally: Tally, now_us: InstantUs, times: int = 1) -> None:
    age(tally, now_us)
    tally.cold_starts += times
    tally.recent_cold_starts += times


def book_load(tally: Tally, now_us: InstantUs, load_us: int) -> None:
    age(tally, now_us)
    tally.loads += 1
    tally.load_us = SpanUs(tally.load_us + load_us)
    tally.recent_loads += 1.0
    load_s = load_us / SECOND_US
    tally.recent_load_s += load_s
    tally.recent_squares += load_s * load_s


def age(tally: Tally, now_us: InstantUs) -> None:
    """Let time pass over what is recent."""
    if now_us == tally.at_us:
        return
    left = recent_share(tally, now_us)
    tally.recent_cold_starts *= left
    tally.recent_loads *= left
    tally.recent_load_s *= left
    tally.recent_squares *= left
    tally.at_us = now_us


def recent_share(tally: Tally, now_us: InstantUs) -> float:
    """What is left at ``now_us`` of the recent figures as they stand, from 0 to 1."""
    return decay((now_us - tally.at_us) / (WINDOW_S * SECOND_US))
