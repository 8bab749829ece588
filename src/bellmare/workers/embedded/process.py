"""The parent's side of one engine process: start it, keep its last words, end it. Knows no model and no budget."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

LOG_LINES_MAX = 200
LOG_LINE_CHARS_MAX = 400
ANSWER_BYTES_MAX = 65_536
"""The child's one line of JSON."""
_READ_BYTES = 65_536
_ERROR_CHARS_MAX = 300


class EngineStartError(Exception):
    """The engine did not start; the text is for the client, in Ollama's words (ollama.md 1.6)."""


class EngineArguments(msgspec.Struct, frozen=True):
    """``num_ctx`` is tokens per slot; ``threads`` zero is the engine's own choice."""

    model: Path
    num_ctx: int
    parallel: int
    threads: int
    shift: bool = True
    """At the end of the context half of it is dropped and the answer goes on (ollama.md 5)."""
    embeddings: bool = False


class EngineProcess:
    """One child. ``exited`` is set once it is gone and its memory is back with the system."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._tasks: list[asyncio.Task[None]] = []
        self._log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self.exited = asyncio.Event()
        self.killed = False
        """By us, after its grace."""
        self.host = ""
        self.port = 0
        self.base_path = ""
        """Loopback address of the engine's own server; the path is a secret of this process."""

    @classmethod
    async def start(cls, arguments: EngineArguments, *, timeout_s: float) -> EngineProcess:
        """Start a child and wait until it has loaded its model. Raises :class:`EngineStartError`.

        Cancelled or failed, it leaves no process behind.
        """
        # -P keeps the current folder out of the child's import path.
        options = ["-P", "-m", "bellmare.workers.embedded.child", "--parent", str(os.getpid())]
        options += ["--model", str(arguments.model), "--num-ctx", str(arguments.num_ctx)]
        options += ["--parallel", str(arguments.parallel), "--threads", str(arguments.threads)]
        options += [
            *(["--no-shift"] if not arguments.shift else []),
            *(["--embeddings"] if arguments.embeddings else []),
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *options, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=ANSWER_BYTES_MAX
        )
        child = cls(process)
        child._spawn(child._read_log())
        child._spawn(child._wait())
        try:
            await asyncio.wait_for(child._read_answer(), timeout_s)
        except BaseException as error:
            await asyncio.shield(child.stop(grace_s=0))
            if isinstance(error, TimeoutError):
                raise EngineStartError(f"timed out waiting for llama-server to start - {timeout_s:g} s") from None
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def last_error(self) -> str:
        """The last line of the log that looks like an error, else the last line; bounded."""
        lines = [line for line in self._log if line.strip()]
        errors = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
        return (errors or lines or ["no message"])[-1][:_ERROR_CHARS_MAX]

    def log(self) -> list[str]:
        return list(self._log)

    @property
    def died(self) -> bool:
        """It has ended by a signal that was not ours: dead before we asked it to go, whoever noticed first."""
        return (self._process.returncode or 0) < 0 and not self.killed

    async def stop(self, *, grace_s: float) -> None:
        """Close its input, which ends it; kill it after ``grace_s`` or if we are cancelled; return when it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            if not self.exited.is_set() and grace_s > 0:
                await asyncio.wait_for(self.exited.wait(), grace_s)
        except TimeoutError:
            pass  # killed below
        finally:
            if not self.exited.is_set():
                self.killed = True
                self._process.kill()
        await self.exited.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Workers stand below the runtime, whose task group they may not import; these end with the child.
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _wait(self) -> None:
        await self._process.wait()
        self.exited.set()

    async def _read_answer(self) -> None:
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError:
            line = b""
        if not line:
            # A child that dies before its first word has already written its reason; let the log catch up.
            await asyncio.wait([self._tasks[0]], timeout=1.0)
            raise EngineStartError(f"llama-server process has terminated: {self.last_error()}")
        answer = json.loads(line)
        if "error" in answer:
            await asyncio.wait([self._tasks[0]], timeout=1.0)
            raise EngineStartError(f"llama-server process has terminated: {answer['error'][:_ERROR_CHARS_MAX]}")
        address = urlsplit(answer["address"])
        assert address.hostname is not None
        assert address.port is not None
        self.host, self.port, self.base_path = address.hostname, address.port, address.path

    async def _read_log(self) -> None:
        """Read on to the end, or the child would block on a full pipe. Keeps the last ``LOG_LINES_MAX`` lines."""
        assert self._process.stderr is not None
        rest = ""
        while piece := await self._process.stderr.read(_READ_BYTES):
            *lines, rest = (rest + piece.decode("utf-8", "replace")).split("\n")
            self._log.extend(line[:LOG_LINE_CHARS_MAX] for line in lines)
            rest = rest[:LOG_LINE_CHARS_MAX]
        if rest:
            self._log.append(rest)
