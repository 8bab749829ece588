"""A blob on its way from the disk to one worker, in a thread, and how it is stopped from outside."""

import http.client
import socket
from contextlib import suppress
from typing import IO

from bellmare.gateway.management.asking import NO_ANSWER
from bellmare.http.client import Upstream
from bellmare.protocols.errors import upstream_error_text

CONNECT_S = 10.0
SEND_S = 3600.0
"""Silence of a worker that is sent a blob: it computes the digest before it answers."""
PIECE = 1 << 20


class Sending:
    """One attempt. ``run`` is called in a thread, once; ``stop`` on the loop, at any time."""

    def __init__(self, upstream: Upstream, path: str, *, file: IO[bytes], size: int) -> None:
        self._connection = http.client.HTTPConnection(upstream.host, upstream.port, timeout=CONNECT_S, blocksize=PIECE)
        self._path = f"{upstream.base_path}{path}"
        self._file = file
        self._size = size
        self._stopped = False
        self._socket: socket.socket | None = None

    def run(self) -> str:
        """What went wrong; empty if nothing."""
        try:
            return self._run()
        except (OSError, ValueError, http.client.HTTPException):  # ValueError: the file was closed meanwhile
            return NO_ANSWER
        finally:
            self._socket = None
            self._connection.close()

    def _run(self) -> str:
        self._file.seek(0)
        connection = self._connection
        connection.connect()
        sock = self._socket = connection.sock
        if self._stopped:  # while it was dialled
            return NO_ANSWER
        sock.settimeout(SEND_S)
        connection.request("POST", self._path, body=self._file, headers={"content-length": str(self._size)})
        answer = connection.getresponse()
        text = answer.read(PIECE)
        return "" if answer.status in (200, 201) else upstream_error_text(text)

    def stop(self) -> None:
        """Nobody waits for it any more: the thread is free at once, whatever the worker does."""
        self._stopped = True
        sock = self._socket
        if sock is not None:
            with suppress(OSError):  # the worker was faster
                sock.shutdown(socket.SHUT_RDWR)
