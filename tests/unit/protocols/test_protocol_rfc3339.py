"""Instants against the standard library's own calendar."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.rfc3339 import parse_rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
first, last = datetime(2, 1, 1), datetime(9998, 12, 31)


@given(st.datetimes(min_value=first, max_value=last, timezones=offsets))
def test_agrees_with_datetime(instant):
    assert parse_rfc3339(instant.isoformat()) == (instant - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1970-01-01T00:00:00.1z", 100_000),
        ("1970-01-01t02:30:00+02:30", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("1969-12-31T23:59:60Z", 0),
    ],
)
def test_examples(text, microseconds):
    assert parse_rfc3339(text) == microseconds


def test_gos_zero_time_is_long_past():
    assert parse_rfc3339("0001-01-01T00:00:00Z") == -62_135_596_800_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1970-01-01",
        "1970-01-01T00:00:00",
        "1970-13-01T00:00:00Z",
        "1970-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "1970-00-01T00:00:00Z",
        "1970-01-00T00:00:00Z",
        "1970-01-01T24:00:00Z",
        "1970-01-01T00:60:00Z",
        "1970-01-01T00:00:61Z",
        "1970-01-01T00:00:00+24:00",
        "1970-01-01T00:00:00+0000",
        "1970-01-01T00:00:00Zx",
        "\u0661970-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z\n",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"not an RFC|no such"):
        parse_rfc3339(text)


def test_leap_days():
    assert parse_rfc3339("2000-02-29T00:00:00Z") == parse_rfc3339("2000-03-01T00:00:00Z") - 86_400_000_000
