"""Listens and keeps the connections: admission at the limit, one sweep for all deadlines, and an orderly end."""

import asyncio
import email.utils
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from bellmare.http.connection import Connection
from bellmare.http.exchange import Application, Exchange, ExchangeListener
from bellmare.http.messages import DEFAULT_LIMITS, Limits, Refusal, Request

__all__ = ["Application", "Exchange", "ExchangeListener", "Limits", "Refusal", "Request", "Server", "bind", "listen"]

_BACKLOG = 4096
"""asyncio's 100 stretched 9,500 connects from 9.9 s to 34.7 s through SYN retries (reliability reference 3)."""
_REFUSED_SHARE = 16
"""So small a part of ``connections_max`` may linger beyond it with a 503; who comes then is cut without a word."""
_LAST_WORDS_S = 1.0
"""For what ``on_cut`` wrote to leave; a client that does not read even that is cut."""


class Server:
    """One listener and its connections. Made by ``listen``."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.closing = False
        """Answers carry ``connection: close``."""
        self._refusing = False
        """No new connections."""
        self._retired = False
        self._hurried = False
        self.port = 0
        self.date_line = b""
        """A response's Date (RFC 9110 6.6.1), as old as the last sweep."""
        self._tell_date()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._connections: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        """Connections without a request, idle longest first."""
        self.held_bytes = 0
        """Of all large bodies of requests under way."""
        self._receiving: set[Connection] = set()
        """Connections with a large body that is still coming."""
        self._listeners: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._grace: asyncio.Timeout | None = None
        """While ``close`` lets exchanges end."""
        self._sweeper = self._loop.call_later(limits.sweep_interval_s, self._sweep)

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._connections)

    @property
    def overcrowded(self) -> bool:
        """More are being told that there is no room than may linger for it: each has a descriptor."""
        most = self.limits.connections_max
        return len(self._connections) > most + most // _REFUSED_SHARE + 1

    @property
    def descriptors(self) -> list[int]:
        """Of the listening sockets, for a process that is to take them over."""
        return [sock.fileno() for listener in self._listeners for sock in listener.sockets]

    async def open(self, host: str, port: int, socks: Sequence[socket.socket] = ()) -> None:
        """Take the address, or ``socks`` if there are any; nobody is accepted yet."""
        places: list[dict[str, Any]] = [{"sock": sock} for sock in socks] or [{"host": host, "port": port}]
        try:
            for place in places:
                listener = await self._loop.create_server(
                    lambda: Connection(self), backlog=_BACKLOG, start_serving=False, **place
                )
                self._listeners.append(listener)
        except BaseException:
            self._sweeper.cancel()
            for listener in self._listeners:
                listener.close()
            raise
        for listener in self._listeners:
            for listening in listener.sockets:  # what it accepts inherits this
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.socket_send_bytes)
        address = self._listeners[0].sockets[0].getsockname()
        self.port = address[1] if isinstance(address, tuple) else 0

    async def accept(self) -> None:
        """Begin to accept. Raises OSError if somebody else listens there by now."""
        assert self._listeners, "open comes first"
        for listener in self._listeners:
            await listener.start_serving()

    def retire(self) -> None:
        """Accept no more: another process does. Open connections are served on, each with one more answer."""
        self.closing = True
        self._retired = True
        for listener in self._listeners:
            listener.close()

    async def close(
        self, grace_s: float, *, lame_duck_s: float = 0.0, on_cut: Callable[[], None] | None = None
    ) -> None:
        """Stop accepting, let running exchanges end within ``grace_s`` seconds, cut the rest. May be called twice.

        For the first ``lame_duck_s`` of them clients are still let in, and idle connections kept, so that whoever
        sends them here may learn of it; each gets one more answer. ``on_cut`` is called once before the first
        connection is cut, if there is any: it may still end exchanges.
        """
        began = self.now()
        self.closing = True
        if lame_duck_s:
            await self._wait_for(self._empty if self._retired else asyncio.Event(), min(lame_duck_s, grace_s))
        self._refusing = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.close_if_idle()
        await self._wait_until_empty(0.0 if self._hurried else max(0.0, grace_s - (self.now() - began)))
        if self._connections and on_cut is not None:
            try:
                on_cut()
            except Exception as error:  # noqa: BLE001  # the application's bug must not keep the listener open
                self.report("on_cut raised", error)
            await self._wait_until_empty(_LAST_WORDS_S)
        for connection in tuple(self._connections):
            connection.cut()
        # A cut connection is reported lost in the next turns of the loop; the bound is only for our own bugs.
        await self._wait_until_empty(1.0)
        self._sweeper.cancel()
        assert not self._connections, "connections outlived the server"

    def end_grace(self) -> None:
        """Have a ``close`` under way go on as if its grace were over."""
        self._hurried = True
        grace, self._grace = self._grace, None
        if grace is not None and not grace.expired():
            grace.reschedule(self.now())

    # What a connection calls

    def admit(self, connection: Connection) -> bool:
        """Register a new connection; False if there is no room even after dropping the one that is idle longest."""
        self._connections.add(connection)
        self._empty.clear()
        full = len(self._connections) > self.limits.connections_max
        if self._refusing or (full and not self._drop_idle()):
            return False
        self._idle[connection] = None
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is lost."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def note_idle(self, connection: Connection) -> None:
        """No request is under way on it."""
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """A request has begun on it, or it is closing."""
        self._idle.pop(connection, None)

    def hold(self, connection: Connection, size: int) -> bool:
        """Count a body that came all at once; False if there is no room for it."""
        if self.held_bytes + size > self.limits.bodies_bytes_max:
            return False
        self.held_bytes += size
        connection.held_bytes = size
        return True

    def receive(self, connection: Connection, size: int) -> bool:
        """A body has grown to ``size`` bytes; False if it was refused for it.

        Who makes room is the largest body that is still coming: small ones and those that wait for their answer stay.
        """
        self.held_bytes += size - connection.held_bytes
        connection.held_bytes = size
        self._receiving.add(connection)
        while self.held_bytes > self.limits.bodies_bytes_max and self._receiving:
            max(self._receiving, key=lambda one: one.held_bytes).refuse_for_room()
        return connection.held_bytes > 0

    def received(self, connection: Connection) -> None:
        """The body is complete; it counts until it is let go."""
        self._receiving.discard(connection)

    def let_go(self, connection: Connection) -> None:
        """Its request has ended."""
        self._receiving.discard(connection)
        self.held_bytes -= connection.held_bytes
        connection.held_bytes = 0

    def report(self, message: str, error: Exception) -> None:
        """Hand an error of the application's to the loop's exception handler."""
        self._loop.call_exception_handler({"message": f"{type(self.app).__name__}.{message}", "exception": error})

    def _drop_idle(self) -> bool:
        if not self._idle:
            return False
        oldest = next(iter(self._idle))
        self._idle.pop(oldest)
        oldest.cut()
        return True

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)
        self._tell_date()
        now = self._loop.time()
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.on_deadline(now)

    def _tell_date(self) -> None:
        self.date_line = b"date: %b\r\n" % email.utils.formatdate(usegmt=True).encode()

    async def _wait_until_empty(self, timeout_s: float) -> None:
        await self._wait_for(self._empty, timeout_s)

    async def _wait_for(self, event: asyncio.Event, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s) as self._grace:
                await event.wait()
        except TimeoutError:
            pass  # the caller cuts what is left
        finally:
            self._grace = None


async def listen(
    app: Application, host: str, port: int, *, limits: Limits = DEFAULT_LIMITS, sock: socket.socket | None = None
) -> Server:
    """Serve ``app``. Port 0 takes any free one (``Server.port``); ``sock`` is a bound socket instead of host and port.

    Raises OSError if the address cannot be bound.
    """
    server = Server(app, limits)
    await server.open(host, port, () if sock is None else (sock,))
    try:
        await server.accept()
    except BaseException:
        await server.close(0.0)
        raise
    return server


async def bind(
    app: Application, host: str, port: int, *, limits: Limits = DEFAULT_LIMITS, socks: Sequence[socket.socket] = ()
) -> Server:
    """As ``listen``, but nobody is let in before ``Server.accept``: until then a connection is refused.

    ``socks`` are listening sockets that were inherited: a connection to them waits meanwhile.
    """
    server = Server(app, limits)
    await server.open(host, port, socks)
    return server
