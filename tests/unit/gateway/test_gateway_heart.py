"""Heartbeats for thousands: in turns that leave the loop to others, and they go on after a bug in one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bellmare.gateway import waiting
from bellmare.gateway.waiting import Heart
from bellmare.protocols.errors import Dialect


class Waiting:
    """A conversation that waits, as far as a heart sees one."""

    def __init__(self) -> None:
        self.errand = SimpleNamespace(stream=True, dialect=Dialect.openai)
        self.exchange = SimpleNamespace(started=False)
        self.heard: list[bytes] = []
        self.broken = False

    def silent_since(self, instant_us: int) -> bool:
        return not self.heard

    def beat(self, heartbeat: bytes, first: object) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        self.heard.append(heartbeat)


async def heard_by_all(some: list[Waiting]) -> None:
    async with asyncio.timeout(10):
        while not all(one.heard for one in some if not one.broken):
            await asyncio.sleep(0.001)


async def test_between_turns_others_have_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SWEEP_S", 0.01)
    now_us = [10**9]
    some: Any = [Waiting() for _ in range(30)]

    def place(conversation: object) -> tuple[int, Any]:
        now_us[0] += 1_000  # what a look at a thousand tenants takes
        return 1, 0

    heart = Heart(lambda: some, place, lambda: now_us[0])  # type: ignore[arg-type, return-value]
    heart.set(5)  # type: ignore[arg-type]
    longest = 0
    async with asyncio.timeout(10):
        while not all(one.heard for one in some):
            before = sum(bool(one.heard) for one in some)
            await asyncio.sleep(0)
            longest = max(longest, sum(bool(one.heard) for one in some) - before)
    assert 0 < longest <= waiting.TURN_US // 1_000 + 1
    heart.stop()


async def test_the_beating_goes_on_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SWEEP_S", 0.01)
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    some: Any = [Waiting(), Waiting(), Waiting()]
    heart = Heart(lambda: some, lambda _: None, lambda: 10**9)  # type: ignore[arg-type, return-value]
    some[0].broken = True
    heart.set(5)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while len(failed) < 2:
            await asyncio.sleep(0.001)
    some.pop(0)
    await heard_by_all(some)
    heart.stop()
