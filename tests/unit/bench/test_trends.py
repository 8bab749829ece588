"""A series grows if its robust slope passes its bound and chance does not explain it."""

import random
import xml.etree.ElementTree as ET

import pytest

from bellmare.bench.trends import SAMPLES_MAX, Bound, certainty, judge, picture, slope, thinned

BOUND = Bound(absolute=5.0, share=0.1)


def noisy(
    per_second: float, *, count: int = 120, noise: float = 1.0, start: float = 100.0
) -> list[tuple[float, float]]:
    rng = random.Random(7)
    return [(float(at), start + per_second * at + rng.gauss(0, noise)) for at in range(count)]


def test_the_slope_is_found_through_noise_and_wild_samples() -> None:
    points = noisy(0.5)
    for at in range(0, 120, 6):
        points[at] = (float(at), 10_000.0)
    assert slope(points) == pytest.approx(0.5, rel=0.3)
    assert slope([(1.0, 2.0)]) == slope([]) == 0.0


def test_what_grows_is_told_and_what_only_wobbles_is_not() -> None:
    assert judge("x", "B", points=noisy(0.5), bound=BOUND).grows
    assert not judge("x", "B", points=noisy(0.0, noise=50.0), bound=BOUND).grows
    assert not judge("x", "B", points=noisy(-0.5), bound=BOUND).grows, "what falls does not grow"
    assert not judge("x", "B", points=noisy(0.01), bound=BOUND).grows, "within its bound"
    assert not judge("x", "B", points=[], bound=BOUND).grows


def test_a_bound_is_the_larger_of_its_two() -> None:
    assert judge("x", "B", points=noisy(0.0, noise=0.0, start=1000.0), bound=BOUND).drift_max == 100
    assert judge("x", "B", points=noisy(0.0, noise=0.0, start=1.0), bound=BOUND).drift_max == 5


def test_certainty_has_the_sign_of_the_trend_and_none_without_one() -> None:
    assert certainty(noisy(1.0)) > 5 > -5 > certainty(noisy(-1.0))
    assert certainty([(float(at), 3.0) for at in range(50)]) == 0.0
    assert abs(certainty(noisy(0.0))) < 3
    assert certainty([(0.0, 1.0), (1.0, 2.0)]) == 0.0


def test_a_long_series_is_thinned_and_keeps_its_slope() -> None:
    points = noisy(0.5, count=10 * SAMPLES_MAX)
    assert len(thinned(points)) <= SAMPLES_MAX
    assert slope(points) == pytest.approx(0.5, rel=0.1)


def test_the_picture_has_a_strip_for_each_series() -> None:
    points = noisy(0.5)
    trends = [judge(name, "B", points=points, bound=BOUND) for name in ("one", "two")]
    svg = picture({"one": points, "two": points}, trends, warm_up_s=30.0)
    root = ET.fromstring(svg)
    lines = [item for item in root.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 2
    assert all(item.attrib["stroke"] == "#c33" for item in lines)
