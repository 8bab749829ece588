"""Starts and ends the processes of a benchmark: own folder, free loopback port, own core, ready within a deadline."""

import contextlib
import ctypes
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from bellmare.bench.proxy import wire
from bellmare.bench.proxy.jobs import Job, Outcome
from bellmare.bench.proxy.subjects import Place, Subject, profiled

READY_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 2.0
POLL_S = 0.02
STOP_TIMEOUT_S = 10.0
JOB_TIMEOUT_S = 120.0
"""Beyond its window; a job ends by its own deadlines much earlier."""
LOG_TAIL_BYTES = 2000
_PR_SET_PDEATHSIG = 1


class CannotRun(Exception):  # noqa: N818 - of the world, not of ours
    """A process did not come up or did not do its work; the text says which and why."""


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes started within it, and this one, run on ``core``; None changes nothing."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores() -> tuple[int | None, int | None]:
    """The proxy's core, and that of upstream and load; none where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many descriptors as may be; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    """A loopback port that nobody had a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def environment(home: Path) -> dict[str, str]:
    """Nobody's settings and nobody's home: what a proxy keeps goes with the folder."""
    own = ("BELLMARE", "OLLAMA", "MAX_VRAM", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "GOMAXPROCS": "1"}


def _ending_with_us() -> Callable[[], None]:
    """For between fork and exec: the kernel ends the child when we die in whatever way."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible
    us = os.getpid()

    def end_with_us() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != us:
            os._exit(1)  # we died before the line above took effect

    return end_with_us


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to go, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def started_upstream(core: int | None) -> Iterator[int]:
    """The fake Ollama; its port."""
    command = [sys.executable, "-m", "bellmare.bench.proxy.upstream"]
    with on_core(core):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            preexec_fn=_ending_with_us(),  # noqa: PLW1509 - no threads run here, and it only calls prctl
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip():
            raise CannotRun("the upstream did not start")
        yield int(line)
    finally:
        end(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class Running:
    """A proxy that is ready; for the direct way, the upstream itself."""

    def __init__(self, port: int, folder: Path, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.port = port
        self.folder = folder
        self.pid = process.pid if process is not None else 0
        self._process = process

    def stop(self) -> None:
        """End it before its block does, to look at what it leaves."""
        if self._process is not None:
            end(self._process)


@contextlib.contextmanager
def started(subject: Subject, upstream_port: int, *, core: int | None, profile: bool = False) -> Iterator[Running]:
    """The proxy, ready to pass requests on; ended with the block. Raises CannotRun."""
    with tempfile.TemporaryDirectory(prefix=f"bellmare-bench-{subject.name}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if not subject.program:
            yield Running(upstream_port, folder)
            return
        place = Place(folder, port=free_port(), second_port=free_port(), upstream_port=upstream_port)
        command = subject.prepare(subject, place)
        if profile:
            command = profiled(place, command)
        log = folder / "output.log"
        with log.open("wb") as output, on_core(core):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=folder, env=environment(folder), start_new_session=True,
                preexec_fn=_ending_with_us(),  # noqa: PLW1509 - as above
            )  # fmt: skip
        try:
            _await_ready(subject.name, process, place.port, log=log)
            yield Running(place.port, folder, process)
            if process.poll() not in (None, 0):
                raise CannotRun(f"{subject.name} ended with {process.returncode}: {_tail(log)}")
        finally:
            end(process)


def _await_ready(name: str, process: "subprocess.Popen[bytes]", port: int, *, log: Path) -> None:
    """Until a request for every model comes back whole."""
    waiting = list(wire.MODELS)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while waiting:
        if process.poll() is not None:
            raise CannotRun(f"{name} ended with {process.returncode}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise CannotRun(f"{name} was not ready within {READY_TIMEOUT_S:g} s: {_tail(log)}")
        if _answers(port, waiting[-1]):
            waiting.pop()
        else:
            time.sleep(POLL_S)


def _answers(port: int, model: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    message = wire.request(f"127.0.0.1:{port}", model=model, prompt=wire.order(0), stream=False)
    try:
        connection.request("POST", "/api/chat", body=message.partition(b"\r\n\r\n")[2])
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip() or "it said nothing"


def run_job(job: Job, *, core: int | None) -> Outcome:
    """One measurement in a process of its own. Raises CannotRun."""
    command = [sys.executable, "-m", "bellmare.bench.proxy.load", msgspec.json.encode(job).decode()]
    with on_core(core):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=_ending_with_us(),  # noqa: PLW1509 - no threads run here, and it only calls prctl
        )  # fmt: skip
    try:
        output, complaints = process.communicate(timeout=job.window_s + JOB_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"the load generator did not end ({job.mode})") from None
    finally:
        end(process)
    if process.returncode != 0:
        text = complaints.decode("utf-8", "replace").strip()
        raise CannotRun(f"the load generator failed ({job.mode}): {text[-LOG_TAIL_BYTES:]}")
    return msgspec.json.decode(output, type=Outcome)
