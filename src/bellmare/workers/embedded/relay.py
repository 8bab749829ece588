"""Carries one generation from an engine to a client: bytes in, Ollama's lines out, with flow control both ways."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from bellmare.http.call import Call, UpstreamFailure
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Paced
from bellmare.protocols.errors import Dialect, render_error, stream_error
from bellmare.protocols.ndjson import LineSplitter, LineTooLong
from bellmare.workers.embedded.completion import AnswerWriter, Chunk, Clock, decode_event

JSON_HEADERS = ((b"content-type", b"application/json; charset=utf-8"),)
NDJSON_HEADERS = ((b"content-type", b"application/x-ndjson"),)

RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
"""Seen for a runner that was killed, streamed or not (ollama.md 12)."""
FIRST_BYTE_TIMEOUT_S = 3600.0
"""The engine says nothing during a prefill, and a long prompt takes a slow CPU many minutes."""
IDLE_TIMEOUT_S = 600.0
_ERROR_BYTES_MAX = 65_536


def rfc3339(unix_ns: int) -> str:
    """UTC with nanoseconds, as Ollama writes ``created_at``."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def respond_error(exchange: Exchange, text: str, *, status: int) -> None:
    exchange.respond(status, JSON_HEADERS, render_error(Dialect.ollama, status, text))


class Relay(Paced):
    """Receiver of the engine's answer and listener of the client's exchange. Ends once, whoever ends first.

    ``started_ns`` is when the request came, on the monotonic clock; ``load_ns`` how long it waited for a runner.
    """

    def __init__(
        self, exchange: Exchange, writer: AnswerWriter, *, stream: bool, started_ns: int, load_ns: int
    ) -> None:
        self._exchange = exchange
        self._writer = writer
        self._stream = stream
        self._started_ns = started_ns
        self._load_ns = load_ns
        self._splitter = LineSplitter()
        self._call: Call | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._answered = False
        self._error_body = b""
        self._kept: list[Chunk] = []
        """Everything so far, if the client wants one answer."""

    async def run(self, upstream: Upstream, body: bytes) -> None:
        """Until the answer has ended or the client has left; cancelled, it aborts the engine's work."""
        self._exchange.listener = self
        try:
            if self._exchange.disconnected:
                return
            self._call = upstream.send(
                "POST",
                "/completion",
                body=body,
                receiver=self,
                first_byte_timeout_s=FIRST_BYTE_TIMEOUT_S,
                idle_timeout_s=IDLE_TIMEOUT_S,
            )
            await self._ended
        finally:
            self.drop_call()

    # The client

    def on_disconnect(self) -> None:
        self.drop_call()
        self._end()

    # The engine

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        if self._answered:
            return
        if self._status != 200:
            self._error_body = (self._error_body + data)[:_ERROR_BYTES_MAX]
            return
        chunks: list[Chunk] = []
        try:
            for line in self._splitter.feed(data):
                chunk = decode_event(line)
                if chunk is not None:
                    chunks.append(chunk)
        except (LineTooLong, msgspec.DecodeError) as error:
            chunks.append(Chunk(error=str(error)))
        if self._stream:
            self._write(chunks)
        else:
            self._keep(chunks)

    def on_end(self) -> None:
        if self._answered:
            self._end()
        elif self._status != 200:
            text = self._error_body.decode("utf-8", "replace")
            self._fail(self._status if 400 <= self._status < 600 else 500, text)
        else:
            self._fail(500, RUNNER_DIED)

    def on_failure(self, failure: UpstreamFailure) -> None:
        if self._answered:
            self._end()
        else:
            self._fail(500, RUNNER_DIED)

    # Own

    def _write(self, chunks: list[Chunk]) -> None:
        """All lines of one read in one write."""
        lines: list[bytes] = []
        for chunk in chunks:
            if chunk.error is not None:
                self._flush(lines)
                self._fail(500, _error_text(chunk.error))
                return
            now = rfc3339(time.time_ns())
            if not chunk.stop or chunk.content:
                line = self._writer.piece(chunk, created_at=now)
                if line:
                    lines.append(line)
            if chunk.stop:
                lines.append(self._writer.final(chunk, self._clock(), created_at=now, chunks=[]) + b"\n")
                self._flush(lines)
                self._exchange.finish()
                self._await_end()
                return
        self._flush(lines)

    def _flush(self, lines: list[bytes]) -> None:
        if lines and not self._exchange.started:
            self._exchange.start(200, NDJSON_HEADERS)
        self._exchange.write(b"".join(lines))

    def _keep(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if chunk.error is not None:
                self._fail(500, _error_text(chunk.error))
                return
            self._kept.append(chunk)
            if chunk.stop:
                text = "".join(one.content for one in self._kept)
                now = rfc3339(time.time_ns())
                answer = self._writer.final(chunk, self._clock(), created_at=now, text=text, chunks=self._kept)
                self._exchange.respond(200, JSON_HEADERS, answer)
                self._await_end()
                return

    def _await_end(self) -> None:
        """The client has its answer; the engine's ends in a moment, and then its connection can be used again."""
        self._answered = True
        self.on_resume()

    def _clock(self) -> Clock:
        return Clock(total_ns=time.monotonic_ns() - self._started_ns, load_ns=self._load_ns)

    def _fail(self, status: int, text: str) -> None:
        """Before the first byte a status, afterwards a last line (ollama.md 1.6)."""
        if self._ended.done():
            return
        if self._exchange.started:
            self._exchange.write(stream_error(Dialect.ollama, text))
            self._exchange.finish()
        else:
            respond_error(self._exchange, text, status=status)
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _error_text(error: object) -> str:
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    return f"an error was encountered while running the model: {text[:500]}"
