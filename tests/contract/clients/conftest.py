"""What the real clients are tested against: a gateway that another process runs, told by the environment.

Runs in the clients' own environment, which has no bellmare. See ``test_clients_python.py``, which starts this.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

WAIT_S = 20.0


class Place:
    """Addresses and names."""

    def __init__(self) -> None:
        self.url = os.environ["BELLMARE_URL"]
        self.tight_url = os.environ.get("BELLMARE_TIGHT_URL", "")
        """A gateway with one slot and one place in its queue."""
        self.closed_url = os.environ["BELLMARE_CLOSED_URL"]
        """Where nobody listens."""
        self.worker_url = os.environ["BELLMARE_WORKER_URL"]
        self.talker = os.environ["BELLMARE_TALKER"]
        self.thinker = os.environ.get("BELLMARE_THINKER", "")
        self.seer = os.environ.get("BELLMARE_SEER", "")
        self.embedder = os.environ.get("BELLMARE_EMBEDDER", "")
        self.limit = int(os.environ["BELLMARE_LIMIT"])
        """Tokens of a short answer."""

    @property
    def v1(self) -> str:
        return self.url + "/v1"


@pytest.fixture(scope="session")
def place() -> Place:
    return Place()


@pytest.fixture
def fault(place: Place) -> Iterator[Callable[..., None]]:
    """Make the simulated worker fail: ``fault("error_after", tokens=5)``."""

    def make(kind: str, **more: Any) -> None:
        httpx.post(f"{place.worker_url}/sim/fault", json={"kind": kind, **more}, timeout=WAIT_S).raise_for_status()

    yield make
    make("clear")


def cancelled(place: Place) -> int:
    """Requests that the worker saw being left."""
    told = httpx.get(f"{place.worker_url}/api/bellmare", timeout=WAIT_S).json()
    return int(told["counters"]["cancelled_total"])


def until_cancelled(place: Place, before: int) -> None:
    """Wait until the worker has noticed that its client left."""
    end = time.monotonic() + WAIT_S
    while cancelled(place) <= before:
        assert time.monotonic() < end, "the worker works on for nobody"
        time.sleep(0.01)


class Crowd:
    """Fills the tight gateway: one stream that runs and one request that waits."""

    def __init__(self, place: Place) -> None:
        self._client = httpx.Client(base_url=place.tight_url, timeout=WAIT_S)
        self._streams: list[Any] = []
        self._threads: list[Any] = []
        self._model = place.talker

    def fill(self) -> None:
        import threading

        body = {"model": self._model, "prompt": "x", "options": {"num_predict": 200_000}}
        stream = self._client.stream("POST", "/api/generate", json=body)
        answer = stream.__enter__()
        assert answer.status_code == 200
        self._streams.append(stream)
        self._lines = answer.iter_lines()
        next(self._lines)
        waiting = threading.Thread(target=self._wait, daemon=True)
        waiting.start()
        self._threads.append(waiting)
        end = time.monotonic() + WAIT_S
        while self._probe() != 429:
            assert time.monotonic() < end, "the queue never filled"
            time.sleep(0.02)

    def _wait(self) -> None:
        body = {"model": self._model, "prompt": "y", "stream": False, "options": {"num_predict": 1}}
        while self._streams:  # a probe may have taken the place
            if httpx.post(f"{self._client.base_url}/api/generate", json=body, timeout=2 * WAIT_S).status_code != 429:
                return
            time.sleep(0.01)

    def _probe(self) -> int:
        body = {"model": self._model, "prompt": "z", "stream": False, "options": {"num_predict": 1}}
        try:
            return httpx.post(f"{self._client.base_url}/api/generate", json=body, timeout=0.3).status_code
        except httpx.TimeoutException:
            return 0

    def leave(self) -> None:
        for stream in self._streams:
            stream.__exit__(None, None, None)
        self._streams.clear()
        for thread in self._threads:
            thread.join(WAIT_S)
        self._client.close()


@pytest.fixture
def crowd(place: Place) -> Iterator[Crowd]:
    made = Crowd(place)
    yield made
    made.leave()


def picture() -> bytes:
    """A PNG of 8 by 8 red points."""
    rows = b"".join(b"\x00" + b"\xff\x00\x00" * 8 for _ in range(8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def pictures_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain's suite fetches its picture from the web; here it gets one of ours, wherever it asks."""
    from langchain_tests.integration_tests import chat_models

    answer = httpx.Response(200, content=picture(), request=httpx.Request("GET", "http://localhost/"))
    monkeypatch.setattr(chat_models.httpx, "get", lambda *_, **__: answer)


@pytest.fixture(scope="session")
def picture_b64() -> str:
    return base64.b64encode(picture()).decode()


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK_PERSON = "Who is 'Ada', aged 36?"


@pytest.fixture(scope="session")
def weather() -> dict[str, Any]:
    return json.loads(json.dumps(WEATHER))  # type: ignore[no-any-return]
