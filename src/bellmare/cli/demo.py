"""``bellmare demo``: the real gateway in front of simulated GPUs under made-up traffic, as a live table or as lines.

Everything runs in this process and on loopback; nothing is computed, and nothing kept unless asked for. The end says
what happened and, by the simulated Ollamas' own counters, whether any of them ever had to evict or queue by itself.
"""

import asyncio
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOBase
from pathlib import Path
from typing import Any, cast

import msgspec

from bellmare.admin.views import runner_rows, worker_rows
from bellmare.bench.load import USERS_MAX, Latency, Traffic, TrafficConfig
from bellmare.cli.demo_story import Chronicle, doing, span, waiting_rows
from bellmare.cli.demo_table import SHARES, DemoTable, Frame, OwnDoings, clock, curl, percent
from bellmare.cli.service import Service
from bellmare.http.client import UpstreamError
from bellmare.observability.logs import open_logs
from bellmare.settings import load_settings
from bellmare.settings.model import ADMIN_PORT, GATEWAY_PORT
from bellmare.workers.sim.world import DEFAULT_MODELS

DEFAULT_CLIENTS = 24
DEFAULT_SPEED = 10.0
SPEED_MAX = 10_000.0
"""A load then takes less than a millisecond: only good for tests."""
GPUS = 3
VRAM_GB = 24
PARALLEL = 4
DRAIN_AFTER_S = 5.0
"""The gateway's own default; divided by the speed, as all that waits for the simulated world."""
THINK_S = 5.5
"""A client's mean pause in the simulated world."""
RAMP_S = 60.0
"""Clients begin one after another within so long, in the simulated world."""
SESSION_REQUESTS = 30
SKEW = 1.5
"""With these a handful of models stays, the others come and go once or twice a second: enough to watch, not a blur."""
OUTPUT_TOKENS = 120
FRAMES_PER_S = 4
LAST_PICTURE_S = 1.0
"""At the end the terminal may take so long to take its last picture."""
LINE_EVERY_S = 5.0
COUNTERS_EVERY_S = 1.0
COUNTERS_TIMEOUT_S = 5.0
NOTES_MAX = 10
"""Warnings of the gateway remembered for the end."""
END_GRACE_S = 3.0
"""What is under way at the end may take so long."""
RECORD = {"file": "16MiB", "keep": 4}
"""The event log's bound on disk, however long the demo runs."""
INTERRUPTED = 130
"""Exit status, as of a shell, of a demo that was killed by a second Ctrl-C or before it had begun."""


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    seconds: float | None
    clients: int
    speed: float
    json_output: bool
    port: int
    admin_port: int
    keep_log: bool

    def check(self) -> None:
        """Raise ValueError for what is out of bounds."""
        if not 1 <= self.clients <= USERS_MAX:
            raise ValueError(f"{self.clients} clients; 1 to {USERS_MAX} are allowed")
        if not 0.01 <= self.speed <= SPEED_MAX:
            raise ValueError(f"speed {self.speed:g}; 0.01 to {SPEED_MAX:g} is allowed")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"{self.seconds:g} seconds; more than 0 are needed")


class Summary(msgspec.Struct, frozen=True):
    """The end of a demo; with ``--json`` the last line of standard output."""

    ok: bool
    seconds: float
    speed: float
    workers: int
    clients: int
    completed: int
    refused: int
    failed: int
    cut_off: int
    """Under way when the demo ended."""
    served: dict[str, int]
    """Completed requests by cache state: hit, queued, cold."""
    first_token: Latency
    first_token_by_cache: dict[str, Latency]
    output_tokens: int
    loads: int
    loads_failed: int
    evictions: int
    own: OwnDoings
    problems: list[str]
    event_log: str | None
    """Folder for ``bellmare replay``; null if it was not kept."""

    @property
    def requests(self) -> int:
        return self.completed + self.refused + self.failed


