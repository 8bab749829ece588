"""From the bytes of a worker's native answer to the bytes of the client's dialect, in whole lines or events only.

A translator sees every body byte of a 200 answer once and knows at the end whether the answer was complete: an answer
that merely stops is a failure, whatever the connection says (ollama.md 1.6).
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from bellmare.gateway.replies import EVENTS, JSON, NDJSON, PLAIN_JSON
from bellmare.http.messages import HeaderLines, header_lines
from bellmare.protocols.errors import BadAnswer, Dialect, stream_error
from bellmare.protocols.ndjson import LineGate, LineSplitter
from bellmare.protocols.ollama import Final, decode_closing, decode_final, first_error

BODY_BYTES_MAX = 64 << 20
"""Of an answer that is not streamed."""
LINE_BYTES_MAX = 1 << 20

_DONE = Final(done=True)
"""Of an unstreamed answer that does not say so itself, as those of the embedding routes."""


class TooLong(Exception):  # noqa: N818 - a limit that was met
    """An unstreamed answer passed ``BODY_BYTES_MAX``."""


class Translator(Protocol):
    """One answer in one dialect. ``feed`` and ``end`` may raise LineTooLong, TooLong or BadAnswer."""

    streams: bool
    """Whether bytes leave before the end."""

    @property
    def headers(self) -> HeaderLines: ...

    @property
    def final(self) -> Final | None:
        """The worker's closing counters, once seen."""

    @property
    def error(self) -> str | None:
        """The worker's own error text, once seen inside the answer."""

    def feed(self, data: bytes) -> bytes:
        """Bytes that may leave now."""

    def end(self) -> bytes:
        """The rest, for an answer that is sent at its end; empty for a stream."""

    def cut(self, message: str) -> bytes:
        """The one frame that tells the client of a failure after the first byte; empty if it has been told."""


class Native:
    """NDJSON as it comes, held back up to the next newline. An error line stays here: it is the worker's wording."""

    streams = True
    headers = header_lines([NDJSON])

    def __init__(self) -> None:
        self.error: str | None = None
        self.final: Final | None = None
        self._gate = LineGate(line_bytes_max=LINE_BYTES_MAX)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        ready = self._gate.feed(data)
        if self.error is not None or self.final is not None:
            return b""  # whatever follows the end is nobody's
        if not self._begun:
            first = ready.lstrip()[:1]
            if first not in (b"", b"{"):
                raise BadAnswer("a line is no JSON object")  # a captive proxy's page, not an Ollama
            self._begun = first != b""
        if b'"error"' in ready or b'"done":true' in ready or b'"done": true' in ready:
            return self._up_to_the_end(ready)
        return ready

    def relay(self, pass_on: Callable[[bytes], None]) -> Callable[[bytes], bool]:
        """Gives whole HTTP chunks to ``pass_on`` as they are, framing and all, and says whether it did.

        It does if ``feed`` would give a chunk's content as it is and learn nothing from it: most of a stream is so.
        """
        gate = self._gate

        def relay(chunk: bytes) -> bool:
            if (
                chunk.endswith(b"\n\r\n")
                and b"true" not in chunk
                and b'"error"' not in chunk
                and self._begun
                and not gate.holds
                and self.error is None
                and self.final is None
            ):
                pass_on(chunk)
                return True
            return False

        return relay

    def _up_to_the_end(self, ready: bytes) -> bytes:
        """The lines up to the closing one, or before an error line."""
        end = 0
        for line in ready.splitlines(keepends=True):
            self.error, final = decode_closing(line)
            if self.error is not None:
                return ready[:end]
            end += len(line)
            if final is not None:
                self.final = final
                return ready[:end]
        return ready

    def end(self) -> bytes:
        return b""

    def cut(self, message: str) -> bytes:
        return stream_error(Dialect.ollama, message)


class Plain:
    """One JSON object, collected and passed on as it is."""

    streams = False
    headers = header_lines([JSON])

    def __init__(self) -> None:
        self.error: str | None = None
        self.final: Final | None = None
        self._pieces: list[bytes] = []
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        self._bytes += len(data)
        if self._bytes > BODY_BYTES_MAX:
            raise TooLong(f"an answer is longer than {BODY_BYTES_MAX} bytes")
        self._pieces.append(data)
        return b""

    def end(self) -> bytes:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if not body.startswith(b"{") and not body.lstrip().startswith(b"{"):
            raise BadAnswer("the answer is no JSON object")
        self.error, final = decode_closing(body)
        self.final = final or _DONE
        return body

    def cut(self, message: str) -> bytes:
        return b""


