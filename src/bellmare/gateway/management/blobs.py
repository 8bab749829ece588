"""HEAD and POST /api/blobs/DIGEST: a blob is there when every worker has it, and is sent to those that lack it."""

import asyncio
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

from bellmare.gateway import replies
from bellmare.gateway.management.changes import NOBODY
from bellmare.gateway.management.sending import Sending
from bellmare.gateway.management.spool import Spool
from bellmare.gateway.shelf import Shelf
from bellmare.http.client import UpstreamError
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver
from bellmare.http.messages import Refusal, Request
from bellmare.protocols.errors import Dialect, InvalidRequest, render_error
from bellmare.protocols.management import parse_digest
from bellmare.workers.ollama import OllamaWorker

PREFIX = "/api/blobs/"
UPLOADS_MAX = 4
"""Under way at once, over all clients: each may take as much disk as a model."""
LOOK_S = 30.0
STOP_S = 0.5
"""For a thread that has been told to stop: it is reading from the disk at most."""
TOO_MANY = f"{UPLOADS_MAX} blobs are being uploaded: try again later"


class Blobs:
    """Uploads under way, the thread that writes them, and those that send them on."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._uploads = 0
        self._thread: ThreadPoolExecutor | None = None
        self._senders: ThreadPoolExecutor | None = None

    def accept(self, request: Request) -> Refusal | Spool:
        """The head of a POST: who takes its body, or why nobody does."""
        try:
            digest = parse_digest(request.path.removeprefix(PREFIX))
        except InvalidRequest as error:
            return replies.http_refusal(400, error.message, request.path)
        if self._uploads >= UPLOADS_MAX:
            return replies.http_refusal(503, TOO_MANY, request.path)
        length = request.header(b"content-length")
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if length is not None and length.isdigit() and int(length) > free:
            text = f"the blob has {int(length)} bytes, and {free} are free in the directory for temporary files"
            return replies.http_refusal(507, text, request.path)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="bellmare-spool")
        self._uploads += 1
        return Spool(digest, self._thread, self._ended)

    def _ended(self) -> None:
        self._uploads -= 1

    def close(self) -> None:
        """Nobody is served any more."""
        for threads in (self._thread, self._senders):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ routes

    def head(self, exchange: Exchange) -> None:
        """HEAD: 200 if every worker has it, else 404."""
        try:
            digest = parse_digest(exchange.request.path.removeprefix(PREFIX))
        except InvalidRequest as error:
            _refuse(exchange, 400, error.message)
            return
        exchange.listener = Leaver(self._shelf.fleet.tasks.spawn(self._head(exchange, digest), name="look for a blob"))

    async def _head(self, exchange: Exchange, digest: str) -> None:
        ports = self._shelf.healthy()
        lacking = await _lacking(ports, digest)
        if not ports or lacking is None:
            _refuse(exchange, 503, NOBODY)
        elif lacking:
            _refuse(exchange, 404, f'blob "{digest}" not found')
        else:
            exchange.respond(200, (), b"")

    def receive(self, exchange: Exchange, spool: Spool) -> None:
        """POST, once the whole body has come."""
        task = self._shelf.fleet.tasks.spawn(self._receive(exchange, spool), name="send a blob")
        task.add_done_callback(lambda _: spool.close())
        exchange.listener = Leaver(task)

    async def _receive(self, exchange: Exchange, spool: Spool) -> None:
        try:
            found = await spool.complete()
        except OSError as error:
            _refuse(exchange, 507, f"the blob could not be written to disk: {error.strerror}")
            return
        if found != spool.digest:
            _refuse(exchange, 400, f'digest mismatch, expected "{spool.digest}", got "{found}"')
            return
        ports = self._shelf.healthy()
        lacking = await _lacking(ports, spool.digest)
        if not ports or lacking is None:
            _refuse(exchange, 503, NOBODY)
            return
        failures: dict[str, str] = {}
        for port in lacking:  # one after the other: they share the disk and mostly the network
            problem = await self._send(port, spool)
            if problem:
                failures[port.worker] = problem
        if failures:
            text = "; ".join(f"{worker}: {problem}" for worker, problem in failures.items())
            _refuse(exchange, 502, f"the blob did not reach every worker; {text}")
            return
        exchange.respond(201 if lacking else 200, (), b"")

    async def _send(self, port: OllamaWorker, spool: Spool) -> str:
        """What went wrong, empty if nothing. Threads of its own: those of the loop look up names and read settings."""
        assert spool.file is not None, "a complete blob has a file"
        sending = Sending(port.upstream, f"{PREFIX}{spool.digest}", file=spool.file, size=spool.size)
        if self._senders is None:
            self._senders = ThreadPoolExecutor(UPLOADS_MAX, thread_name_prefix="bellmare-blob")
        ended = asyncio.get_running_loop().run_in_executor(self._senders, sending.run)
        try:
            await asyncio.wait((ended,))  # it has timeouts of its own
        except asyncio.CancelledError:
            sending.stop()
            await asyncio.wait((ended,), timeout=STOP_S)  # the file is closed afterwards
            raise
        return ended.result()


async def _lacking(ports: list[OllamaWorker], digest: str) -> list[OllamaWorker] | None:
    """Which of them do not have it; None if one does not answer."""

    async def lacks(port: OllamaWorker) -> bool:
        answer = await port.upstream.fetch("HEAD", f"{PREFIX}{digest}", timeout_s=LOOK_S)
        return answer.status != 200

    try:
        found = await asyncio.gather(*map(lacks, ports))
    except UpstreamError:
        return None
    return [port for port, missing in zip(ports, found, strict=True) if missing]


def _refuse(exchange: Exchange, status: int, text: str) -> None:
    exchange.respond(status, [replies.JSON], render_error(Dialect.ollama, status, text))
