"""Runs the admin application on the gateway's own loop, without touching its signals."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

START_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0


class _QuietServer(uvicorn.Server):
    """uvicorn would take over SIGINT and SIGTERM, which are the process's own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminListener:
    """One listener; made by :func:`listen_admin`."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._server = server
        self._task = task
        self.descriptor = sock.fileno()
        """Of the listening socket, for a process that is to take it over."""
        self.port: int = sock.getsockname()[1]

    def retire(self) -> None:
        """Accept no more: another process does. Requests under way are answered."""
        for listener in self._server.servers:
            listener.close()

    async def close(self) -> None:
        """Stop listening; requests under way get ``CLOSE_TIMEOUT_S``."""
        self._server.should_exit = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self._task)
        except TimeoutError:
            self._task.cancel()


async def listen_admin(app: FastAPI, host: str, port: int, *, sock: socket.socket | None = None) -> AdminListener:
    """Bind first, so that a taken port is an OSError here and not a log line; ``sock`` is one that was inherited."""
    sock = _bound(host, port) if sock is None else sock
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    server = _QuietServer(config)
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]), name="admin listener")
    async with asyncio.timeout(START_TIMEOUT_S):
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    return AdminListener(server, task, sock)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
