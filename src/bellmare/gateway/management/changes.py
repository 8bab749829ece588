"""Pull, push, create, copy and delete through the gateway: asked once, done on every healthy worker, told as one."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any

import msgspec

from bellmare.gateway import replies
from bellmare.gateway.management.asking import NO_ANSWER, NotDone, lines_of
from bellmare.gateway.management.keeping import Keeper
from bellmare.gateway.shelf import Shelf
from bellmare.http.client import UpstreamError
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver
from bellmare.http.messages import Request
from bellmare.protocols.errors import Dialect, InvalidRequest, render_error, upstream_error_text
from bellmare.protocols.management import Change, parse_change, parse_copy
from bellmare.protocols.progress import MergedProgress
from bellmare.workers.ollama import OllamaWorker

CHANGES_MAX = 32
"""Under way at once, over all clients; each holds a connection to every worker."""
SHORT_S = 60.0
"""For a copy or a delete: neither moves any weights."""
NOBODY = "no worker is reachable at the moment"
TOO_MANY = "too many changes to models are under way: try again in 1 s"
STOPPED = "the answer stopped before its end"

_Job = Callable[[OllamaWorker, Change], Awaitable[None]]


class Changes:
    """Answers the five routes; blobs are another matter.

    ``refused`` is told the status of what never became a change, ``log`` of each one that has ended.
    """

    def __init__(
        self, shelf: Shelf, *, refused: Callable[[int], None], log: Callable[[Request, str, bool], None]
    ) -> None:
        self.keeper = Keeper(shelf.fleet.tasks)
        self._shelf = shelf
        self._refused = refused
        self._log = log
        self._running: dict[asyncio.Task[None], Exchange] = {}

    @property
    def under_way(self) -> int:
        """Changes begun and not ended."""
        return len(self._running)

    def shut(self, text: str) -> None:
        """The gateway goes down: tell the clients, and give all up. Layers that came are kept by the workers."""
        for task, exchange in list(self._running.items()):
            if exchange.started:
                exchange.write(_line({"error": text}))
                exchange.finish()
            else:
                _refuse(exchange, 503, text)
            task.cancel()

    # ------------------------------------------------------------------ routes

    def pull(self, exchange: Exchange) -> None:
        """POST /api/pull."""
        self._begin(exchange, parse_change, partial(self._with_progress, "/api/pull"))

    def create(self, exchange: Exchange) -> None:
        """POST /api/create."""
        self._begin(exchange, parse_change, partial(self._with_progress, "/api/create"))

    def push(self, exchange: Exchange) -> None:
        """POST /api/push: from one worker that has it."""
        self._begin(exchange, parse_change, self._push)

    def copy(self, exchange: Exchange) -> None:
        """POST /api/copy: on every worker that has the source."""
        self._begin(exchange, parse_copy, self._copy)

    def delete(self, exchange: Exchange) -> None:
        """DELETE /api/delete: on every worker that has it."""
        self._begin(exchange, parse_change, self._delete)

    # ------------------------------------------------------------------ around each

    def _begin(
        self,
        exchange: Exchange,
        parse: Callable[[bytes], Change],
        carry_out: Callable[[Exchange, Change], Awaitable[None]],
    ) -> None:
        try:
            change = parse(exchange.request.body)
        except InvalidRequest as error:
            self._refused(error.status)
            _refuse(exchange, error.status, error.message)
            return
        if self.under_way >= CHANGES_MAX:
            self._refused(429)
            headers = replies.retry_headers(1_000_000)
            exchange.respond(429, [replies.JSON, *headers], render_error(Dialect.ollama, 429, TOO_MANY))
            return
        task = self._shelf.fleet.tasks.spawn(self._run(exchange, change, carry_out), name="change of models")
        self._running[task] = exchange
        task.add_done_callback(partial(self._ended, change.name))
        exchange.listener = Leaver(task)

    async def _run(
        self, exchange: Exchange, change: Change, carry_out: Callable[[Exchange, Change], Awaitable[None]]
    ) -> None:
        try:
            await carry_out(exchange, change)
        finally:
            if not exchange.finished and not exchange.disconnected:  # a bug, or the process ends
                exchange.abort()

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        exchange = self._running.pop(task)
        self._log(exchange.request, name, exchange.finished and not task.cancelled())

    # ------------------------------------------------------------------ each

    async def _with_progress(self, path: str, exchange: Exchange, change: Change) -> None:
        ports = self._shelf.healthy()
        if not ports:
            _refuse(exchange, 503, NOBODY)
            return
        teller = _Teller(exchange, [port.worker for port in ports], stream=change.stream)

        async def one(port: OllamaWorker) -> None:
            await teller.follow(port, path, change, inside=self.keeper.keeping(port, change.name))

        await self._all(ports, one)
        teller.end()

    async def _push(self, exchange: Exchange, change: Change) -> None:
        port = self._shelf.holder(change.name)
        if port is None:
            _refuse(exchange, 404, replies.not_found_text(change.spelling, change.name, self._shelf.names()))
            return
        teller = _Teller(exchange, [port.worker], stream=change.stream)
        await teller.follow(port, "/api/push", change, inside=nullcontext())
        teller.end()

    async def _copy(self, exchange: Exchange, change: Change) -> None:
        await self._shortly(exchange, change, having=change.source, ask=("POST", "/api/copy"))

    async def _delete(self, exchange: Exchange, change: Change) -> None:
        await self._shortly(exchange, change, having=change.name, ask=("DELETE", "/api/delete"))

    async def _shortly(self, exchange: Exchange, change: Change, *, having: str, ask: tuple[str, str]) -> None:
        """What every worker that has ``having`` does at once, answered as Ollama does: 200 without a body."""
        ports = [port for port in self._shelf.healthy() if having in port.tags]
        if not ports:
            _refuse(exchange, 404, replies.not_found_text(change.spelling, having, self._shelf.names()))
            return
        failures: dict[str, tuple[int, str]] = {}

        async def one(port: OllamaWorker) -> None:
            try:
                async with self.keeper.keeping(port, change.name):
                    answer = await port.upstream.fetch(*ask, body=change.body(), timeout_s=SHORT_S)
                if answer.status != 200:
                    failures[port.worker] = (answer.status, upstream_error_text(answer.body))
            except UpstreamError:
                failures[port.worker] = (502, NO_ANSWER)

        await self._all(ports, one)
        if not failures:
            exchange.respond(200, (), b"")
            return
        status = max(status for status, _ in failures.values())
        said = {text for _, text in failures.values()}
        text = "; ".join(f"{worker}: {text}" for worker, (_, text) in failures.items())
        done = len(ports) - len(failures)
        whole = said.pop() if len(said) == 1 and not done else f"done on {done} of {len(ports)} workers; {text}"
        _refuse(exchange, status, whole)

    async def _all(self, ports: list[OllamaWorker], one: Callable[[OllamaWorker], Awaitable[None]]) -> None:
        """On all of them side by side, and then let the core see what has become of it."""
        async with asyncio.TaskGroup() as group:
            for port in ports:
                group.create_task(_awaited(one(port)))
        await self._shelf.look(ports)


async def _awaited(work: Awaitable[None]) -> None:
    await work


class _Teller:
    """Tells one client of the change on several workers, as Ollama tells of its own (ollama.md 6.3)."""

    def __init__(self, exchange: Exchange, workers: list[Any], *, stream: bool) -> None:
        self._exchange = exchange
        self._stream = stream
        self._progress = MergedProgress(workers)
        self._statuses: set[int] = set()
        """Of workers that refused before their first line."""

    async def follow(
        self, port: OllamaWorker, path: str, change: Change, *, inside: AbstractAsyncContextManager[None]
    ) -> None:
        """Ask one worker, and tell what it says or why it says no more. Never raises for what the worker does."""
        try:
            async with inside:
                async for line in lines_of(port.upstream, path, change.body(stream=True)):
                    self._tell(self._progress.take(port.worker, line))
                self._tell(self._progress.fail(port.worker, STOPPED))  # nothing, if it said how it ended
        except NotDone as refused:
            self._statuses.add(refused.status)
            self._tell(self._progress.fail(port.worker, refused.text))
        except UpstreamError:
            self._tell(self._progress.fail(port.worker, NO_ANSWER))

    def end(self) -> None:
        """All have ended."""
        exchange, progress = self._exchange, self._progress
        if exchange.started:
            exchange.write(_line(progress.end()))
            exchange.finish()
        elif progress.failures:
            alike = len(self._statuses) == 1 and not progress.done
            _refuse(exchange, self._statuses.pop() if alike else 500, progress.error)
        elif self._stream:
            exchange.start(200, [replies.NDJSON])
            exchange.write(_line(progress.end()))
            exchange.finish()
        else:
            exchange.respond(200, [replies.JSON], msgspec.json.encode(progress.end()))

    def _tell(self, lines: list[dict[str, Any]]) -> None:
        if not self._stream or not lines or self._exchange.disconnected:
            return
        if not self._exchange.started:
            self._exchange.start(200, [replies.NDJSON])
        if not self._exchange.paused:  # who does not read gets later figures later
            self._exchange.write(b"".join(map(_line, lines)))


def _line(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields) + b"\n"


def _refuse(exchange: Exchange, status: int, text: str) -> None:
    exchange.respond(status, [replies.JSON], render_error(Dialect.ollama, status, text))
