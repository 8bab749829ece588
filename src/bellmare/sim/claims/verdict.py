"""The claims as published, and the rule by which runs of ours bear them out or not. No figure of ours stands here."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

TOLERANCE = 0.05
"""A figure of ours may fall short of the published one by so much: draws of three seeds differ by about as much."""


class Claim(StrEnum):
    """What has been claimed."""

    cold_start = "cold_start"
    cold_starts = "cold_starts"
    density = "density"
    throughput = "throughput"
    gpu_cost = "gpu_cost"


class Published(msgspec.Struct, frozen=True):
    """One claim, as it was published."""

    text: str
    unit: str
    """Of the figures of its rows, as the end of their names."""
    quotient: float
    """To divided by from."""
    from_: float | None = None
    to: float | None = None
    """None: only the change was published."""
    least_from: float = 0.0
    """Where there is no more than this before, there is nothing to improve on."""

    @property
    def lower_is_better(self) -> bool:
        return self.quotient < 1


PUBLISHED = {
    Claim.cold_start: Published("cold start 4.2 s -> 0.35 s", "s", 0.35 / 4.2, 4.2, 0.35),
    Claim.cold_starts: Published("92 % fewer cold starts", "cold_percent", 0.08, least_from=1.0),
    Claim.density: Published("2.4 times as many models per GPU", "models_per_gpu", 2.4),
    Claim.throughput: Published("12 -> 34 requests/s", "requests_per_s", 34 / 12, 12.0, 34.0),
    Claim.gpu_cost: Published("40 % less GPU cost", "gpus", 0.6),
}


class Verdict(StrEnum):
    """What is to be said of a claim."""

    reproduced = "reproduced"
    elsewhere = "reproduced under other conditions"
    refuted = "refuted"


def holds(published: Published, from_: float | None, to: float | None) -> bool:
    """Whether ``from_ -> to`` bears the claim out, within ``TOLERANCE``.

    The change must be at least as large as the published one, and where a figure that was reached is published, ours
    must be as good. Without a figure on either side, or with nothing to improve on, nothing is borne out.
    """
    if from_ is None or to is None or from_ <= published.least_from:
        return False
    if published.lower_is_better:
        most = 1 + TOLERANCE
        as_good = published.to is None or to <= published.to * most
        return as_good and to / from_ <= published.quotient * most
    least = 1 - TOLERANCE
    as_good = published.to is None or to >= published.to * least
    return as_good and to / from_ >= published.quotient * least


def verdict(rows: Sequence[tuple[bool, bool]]) -> Verdict:
    """Of one claim, from ``(stated, holds)`` of its rows: ``stated`` marks those under the published conditions.

    All of these must hold for ``reproduced``, since what was left unsaid must not decide; any row at all makes it
    ``elsewhere``.
    """
    assert any(stated for stated, _ in rows), "a claim is tried under its own conditions"
    if all(held for stated, held in rows if stated):
        return Verdict.reproduced
    return Verdict.elsewhere if any(held for _, held in rows) else Verdict.refuted
