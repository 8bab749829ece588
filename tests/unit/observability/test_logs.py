"""Log lines: one per event, safe for terminals and parsers, and never in the way of the event loop."""

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bellmare.observability.line_writer import LineWriter
from bellmare.observability.logs import Logs, open_logs
from bellmare.observability.request_lines import RequestLine
from bellmare.observability.safe_text import VALUE_MAX, escape


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
