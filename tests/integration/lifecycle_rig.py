"""Gateways as processes of their own under a constant load that knows what became of each of its requests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rig import WAIT_S, Reply, Sim, Talk, ask, begin, open_talk, until


class GatewayProcess:
    """`bellmare serve` over simulated workers of the test's own loop. Its successors write to the same log."""

    def __init__(
        self,
        home: Path,
        workers: list[Sim],
        *,
        entries: list[Any] | None = None,
        activated: tuple[socket.socket, ...] = (),
        names: str = "",
        **settings: Any,
    ) -> None:
        self.home = home
        self.log = home / "log"
        self.file = home / "bellmare.yaml"
        self.entries: list[Any] = entries or [
            {"url": f"http://127.0.0.1:{one.port}", "name": f"w{i}", "parallel": 4} for i, one in enumerate(workers)
        ]
        self.settings: dict[str, Any] = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", **settings}
        self.write()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BELLMARE", "OLLAMA", "MAX_VRAM", "LISTEN_"))}
        command = [sys.executable, "-m", "bellmare", "serve", "--quiet"]
        environment = {**kept, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        if activated:  # as systemd does: descriptors from 3 on, and the process's own id
            environment |= {"LISTEN_FDS": str(len(activated)), "LISTEN_FDNAMES": names}
            moves = "; ".join(f"exec {3 + i}<&{sock.fileno() + 100}" for i, sock in enumerate(activated))
            command = ["bash", "-c", f'{moves}; export LISTEN_PID=$$; exec "$@"', "bash", *command]
        copies = [_copied(sock) for sock in activated]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=home,
                start_new_session=True,
                pass_fds=copies,
            )
        for copy in copies:
            os.close(copy)
        self.pids = [self.process.pid]
        self.port = self.admin_port = 0

    def write(self, **settings: Any) -> None:
        """The settings file, which is YAML as any JSON is."""
        self.settings |= settings
        draft = self.home / "draft"
        draft.write_text(json.dumps({**self.settings, "workers": self.entries}))
        draft.replace(self.file)

    def text(self) -> str:
        return self.log.read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        rows = [
            json.loads(line)
            for line in self.text().splitlines(keepends=True)
            if line.startswith("{") and line.endswith("\n")
        ]
        return [row for row in rows if row["event"] == event]

    async def started(self) -> None:
        await until(lambda: self.lines("listening") or self.process.poll() is not None, "the gateway")
        found = re.search(r'"gateway":"127\.0\.0\.1:(\d+)","admin_port":(\d+)', self.text())
        assert found, self.text()
        self.port, self.admin_port = int(found[1]), int(found[2])

    async def admin(self, method: str, path: str, body: object = None) -> Reply:
        return await ask(self.admin_port, method, path, body)

    async def restart(self) -> int:
        """Hand over; returns the new process's id."""
        answer = await self.admin("POST", "/api/v1/restart", {})
        assert answer.status == 200, (answer.body, self.text()[-3000:])
        self.pids.append(answer.json["pid"])
        return self.pids[-1]

    async def metrics(self) -> dict[str, float]:
        text = (await self.admin("GET", "/metrics")).body.decode()
        return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)}

    async def gone(self, pid: int) -> None:
        await until(
            lambda: not alive(pid) or (self.process.poll() is not None and pid == self.process.pid), f"end of {pid}"
        )

    async def stop(self) -> None:
        """End the newest in good order and wait for all."""
        if alive(self.pids[-1]):
            os.kill(self.pids[-1], signal.SIGTERM)
        for pid in self.pids:
            await self.gone(pid)

    def kill(self) -> None:
        for pid in self.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def _copied(sock: socket.socket) -> int:
    """The same socket under a number that the shell's moves do not meet."""
    os.dup2(sock.fileno(), sock.fileno() + 100)
    return sock.fileno() + 100


def alive(pid: int) -> bool:
    """Whether a process of that id runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Load:
    """Streams and short requests, as many at once as told, each on a connection of its own or kept alive."""

    def __init__(self, port: int, models: tuple[str, ...] = ("a:1", "b:1")) -> None:
        self.port = port
        self.models = models
        self.outcomes: Counter[str] = Counter()
        self.bad: list[str] = []
        self._stopping = False
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, *, streams: int = 4, short: int = 4, kept: int = 2, tokens: int = 200) -> None:
        for number in range(streams):
            self._tasks.append(begin(self._streams(self.models[number % len(self.models)], tokens)))
        for number in range(short):
            self._tasks.append(begin(self._short(self.models[number % len(self.models)])))
        for number in range(kept):
            self._tasks.append(begin(self._kept(self.models[number % len(self.models)])))

    async def stop(self) -> None:
        """Let what runs end."""
        self._stopping = True
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*self._tasks)

    def note(self, kind: str, good: bool, what: object) -> None:
        self.outcomes[f"{kind} {'good' if good else 'bad'}"] += 1
        if not good:
            self.bad.append(f"{kind}: {what}")

    async def _streams(self, model: str, tokens: int) -> None:
        while not self._stopping:
            body = {"model": model, "prompt": "hello", "options": {"num_predict": tokens}}
            try:
                talk = await open_talk(self.port, "POST", "/api/generate", body)
                status = await talk.head()
                rest = await talk.rest()
                good = status == 200 and talk.complete and rest.count(b"\n") == tokens + 1 and b'"done":true' in rest
                self.note("stream", good, (status, talk.complete, rest[-200:]))
                await talk.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.note("stream", False, repr(error))

    async def _short(self, model: str) -> None:
        while not self._stopping:
            body = {"model": model, "prompt": "hi", "stream": False, "options": {"num_predict": 3}}
            try:
                answer = await ask(self.port, "POST", "/api/generate", body)
                self.note("short", answer.status == 200 and answer.complete, (answer.status, answer.body[:200]))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.note("short", False, repr(error))

    async def _kept(self, model: str) -> None:
        """One connection as long as the gateway keeps it, as a client with a pool."""
        body = json.dumps({"model": model, "prompt": "hi", "stream": False, "options": {"num_predict": 3}}).encode()
        head = f"POST /api/generate HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        message = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        while not self._stopping:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            talk = Talk(reader, writer)
            try:
                while not self._stopping:
                    writer.write(message)
                    talk.complete = False
                    status = await talk.head()
                    rest = await talk.piece() if "content-length" in talk.headers else await talk.rest()
                    self.note("kept", status == 200 and talk.complete, (status, rest[:200]))
                    if talk.headers.get("connection") == "close":
                        break
            except (OSError, asyncio.IncompleteReadError) as error:
                self.note("kept", False, repr(error))
            await talk.close()


async def warm(gateway: GatewayProcess, *models: str) -> None:
    for model in models:
        answer = await ask(gateway.port, "POST", "/api/generate", {"model": model, "prompt": "hi", "stream": False})
        assert answer.status == 200, answer.body


def loads_and_unloads(*workers: Any) -> tuple[int, int]:
    counters = [one.twin.counters for one in workers]
    return sum(one.loads for one in counters), sum(one.unloads_asked for one in counters)
