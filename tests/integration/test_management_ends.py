"""Changes to models end once and leave nothing behind, whoever leaves, hangs or loses his rights meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import Any

import pytest
from rig import Gateway, open_talk, until

MANAGERS = ["127.0.0.1"]
DATA = b"GGUF" + bytes(1000)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


class Mute:
    """Stands before a worker and says nothing to one kind of request, for ever."""

    def __init__(self, target: int, mute: bytes) -> None:
        self._target, self._mute = target, mute
        self.port = 0
        self.muted = 0
        self.freed = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)

        async def answers() -> None:
            while data := await there.read(65_536):
                writer.write(data)
            writer.close()

        answering = asyncio.get_running_loop().create_task(answers())
        try:
            while data := await reader.read(65_536):
                if data.startswith(self._mute):
                    self.muted += 1
                    while await reader.read(65_536):
                        pass
                    self.freed += 1
                    break
                back.write(data)
        except ConnectionError:
            pass
        finally:
            answering.cancel()
            back.close()
            writer.close()


@pytest.fixture
async def mute(sim):
    """A worker that takes blobs and never says that it has them."""
    worker = Mute((await sim()).port, b"POST /api/blobs/")
    await worker.open()
    yield worker
    await worker.close()


def uploads(running: Gateway) -> int:
    return running.service.gateway.blobs._uploads


def senders() -> list[Any]:
    return [one for one in threading.enumerate() if one.name.startswith("bellmare-blob")]


async def test_who_leaves_while_a_worker_hangs_frees_thread_connection_and_place(mute, gateway):
    running = await gateway(mute.port, manage=MANAGERS)
    for round_ in range(1, 10):  # more than the loop has threads
        talk = await open_talk(running.port, "POST", f"/api/blobs/{DIGEST}", DATA)
        await until(lambda: mute.muted == round_, "the worker has it")  # noqa: B023 - waited for at once
        talk.leave()
        await until(lambda: uploads(running) == 0, "its place is free")
        await until(lambda: mute.freed == round_, "its connection is closed")  # noqa: B023
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 5) == 1, "the loop's own threads are free"


async def test_a_gateway_goes_down_while_a_worker_hangs(mute, gateway):
    running = await gateway(mute.port, manage=MANAGERS)
    talk = await open_talk(running.port, "POST", f"/api/blobs/{DIGEST}", DATA)
    await until(lambda: mute.muted, "the worker has it")
    await running.close()
    await until(lambda: not any(one.is_alive() for one in senders()), "no thread is left")
    await talk.rest()
    assert not talk.complete


async def test_rights_that_are_taken_away_during_an_upload_leave_nothing(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, manage=MANAGERS)
    talk = await open_talk(
        running.port, "POST", f"/api/blobs/{DIGEST}", DATA[:10], headers={"content-length": str(len(DATA))}
    )
    await until(lambda: uploads(running) == 1, "it is under way")
    running.service.gateway.managers = type(running.service.gateway.managers)()
    talk._writer.write(DATA[10:])
    assert await talk.head() == 403
    await talk.close()
    await until(lambda: uploads(running) == 0, "its place is free")


async def test_a_pull_under_way_when_the_gateway_goes_down_ends_with_an_error(sim, gateway):
    worker = await sim()
    silent = Mute(worker.port, b"POST /api/pull")
    await silent.open()
    running = await gateway(silent.port, manage=MANAGERS)
    talks = [
        await open_talk(running.port, "POST", "/api/pull", {"model": "some", "stream": stream})
        for stream in (True, False)
    ]
    await until(lambda: silent.muted == len(talks), "both are under way")
    await running.close()
    for talk in talks:
        assert await talk.head() == 503
        assert b"shutting down" in await talk.rest()
        assert talk.complete
    assert running.service.gateway.changes.under_way == 0
    assert len(running.lines("change")) == len(talks)
    await silent.close()


async def test_every_change_is_in_the_log(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, manage=MANAGERS)
    assert (await running.post("/api/copy", {"source": "a:1", "destination": "mine"})).status == 200
    assert (await running.ask("DELETE", "/api/delete", {"model": "mine"})).status == 200
    assert (await running.post("/api/copy", {"source": "", "destination": "x"})).status == 400
    await running.close()
    told = [(row["path"], row["model"], row["client"], row["answered"]) for row in running.lines("change")]
    assert told == [
        ("/api/copy", "mine:latest", "127.0.0.1", True),
        ("/api/delete", "mine:latest", "127.0.0.1", True),
    ]
