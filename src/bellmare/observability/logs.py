"""Log lines: one canonical line per request and per operation, and what an operator must know. Never prompts.

Lines are rendered where they arise and handed to a thread that writes them, so that a stuck terminal or pipe never
stops the event loop; what does not fit the bounded queue is counted as dropped. Values are made safe for terminals and
parsers: no line break, control or escape character gets out of a value.
"""

import atexit
import logging
import queue
import re
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import Any, Required, TextIO, TypedDict, Unpack

import msgspec

LINES_MAX = 8192
"""Waiting lines: some seconds of a busy gateway, a few MiB."""
BATCH_MAX = 256
"""Lines per write: one system call and one turn of the interpreter lock for many."""
VALUE_MAX = 500
"""Characters of one value; an error text of a worker can be a whole page."""
TRACEBACK_MAX = 16_000

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\\u2028\\u2029\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\ud800-\udfff]")
"""Control characters, line breaks of Unicode, marks that reverse the direction of a line, lone surrogates."""


class RequestFields(TypedDict, total=False):
    """All that the line of a request can say; None is left out."""

    id: Required[str]
    model: str | None
    worker: str | None
    dialect: str | None
    route: str | None
    status: int | None
    outcome: Required[str]
    cache: str | None
    queue_ms: float | None
    load_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    attempts: int | None
    request: str | None
    """The core's own id; ``id`` may be the client's."""
    refusal: str | None
    error: str | None
    """What a worker said, cut short: it may quote other requests, so it is for operators only."""


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


_REQUEST_FIELDS = frozenset(RequestFields.__annotations__)
_OPERATION_FIELDS = frozenset(OperationFields.__annotations__)


def escape(text: str, *, length_max: int = VALUE_MAX) -> str:
    """``text`` without characters that could forge a line or steer a terminal, cut to ``length_max``."""
    if len(text) > length_max:
        text = text[:length_max] + "..."
    return _UNSAFE.sub(_escaped, text) if _UNSAFE.search(text) else text


def _escaped(match: re.Match[str]) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0]) or f"\\u{ord(match[0]):04x}"


class LineWriter:
    """Writes lines to ``stream`` from a thread of its own; ``put`` never waits."""

    def __init__(self, stream: TextIO, *, lines_max: int = LINES_MAX) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        self._closed = False
        self.dropped = 0
        """Lines lost so far, because the queue was full or the stream broken. Never falls."""
        self._thread = threading.Thread(target=self._run, name="bellmare-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: str) -> None:
        if self._closed:
            self.dropped += 1
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s``. May be called twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return  # the stream is stuck: the daemon thread ends with the process
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._lines.get()]
            while len(batch) < BATCH_MAX and not self._lines.empty():
                batch.append(self._lines.get_nowait())
            ended = batch[-1] is None
            lines = [line for line in batch if line is not None]
            try:
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):  # a closed pipe, a closed file
                self.dropped += len(lines)


class _Sink:
    """What structlog calls at the end of its chain; one method per level, all the same."""

    __slots__ = ("_writer",)

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.put(line)

    debug = info = warning = error = critical = msg


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Logs:
    """The process's log. Made once at start by :func:`open_logs` and passed to who needs it; no global state."""

    def __init__(self, writer: LineWriter, logger: Any, *, level: str = "info") -> None:
        self._writer = writer
        self._logger = logger
        self._told = 0
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Write lines of ``level`` and above from now on: debug, info, warning or error."""
        self._lowest = _LEVELS[level]

    @property
    def dropped(self) -> int:
        """Lines lost so far; a metric."""
        return self._writer.dropped

    def request_line(self, **fields: Unpack[RequestFields]) -> None:
        """The one line of a request, at its end."""
        assert fields.keys() <= _REQUEST_FIELDS, fields.keys() - _REQUEST_FIELDS
        self._write("info", "request", fields=fields)

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

    def capture_standard(self, *, level: str = "warning") -> None:
        """Bring in what libraries say through ``logging`` (asyncio, uvicorn), from ``level`` on."""
        handler = _StandardHandler(self)
        root = logging.getLogger()
        root.handlers = [handler]
        root.setLevel(level.upper())

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s``."""
        self._tell_dropped()
        self._writer.close(timeout_s=timeout_s)

    def _write(self, level: str, event: str, *, fields: Any) -> None:
        if self._writer.dropped > self._told:
            self._tell_dropped()
        if _LEVELS[level] < self._lowest:
            return
        getattr(self._logger, level)(event, **fields)

    def _tell_dropped(self) -> None:
        lost = self._writer.dropped - self._told
        if lost > 0:
            self._told = self._writer.dropped
            self._logger.warning("log lines lost", dropped=lost)


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


def _make_safe(  # tidy: structlog calls it so
    _logger: Any, _name: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Every value as number, boolean or safe short text; None is left out."""
    for name, value in list(fields.items()):
        if value is None:
            del fields[name]
        elif isinstance(value, float):
            fields[name] = round(value, 3) if value == value and abs(value) != float("inf") else str(value)
        elif not isinstance(value, bool | int | _Text):
            fields[name] = escape(value if isinstance(value, str) else str(value))
        elif isinstance(value, _Text):
            fields[name] = "\n".join(escape(line) for line in value.splitlines())
    return fields


def _render_json(  # tidy: structlog calls it so
    _logger: Any, _name: str, fields: MutableMapping[str, Any]
) -> str:
    head = {name: fields.pop(name) for name in ("time", "level", "event")}
    return msgspec.json.encode({**head, **fields}).decode()


def _render_text(  # tidy: structlog calls it so
    _logger: Any, _name: str, fields: MutableMapping[str, Any]
) -> str:
    """``12:00:01.123 info    request id=a1 model=llama3:latest``; a traceback follows indented."""
    when, level, event = fields.pop("time"), fields.pop("level"), fields.pop("event")
    below = fields.pop("traceback", "")
    parts = [when[11:23], f"{level:<7}", event]
    parts += [f"{name}={_shown(value)}" for name, value in fields.items()]
    return " ".join(parts) + "".join(f"\n    {line}" for line in below.splitlines())


def _shown(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text or not text else text


def open_logs(
    *, level: str = "info", line_format: str = "auto", stream: TextIO | None = None, lines_max: int = LINES_MAX
) -> Logs:
    """Start the log. ``level`` and ``line_format`` as ``log`` in the settings; ``stream`` by default standard error."""
    import structlog  # 30 to 90 ms, and commands that only ask a running gateway never log

    target = sys.stderr if stream is None else stream
    people = line_format == "text" or (line_format == "auto" and target.isatty())
    writer = LineWriter(target, lines_max=lines_max)
    logger = structlog.wrap_logger(
        _Sink(writer),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.add_log_level,
            _make_safe,
            _render_text if people else _render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
        context_class=dict,
    )
    return Logs(writer, logger.bind(), level=level)
