"""What deadlines are for. The heap itself is part of the state; ``fleet`` keeps it."""

from enum import IntEnum

OUTLIVED_MAX = 1000
"""Timers of requests and operations that are over, beside two for each that is not: then the heap is cleared of them.

Mostly they would be skipped when due, but 2000 arrivals a second that leave at once, each with a deadline ten minutes
away, are 1.2 million. Clearing costs about a third of a microsecond for each that was outlived.
"""


class Timer(IntEnum):
    """What a deadline is for. Ties in time are broken by this order, then by key."""

    operation = 0
    zombie = 1
    request = 2
    look_again = 3
    """A worker may have a victim or a load that it had not before."""
    may_drain = 4
    stranded = 5
    forgive = 7
    """A retried request has avoided the workers that failed it for long enough."""
    hint = 8
    """A hint's time is over."""
    foreseen = 9
    """It is time to load what a hint spoke of."""
    continue_work = 6
    """Work left over by a step that reached its bound."""


MORTAL = (Timer.operation, Timer.request)
"""Timers that are mostly outlived by far: their subject ends long before."""
