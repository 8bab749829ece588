"""Exponentials and logarithms from tables: near enough to the truth, and the same everywhere."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bellmare.core import numeric
from bellmare.core.numeric import REACH, decay, ln, logistic


@given(st.floats(0.0, REACH - 0.001))
def test_decay_is_exp_to_one_part_in_ten_thousand(x: float) -> None:
    assert math.isclose(decay(x), math.exp(-x), rel_tol=1e-4)


@given(st.floats(REACH, 1e300))
def test_what_is_longer_ago_than_the_reach_is_nothing(x: float) -> None:
    assert decay(x) == 0.0


@given(st.floats(1e-300, 1e300))
def test_ln_is_the_logarithm_to_one_part_in_ten_thousand(x: float) -> None:
    assert math.isclose(ln(x), math.log(x), rel_tol=1e-4, abs_tol=1e-5)


@given(st.floats(-30.0, 30.0))
def test_logistic_is_a_probability_and_symmetric(x: float) -> None:
    assert 0.0 <= logistic(x) <= 1.0
    assert math.isclose(logistic(x) + logistic(-x), 1.0, abs_tol=1e-12)
    assert math.isclose(logistic(x), 1 / (1 + math.exp(-x)), rel_tol=1e-4, abs_tol=1e-10)


@given(st.floats(0.0, 30.0), st.floats(0.0, 30.0))
def test_decay_never_rises(x: float, y: float) -> None:
    assert decay(max(x, y)) <= decay(min(x, y))


def test_the_ends_of_the_tables_are_within_them() -> None:
    assert decay(0.0) == 1.0
    assert decay(math.nextafter(float(REACH), 0.0)) > 0.0
    assert math.isclose(ln(math.nextafter(1.0, 0.0)), 0.0, abs_tol=1e-9)


def test_tables_are_built_the_same_each_time() -> None:
    assert numeric._powers() == numeric._POWERS
    assert numeric._logarithms() == numeric._LOGARITHMS
