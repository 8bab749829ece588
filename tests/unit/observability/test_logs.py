"""Log lines: one per event, safe for terminals and parsers, and never in the way of the event loop."""

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from bellmare.observability import line_writer
from bellmare.observability.line_writer import LineWriter
from bellmare.observability.logs import Logs, open_logs
from bellmare.observability.request_lines import RequestLine
from bellmare.observability.safe_text import VALUE_MAX, Stamps, escape


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_of_json_when_not_on_a_terminal() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    logs.request_line(
        RequestLine(id="r1", outcome="completed", model="llama3:latest", status=200, queue_ms=1.2, attempts=1)
    )
    logs.operation_line(operation=7, kind="load", outcome="done", worker="gpu0", took_ms=2.0)
    logs.close()
    request, operation = lines_of(stream)
    time = request.pop("time")
    assert time.endswith("Z")
    assert request == {
        "level": "info",
        "event": "request",
        "id": "r1",
        "outcome": "completed",
        "model": "llama3:latest",
        "status": 200,
        "queue_ms": 1.2,
        "attempts": 1,
    }
    assert (operation["event"], operation["operation"], operation["took_ms"]) == ("operation", 7, 2.0)


def test_people_get_text() -> None:
    for stream, line_format in ((Terminal(), "auto"), (io.StringIO(), "text")):
        logs = open_logs(stream=stream, line_format=line_format)
        logs.warning("worker lost", worker="gpu 0")
        logs.close()
        assert stream.getvalue()[12:] == ' warning worker lost worker="gpu 0"\n'
    forced = Terminal()
    logs = open_logs(stream=forced, line_format="json")
    logs.info("x")
    logs.close()
    assert lines_of(forced)[0]["event"] == "x"


@pytest.mark.parametrize("line_format", ["json", "text"])
def test_a_value_can_neither_forge_a_line_nor_steer_a_terminal(line_format: str) -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream, line_format=line_format)
    evil = "a\r\nb\x1b[31m\x9b1m\u2028\u202e\x00\x7f\ud800"
    logs.request_line(RequestLine(id=evil, outcome="completed", model=evil))
    logs.info(evil, note=evil)
    logs.close()
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "b\\\\u001b[31m" in text if line_format == "json" else "\\r\\nb\\u001b[31m" in text


def test_values_are_bounded_and_absent_ones_left_out() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    logs.info("x", detail="y" * 10_000, worker=None, load_ms=float("nan"), path=("a", 1))
    logs.close()
    line = lines_of(stream)[0]
    assert len(line["detail"]) == VALUE_MAX + 3
    assert "worker" not in line
    assert (line["load_ms"], line["path"]) == ("nan", "('a', 1)")
    assert escape("plain") == "plain"


def test_fields_are_a_closed_set() -> None:
    logs = open_logs(stream=io.StringIO())
    with pytest.raises(TypeError):
        RequestLine(id="a", outcome="completed", prompt="secret")  # type: ignore[call-arg]
    with pytest.raises(AssertionError):
        logs.operation_line(operation=1, kind="load", outcome="done", prompt="secret")  # type: ignore[call-arg]
    logs.close()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream, level="warning")
    logs.debug("a")
    logs.info("b")
    logs.request_line(RequestLine(id="c", outcome="completed"))
    logs.warning("d")
    logs.close()
    assert [line["event"] for line in lines_of(stream)] == ["d"]


def test_our_own_bug_comes_with_its_traceback() -> None:
    for line_format in ("json", "text"):
        stream = io.StringIO()
        logs = open_logs(stream=stream, line_format=line_format)
        try:
            raise RuntimeError("evil \x1b[31m")
        except RuntimeError as error:
            logs.error("task ended", error=error, task="driver")
        logs.close()
        assert "Traceback (most recent call last)" in stream.getvalue()
        assert "\x1b" not in stream.getvalue()
        assert stream.getvalue().count("\n") == (1 if line_format == "json" else len(stream.getvalue().splitlines()))


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.handlers, root.level
    yield root
    root.handlers, root.level = before


