"""Modes of the load generator that hold connections instead of hurrying: memory, stalled readers, leaving clients."""

import time
from typing import Any, cast

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.client import DRAIN_TIMEOUT_S, Answers, Clients, StreamCheck, clients, control, receive
from bellmare.bench.proxy.jobs import Job, Outcome
from bellmare.bench.proxy.processes import memory_bytes

AT_ONCE = 64
"""Requests under way while connections are opened: a burst of thousands would measure the backlog."""
SEEN_CHUNKS = 2
"""A client leaves when it has read so many."""
LEAVE_TIMEOUT_S = 3.0
POLL_S = 0.02
SETTLE_S = 0.3


class _Memory:
    """The proxy's memory before and after."""

    def __init__(self, job: Job) -> None:
        self._pid = job.pid
        self._before = memory_bytes(job.pid) if job.pid else 0

    def growth(self) -> int:
        return memory_bytes(self._pid) - self._before if self._pid else 0


def _open_until_first(opened: Clients, outcome: Outcome, *, orders: list[str]) -> dict[int, StreamCheck]:
    """One stream for each order, all open, each with its first chunk read; at most ``AT_ONCE`` in between."""
    checks: dict[int, StreamCheck] = {}
    starting: set[int] = set()
    begun = 0
    deadline = time.monotonic() + DRAIN_TIMEOUT_S + len(orders) / 200
    while begun < len(orders) or starting:
        if time.monotonic() > deadline:
            outcome.fail(f"{len(starting)} streams did not begin")
            break
        while begun < len(orders) and len(starting) < AT_ONCE:
            fd = opened.open()
            checks[fd] = StreamCheck(wire.ENDLESS)
            starting.add(fd)
            opened.sockets[fd].send(opened.request(begun, prompt=orders[begun], stream=True))
            begun += 1
        for fd, _ in opened.ready(POLL_S):
            if not _read(opened, outcome, checks, fd=fd) or checks[fd].number:
                starting.discard(fd)
    return checks


def _read(opened: Clients, outcome: Outcome, checks: dict[int, StreamCheck], *, fd: int) -> bool:
    """Whether the stream goes on; one that does not is an error and leaves ``checks``."""
    data = receive(opened.sockets[fd])
    check = checks[fd]
    if data:
        check.feed(data)
    if data and not check.problem:
        return True
    outcome.fail(check.problem or "connection closed")
    opened.epoll.unregister(fd)
    del checks[fd]
    return False


def hold(job: Job) -> Outcome:
    """Memory with ``connections`` slow streams open."""
    outcome = Outcome()
    with clients(job, outcome) as opened:
        memory = _Memory(job)
        orders = [wire.order(wire.ENDLESS, job.interval_us, number) for number in range(job.connections)]
        checks = _open_until_first(opened, outcome, orders=orders)
        end = time.monotonic() + job.window_s
        while time.monotonic() < end:
            for fd, _ in opened.ready(POLL_S):
                _read(opened, outcome, checks, fd=fd)
        outcome.memory_bytes = memory.growth()
        outcome.held = len(checks)
        outcome.served = outcome.held
        outcome.chunks = sum(check.number for check in checks.values())
    return outcome


def idle(job: Job) -> Outcome:
    """Memory with ``connections`` idle connections, each of which has done a request that no model answers."""
    outcome = Outcome()
    with clients(job, outcome) as opened:
        memory = _Memory(job)
        message = wire.get(opened.address, "/api/version")
        answers = Answers(opened.sockets, outcome)
        opened_count = 0
        waiting: set[int] = set()
        deadline = time.monotonic() + DRAIN_TIMEOUT_S + job.connections / 500
        while opened_count < job.connections or waiting:
            if time.monotonic() > deadline:
                outcome.fail(f"{len(waiting)} requests without an answer")
                break
            while opened_count < job.connections and len(waiting) < AT_ONCE:
                fd = opened.open()
                opened_count += 1
                waiting.add(fd)
                opened.sockets[fd].send(message)
            for fd, _ in opened.ready(POLL_S):
                complete = answers.read(fd)
                if complete is None:
                    opened.epoll.unregister(fd)
                if complete is not False:
                    waiting.discard(fd)
        time.sleep(SETTLE_S)
        outcome.memory_bytes = memory.growth()
        outcome.held = outcome.served
    return outcome


def stall(job: Job) -> Outcome:
    """Memory with ``connections`` clients that ask for floods and read nothing, after the window."""
    outcome = Outcome()
    with clients(job, outcome) as opened:
        memory = _Memory(job)
        for number in range(job.connections):
            fd = opened.open()
            opened.epoll.unregister(fd)
            order = wire.order(wire.ENDLESS, 0, number)
            opened.sockets[fd].send(opened.request(number, prompt=order, stream=True))
        time.sleep(job.window_s)
        outcome.memory_bytes = memory.growth()
        outcome.held = cast(int, control(job.upstream_port)["streams"])
        outcome.served = outcome.held
        if outcome.held != job.connections:
            outcome.fail(f"{outcome.held} of {job.connections} streams stood")
    return outcome


def leave(job: Job) -> Outcome:
    """All clients break off in the middle; how long until the upstream notices each."""
    outcome = Outcome()
    control(job.upstream_port)  # forget who left earlier
    with clients(job, outcome) as opened:
        orders = [wire.order(wire.ENDLESS, job.interval_us, number) for number in range(job.connections)]
        checks = _open_until_first(opened, outcome, orders=orders)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while any(check.number < SEEN_CHUNKS for check in checks.values()) and time.monotonic() < deadline:
            for fd, _ in opened.ready(POLL_S):
                _read(opened, outcome, checks, fd=fd)
        numbers = {fd: number for number, fd in enumerate(opened.sockets)}
        left_ns: dict[int, int] = {}
        for fd in checks:
            left_ns[numbers[fd]] = time.monotonic_ns()
            opened.sockets.pop(fd).close()
        until = time.monotonic() + LEAVE_TIMEOUT_S
        gone: dict[int, int] = {}
        while not left_ns.keys() <= gone.keys() and time.monotonic() < until:
            time.sleep(POLL_S)
            report: Any = control(job.upstream_port)
            gone.update(dict(report["gone"]))
        outcome.held = len(left_ns)
        outcome.left_ms = sorted((gone[number] - when) / 1e6 for number, when in left_ns.items() if number in gone)
        outcome.served = len(outcome.left_ms)
        if outcome.served < outcome.held:
            outcome.fail(f"{outcome.held - outcome.served} upstream streams were never left")
    return outcome
