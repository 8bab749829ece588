"""The benchmark's fake Ollama: stock to an adapter, in order to a client, honest about who left."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from proxy_upstream import upstream_running

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.client import StreamCheck, control, whole
from bellmare.core.units import WorkerId
from bellmare.http.client import Upstream as HttpUpstream
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.ollama import WorkerSettings as AdapterSettings

NAME = wire.MODELS[0]


@pytest.fixture
def port() -> Iterator[int]:
    with upstream_running() as port:
        yield port


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET" if body is None else "POST", path, body=None if body is None else json.dumps(body))
    answer = connection.getresponse()
    lines = [json.loads(line) for line in answer.read().splitlines()]
    connection.close()
    return answer.status, lines[0] if len(lines) == 1 else lines


def send(port: int, message: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.sendall(message)
    return sock


async def test_an_adapter_sees_a_stock_server_with_every_model_resident(port: int) -> None:
    upstream = HttpUpstream("127.0.0.1", port)
    worker = OllamaWorker(
        WorkerId("w"), upstream, settings=AdapterSettings(parallel=wire.SLOTS), now_utc=lambda: wire.CREATED
    )
    try:
        profile = await worker.profile(timeout_s=5)
        assert profile.parallel == wire.SLOTS
        seen = await worker.observe(timeout_s=5)
        assert {model.name for model in seen.stored or ()} == set(wire.MODELS)
        assert len({model.model for model in seen.stored or ()}) == len(wire.MODELS)
        assert all(not model.embedding and not model.parallel_max for model in seen.stored or ())
        assert {runner.name for runner in seen.loaded} == set(wire.MODELS)
        assert all(runner.pinned and runner.num_ctx == 8192 and not runner.spilled_bytes for runner in seen.loaded)
        loaded = await worker.load(NAME, num_ctx=4096, embedding=False, timeout_s=5)
        assert loaded.num_ctx == 4096
    finally:
        await worker.close()


def test_an_unload_is_seen_in_ps_and_a_request_loads_again(port: int) -> None:
    assert ask(port, "/api/generate", {"model": NAME, "keep_alive": 0, "stream": False})[1]["done_reason"] == "unload"
    assert NAME not in [entry["name"] for entry in ask(port, "/api/ps")[1]["models"]]
    status, answer = ask(port, "/api/generate", {"model": NAME, "prompt": "hello", "stream": False})
    assert (status, answer["done"], bool(answer["response"])) == (200, True, True)
    assert NAME in [entry["name"] for entry in ask(port, "/api/ps")[1]["models"]]


def test_what_is_not_there_is_404(port: int) -> None:
    assert ask(port, "/api/bellmare")[0] == 404
    assert ask(port, "/api/chat", {"model": "nobody", "messages": [{"role": "user", "content": "x"}]})[0] == 404
    assert ask(port, "/api/show", {"model": "nobody"})[0] == 404


def test_an_unstreamed_answer_has_the_counters_and_is_about_300_bytes(port: int) -> None:
    for path in ("/api/chat", "/api/generate"):
        body = {"model": NAME, "stream": False, "prompt": wire.order(0)}
        # As gateways write it: without blanks.
        message = json.dumps(body, separators=(",", ":")).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(message)}\r\n\r\n".encode()
        with send(port, head + message) as sock:
            data = sock.recv(65536)
        assert whole(data)
        answer = json.loads(data.partition(b"\r\n\r\n")[2])
        assert answer["done"] is True and answer["eval_count"] > 0
        assert 250 < len(data.partition(b"\r\n\r\n")[2]) < 450


def test_a_request_in_pieces_and_two_at_once_are_answered(port: int) -> None:
    message = wire.request("x", model=NAME, prompt=wire.order(0), stream=False)
    with send(port, message[:20]) as sock:
        for start in range(20, len(message), 300):
            time.sleep(0.002)
            sock.sendall(message[start : start + 300])
        first = sock.recv(65536)
        assert whole(first)
        sock.sendall(message + message)
        data = b""
        while len(data) < 2 * len(first):
            data += sock.recv(65536)
    assert data == first + first


@pytest.mark.parametrize("interval_us", [0, 200])
def test_a_stream_brings_every_chunk_in_order_and_ends(port: int, interval_us: int) -> None:
    chunks = 700
    check = StreamCheck(chunks)
    begun_ns = time.monotonic_ns()
    stamps: list[int] = []
    with send(port, wire.request("x", model=NAME, prompt=wire.order(chunks, interval_us), stream=True)) as sock:
        while not check.ended:
            stamps += [int(stamp) for _, stamp in check.feed(sock.recv(4096))]
            assert not check.problem
    assert check.number == len(stamps) == chunks
    assert stamps == sorted(stamps)
    assert begun_ns <= stamps[0] and stamps[-1] <= time.monotonic_ns()
    assert stamps[-1] - stamps[0] >= (chunks - 1) * interval_us * 1000


def test_a_chunk_is_one_line_of_about_130_bytes_in_valid_framing() -> None:
    for path in ("/api/chat", "/api/generate"):
        text = wire.chunk_template(path) % (7, 123456789)
        size, _, rest = text.partition(b"\r\n")
        line = rest.removesuffix(b"\r\n")
        assert len(line) == int(size, 16)
        assert 100 < len(line) < 170 and line.endswith(b"\n")
        said = json.loads(line)
        assert wire.STAMP.findall(line) == [(b"0000007", b"000000000123456789")]
        assert said["done"] is False


def test_a_reader_who_stalls_stops_the_flood_and_costs_a_bounded_buffer(port: int) -> None:
    with send(port, wire.request("x", model=NAME, prompt=wire.order(wire.ENDLESS, 0), stream=True)) as sock:
        check = StreamCheck(wire.ENDLESS)
        assert ask(port, "/api/version")[0] == 200  # the others are served meanwhile
        for _ in range(200):
            check.feed(sock.recv(65536))
        assert not check.problem
        assert check.number > 1000


def test_who_leaves_in_the_middle_is_told_once_with_the_instant(port: int) -> None:
    sock = send(port, wire.request("x", model=NAME, prompt=wire.order(wire.ENDLESS, 1000, 42), stream=True))
    assert sock.recv(65536)
    assert control(port)["streams"] == 1
    left_ns = time.monotonic_ns()
    sock.close()
    gone: list[Any] = []
    while not gone:
        gone += control(port)["gone"]  # type: ignore[operator]
        assert time.monotonic_ns() < left_ns + 5e9
    ((number, when_ns),) = gone
    assert number == 42 and left_ns <= when_ns <= time.monotonic_ns()
    assert control(port) == {"accepted": 1, "streams": 0, "gone": []}
