"""Asks one worker for a change and hears its lines, for as long as it takes: a pull may last for hours."""

import asyncio
from collections.abc import AsyncIterator

from bellmare.http.call import UpstreamError, UpstreamFailure, UpstreamFailureKind
from bellmare.http.client import Upstream
from bellmare.protocols.errors import upstream_error_text
from bellmare.protocols.ndjson import LineSplitter, LineTooLong

SILENCE_S = 3600.0
"""While Ollama checks the digest of a layer it says nothing: a minute for each 10 GB of a slow disk."""
ERROR_BYTES_MAX = 64 << 10
NO_ANSWER = "did not answer"
WAITING_MAX = 256
"""Pieces that wait for who reads them; above it the worker is not read."""


class NotDone(Exception):  # noqa: N818 - an answer, not an error of ours
    """The worker refused. ``text`` is its own, for a client that may change its models."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _Heard:
    """Receiver of one answer: pieces in a queue."""

    def __init__(self) -> None:
        self.status = 0
        self.queue: asyncio.Queue[bytes | UpstreamFailure | None] = asyncio.Queue()

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status

    def on_data(self, data: bytes) -> None:
        self.queue.put_nowait(data)

    def on_end(self) -> None:
        self.queue.put_nowait(None)

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.queue.put_nowait(failure)


async def lines_of(upstream: Upstream, path: str, body: bytes) -> AsyncIterator[bytes]:
    """The lines of the worker's answer. Raises :class:`NotDone` and ``UpstreamError``; leaving it ends the call."""
    heard = _Heard()
    call = upstream.send(
        "POST", path, body=body, receiver=heard, first_byte_timeout_s=SILENCE_S, idle_timeout_s=SILENCE_S
    )
    splitter = LineSplitter()
    error = b""
    try:
        while True:
            piece = await heard.queue.get()  # the call has timeouts of its own
            if isinstance(piece, UpstreamFailure):
                raise UpstreamError(piece)
            if piece is None:
                break
            if heard.status != 200:
                error = (error + piece)[:ERROR_BYTES_MAX]
                continue
            if heard.queue.qsize() > WAITING_MAX:
                call.pause()
            elif heard.queue.empty():
                call.resume()
            for line in splitter.feed(piece):
                yield line
        if heard.status != 200:
            raise NotDone(heard.status, upstream_error_text(error))
        if splitter.rest.strip():
            yield splitter.rest
    except LineTooLong as too_long:
        raise UpstreamError(UpstreamFailure(UpstreamFailureKind.bad_response, str(too_long), True)) from None
    finally:
        call.abort()
