"""B13: a process that runs out of descriptors refuses clients; workers, health and the log go on, and it recovers."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import pytest
from gateway_process import GatewayProcess
from raw_client import Rude, exchange, split_answers
from rig import ask

from bellmare.cli.descriptors import CONNECTIONS_MIN, OWN_RESERVE, WORKER_RESERVE, connections_max
from bellmare.http.messages import DEFAULT_LIMITS

pytestmark = pytest.mark.slow

CLIENTS = 300
GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_clients_get_at_most_nine_tenths_of_the_descriptors_less_the_reserve():
    assert connections_max(None, 3) == DEFAULT_LIMITS.connections_max
    assert connections_max(1_000_000, 100) == DEFAULT_LIMITS.connections_max
    assert connections_max(1024, 2) == int(0.9 * 1024) - OWN_RESERVE - 2 * WORKER_RESERVE
    assert connections_max(64, 1) == CONNECTIONS_MIN + int(0.9 * 64) - 32 - CONNECTIONS_MIN
    assert connections_max(20, 1000) == CONNECTIONS_MIN
    for descriptors in range(100, 3000, 37):
        assert connections_max(descriptors, 4) < 0.9 * descriptors


@pytest.fixture
def process(tmp_path):
    started: list[GatewayProcess] = []

    def start(*workers: int, **more) -> GatewayProcess:
        started.append(GatewayProcess(tmp_path / f"{len(started)}.log", *workers, **more))
        return started[-1]

    yield start
    for one in started:
        if one.child.poll() is None:
            one.stop()


async def test_b13_a_crowd_beyond_the_descriptors_is_refused_and_costs_nobody_else(sim, process):
    worker = await sim()
    running = await asyncio.to_thread(process, worker.port, nofile=96)
    most = running.connections_max
    assert most == connections_max(96, 1) < CLIENTS
    assert (await ask(running.port, "GET", "/api/tags")).status == 200
    body = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": False}
    assert (await ask(running.port, "POST", "/api/chat", body)).status == 200
    running.child.send_signal(signal.SIGSTOP)  # so that all of them are accepted in one go
    crowd, refused = [await Rude.dial(running.port) for _ in range(CLIENTS)], 0
    running.child.send_signal(signal.SIGCONT)
    for client in crowd:
        try:
            await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")  # never idle
        except ConnectionError:
            refused += 1
    await asyncio.sleep(1.0)
    for client in crowd:
        refused += _said(client) in (b"HTTP/1.1 503", b"")
    assert refused >= CLIENTS - most, "the rest is told so, or refused"
    assert running.descriptors() <= 96
    ready = await ask(running.admin_port, "GET", "/readyz")
    assert ready.status == 200, "the worker is still observed, and the admin listener answers"
    for client in crowd:
        client.reset()
    started = time.monotonic()
    while True:
        try:
            answers = split_answers(await exchange(running.port, GET[:-2] + b"Connection: close\r\n\r\n"))
        except OSError:
            answers = []
        if [answer.status for answer in answers] == [200]:
            break
        assert time.monotonic() - started < 10
        await asyncio.sleep(0.05)
    recovered_s = time.monotonic() - started
    assert (await ask(running.port, "POST", "/api/chat", body)).status == 200
    assert await asyncio.to_thread(running.stop) == 0
    lines = [row for row in running.lines() if row["level"] in ("warning", "error")]
    print(f"\n{refused} of {CLIENTS} refused at {most}; recovered after {recovered_s:.2f} s; {len(lines)} log lines")
    assert [row for row in lines if row["level"] == "error"] == []
    assert len(lines) <= 5


def _said(client: Rude) -> bytes | None:
    """The begin of what it was told; empty if it was closed, None if it still waits."""
    try:
        return client.sock.recv(12, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""
