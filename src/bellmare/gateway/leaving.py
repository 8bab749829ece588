"""What listeners of a client have in common: a task that is given up with it, a worker that is held back for it."""

import asyncio

from bellmare.http.call import Call


class Leaver:
    """ExchangeListener that gives the task up with its client. One answer in a few writes has nothing to hold back."""

    __slots__ = ("_task",)

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    def on_disconnect(self) -> None:
        self._task.cancel()

    def on_pause(self) -> None:
        """Nothing is held back."""

    def on_resume(self) -> None:
        """Nothing was."""


class Paced:
    """The part of an ExchangeListener that keeps a worker to the pace of its client."""

    __slots__ = ("_call",)

    _call: Call | None

    def on_pause(self) -> None:
        if self._call is not None:
            self._call.pause()

    def on_resume(self) -> None:
        if self._call is not None:
            self._call.resume()

    def drop_call(self) -> None:
        """Ask the worker no more."""
        if self._call is not None:
            self._call.abort()
            self._call = None
