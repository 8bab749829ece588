"""The load generator: one job, one thread, raw epoll. ``python -m bellmare.bench.proxy.load JOB`` prints its outcome.

It checks what it gets: status and length of every answer, number and order of every chunk.
"""

import gc
import sys
import time
from collections import deque

import msgspec

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.client import DRAIN_TIMEOUT_S, Answers, Clients, StreamCheck, Window, clients, receive
from bellmare.bench.proxy.jobs import Job, Mode, Outcome, quantile
from bellmare.bench.proxy.load_held import hold, idle, leave, stall

IDLE_WAIT_S = 0.05


def saturate(job: Job) -> Outcome:
    """As many unstreamed requests as go through."""
    outcome = Outcome()
    with clients(job, outcome) as opened:
        sockets = opened.sockets
        answers = Answers(opened.sockets, outcome)
        messages: dict[int, bytes] = {}
        for number in range(job.connections):
            messages[opened.open()] = opened.request(number, prompt=wire.order(0), stream=False)
        window = Window(job, outcome)
        waiting = set(messages)
        for fd, message in messages.items():
            sockets[fd].send(message)
        deadline = time.monotonic_ns() + int((job.warmup_s + job.window_s + DRAIN_TIMEOUT_S) * 1e9)
        while waiting:
            now = time.monotonic_ns()
            window.tick(now)
            if now > deadline:
                outcome.fail(f"{len(waiting)} requests without an answer")
                break
            for fd, _ in opened.ready(IDLE_WAIT_S):
                complete = answers.read(fd)
                if complete is None or (complete and window.over):
                    waiting.discard(fd)
                    opened.epoll.unregister(fd)
                elif complete:
                    outcome.requests += window.counting
                    sockets[fd].send(messages[fd])
    return outcome


def paced(job: Job) -> Outcome:
    """Unstreamed requests at a fixed rate; the latency of each, from its send."""
    outcome = Outcome()
    latencies: list[float] = []
    with clients(job, outcome) as opened:
        answers = Answers(opened.sockets, outcome)
        messages: dict[int, bytes] = {}
        for number in range(job.connections):
            messages[opened.open()] = opened.request(number, prompt=wire.order(0), stream=False)
        free = deque(messages)
        sent_ns: dict[int, int] = {}
        window = Window(job, outcome)
        every_ns = int(1e9 / job.per_second)
        next_ns = time.monotonic_ns()
        deadline = next_ns + int((job.warmup_s + job.window_s + DRAIN_TIMEOUT_S) * 1e9)
        while sent_ns or not window.over:
            now = time.monotonic_ns()
            window.tick(now)
            if now > deadline or not (free or sent_ns):
                outcome.fail(f"{len(sent_ns)} requests without an answer")
                break
            if now >= next_ns and free and not window.over:
                fd = free.popleft()
                sent_ns[fd] = time.monotonic_ns()
                opened.sockets[fd].send(messages[fd])
                next_ns += every_ns
                continue
            wait_s = IDLE_WAIT_S if window.over else max(0.0, (next_ns - now) / 1e9)
            for fd, _ in opened.ready(wait_s):
                complete = answers.read(fd)
                if complete is False:
                    continue
                begun_ns = sent_ns.pop(fd, 0)
                if complete is None:
                    opened.epoll.unregister(fd)
                    continue
                free.append(fd)
                if window.counting and begun_ns >= window.opens_ns:
                    outcome.requests += 1
                    latencies.append((time.monotonic_ns() - begun_ns) / 1000)
    outcome.p50_us, outcome.p99_us = quantile(latencies, 0.5), quantile(latencies, 0.99)
    return outcome


class _Streams:
    """Streams on every connection, one after the other, begun evenly over the length of one stream."""

    def __init__(self, opened: Clients, outcome: Outcome) -> None:
        job = opened.job
        self._opened = opened
        self._outcome = outcome
        self._message: dict[int, bytes] = {}
        self._checks: dict[int, StreamCheck] = {}
        self._sent_ns: dict[int, int] = {}
        self._delays: list[float] = []
        self._first: list[float] = []
        self.fds = [opened.open() for _ in range(job.connections)]
        order = wire.order(job.chunks, job.interval_us)
        for number, fd in enumerate(self.fds):
            self._message[fd] = opened.request(number, prompt=order, stream=True)

    @property
    def running(self) -> int:
        return len(self._checks)

    def begin(self, fd: int) -> None:
        self._checks[fd] = StreamCheck(self._opened.job.chunks)
        self._sent_ns[fd] = time.monotonic_ns()
        self._opened.sockets[fd].send(self._message[fd])

    def read(self, fd: int, window: Window) -> None:
        data = receive(self._opened.sockets[fd])
        now = time.monotonic_ns()
        check = self._checks.get(fd)
        if check is None or not data:
            self._drop(fd, "connection closed" if not data else f"unasked bytes {data[:60]!r}")
            return
        found = check.feed(data)
        if check.problem:
            self._drop(fd, check.problem)
            return
        if found and window.counting:
            self._outcome.chunks += len(found)
            self._outcome.reads += 1
            self._delays += [(now - int(stamp)) / 1000 for _, stamp in found]
            if check.number == len(found):
                self._first.append((now - self._sent_ns[fd]) / 1000)
        if check.ended:
            del self._checks[fd]
            self._outcome.served += 1
            self._outcome.requests += window.counting
            if not window.over:
                self.begin(fd)

    def _drop(self, fd: int, why: str) -> None:
        self._outcome.fail(why)
        self._checks.pop(fd, None)
        self._opened.epoll.unregister(fd)

    def summarize(self) -> None:
        outcome, delays = self._outcome, self._delays
        outcome.chunk_p50_us, outcome.chunk_p90_us = quantile(delays, 0.5), quantile(delays, 0.9)
        outcome.chunk_p99_us = quantile(delays, 0.99)
        outcome.first_byte_us = quantile(self._first, 0.5)


def stream(job: Job) -> Outcome:
    """Paced streams at their full number; the delay of every chunk."""
    outcome = Outcome()
    with clients(job, outcome) as opened:
        streams = _Streams(opened, outcome)
        ramp_ns = job.chunks * job.interval_us * 1000
        start_ns = time.monotonic_ns()
        window = Window(job, outcome)
        window.opens_ns = start_ns + ramp_ns + int(job.warmup_s * 1e9)
        deadline = window.opens_ns + int(job.window_s * 1e9) + ramp_ns + int(DRAIN_TIMEOUT_S * 1e9)
        begun = 0
        while streams.running or not window.over:
            now = time.monotonic_ns()
            window.tick(now)
            if now > deadline:
                outcome.fail(f"{streams.running} streams without an end")
                break
            while begun < job.connections and now >= start_ns + ramp_ns * begun // job.connections:
                streams.begin(streams.fds[begun])
                begun += 1
            ramping = begun < job.connections
            for fd, _ in opened.ready(0.001 if ramping else IDLE_WAIT_S):
                streams.read(fd, window)
        streams.summarize()
    return outcome


MODES = {
    Mode.saturate: saturate,
    Mode.paced: paced,
    Mode.stream: stream,
    Mode.hold: hold,
    Mode.idle: idle,
    Mode.stall: stall,
    Mode.leave: leave,
}


def main() -> None:
    gc.disable()  # a run is short and makes no cycles; a collection would show as delay
    job = msgspec.json.decode(sys.argv[1], type=Job)
    outcome = MODES[job.mode](job)
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()
