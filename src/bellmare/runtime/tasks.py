"""Holds every background task: asyncio itself keeps only weak references, and an error must never be lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

CANCELS_MAX = 5
CANCEL_TIMEOUT_S = 1.0


class Tasks:
    """Tasks of one owner. ``on_error`` hears of every exception that ends one; it must not raise."""

    def __init__(self, on_error: Callable[[str, BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run ``work`` until it ends or :meth:`close` cancels it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._on_error(task.get_name(), error)

    async def close(self) -> None:
        """Cancel all and wait until the last one is gone; again and again, since a library may swallow a cancel."""
        for _ in range(CANCELS_MAX):
            tasks = list(self._tasks)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
        left = sorted(task.get_name() for task in self._tasks)
        self._on_error("tasks that do not end", TimeoutError(", ".join(left)))
