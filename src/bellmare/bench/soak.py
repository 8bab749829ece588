"""``python -m bellmare.bench.soak``: minutes or hours of mixed load and faults, and whether anything grows.

A gateway process and simulated workers, each a process of its own, on loopback. Workers are killed and come back, break
off, freeze, refuse and drag; settings are reloaded all the time. Status 1 if a series grows beyond its bound, a request
is unaccounted for, or something is left at the end.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from bellmare.bench.soak_load import SoakLoad
from bellmare.bench.trends import Bound, Trend, judge, picture
from bellmare.http.client import Upstream

MINUTES = 30.0
MINUTES_MAX = 24 * 60.0
USERS, USERS_MAX = 16, 200
WORKERS, WORKERS_MAX = 3, 16
WARM_UP_SHARE = 0.25
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 10.0
FAULT_EVERY_S = 3.0
AWAY_S = 2.0
MODELS = ("llama3.2:3b", "llama3.1:8b", "qwen2.5:7b")
EMBEDDER = "nomic-embed-text:latest"
MIB = 1 << 20
BOUNDS = {
    "resident_bytes": ("B", Bound(absolute=16 * MIB, share=0.10)),
    "open_descriptors": ("", Bound(absolute=10, share=0.25)),
    "tasks": ("", Bound(absolute=5, share=0.25)),
    "event_loop_lag_seconds": ("s", Bound(absolute=0.25, share=1.0)),
    "first_byte_p50_s": ("s", Bound(absolute=0.1, share=1.0)),
    "first_byte_p95_s": ("s", Bound(absolute=0.5, share=1.0)),
}
"""Over the time after the warm-up. Memory: allocators keep what a peak took; a leak of some hundred bytes a request
passes it in half an hour. Times: the machine is shared, so only what doubles is believed."""
LEFT_MAX = 5
"""Descriptors and tasks beyond those before the load: what start-up makes lazily, such as threads and log files."""


class Soak(msgspec.Struct, frozen=True):
    """What is wanted."""

    minutes: float = MINUTES
    users: int = USERS
    workers: int = WORKERS
    speed: float = 20.0
    """How many times faster than a GPU the workers are."""
    seed: int = 0
    faults: bool = True


class Report(msgspec.Struct, frozen=True):
    """What came of it. ``problems``: why it failed; empty if it passed."""

    seconds: float
    requests: int
    left: int
    answered: dict[str, int]
    cut: int
    broken: dict[str, int]
    server: dict[str, int]
    """The gateway's own count, by status."""
    faults: dict[str, int]
    reloads: int
    trends: list[Trend]
    before: dict[str, float]
    after: dict[str, float]
    """Some gauges before the load and after it."""
    problems: list[str]