class Notes(TextIOBase):
    """Takes the gateway's own warnings, which must not tear the table; the last few are shown at the end."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=NOTES_MAX)

    def write(self, text: str) -> int:
        self.lines.extend(text.splitlines())
        return len(text)


class Demo:
    """The gateway under made-up traffic, and what is said of them."""

    def __init__(self, options: Options, service: Service) -> None:
        self.options = options
        self.service = service
        self.own = OwnDoings()
        self._fleet = service.driver.engine.fleet
        self._began_us = service.clock.now_us()
        self._chronicle = Chronicle(self._fleet, began_us=self._began_us)
        service.driver.watch(self._chronicle.step)
        self.traffic = Traffic(
            f"http://127.0.0.1:{service.port}",
            TrafficConfig(
                models=tuple(model.name for model in DEFAULT_MODELS),
                embedding_models=tuple(model.name for model in DEFAULT_MODELS if model.embedding),
                users=options.clients,
                think_s=THINK_S / options.speed,
                ramp_s=RAMP_S / options.speed,
                session_requests=SESSION_REQUESTS,
                skew=SKEW,
                output_tokens=OUTPUT_TOKENS,
                request_timeout_s=300.0,
                retries_max=3,
            ),
        )

    async def run(self, show: Callable[["Demo"], Any]) -> None:
        """Send traffic until its time is over or ``traffic.stop``, while ``show`` says how it goes."""
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(show(self)), group.create_task(self._watch_counters())]
            await self.traffic.run(seconds=self.options.seconds, grace_s=END_GRACE_S)
            for task in beside:
                task.cancel()
        await self._read_counters()

    async def _watch_counters(self) -> None:
        while True:
            await asyncio.sleep(COUNTERS_EVERY_S)
            await self._read_counters()

    async def _read_counters(self) -> None:
        """Ask each simulated Ollama what it had to do by itself."""
        found = []
        for port in self.service.fleet.ports.values():
            try:
                answer = await port.upstream.fetch("GET", "/api/bellmare", timeout_s=COUNTERS_TIMEOUT_S)
            except UpstreamError:
                return  # the next second asks again; the fleet itself shows a worker that is away
            found.append(msgspec.json.decode(answer.body)["counters"])
        self.own = OwnDoings(
            evictions=sum(counters["own_evictions"] for counters in found),
            reloads=sum(counters["reloads"] for counters in found),
            queued=sum(counters["queued_total"] for counters in found),
            rejected=sum(counters["rejected_503"] for counters in found),
            overcommits=sum(counters["vram_overcommits"] for counters in found),
        )

    def count(self, *beginnings: str) -> int:
        """Sum of the core's counters that begin so."""
        return sum(number for name, number in self._fleet.state.counters.items() if name.startswith(beginnings))

    def frame(self) -> Frame:
        """A picture of this instant."""
        fleet, service = self._fleet, self.service
        now_us = service.clock.now_us()
        return Frame(
            elapsed_s=(now_us - self._began_us) / 1e6,
            speed=self.options.speed,
            gateway=f"127.0.0.1:{service.port}",
            admin=f"127.0.0.1:{service.admin_port}",
            model=self.traffic.config.models[0],
            workers=worker_rows(fleet, addresses={}, joining=service.fleet.joining),
            doing={name: doing(fleet, worker, now_us=now_us) for name, worker in fleet.state.workers.items()},
            runners=runner_rows(fleet),
            waiting=waiting_rows(fleet),
            told=[msgspec.structs.replace(told) for told in self._chronicle.told],
            traffic=self.traffic.report(),
            loads=self.count("load_demand", "load_replica", "load_operator"),
            evictions=self.count("unload_room", "unload_replica"),
            refused=self.count("refused_"),
            own=self.own,
        )

    def summary(self, *, event_log: str | None, notes: list[str]) -> Summary:
        traffic = self.traffic.report()
        loads_failed = self.count("load_failed")
        return Summary(
            ok=not (traffic.failed or loads_failed or self.own.total),
            seconds=traffic.seconds,
            speed=self.options.speed,
            workers=len(self._fleet.state.workers),
            clients=self.options.clients,
            completed=traffic.completed,
            refused=traffic.refused,
            failed=traffic.failed,
            cut_off=traffic.cut,
            served={state: traffic.by_cache.get(state, 0) for state in SHARES},
            first_token=traffic.first_token,
            first_token_by_cache=traffic.first_token_by_cache,
            output_tokens=traffic.output_tokens,
            loads=self.count("load_demand", "load_replica", "load_operator"),
            loads_failed=loads_failed,
            evictions=self.count("unload_room", "unload_replica"),
            own=self.own,
            problems=[*traffic.problems, *notes],
            event_log=event_log,
        )