@pytest.mark.usefixtures("root_logger")
def test_lines_of_libraries_come_through_the_same_door() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    logs.capture_standard()
    logging.getLogger("asyncio").warning("slow %s", "callback\n")
    logging.getLogger("asyncio").info("not this")
    logging.getLogger("uvicorn").error("wrong %d", "arguments")
    logs.close()
    assert [(line["logger"], line["level"], line["event"]) for line in lines_of(stream)] == [
        ("asyncio", "warning", "slow callback\\n"),
        ("uvicorn", "error", "wrong %d"),
    ]


class Stuck(io.StringIO):
    """A stream that takes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.released.wait(30)
        return super().write(text)


def test_a_stuck_stream_costs_lines_and_never_waits() -> None:
    stream = Stuck()
    logs = open_logs(stream=stream, lines_max=10)
    logs.info("first")
    assert stream.entered.wait(30)
    for number in range(100):
        logs.info("line", number=number)
    assert logs.dropped >= 89
    logs.close(timeout_s=0.01)
    stream.released.set()


def test_lost_lines_are_told_once_there_is_room_again() -> None:
    stream = Stuck()
    logs = open_logs(stream=stream, lines_max=2)
    logs.info("first")
    assert stream.entered.wait(30)
    for _ in range(10):
        logs.info("line")
    stream.released.set()
    logs.close(timeout_s=30)
    told = [line for line in lines_of(stream) if line["event"] == "log lines lost"]
    written = [line for line in lines_of(stream) if line["event"] in {"first", "line"}]
    assert logs.dropped > 0
    assert len(written) < 11
    assert all(line["dropped"] > 0 for line in told)


def test_a_broken_pipe_is_counted_and_goes_on() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    writer = LineWriter(stream)
    writer.put(b"a")
    writer.close(timeout_s=30)
    writer.put(b"b")
    assert writer.dropped == 2
    writer.close()
    try:
        stream.close()
    except BrokenPipeError:
        pass


def test_all_that_was_put_before_the_end_is_written() -> None:
    stream = io.StringIO()
    logs: Logs = open_logs(stream=stream)
    for number in range(1000):
        logs.info("line", number=number)
    logs.close(timeout_s=30)
    assert [line["number"] for line in lines_of(stream)] == list(range(1000))


ODD = (
    "plain",
    'quo"te',
    "back\\slash",
    "two words",
    "",
    "tab\t",
    "\x7f",
    "\x9b31m",
    "übung",
    "\u2028",
    "\u202e",
    "\ud800",
    "x" * (VALUE_MAX - 1),
    "x" * (VALUE_MAX + 1),
    "é" * VALUE_MAX,
)


@pytest.mark.parametrize("field", ["id", "model", "route", "error"])
def test_a_value_of_a_request_is_made_safe_as_any_other(field: str) -> None:
    """The line of a request is looked over as a whole; what comes of it is what looking at each value gives."""
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    for value in ODD:
        logs.request_line(msgspec.structs.replace(RequestLine(id="r", status=200), **{field: value}))
    logs.close()
    lines = lines_of(stream)
    assert [line[field] for line in lines] == [escape(value) for value in ODD]
    assert all((line["level"], line["event"], line["status"]) == ("info", "request", 200) for line in lines)
    assert [list(line)[:3] for line in lines] == [["time", "level", "event"]] * len(ODD)


def test_people_get_the_values_of_a_request_as_of_any_other_line() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream, line_format="text")
    for value in ODD:
        logs.request_line(RequestLine(id="r", model=value, status=200, total_ms=1.5))
        logs.info("request", id="r", model=value, status=200, total_ms=1.5)
    logs.close()
    lines = [line[12:] for line in stream.getvalue().split("\n")]
    assert lines[0:-1:2] == lines[1::2]
    assert lines[0] == " info    request id=r model=plain status=200 total_ms=1.5"


def test_times_are_utc_and_never_fall_within_a_log() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    begun = datetime.now(UTC)
    for number in range(200):
        logs.info("line") if number % 2 else logs.request_line(RequestLine(id="r"))
    logs.close()
    times = [line["time"] for line in lines_of(stream)]
    assert times == sorted(times)
    assert {len(time) for time in times} == {len("2026-11-22T12:00:01.123456Z")}
    assert begun <= datetime.fromisoformat(times[0]) <= datetime.fromisoformat(times[-1]) <= datetime.now(UTC)


def test_a_clock_that_is_set_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = Stamps()
    told = []
    for now_ns in (1_800_000_000_999_999_999, 1_800_000_001_000_000_000, 1_799_999_999_000_001_000):
        monkeypatch.setattr("time.time_ns", lambda now_ns=now_ns: now_ns)
        told.append(stamps.text())
    assert told == ["2027-01-15T08:00:00.999999Z", "2027-01-15T08:00:01.000000Z", "2027-01-15T07:59:59.000001Z"]


def test_lines_of_requests_and_others_keep_their_order() -> None:
    stream = io.StringIO()
    logs = open_logs(stream=stream)
    for number in range(3000):
        if number % 3:
            logs.request_line(RequestLine(id=str(number)))
        else:
            logs.info("line", id=str(number))
    logs.close(timeout_s=30)
    assert [line["id"] for line in lines_of(stream)] == [str(number) for number in range(3000)]
    assert logs.dropped == 0


def test_every_line_is_written_or_counted_and_told() -> None:
    stream = Stuck()
    logs = open_logs(stream=stream, lines_max=100)
    logs.error("first")
    assert stream.entered.wait(30)
    for number in range(1000):
        logs.request_line(RequestLine(id=str(number)))
    assert logs.dropped == 900
    stream.released.set()
    logs.close(timeout_s=30)
    lines = lines_of(stream)
    assert [line["id"] for line in lines if line["event"] == "request"] == [str(number) for number in range(100)]
    assert [line["dropped"] for line in lines if line["event"] == "log lines lost"] == [900]
    logs.request_line(RequestLine(id="late"))
    assert logs.dropped == 901


class Patient(io.StringIO):
    """A stream that says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def flush(self) -> None:
        super().flush()
        self.written.set()