class _Process:
    """One child of ours, known by its handle only."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], *, cwd: Path) -> None:
        self.log = log
        self._command, self._environment, self._cwd = command, environment, cwd
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [*self._command, *arguments], stdout=output, stderr=output, env=self._environment, cwd=self._cwd
            )

    def tell(self, number: int) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> int:
        """Signal it and wait; its status."""
        child, self._child = self._child, None
        if child is None:
            return 0
        if child.poll() is None:
            child.send_signal(number)
        try:
            return child.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its log."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while (found := re.search(pattern, await asyncio.to_thread(self.log.read_text))) is None:
                if not self.alive:
                    raise RuntimeError(f"{self._command[-1]} ended: {self.log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)
            return found


class Stand:
    """Gateway and workers in one folder."""

    def __init__(self, wanted: Soak, folder: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BELLMARE", "OLLAMA", "MAX_VRAM", "LISTEN_"))}
        self.environment = {**kept, "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
        self.wanted = wanted
        self.folder = folder
        program = [sys.executable, "-m", "bellmare"]
        sim = [*program, "worker", "sim", "--speed", str(wanted.speed), "--parallel", "4", "--vram", "24GB"]
        self.workers = [self._process(sim, f"worker-{n}") for n in range(wanted.workers)]
        self.gateway = self._process([*program, "serve", "--quiet"], "gateway")
        self.ports = [0] * wanted.workers
        self.port = self.admin_port = 0
        self._reloads = 0

    def _process(self, command: list[str], name: str) -> _Process:
        return _Process(command, self.folder / f"{name}.log", self.environment, cwd=self.folder)

    async def start(self) -> None:
        for number, worker in enumerate(self.workers):
            worker.start("--port", "0")
            self.ports[number] = int((await worker.says(r"simulated Ollama on http://127\.0\.0\.1:(\d+)"))[1])
        self.write_settings()
        self.gateway.start()
        found = await self.gateway.says(r'"gateway":"127\.0\.0\.1:(\d+)","admin_port":(\d+)')
        self.port, self.admin_port = int(found[1]), int(found[2])

    def write_settings(self) -> None:
        """Another file each time; whole or not at all."""
        self._reloads += 1
        settings = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "log": {"level": "warning" if self._reloads > 1 else "info"},
            "queue": {"per_model": 500 + self._reloads % 2},
            "tenants": {"127.0.0.1": {"weight": 1 + self._reloads % 2}},
            "record": {"file": "4MiB", "keep": 2},
            "limits": {"first_token_timeout": "15s", "token_timeout": "15s", "load_timeout": "30s"},
            "workers": [
                {"url": f"http://127.0.0.1:{port}", "name": f"w{number}", "parallel": 4}
                for number, port in enumerate(self.ports)
            ],
        }
        draft = self.folder / "draft"
        draft.write_bytes(msgspec.json.encode(settings))
        draft.replace(self.folder / "bellmare.yaml")

    def close(self) -> int:
        """End all; the gateway's status."""
        status = self.gateway.end(signal.SIGTERM)
        for worker in self.workers:
            worker.end()
        return status


