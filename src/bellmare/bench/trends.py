"""Whether a series of samples grows: a robust slope, a test against chance, a bound, and a picture.

The slope is that of Theil and Sen (the median over all pairs), which a fifth of wild samples does not move; whether it
is more than chance is Mann and Kendall's test. Pure arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

import msgspec

SAMPLES_MAX = 400
"""Pairs grow with the square; longer series are thinned evenly."""
SURE = 3.0
"""Standard deviations of Kendall's statistic: chance alone passes them in one of 700 series."""


class Bound(msgspec.Struct, frozen=True):
    """What a series may drift over the time looked at: the larger of the two."""

    absolute: float
    share: float
    """Of its median."""


class Trend(msgspec.Struct, frozen=True):
    """What became of one series after the warm-up."""

    name: str
    unit: str
    median: float
    slope_per_hour: float
    drift: float
    """The slope over the time looked at."""
    drift_max: float
    certainty: float
    """Standard deviations from no trend; the sign is that of the trend."""
    grows: bool
    """Beyond its bound, and not by chance."""


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``SAMPLES_MAX`` of the points, evenly."""
    step = max(1, math.ceil(len(points) / SAMPLES_MAX))
    return list(points[::step])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen: the median of the slopes of all pairs; 0 for fewer than two points."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(thinned(points), 2) if b[0] != a[0]]
    return median(slopes) if slopes else 0.0


def certainty(points: Sequence[tuple[float, float]]) -> float:
    """Mann-Kendall's z, with its correction for ties; 0 for fewer than four points."""
    values = [value for _, value in thinned(points)]
    count = len(values)
    if count < 4:
        return 0.0
    score = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    ties = [values.count(value) for value in set(values)]
    variance = (count * (count - 1) * (2 * count + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance <= 0 or score == 0:
        return 0.0
    return (score - (1 if score > 0 else -1)) / math.sqrt(variance)


def judge(name: str, unit: str, *, points: Sequence[tuple[float, float]], bound: Bound) -> Trend:
    """The verdict on one series of (seconds, value) after its warm-up."""
    middle = median(value for _, value in points) if points else 0.0
    per_second = slope(points)
    drift = per_second * (points[-1][0] - points[0][0]) if points else 0.0
    most = max(bound.absolute, bound.share * abs(middle))
    sure = certainty(points)
    return Trend(
        name=name,
        unit=unit,
        median=round(middle, 4),
        slope_per_hour=round(per_second * 3600, 4),
        drift=round(drift, 4),
        drift_max=round(most, 4),
        certainty=round(sure, 2),
        grows=drift > most and sure > SURE,
    )


WIDTH, HEIGHT, MARGIN = 720, 110, 16
_COLOURS = {False: "#2a7", True: "#c33"}


def picture(series: Mapping[str, Sequence[tuple[float, float]]], trends: Sequence[Trend], *, warm_up_s: float) -> str:
    """One SVG with a strip for each trend; the grey part was warm-up. Needs nothing but a browser."""
    parts = []
    for row, trend in enumerate(trends):
        points = thinned(series[trend.name])
        top = row * (HEIGHT + MARGIN)
        most = max((value for _, value in points), default=0.0) or 1.0
        last = max((at for at, _ in points), default=0.0) or 1.0
        dots = " ".join(f"{at / last * WIDTH:.1f},{top + HEIGHT - value / most * HEIGHT:.1f}" for at, value in points)
        warm = min(WIDTH, warm_up_s / last * WIDTH)
        title = f"{trend.name}: median {trend.median:g} {trend.unit}, drift {trend.drift:+g} (most {trend.drift_max:g})"
        parts += [
            f'<rect x="0" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="#f6f6f6"/>',
            f'<rect x="0" y="{top}" width="{warm:.0f}" height="{HEIGHT}" fill="#e2e2e2"/>',
            f'<polyline points="{dots}" fill="none" stroke="{_COLOURS[trend.grows]}"/>',
            f'<text x="6" y="{top + 14}" font-family="sans-serif" font-size="12">{title}</text>',
        ]
    height = len(trends) * (HEIGHT + MARGIN)
    space = "http://www.w3.org/2000/svg"  # tidy: the name of the dialect, never fetched
    body = "\n".join(parts)
    return f'<svg xmlns="{space}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n{body}\n</svg>\n'