def test_what_waits_is_written_without_another_line() -> None:
    stream = Patient()
    logs = open_logs(stream=stream)
    for number in range(3):  # each time the writer has gone to sleep again, or is about to
        stream.written.clear()
        logs.request_line(RequestLine(id=str(number)))
        assert stream.written.wait(30)
    assert [line["id"] for line in lines_of(stream)] == ["0", "1", "2"]
    logs.close()


def test_an_error_does_not_wait_for_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "GATHER_S", 3600.0)
    stream = Patient()
    logs = open_logs(stream=stream)
    logs.info("before")
    logs.error("wrong")
    assert stream.written.wait(30)
    logs.close(timeout_s=30)
    assert [line["event"] for line in lines_of(stream)] == ["before", "wrong"]


def test_many_lines_are_not_left_to_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "GATHER_S", 3600.0)
    stream = Patient()
    writer = LineWriter(stream, lines_max=40)
    for _ in range(11):
        writer.put(b"x")
    assert stream.written.wait(30)
    assert writer.dropped == 0
    writer.close(timeout_s=30)
    assert stream.getvalue() == "x\n" * 11


def test_lines_of_several_threads_are_all_written() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, lines_max=100_000)

    def many(name: bytes) -> None:
        for number in range(2000):
            writer.put(b"%b %d" % (name, number))

    threads = [threading.Thread(target=many, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    writer.close(timeout_s=30)
    lines = stream.getvalue().splitlines()
    for name in "abc":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(2000)]
