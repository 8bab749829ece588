"""The benchmark's load generator against its upstream: what it counts, and that it sees what is wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from proxy_upstream import upstream_running

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.client import StreamCheck, whole
from bellmare.bench.proxy.jobs import Job, Mode, Outcome, quantile
from bellmare.bench.proxy.load import MODES

STREAM = (
    wire.STREAM_HEAD
    + b"".join(wire.chunk_template("/api/chat") % (n, 5 + n) for n in range(3))
    + wire.stream_end("/api/chat")
)


@pytest.fixture
def port() -> Iterator[int]:
    with upstream_running() as port:
        yield port


def run(job: Job) -> Outcome:
    return MODES[job.mode](job)


def direct(port: int, mode: Mode, **more: float) -> Outcome:
    given = {"mode": mode, "port": port, "upstream_port": port, "warmup_s": 0.01, "window_s": 0.05, **more}
    return run(msgspec.convert(given, Job))


def test_saturation_counts_the_window_and_reuses_its_connections(port: int) -> None:
    outcome = direct(port, Mode.saturate, connections=4)
    assert not outcome.errors
    assert 0 < outcome.requests < outcome.served
    assert outcome.upstream_connections == 4
    assert outcome.window_s >= 0.05


def test_a_paced_rate_is_kept_and_timed(port: int) -> None:
    outcome = direct(port, Mode.paced, connections=4, per_second=200)
    assert not outcome.errors
    assert 1 <= outcome.requests <= 12
    assert 0 < outcome.p50_us <= outcome.p99_us


def test_streams_are_counted_chunk_by_chunk(port: int) -> None:
    outcome = direct(port, Mode.stream, connections=5, chunks=10, interval_us=2000)
    assert not outcome.errors
    assert outcome.served >= 5
    assert 0 < outcome.chunks <= outcome.served * 10
    assert 0 < outcome.reads <= outcome.chunks
    assert 0 < outcome.chunk_p50_us <= outcome.chunk_p90_us
    assert outcome.first_byte_us > 0


@pytest.mark.slow
def test_held_idle_and_stalled_connections_all_stand_when_memory_is_read(port: int) -> None:
    assert direct(port, Mode.hold, connections=20, interval_us=20_000).held == 20
    assert direct(port, Mode.idle, connections=20).held == 20
    assert direct(port, Mode.stall, connections=5).held == 5


def test_every_leaving_client_is_matched_with_the_loss_of_its_upstream(port: int) -> None:
    outcome = direct(port, Mode.leave, connections=10, interval_us=2000)
    assert not outcome.errors
    assert len(outcome.left_ms) == outcome.held == 10
    assert all(ms >= 0 for ms in outcome.left_ms)


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A bad proxy: one answer for each read, whatever it was."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            while data := sock.recv(65536):
                sock.sendall(answer(data))
                if not answer(data):
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        (Mode.saturate, b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno"),
        (Mode.paced, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        (Mode.saturate, b""),
        (Mode.paced, b""),
        (Mode.stream, b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno"),
        (Mode.stream, b""),
        (Mode.stream, STREAM.replace(b"#0000001@", b"#0000002@")),
        (Mode.stream, STREAM.replace(b"#0000002@", b"nothing")),
        (Mode.hold, b""),
        (Mode.leave, b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"),
    ],
)
def test_what_is_wrong_is_an_error_and_no_success(port: int, mode: Mode, answer: bytes) -> None:
    with answering(lambda _: answer) as bad_port:
        job = Job(
            mode=mode, port=bad_port, upstream_port=port, connections=2, warmup_s=0.0, window_s=0.05, chunks=3,
            interval_us=1000,
        )  # fmt: skip
        outcome = run(job)
    assert outcome.errors
    assert outcome.error
    assert not outcome.served


def test_nobody_to_connect_to_is_an_error(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed_port = sock.getsockname()[1]
    outcome = run(Job(mode=Mode.saturate, port=closed_port, upstream_port=port, window_s=0.05))
    assert outcome.errors == 1
    assert "refused" in outcome.error


def test_a_stream_is_read_the_same_however_it_is_cut() -> None:
    for size in range(1, len(STREAM)):
        check = StreamCheck(3)
        found: list[tuple[bytes, bytes]] = []
        start = len(wire.STREAM_HEAD)  # the status line comes in one piece
        for piece in [STREAM[:start], *(STREAM[at : at + size] for at in range(start, len(STREAM), size))]:
            assert not check.ended
            found += check.feed(piece)
        assert not check.problem
        assert check.ended
        assert [int(stamp) for _, stamp in found] == [5, 6, 7]


def test_a_stream_without_its_last_chunk_has_not_ended() -> None:
    check = StreamCheck(3)
    check.feed(STREAM[:-1])
    assert check.done and not check.ended


@pytest.mark.parametrize("chunks", [2, 4])
def test_a_chunk_too_few_or_too_many_is_a_problem(chunks: int) -> None:
    check = StreamCheck(chunks)
    check.feed(STREAM)
    assert f"3 chunks of {chunks}" in check.problem


def test_an_answer_is_whole_by_its_length_or_its_last_chunk() -> None:
    sized = wire.plain(200, b'{"content-length": 1}')
    assert whole(sized) and not whole(sized[:-1])
    assert not whole(b"HTTP/1.1 200 OK\r\nContent-Len")
    assert whole(STREAM) and not whole(STREAM[:-2])


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([], 0.5)) == (51.0, 100.0, 0.0)
    assert quantile([7.0], 0.99) == 7.0
