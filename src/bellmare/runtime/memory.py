"""Keeps what the core has learned over restarts: one file, written whole now and then and at the end.

The file is a convenience. Missing, damaged or of another version it is ignored; failing to write it costs a warning.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from bellmare.core.engine import Engine
from bellmare.runtime.clock import Clock

EVERY_S = 600.0
"""A crash loses ten minutes of learning."""
FILE_BYTES_MAX = 64 << 20
AWAY_MAX_US = 30 * 86_400 * 1_000_000
"""After a month demand has become another one."""


class _File(msgspec.Struct):
    written_us: int
    """Since 1970."""
    learned: msgspec.Raw


class Memory:
    """One file. ``complain`` hears, in words, why it could not be read or written."""

    def __init__(self, path: Path, engine: Engine, clock: Clock, *, complain: Callable[[str, str], None]) -> None:
        self.path = path
        self._engine = engine
        self._clock = clock
        self._complain = complain

    def recall(self) -> bool:
        """Read the file into an engine that has not stepped yet; whether anything was learned from it."""
        try:
            if self.path.stat().st_size > FILE_BYTES_MAX:
                return False
            found = msgspec.json.decode(self.path.read_bytes(), type=_File)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError) as error:
            self._complain("what was learned earlier cannot be read", str(error))
            return False
        away_us = self._clock.wall_us() - found.written_us
        if not 0 <= away_us <= AWAY_MAX_US:
            return False
        return self._engine.remember(bytes(found.learned), away_us=away_us, now_us=self._clock.now_us())

    async def keep(self) -> None:
        """Write the file every ten minutes, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Write the file, whole or not at all; the disk is waited for on another thread."""
        content = msgspec.json.encode(
            _File(written_us=self._clock.wall_us(), learned=msgspec.Raw(self._engine.learned()))
        )
        try:
            await asyncio.to_thread(_replace, self.path, content)
        except OSError as error:
            self._complain("what was learned cannot be written", str(error))


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
