"""Sizes, times and addresses: what is understood, what is refused, and that the refusal says how to write it."""

import pytest

from bellmare.settings.addresses import Address, is_loopback, parse_address, parse_worker_url
from bellmare.settings.quantities import (
    Count,
    Counts,
    Duration,
    Factor,
    Flag,
    HeadroomKind,
    Size,
    parse_duration,
    parse_size,
    show_duration,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("1.5GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("1KiB", 1024),
        ("123", 123),
        (123, 123),
        ("0", 0),
        ("7B", 7),
    ],
)
def test_a_size_is_exact(text: object, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("24G", "say 24GB (10^9) or 24GiB (2^30)"),
        ("24Gi", "say 24GB"),
        ("24GX", "the units are B, KB"),
        ("-1GB", "not a size"),
        ("1.5", "add a unit"),
        ("0.3B", "not a whole number of bytes"),
        ("lots", "not a size"),
        ("", "not a size"),
        ("9" * 1000, "not a size"),
        (True, "not a size"),
        (1.5, "not a size"),
        (None, "not a size"),
        (["1GB"], "not a size"),
        ("\uff11GB", "not a size"),
    ],
)
def test_a_wrong_size_says_why(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_size(value)
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("text", "span_us"),
    [
        ("5s", 5_000_000),
        ("2m", 120_000_000),
        ("500ms", 500_000),
        ("1h30m", 5_400_000_000),
        ("1.5s", 1_500_000),
        ("7", 7_000_000),
        (7, 7_000_000),
        (0.25, 250_000),
        ("0", 0),
        ("3us", 3),
    ],
)
def test_a_time_is_exact(text: object, span_us: int) -> None:
    assert parse_duration(text) == span_us
    assert parse_duration(show_duration(span_us)) == span_us


@pytest.mark.parametrize(
    "value", ["5x", "s", "-5s", "", "5 s s", "1h30", float("inf"), float("nan"), True, "0.5us", "5s" * 50]
)
def test_a_wrong_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a time|unknown unit|finer"):
        parse_duration(value)


def test_ranges_include_both_ends_and_are_told_with_units() -> None:
    size, span, count = Size(1024, 4 << 30), Duration(1000, 120_000_000), Count(1, 8, "slots")
    assert size.parse("1KiB") == 1024
    assert size.parse("4GiB") == 4 << 30
    assert count.parse("8") == 8
    for kind, value, told in (
        (size, "1023", "1KiB to 4GiB"),
        (size, "5GiB", "1KiB to 4GiB"),
        (span, "3m", "1ms to 120s"),
        (count, 9, "1 to 8 slots"),
        (count, 0, "1 to 8 slots"),
    ):
        with pytest.raises(ValueError, match="out of range") as refusal:
            kind.parse(value)
        assert told in str(refusal.value)


def test_other_kinds_refuse_what_they_are_not() -> None:
    for kind, value in (
        (Count(1, 8, "slots"), True),
        (Count(1, 8, "slots"), 2.0),
        (Count(1, 8, "slots"), "two"),
        (Factor(0.1, 10), float("nan")),
        (Factor(0.1, 10), "fast"),
        (Flag(), 1),
        (Flag(), "maybe"),
        (HeadroomKind(1 << 40, 90), "5.5%"),
        (HeadroomKind(1 << 40, 90), "91%"),
        (HeadroomKind(1 << 40, 90), "2TiB"),
    ):
        with pytest.raises(ValueError, match=r"."):
            kind.parse(value)


def test_headroom_is_a_size_or_a_share() -> None:
    kind = HeadroomKind(1 << 40, 90)
    assert kind.parse("1GiB").of(24 << 30) == 1 << 30
    assert kind.parse("5%").of(1000) == 50
    assert kind.parse(0).of(1000) == 0


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("localhost", "localhost", 11435),
        ("[::1]:8080", "::1", 8080),
        ("[::1]", "::1", 11435),
        ("::1", "::1", 11435),
        ("::", "::", 11435),
        ("2001:db8::8080", "2001:db8::8080", 11435),
        ("8080", "127.0.0.1", 8080),
        (8080, "127.0.0.1", 8080),
        ("gpu-1.example.com:0", "gpu-1.example.com", 0),
    ],
)
def test_an_address_is_understood(text: object, host: str, port: int) -> None:
    address = parse_address(text, default_port=11435)
    assert address == Address(host, port)
    assert parse_address(str(address), default_port=1) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("::1:8080", "with a port it is [::1]:8080"),
        (":11435", "0.0.0.0:11435"),
        ("127.0.0.1:65536", "0 to 65535"),
        ("127.0.0.1:", "not a port"),
        ("1.2.3:80", "no valid host"),
        ("999.1.1.1", "no valid host"),
        ("http://a:1", "not an address"),
        ("[::1", "[::1]:11435"),
        ("a b:1", "no valid host"),
        ("a" * 400, "not an address"),
        ("", "not an address"),
        (None, "not an address"),
        (True, "not an address"),
        (-1, "not a port"),
    ],
)
def test_a_wrong_address_says_why(text: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_address(text, default_port=11435)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "gpu1", "::ffff:10.0.0.1"])
def test_everything_else_can_be_reached_from_outside(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gpu1", "http://gpu1:11434"),
        ("gpu1:5", "http://gpu1:5"),
        ("http://gpu1", "http://gpu1:80"),
        ("HTTP://GPU1:9/Ollama/", "http://gpu1:9/Ollama"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("http://[::]:11434", "http://[::1]:11434"),
        (":11434", "http://127.0.0.1:11434"),
        ("[::1]", "http://[::1]:11434"),
    ],
)
def test_a_workers_url_follows_ollamas_rules(text: str, url: str) -> None:
    assert str(parse_worker_url(text)) == url


@pytest.mark.parametrize(
    "text", ["ftp://a", "http://u:p@a", "http://a?b=c", "http://a#b", "http://a b", "", "http://", "http://a:0", 5]
)
def test_a_wrong_url_is_refused_without_showing_a_password(text: object) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_worker_url(text)
    assert "u:p" not in str(refusal.value)


COUNTS = Counts(Count(4, 1000, "tokens"), 3)


@pytest.mark.parametrize("written", [[30, 10, 20], (10, 20, 30), "30, 10,20", ["10", 20, "3_0"]])
def test_some_numbers_are_kept_ascending_and_each_once(written: object) -> None:
    assert COUNTS.parse(written) == (10, 20, 30)
    assert COUNTS.parse(COUNTS.show((10, 20, 30))) == (10, 20, 30)


@pytest.mark.parametrize(
    ("written", "kept"), [(7, (7,)), ([], ()), ("", ()), ([8, 8, 8], (8,))], ids=["one", "none", "empty", "equal"]
)
def test_one_number_is_a_list_of_one_and_equal_ones_are_one(written: object, kept: tuple[int, ...]) -> None:
    assert COUNTS.parse(written) == kept


@pytest.mark.parametrize("written", [[3], [1001], [5, "x"], [1, 2, 3, 4], "5,6,7,8", {"a": 5}, True, None, [True], 5.5])
def test_what_is_no_list_of_such_numbers_is_refused_with_the_range(written: object) -> None:
    with pytest.raises(ValueError, match="4 to 1000 tokens"):
        COUNTS.parse(written)
