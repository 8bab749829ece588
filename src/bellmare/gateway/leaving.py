"""Requests that a task answers: what becomes of it when the client leaves."""

import asyncio


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