class Faults:
    """What goes wrong, one thing at a time, at random moments; every worker is well again in between."""

    def __init__(self, stand: Stand, rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._stand = stand
        self._rng = rng

    async def run(self) -> None:
        """Until cancelled."""
        actions = {
            "kill": self._kill, "break_off": self._break_off, "refuse": self._refuse, "freeze": self._freeze,
            "slow": self._slow, "reload": self._reload, "reload_storm": self._storm,
        }  # fmt: skip
        while True:
            await asyncio.sleep(FAULT_EVERY_S * (0.5 + self._rng.random()))
            name = self._rng.choice(list(actions))
            await actions[name](self._rng.randrange(len(self._stand.workers)))
            self.done[name] += 1

    async def _tell(self, number: int, fault: dict[str, object]) -> None:
        upstream = Upstream("127.0.0.1", self._stand.ports[number])
        try:
            body = msgspec.json.encode(fault)
            answer = await upstream.fetch("POST", "/sim/fault", body=body, timeout_s=ASK_TIMEOUT_S)
            assert answer.status < 300, (fault, answer)
        finally:
            await upstream.close()

    async def _kill(self, number: int) -> None:
        worker = self._stand.workers[number]
        await asyncio.to_thread(worker.end)
        await asyncio.sleep(AWAY_S * self._rng.random())
        worker.start("--port", str(self._stand.ports[number]))
        await asyncio.sleep(AWAY_S)

    async def _break_off(self, number: int) -> None:
        await self._tell(number, {"kind": "error_after", "tokens": self._rng.randrange(50), "count": 5})

    async def _refuse(self, number: int) -> None:
        await self._tell(number, {"kind": "refuse", "count": 5})

    async def _freeze(self, number: int) -> None:
        """It hangs until somebody kills it: what it has in hand it would never answer."""
        await self._tell(number, {"kind": "freeze"})
        await asyncio.sleep(AWAY_S * self._rng.random())
        await self._kill(number)

    async def _slow(self, number: int) -> None:
        await self._tell(number, {"kind": "slow", "percent": 1_000})
        await asyncio.sleep(AWAY_S)
        await self._tell(number, {"kind": "clear"})

    async def _reload(self, _number: int) -> None:
        self._stand.write_settings()
        self._stand.gateway.tell(signal.SIGHUP)

    async def _storm(self, number: int) -> None:
        for _ in range(20):
            await self._reload(number)


class Sampler:
    """Scrapes the gateway and remembers the series that are judged."""

    def __init__(self, stand: Stand) -> None:
        self.series: dict[str, list[tuple[float, float]]] = {name: [] for name in BOUNDS}
        self.latest: dict[str, float] = {}
        self._upstream = Upstream("127.0.0.1", stand.admin_port)

    async def scrape(self) -> dict[str, float]:
        """All samples of this moment by their whole name."""
        answer = await self._upstream.fetch("GET", "/metrics", timeout_s=ASK_TIMEOUT_S)
        found = re.findall(r"^bellmare_(\S+) (\S+)$", answer.body.decode(), re.MULTILINE)
        self.latest = {name: float(value) for name, value in found}
        return self.latest

    async def run(self, load: SoakLoad, *, every_s: float) -> None:
        """Until cancelled."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            seen = await self.scrape()
            at_s = time.monotonic() - began
            p50, p95 = (load_window := load.window()).quantiles(0.5, 0.95)
            values = {**seen, "first_byte_p50_s": p50, "first_byte_p95_s": p95}
            for name, points in self.series.items():
                if name in values and (load_window.count or not name.startswith("first_byte")):
                    points.append((at_s, values[name]))

    async def close(self) -> None:
        await self._upstream.close()


def by_status(seen: dict[str, float]) -> dict[str, int]:
    """The gateway's count of ended requests."""
    found: Counter[str] = Counter()
    for name, value in seen.items():
        if match := re.fullmatch(r'requests_total\{.*status="(\d+)".*\}', name):
            found[match[1]] += int(value)
    return dict(sorted(found.items()))


GAUGES = ("tasks", "open_descriptors", "client_connections", "worker_connections", "requests_in_system")


def held(seen: dict[str, float]) -> dict[str, float]:
    """What a gateway at rest holds, connections apart: those to workers are kept for the next request."""
    gauges = {name: seen[name] for name in GAUGES}
    gauges["own_descriptors"] = gauges["open_descriptors"] - gauges["client_connections"] - gauges["worker_connections"]
    return gauges


async def at_rest(sampler: Sampler) -> dict[str, float]:
    """Wait until nothing runs, and what is held then."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        seen = held(await sampler.scrape())
        if (not seen["requests_in_system"] and not seen["client_connections"]) or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(0.2)


async def soak(wanted: Soak, folder: Path) -> tuple[Report, str]:
    """One run; the report and its picture."""
    stand = Stand(wanted, folder)
    sampler: Sampler | None = None
    try:
        await stand.start()
        sampler = Sampler(stand)
        before = await at_rest(sampler)
        load = SoakLoad(stand.port, users=wanted.users, models=MODELS, embedder=EMBEDDER, seed=wanted.seed)
        faults = Faults(stand, random.Random(f"faults {wanted.seed}"))  # noqa: S311 - draws, no secrets
        seconds = wanted.minutes * 60
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(sampler.run(load, every_s=max(0.5, min(5.0, seconds / 120))), name="sampler")
            asking = group.create_task(load.run(), name="load")
            breaking = group.create_task(faults.run(), name="faults") if wanted.faults else None
            await asyncio.sleep(seconds)
            for task in (breaking, sampling):
                if task is not None:
                    task.cancel()
            load.stop()
            await asyncio.wait([asking], timeout=2 * END_TIMEOUT_S)
            asking.cancel()
        after = await at_rest(sampler)
        return _report(wanted, load, faults, sampler=sampler, gauges=(before, after))
    finally:
        if sampler is not None:
            await sampler.close()
        status = await asyncio.to_thread(stand.close)
        if status not in (0, -signal.SIGKILL):
            sys.stderr.write(f"the gateway ended with status {status}\n")


def _report(
    wanted: Soak,
    load: SoakLoad,
    faults: Faults,
    *,
    sampler: Sampler,
    gauges: tuple[dict[str, float], dict[str, float]],
) -> tuple[Report, str]:
    warm_up_s = WARM_UP_SHARE * wanted.minutes * 60
    trends = [
        judge(name, unit, points=[point for point in sampler.series[name] if point[0] >= warm_up_s], bound=bound)
        for name, (unit, bound) in BOUNDS.items()
    ]
    server, books = by_status(sampler.latest), load.books
    before, after = gauges
    report = Report(
        seconds=round(wanted.minutes * 60, 1),
        requests=books.sent,
        left=books.left,
        answered=dict(sorted(books.answered.items())),
        cut=books.cut,
        broken=dict(sorted(books.broken.items())),
        server=server,
        faults=dict(sorted(faults.done.items())),
        reloads=int(sampler.latest.get('config_reloads_total{outcome="applied"}', 0)),
        trends=trends,
        before=before,
        after=after,
        problems=[
            *(f"{trend.name} grows by {trend.drift:g} {trend.unit}" for trend in trends if trend.grows),
            *accounting(load, server),
            *leftovers(before, after),
            *books.problems,
        ],
    )
    return report, picture(sampler.series, trends, warm_up_s=warm_up_s)


def accounting(load: SoakLoad, server: dict[str, int]) -> list[str]:
    """Where the clients' books and the gateway's differ by more than who left may explain, in words.

    Whoever leaves may be in the gateway's books under any status, or in none: its request may never have come through.
    """
    books, found = load.books, []
    if load.in_flight or books.ended != books.sent:
        found.append(f"{books.sent} sent, {books.ended} ended, {load.in_flight} in flight")
    if books.broken or books.wrong:
        found.append(f"{books.broken.total()} broken, {books.wrong} without a right end")
    total = sum(server.values())
    if not books.sent - books.left - books.broken.total() <= total <= books.sent:
        found.append(f"the gateway counts {total} requests; {books.sent} were sent, of which {books.left} left")
    spare = books.left + books.broken.total()
    for status in sorted({*books.answered, *server} - {"499"}):
        told, counted = books.answered[status], server.get(status, 0)
        if not told <= counted <= told + spare:
            found.append(f"status {status}: the gateway counts {counted}, clients were told {told}")
    return found


def leftovers(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What is left of the load once it is over."""
    busy = [name for name in ("requests_in_system", "client_connections") if after[name]]
    more = [name for name in ("tasks", "own_descriptors") if after[name] > before[name] + LEFT_MAX]
    return [
        *(f"{name} is {after[name]:g} at rest" for name in busy),
        *(f"{name}: {before[name]:g} before the load, {after[name]:g} after it" for name in more),
    ]


def table(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.seconds:.0f} s, {report.requests} requests: answered {report.answered}, left {report.left}, "
        f"ended with an error in words {report.cut}, broken {report.broken}",
        f"the gateway's count: {report.server}; reloads {report.reloads}; faults {report.faults}",
        "",
        f"{'series':<24}{'median':>14}{'per hour':>14}{'drift':>12}{'at most':>12}{'certainty':>11}",
    ]
    lines += [
        f"{one.name:<24}{one.median:>14.6g}{one.slope_per_hour:>14.6g}{one.drift:>12.5g}{one.drift_max:>12.5g}"
        f"{one.certainty:>11.1f}{'  GROWS' if one.grows else ''}"
        for one in report.trends
    ]
    lines += ["", "at rest   " + ", ".join(f"{k} {report.before[k]:g} -> {report.after[k]:g}" for k in report.before)]
    lines += [f"problem: {problem}" for problem in report.problems]
    return "\n".join([*lines, "FAILED" if report.problems else "passed"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bellmare.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"default {MINUTES:g}")
    parser.add_argument(
        "--users", type=int, default=USERS, help=f"clients, one request at a time each; default {USERS}"
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"default {WORKERS}")
    parser.add_argument("--speed", type=float, default=20.0, help="of the simulated GPUs; default 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true", help="load and nothing else")
    parser.add_argument("--output", type=Path, help="folder for soak.json, soak.svg and the processes' logs")
    given = parser.parse_args(arguments)
    bounds = {"minutes": MINUTES_MAX, "users": USERS_MAX, "workers": WORKERS_MAX}
    for name, most in bounds.items():
        if not 0 < getattr(given, name) <= most:
            parser.error(f"--{name}: more than 0, at most {most:g}")
    wanted = Soak(given.minutes, given.users, given.workers, given.speed, given.seed, not given.no_faults)
    with tempfile.TemporaryDirectory(prefix="bellmare-soak-") as spare:
        folder = given.output if given.output is not None else Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        report, svg = asyncio.run(soak(wanted, folder.resolve()))
        (folder / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (folder / "soak.svg").write_text(svg, encoding="utf-8")
    print(table(report))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
