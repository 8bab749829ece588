"""Log lines: one canonical line per request and per operation, and what an operator must know. Never prompts.

Lines are rendered where they arise and written by a thread (``line_writer``); what does not fit its bound is counted as
dropped. Values are made safe for terminals and parsers: no line break, control or escape character gets out of a value.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any, Required, TextIO, TypedDict, Unpack

import msgspec

from bellmare.observability.line_writer import LINES_MAX, LineWriter
from bellmare.observability.request_lines import RequestLine, quoted, render_json, render_text
from bellmare.observability.safe_text import Stamps, escape

TRACEBACK_MAX = 16_000


class OperationFields(TypedDict, total=False):
    """All that the line of an operation can say; None is left out."""

    operation: Required[int]
    kind: Required[str]
    model: str | None
    worker: str | None
    cause: str | None
    outcome: Required[str]
    expected_ms: float | None
    took_ms: float | None
    error: str | None


_OPERATION_FIELDS = frozenset(OperationFields.__annotations__)


class Logs:
    """The process's log. Made once at start by :func:`open_logs` and passed to who needs it; no global state."""

    def __init__(self, writer: LineWriter, *, level: str, people: bool) -> None:
        """Lines from ``level`` on, as text for ``people`` or else as JSON."""
        self._writer = writer
        self._stamps = Stamps()
        self._render: Callable[[dict[str, Any]], bytes] = _render_text if people else _render_json
        self._render_request = render_text if people else render_json
        self._told = 0
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Write lines of ``level`` and above from now on: debug, info, warning or error."""
        self._lowest = _LEVELS[level]
        self._tells_requests = self._lowest <= logging.INFO

    @property
    def dropped(self) -> int:
        """Lines lost so far; a metric."""
        return self._writer.dropped

    def request_line(self, line: RequestLine) -> None:
        """The one line of a request, at its end."""
        if not self._tells_requests:
            return
        writer = self._writer
        if writer.dropped != self._told:
            self._tell_dropped()
        writer.put(self._render_request(line, self._stamps))

    def operation_line(self, **fields: Unpack[OperationFields]) -> None:
        """The one line of a load, unload, pull or probe, at its end."""
        assert fields.keys() <= _OPERATION_FIELDS, fields.keys() - _OPERATION_FIELDS
        self._write("info", "operation", fields=fields)

    def debug(self, event: str, **fields: object) -> None:
        self._write("debug", event, fields=fields)

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields=fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields=fields)

    def error(self, event: str, *, error: BaseException | None = None, **fields: object) -> None:
        """``error`` adds its traceback: for our own bugs, not for faults of the outside world."""
        if error is not None:
            text = "".join(traceback.format_exception(error))[-TRACEBACK_MAX:]
            fields = {**fields, "error": repr(error), "traceback": _Text(text)}
        self._write("error", event, fields=fields)
        self._writer.hurry()

    def capture_standard(self, *, level: str = "warning") -> None:
        """Bring in what libraries say through ``logging`` (asyncio, uvicorn), from ``level`` on."""
        handler = _StandardHandler(self)
        root = logging.getLogger()
        root.handlers = [handler]
        root.setLevel(level.upper())

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s``."""
        self._writer.close(timeout_s=timeout_s, last=self._lost())

    def _write(self, level: str, event: str, *, fields: Any) -> None:
        if _LEVELS[level] < self._lowest:
            return
        if self._writer.dropped != self._told:
            self._tell_dropped()
        self._writer.put(self._rendered(level, event, fields))

    def _rendered(self, level: str, event: str, fields: Any) -> bytes:
        head = {"time": self._stamps.text(), "level": level, "event": escape(event)}
        return self._render(head | {name: _safe(value) for name, value in fields.items() if value is not None})

    def _tell_dropped(self) -> None:
        """Once there is room again: before, it would only be one more line that is lost."""
        if not self._writer.full and (line := self._lost()) is not None:
            self._writer.put(line)

    def _lost(self) -> bytes | None:
        """A line that says how many were lost since the last such line."""
        dropped = self._writer.dropped
        lost, self._told = dropped - self._told, dropped
        if not lost or self._lowest > logging.WARNING:
            return None
        return self._rendered("warning", "log lines lost", {"dropped": lost})


_LEVELS = {name: logging.getLevelNamesMapping()[name.upper()] for name in ("debug", "info", "warning", "error")}


class _Text(str):
    """A text of several lines that was meant to be one: escaped by the encoder, or indented for people."""

    __slots__ = ()


class _StandardHandler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format: a library's bug must not become ours
            text = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            self._logs.error(text, error=error, logger=record.name)
        elif record.levelno >= logging.WARNING:
            self._logs.warning(text, logger=record.name)
        else:
            self._logs.info(text, logger=record.name)


def _safe(value: object) -> object:
    """A value as number, boolean or safe short text."""
    if isinstance(value, float):
        return round(value, 3) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, _Text):
        return "\n".join(escape(line) for line in value.splitlines())
    if isinstance(value, bool | int):
        return value
    return escape(value if isinstance(value, str) else str(value))


def _render_json(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields)


def _render_text(fields: dict[str, Any]) -> bytes:
    """``12:00:01.123 info    operation operation=7 kind=load``; a traceback follows indented."""
    when, level, event = fields.pop("time"), fields.pop("level"), fields.pop("event")
    below = fields.pop("traceback", "")
    parts = [when[11:23], f"{level:<7}", event]
    parts += [f"{name}={quoted(value)}" for name, value in fields.items()]
    return (" ".join(parts) + "".join(f"\n    {line}" for line in below.splitlines())).encode()


def open_logs(
    *, level: str = "info", line_format: str = "auto", stream: TextIO | None = None, lines_max: int = LINES_MAX
) -> Logs:
    """Start the log. ``level`` and ``line_format`` as ``log`` in the settings; ``stream`` by default standard error."""
    target = sys.stderr if stream is None else stream
    people = line_format == "text" or (line_format == "auto" and target.isatty())
    return Logs(LineWriter(target, lines_max=lines_max), level=level, people=people)