# ---------------------------------------------------------------------- what people see


async def show_table(demo: Demo) -> None:
    """The live table; drawn in a thread, so that a terminal that is held (Ctrl-S) does not hold the gateway."""
    from rich.live import Live

    loop = asyncio.get_running_loop()
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            drawn = loop.run_in_executor(None, partial(live.update, DemoTable(demo.frame()), refresh=True))
            try:
                await asyncio.shield(drawn)
            finally:  # a picture drawn after the screen was given back would be left standing there
                await asyncio.wait([drawn], timeout=LAST_PICTURE_S)
            await asyncio.sleep(1 / FRAMES_PER_S)


async def show_lines(demo: Demo) -> None:
    """A line every few seconds on standard error."""
    frame = demo.frame()
    print(f"simulated GPUs, {frame.speed:g}x real speed; gateway http://{frame.gateway}", file=sys.stderr)
    print(f"try: {curl(frame.gateway, frame.model)}", file=sys.stderr)
    while True:
        await asyncio.sleep(LINE_EVERY_S)
        print(progress(demo.frame()), file=sys.stderr, flush=True)


def progress(frame: Frame) -> str:
    traffic = frame.traffic
    hits = percent(traffic.by_cache.get("hit", 0), sum(traffic.by_cache.values()))
    return (
        f"{clock(frame.elapsed_s)} {traffic.completed} answered, {hits} at once; {traffic.in_flight} under way, "
        f"{sum(row.count for row in frame.waiting)} wait; {frame.loads} loads, {frame.evictions} evictions; "
        f"{frame.refused} refused, {traffic.failed} failed"
    )


def summary_lines(summary: Summary) -> Iterator[str]:
    """The end, for people."""
    yield (
        f"bellmare demo: {summary.seconds:.0f} s, {summary.workers} simulated GPUs of {VRAM_GB} GB, "
        f"{summary.clients} clients, {summary.speed:g}x real speed"
    )
    more = "".join(
        f", {number} {word}" for number, word in ((summary.refused, "refused"), (summary.cut_off, "cut off at the end"))
    )
    yield f"  requests       {summary.completed:,} answered, {summary.failed} failed{more}"
    whole = sum(summary.served.values())
    yield "  served         " + ", ".join(
        f"{percent(summary.served[state], whole)} {words}" for state, (words, _) in SHARES.items()
    )
    for state, (words, _) in SHARES.items():
        latency = summary.first_token_by_cache[state]
        if latency.count:
            yield f"  first token    p50 {span(latency.p50_ms)}, p95 {span(latency.p95_ms)} ({words})"
    yield f"  models         {summary.loads} loads, {summary.evictions} evictions, all by bellmare's decision"
    own = summary.own
    verdict = "as it should be" if not own.total else "it should be none"
    yield (
        f"  Ollama itself  {own.evictions} evictions, {own.queued} queued, {own.reloads} reloads, "
        f"{own.rejected} refused: {verdict}"
    )
    if summary.event_log is not None:
        yield f"  event log      {summary.event_log}; try: bellmare replay {summary.event_log}"
    else:
        yield "  event log      deleted; --keep-log keeps it for bellmare replay"
    for problem in summary.problems:
        yield f"  problem        {problem}"


