"""Lines: any chunking of the same bytes gives the same lines."""

import pytest
from chunked import chunked
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.ndjson import LineGate, LineSplitter, LineTooLong, split_complete

streams = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\r", b'{"x":1}', b"long" * 5])).map(b"".join)


@given(streams, st.lists(st.integers(0, 1000)))
def test_any_chunking_gives_the_same_lines(stream, cuts):
    splitter = LineSplitter()
    lines = [line for chunk in chunked(stream, cuts) for line in splitter.feed(chunk)]
    *whole, rest = stream.split(b"\n")
    assert lines == [line.removesuffix(b"\r") for line in whole]
    assert splitter.rest == rest


@given(streams, st.lists(st.integers(0, 1000)))
def test_the_gate_opens_on_newlines_only_and_loses_nothing(stream, cuts):
    gate = LineGate()
    sent = b""
    for chunk in chunked(stream, cuts):
        ready = gate.feed(chunk)
        assert ready == b"" or ready.endswith(b"\n")
        sent += ready
        assert b"\n" not in gate.rest
    assert sent + gate.rest == stream


def test_split_complete():
    assert split_complete(b"a\nb\nc") == (b"a\nb\n", b"c")
    assert split_complete(b"abc") == (b"", b"abc")
    assert split_complete(b"a\n") == (b"a\n", b"")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_bound_holds_for_any_chunking(size):
    fits, too_long = b"x" * 10 + b"\n", b"x" * 11 + b"\n"
    splitter, gate = LineSplitter(line_bytes_max=10), LineGate(line_bytes_max=10)
    for start in range(0, len(fits), size):
        splitter.feed(fits[start : start + size])
        gate.feed(fits[start : start + size])
    with pytest.raises(LineTooLong) as caught:
        for start in range(0, len(too_long), size):
            splitter.feed(too_long[start : start + size])
    assert caught.value.line_bytes_max == 10
    with pytest.raises(LineTooLong):
        for _ in range(11):
            gate.feed(b"x")


def test_one_byte_at_a_time_costs_linear_work():
    splitter = LineSplitter()
    for _ in range(100_000):
        assert splitter.feed(b"x") == []
    assert len(splitter.feed(b"\n")[0]) == 100_000
    assert splitter.rest == b""
