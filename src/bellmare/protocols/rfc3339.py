"""RFC 3339 instants as integer microseconds since 1970 UTC, without a clock."""

import re

from bellmare.core.units import SECOND_US

_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,12}))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_since_1970(year: int, month: int, day: int) -> int:
    """Days of the proleptic Gregorian calendar; the year starts in March, so that the leap day is its last."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def parse_rfc3339(text: str) -> int:
    """Microseconds since 1970-01-01T00:00:00Z; digits below a microsecond are cut. Raises ``ValueError``.

    Go writes nanoseconds and the machine's offset (ollama.md 1.4). A leap second (:60) is the next minute's first.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 instant: {text[:64]!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    fraction, _, sign, offset_hour, offset_minute = match.group(7, 8, 9, 10, 11)
    if not 1 <= month <= 12 or not 1 <= day <= _MONTH_DAYS[month - 1] + (month == 2 and _is_leap(year)):
        raise ValueError(f"no such day: {text[:64]!r}")
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"no such time of day: {text[:64]!r}")
    seconds = _days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
    if sign is not None:
        if int(offset_hour) > 23 or int(offset_minute) > 59:
            raise ValueError(f"no such offset: {text[:64]!r}")
        offset = int(offset_hour) * 3600 + int(offset_minute) * 60
        seconds += -offset if sign == "+" else offset
    return seconds * SECOND_US + (int(fraction[:6].ljust(6, "0")) if fraction else 0)