# ---------------------------------------------------------------------- one run


def run_demo(  # tidy: one parameter for each flag of the command
    *,
    seconds: float | None,
    clients: int = DEFAULT_CLIENTS,
    speed: float = DEFAULT_SPEED,
    json_output: bool = False,
    port: int = GATEWAY_PORT,
    admin_port: int = ADMIN_PORT,
    keep_log: bool = False,
) -> int:
    """Run until ``seconds`` are over (None: until Ctrl-C); the exit status: 0 if nothing failed.

    Port 0 is any free one; so is a default port that is taken. 1: something failed; 2: it could not begin.
    """
    options = Options(seconds, clients, speed, json_output, port, admin_port, keep_log)
    try:
        options.check()
        options = msgspec.structs.replace(
            options,
            port=_free(port, default=GATEWAY_PORT),
            admin_port=_free(admin_port, default=ADMIN_PORT),
        )
    except (ValueError, OSError) as error:
        print(f"bellmare demo: {error}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="bellmare-demo-"))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            summary = runner.run(_run(options, folder))
    except asyncio.CancelledError:
        return INTERRUPTED
    except OSError as error:  # a port that was taken meanwhile, a full disk
        print(f"bellmare demo: {error}", file=sys.stderr)
        return 2
    finally:
        if not keep_log:
            shutil.rmtree(folder, ignore_errors=True)
    if json_output:
        print(msgspec.json.encode(summary).decode(), flush=True)
    else:
        print("\n".join(summary_lines(summary)), flush=True)
    return 0 if summary.ok else 1


def _free(port: int, *, default: int) -> int:
    """``port``, or 0 if it is the default and taken. Raises OSError if it is another and taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if port == default:
                return 0
            raise OSError(f"127.0.0.1:{port} cannot be listened on: {error.strerror}") from error
    return port


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


LOG = "events"
"""Below the demo's own folder, since what was learned is kept beside the log: it must be deleted too."""


async def _run(options: Options, folder: Path) -> Summary:
    speed = options.speed
    sim = {"vram": f"{VRAM_GB}GB", "parallel": PARALLEL, "speed": speed}
    settings = load_settings(
        None,
        environment={},
        overrides={
            "listen": f"127.0.0.1:{options.port}",
            "admin": f"127.0.0.1:{options.admin_port}",
            "record": {"path": str(folder / LOG), **RECORD},
            "drain_after": f"{round(1000 * DRAIN_AFTER_S / speed)}ms",
            "workers": [{"name": f"gpu-{number}", "sim": sim} for number in range(GPUS)],
        },
    )
    notes = Notes()
    logs = open_logs(level="warning", line_format="text", stream=cast("Any", notes))
    service = Service(settings, logs)
    try:
        with _signals() as stoppable:
            await service.start()
            demo = Demo(options, service)
            stoppable.append(demo.traffic.stop)
            await demo.run(show_table if _live(options) else show_lines)
    finally:
        await service.close(grace_s=1.0)
        logs.close()
    return demo.summary(event_log=str(folder / LOG) if options.keep_log else None, notes=list(notes.lines))


def _live(options: Options) -> bool:
    """Whether a table can be drawn: on a terminal that can move its cursor."""
    from rich.console import Console

    return not options.json_output and sys.stdout.isatty() and not Console().is_dumb_terminal


@contextmanager
def _signals() -> Iterator[list[Callable[[], None]]]:
    """While it lasts, the first SIGINT or SIGTERM calls what stands in the list; the next, or an early one, cancels."""
    main = asyncio.current_task()
    assert main is not None
    stoppable: list[Callable[[], None]] = []

    def stop() -> None:
        if stoppable:
            stoppable.pop()()
        else:
            main.cancel()

    loop = asyncio.get_running_loop()
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop)
        except (NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            break
        caught.append(number)
    try:
        yield stoppable
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
