"""Zero-drop restart: a new process of the same command line takes over listening sockets and the care of residents.

The two talk over a socket pair, one word a line (docs/decisions/0010-restart.md):

    new: prepared    its settings are right, it has the sockets, and has asked no worker anything
    old: go          nothing is being loaded or unloaded, and nothing will be; what was learned is on disk
    new: accepting   it knows what is resident, and lets clients in; it loads and unloads nothing yet
    old: yours       it lets nobody in, and passes on what waited: from now on the new one decides

Silence, or the end of either, gives everything to the one that is left.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from bellmare.admin.lifecycle import RestartAnswer
from bellmare.cli.inheriting import HANDED, handed_text
from bellmare.core.events import StandbyChanged
from bellmare.gateway.relay import Relay
from bellmare.http.client import Upstream

if TYPE_CHECKING:
    from bellmare.cli.service import Service

PREPARED, GO, ACCEPTING, YOURS = "prepared", "go", "accepting", "yours"
WORD_BYTES_MAX = 64
PREPARE_TIMEOUT_S = 60.0
"""From exec to ``prepared``: imports and a settings file; a minute on the slowest machine."""
OPERATIONS_TIMEOUT_S = 120.0
"""For loads and unloads under way to end; a longer load is not interrupted, the restart is given up."""
ACCEPT_TIMEOUT_S = 30.0
"""For the new one to see its workers: 15 s for those that do not answer, and as much again."""
YOURS_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 5.0
SWEEP_S = 0.1
"""How often what came back to wait (a failed dispatch) is passed on."""
LISTENER_GONE_S = 0.05
"""The loop closes a listening socket in one of its next turns; a request passed on before might come back."""


class HandoverFailed(Exception):  # noqa: N818 - of the world, not of ours
    """The text says why; this process goes on."""


class Talk:
    """One end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=WORD_BYTES_MAX)
        return self._reader, self._writer

    async def say(self, word: str) -> None:
        """Send a word; one that nobody hears any more is dropped."""
        _, writer = await self._open()
        try:
            writer.write(f"{word}\n".encode())
            await writer.drain()
        except ConnectionError:
            pass  # the next ``hear`` tells

    async def hear(self, timeout_s: float) -> str:
        """The next word; empty once the other is gone. Raises TimeoutError."""
        reader, _ = await self._open()
        async with asyncio.timeout(timeout_s):
            try:
                return (await reader.readline()).decode("ascii", errors="replace").strip()
            except (ConnectionError, ValueError):
                return ""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        else:
            self._sock.close()