def _begin(model: str) -> bytes:
    """How Ollama begins each object of an answer (ollama.md 1.4)."""
    return b'{"model":' + msgspec.json.encode(model)


class RenamedNative(Native):
    """As :class:`Native`, for a model that the client knows by another name."""

    def __init__(self, worker_name: str, client_name: str) -> None:
        super().__init__()
        self._theirs, self._ours = b"\n" + _begin(worker_name), b"\n" + _begin(client_name)

    def feed(self, data: bytes) -> bytes:
        ready = super().feed(data)
        return (b"\n" + ready).replace(self._theirs, self._ours)[1:] if ready else ready

    def relay(self, pass_on: Callable[[bytes], None]) -> Callable[[bytes], bool]:
        """Nothing passes as it is."""
        return lambda chunk: False


class RenamedPlain(Plain):
    """As :class:`Plain`, for a model that the client knows by another name."""

    def __init__(self, worker_name: str, client_name: str) -> None:
        super().__init__()
        self._theirs, self._ours = _begin(worker_name), _begin(client_name)

    def end(self) -> bytes:
        body = super().end()
        return self._ours + body[len(self._theirs) :] if body.startswith(self._theirs) else body


class StreamCodec(Protocol):
    """A dialect's stream, fed with the native lines of one answer; pure, in ``protocols``.

    States: open, then ``finished`` (the last line came and what closes the dialect's stream was given) or ``failed``.
    """

    finished: bool
    failed: bool
    error: str
    """Why it failed, for the log."""

    def line(self, native_line: bytes) -> bytes:
        """The events for one native line, without its terminator; may be empty."""

    def cut(self, message: str) -> bytes:
        """The events that end a stream which failed after its first byte; nothing may follow them."""


class DialectBody(Plain):
    """One object in a dialect, written when the native answer is complete."""

    headers = header_lines([PLAIN_JSON])

    def __init__(self, write: Callable[[bytes], bytes]) -> None:
        """``write``: from the whole native answer to the dialect's. May raise BadAnswer."""
        super().__init__()
        self._write = write

    def end(self) -> bytes:
        body = super().end()
        return b"" if self.error is not None else self._write(body)


class BodyReader(Protocol):
    """Takes a native answer apart as it comes, so that a large one does not keep the loop busy at its end; pure."""

    def feed(self, data: bytes) -> None: ...

    def native(self) -> bytes:
        """What there is besides: the answer's other fields, or its error."""

    def written(self) -> bytes:
        """The dialect's answer."""


class ReadBody:
    """One object in a dialect, from a :class:`BodyReader`."""

    streams = False
    headers = header_lines([PLAIN_JSON])

    def __init__(self, reader: BodyReader) -> None:
        self.error: str | None = None
        self.final: Final | None = None
        self._reader = reader
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        self._bytes += len(data)
        if self._bytes > BODY_BYTES_MAX:
            raise TooLong(f"an answer is longer than {BODY_BYTES_MAX} bytes")
        self._reader.feed(data)
        return b""

    def end(self) -> bytes:
        self.error, final = decode_closing(self._reader.native())
        self.final = final or _DONE
        return b"" if self.error is not None else self._reader.written()

    def cut(self, message: str) -> bytes:
        return b""


class EventsBody(DialectBody):
    """A stream whose native answer is one object, as that of a request which only loads a model."""

    headers = header_lines([EVENTS, (b"cache-control", b"no-cache")])


class DialectStream:
    """A native stream as server-sent events of a dialect."""

    streams = True
    headers = header_lines([EVENTS, (b"cache-control", b"no-cache")])

    def __init__(self, codec: StreamCodec) -> None:
        self.error: str | None = None
        self.final: Final | None = None
        self._lines = LineSplitter(line_bytes_max=LINE_BYTES_MAX)
        self._codec = codec

    def feed(self, data: bytes) -> bytes:
        codec = self._codec
        out: list[bytes] = []
        for line in self._lines.feed(data):
            if self.error is not None or self.final is not None:
                break  # whatever follows the end is nobody's
            self.error = first_error(line) if b'"error"' in line else None
            if self.error is not None:
                break
            events = codec.line(line)
            if codec.failed:
                self.error = codec.error
                break
            out.append(events)
            if codec.finished:
                self.final = decode_final(line)
        return b"".join(out)

    def end(self) -> bytes:
        return b""

    def cut(self, message: str) -> bytes:
        return self._codec.cut(message)