class Handover:
    """The old process's side. ``command`` starts the new one; ``on_done`` is called once this one shall end.

    ``children``: servers of models run that this process started.
    """

    def __init__(
        self, service: "Service", *, command: list[str], children: bool = False, on_done: Callable[[], None]
    ) -> None:
        self.done = False
        self._children = children
        self._service = service
        self._command = command
        self._on_done = on_done
        self._child: subprocess.Popen[bytes] | None = None
        self._under_way = False

    def signalled(self) -> None:
        """SIGUSR2."""
        self._service.tasks.spawn(self.restart(), name="restart")

    async def restart(self) -> RestartAnswer:
        """Start the new process and hand over. Never raises for what goes wrong: then this process goes on."""
        logs = self._service.logs
        if why := self._refusal():
            logs.error("no restart", reason=why)
            return RestartAnswer(accepted=False, text=why)
        self._under_way = True
        try:
            pid = await self._hand_over()
        except HandoverFailed as failed:
            logs.error("restart given up; this process goes on", reason=str(failed))
            return RestartAnswer(accepted=False, text=str(failed))
        finally:
            self._under_way = False
        self.done = True
        logs.info("handed over; what still runs here ends here", pid=pid)
        self._on_done()
        return RestartAnswer(accepted=True, text=f"process {pid} serves now", pid=pid)

    def _refusal(self) -> str:
        if sys.platform == "win32":
            return "sockets cannot be handed over on Windows"
        if self._under_way or self.done:
            return "a restart is under way"
        if why := self._service.busy():
            return f"the gateway is {why}"
        if self._children or self._service.has_own_workers:
            return "workers that this process started itself would end with it: stop it and start it again"
        return ""

    async def _hand_over(self) -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        talk = Talk(ours)
        service = self._service
        try:
            child = self._child = await asyncio.to_thread(self._spawn, theirs)
            theirs.close()  # its end is heard only if nobody else holds it
            await self._expect(talk, PREPARED, PREPARE_TIMEOUT_S)
            service.driver.feed(StandbyChanged(standby=True))
            await self._operations_ended()
            await service.save_learned()
            await talk.say(GO)
            await self._expect(talk, ACCEPTING, ACCEPT_TIMEOUT_S)
        except BaseException as error:
            await asyncio.shield(self._take_back())
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise HandoverFailed(f"cannot start a process: {error}") from error
            raise
        else:
            service.retire()
            await asyncio.sleep(LISTENER_GONE_S)
            self._pass_on()
            await talk.say(YOURS)
            return child.pid
        finally:
            theirs.close()
            talk.close()

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        gateway, admin = self._service.descriptors
        descriptors = (*gateway, *admin, theirs.fileno())
        environment = os.environ | {HANDED: handed_text(gateway, admin, theirs.fileno())}
        return subprocess.Popen(self._command, pass_fds=descriptors, env=environment)

    async def _expect(self, talk: Talk, word: str, timeout_s: float) -> None:
        try:
            heard = await talk.hear(timeout_s)
        except TimeoutError:
            raise HandoverFailed(f"the new process did not say '{word}' within {timeout_s:.0f} s") from None
        if heard != word:
            raise HandoverFailed("the new process could not start; its own lines say why")

    async def _operations_ended(self) -> None:
        state = self._service.driver.engine.fleet.state
        try:
            async with asyncio.timeout(OPERATIONS_TIMEOUT_S):
                while state.operations:  # noqa: ASYNC110 - once in a process's life
                    await asyncio.sleep(SWEEP_S)
        except TimeoutError:
            raise HandoverFailed(f"a load or unload has not ended within {OPERATIONS_TIMEOUT_S:.0f} s") from None

    async def _take_back(self) -> None:
        """End the new process, then decide again: never two at once."""
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(_end, child)
        self._service.driver.feed(StandbyChanged(standby=False))

    def _pass_on(self) -> None:
        service = self._service
        timeouts = service.gateway.timeouts
        host, port = service.local_address
        relay = Relay(Upstream(host, port), timeout_s=timeouts.queue_s + timeouts.answer_s)
        service.gateway.give_away(relay)
        service.tasks.spawn(self._sweep(relay), name="pass on")

    async def _sweep(self, relay: Relay) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._service.gateway.give_away(relay)


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGKILL)  # it has begun nothing that wants an orderly end
    child.wait(KILL_TIMEOUT_S)


class Taking:
    """The new process's side."""

    def __init__(self, service: "Service", sock: socket.socket) -> None:
        self._service = service
        self._talk = Talk(sock)

    async def prepared(self) -> None:
        """Say so, and wait until nothing is loaded or unloaded by anybody. An old one that is gone needs no asking."""
        await self._talk.say(PREPARED)
        await self._talk.hear(OPERATIONS_TIMEOUT_S + PREPARE_TIMEOUT_S)

    async def accepting(self) -> None:
        """Say so, and decide once the other has stopped to."""
        await self._talk.say(ACCEPTING)
        try:
            await self._talk.hear(YOURS_TIMEOUT_S)
        except TimeoutError:
            self._service.logs.error("the old process neither hands over nor ends; taking over all the same")
        self._talk.close()
        self._service.driver.feed(StandbyChanged(standby=False))


def same_command() -> list[str]:
    """What started this process."""
    return [sys.executable, *sys.orig_argv[1:]]
