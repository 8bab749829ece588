"""Live parity: what a gateway decided, whatever happened to it, a fresh core decides again from its log."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import Gateway, Process, Talk, at_most, begin, replayed, until

from bellmare.core.decisions import Load, LoadCause
from bellmare.core.events import LoadRequested, UnloadRequested
from bellmare.core.units import WorkerId
from bellmare.workers.sim import Fault

CLIENTS = 8
MODELS = ("a:1", "b:1", "c:1", "e:1")
SERVED = {200, 429, 503, 504}
"""What a client may get while queues are short and a worker dies; anything else is a bug."""


class Traffic:
    """Clients of several tenants and priorities, who also say and show what they will ask for next."""

    def __init__(self, running: Gateway) -> None:
        self.running = running
        self.statuses: Counter[int] = Counter()
        self.on = True
        self._rng = random.Random(11)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(f"Bearer key-{number % 4}"))

    async def goes_on(self, requests: int) -> None:
        goal = self.statuses.total() + requests
        await until(lambda: self.statuses.total() >= goal, f"{requests} more answers")

    async def _client(self, key: str) -> None:
        while self.on:
            name, following = self._rng.choice(MODELS), self._rng.choice(MODELS)
            headers = {"authorization": key, "x-bellmare-priority": self._rng.choice(("high", "normal", "low"))}
            match self._rng.randrange(8):
                case 0:
                    await self.running.post("/api/prepare", {"model": following, "in_ms": 50}, **headers)
                case 1:
                    await self.running.ask("GET", "/api/tags", **headers)
                case 2:
                    await self.running.post("/api/show", {"model": name}, **headers)
                case 3:
                    headers["x-bellmare-next"] = f"{following};in_ms=20"
            if name == "e:1":
                reply = await self.running.post("/api/embed", {"model": name, "input": "x"}, **headers)
            else:
                body = {"model": name, "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 15}}
                reply = await self.running.post("/api/chat", body, **headers)
            self.statuses[reply.status] += 1


async def leave_in_each_phase(running: Gateway, worker: Any) -> None:
    """On the one worker that is left: clients go away while they wait for a slot, for a load, for the first token, and
    in mid-stream; and one waits until its deadline."""
    assert (await running.chat("a:1")).status == 200
    holders: list[Talk] = []
    for _ in range(4):
        holders.append(await running.open_chat("a:1", options={"num_predict": 50_000}))
        assert await holders[-1].head() == 200
    queued = await running.open_chat("a:1")
    await until(lambda: running.state.waiting == 1, "it waits for a slot")
    queued.leave()
    await until(lambda: running.state.waiting == 0, "its place is free")
    assert (await running.chat("a:1")).status == 504
    for talk in holders:
        assert await talk.line()
        talk.leave()
    await running.settled()

    absent = next(name for name in ("a:1", "b:1", "c:1") if name not in held(running, "w1"))
    cold = await running.open_chat(absent)
    await until(lambda: absent in held(running, "w1"), "its load")
    cold.leave()
    await running.settled()
    assert (await running.chat(absent)).status == 200

    worker.faults.set(Fault("slow", percent=30_000))
    silent = await running.open_chat(absent, messages=[{"role": "user", "content": "hello " * 300}])
    await until(lambda: worker.busy() == 1, "the prefill")
    worker.faults.set(Fault("clear"))
    silent.leave()
    await running.settled()


async def loads_ahead(running: Gateway, joins: Callable[[], Process]) -> Process:
    """One load by the forecast alone and one by a hint alone: three models are in use, each by a client of its own, on
    a worker that holds two; another one comes back."""
    for name in ("a:1", "b:1", "c:1") * 3:
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "stream": False}
        assert (await running.post("/api/chat", body, authorization=f"Bearer of-{name}")).status == 200
    await running.settled()
    joined = joins()
    await until(lambda: running.state.workers["w0"].healthy, "its return")
    await until(lambda: LoadCause.prewarm in causes(running), "a load by the forecast")
    await running.settled()
    assert "e:1" not in held(running, "w0") | held(running, "w1")
    assert (await running.post("/api/prepare", {"model": "e:1"})).status == 202
    await until(lambda: LoadCause.hint in causes(running), "a load by the hint")
    return joined


def causes(running: Gateway) -> set[LoadCause]:
    return {load.cause for load in running.decisions(Load)}


def held(running: Gateway, worker: str) -> set[str]:
    """What is there in whatever state: loading, ready or leaving."""
    return {runner.name for runner in running.state.workers[worker].runners.values()}


def steps(folder: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Events and decisions as they stand in the files, oldest first."""
    for path in sorted(folder.glob("events-*.jsonl")):
        for line in path.read_bytes().splitlines()[1:]:
            step = json.loads(line)
            yield step["e"], step["d"]


class Met:
    """What really occurred, by the log's own words."""

    def __init__(self, folder: Path) -> None:
        self.events: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.priorities: Counter[str] = Counter()
        self.tenants: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        """Phases in which clients went away."""
        self.refusals: Counter[str] = Counter()
        self.health: list[tuple[str, bool]] = []
        self.loads: Counter[str] = Counter()
        phases: dict[str, str] = {}
        for event, decisions in steps(folder):
            kind = event["type"]
            self.events[kind] += 1
            if kind == "HintGiven":
                self.sources[event["source"]] += 1
            elif kind == "RequestArrived":
                self.priorities[event.get("priority", "normal")] += 1
                self.tenants[event.get("tenant", "")] += 1
                own = any(one.get("name") == event["name"] for one in decisions if one["type"] == "Load")
                room = any(one.get("cause") == "room" for one in decisions)
                phases[event["request"]] = "loading" if own or room else "queued"
            elif kind == "FirstTokenReceived":
                phases[event["request"]] = "streaming"
            elif kind == "RequestCancelled":
                self.left[phases.pop(event["request"])] += 1
            for decision in decisions:
                self._take(decision, phases)

    def _take(self, decision: dict[str, Any], phases: dict[str, str]) -> None:
        kind = decision["type"]
        self.decisions[kind] += 1
        if kind == "Dispatch":
            phases[decision["request"]] = "prefill"
        elif kind == "Reject":
            self.refusals[decision["refusal"]] += 1
            phases.pop(decision["request"], None)
        elif kind == "Load":
            self.loads[decision["cause"]] += 1
        elif kind == "HealthChange":
            self.health.append((decision["worker"], decision["healthy"]))


@pytest.mark.slow
async def test_a_live_run_with_everything_in_it_replays_to_identical_decisions(sim, process, gateway, tmp_path):
    folder = tmp_path / "log"
    mortal, worker = process(time_scale=0.05), await sim(time_scale=0.05)
    running = await gateway(
        mortal.port, worker.port, eviction="hv", drain_after="100ms", queue={"timeout": "1s", "wait": "1s"},
        record={"path": str(folder), "file": "1MiB", "keep": 1000},
    )  # fmt: skip
    # How fast it really is: by the core's first guess an unload takes longer than this machine's loads.
    for wish in (LoadRequested, UnloadRequested):
        assert (await running.driver.ask(wish(ticket="t", name="a:1", worker=WorkerId("w0")))).accepted
        await running.settled()
    mortal.kill()
    await until(lambda: not running.state.workers["w0"].healthy, "its first loss")
    back = await loads_ahead(running, lambda: process(mortal.port, time_scale=0.05))
    traffic = Traffic(running)
    clients = begin(traffic.run())
    await traffic.goes_on(150)
    back.kill()
    await until(lambda: not running.state.workers["w0"].healthy, "its loss")
    await traffic.goes_on(100)
    traffic.on = False
    async with at_most(30):
        await clients
    await running.settled()
    await leave_in_each_phase(running, worker)
    process(mortal.port, time_scale=0.05)
    await until(lambda: running.state.workers["w0"].healthy, "its return")
    traffic.on = True
    clients = begin(traffic.run())
    await traffic.goes_on(100)
    traffic.on = False
    async with at_most(30):
        await clients
    await running.settled()
    assert set(traffic.statuses) <= SERVED
    assert traffic.statuses[200] >= 200
    await running.close()

    report = replayed(folder)
    assert report.difference is None
    assert report.steps == len(running.steps)
    assert report.decisions == sum(len(decisions) for _, _, decisions in running.steps)

    met = Met(folder)
    assert met.refusals["deadline_passed"] >= 1
    assert min(met.left[phase] for phase in ("queued", "loading", "prefill", "streaming")) >= 1, met.left
    assert met.left["streaming"] >= 4
    assert ("w0", False) in met.health
    assert met.health[-1] == ("w0", True)
    assert min(met.loads[cause] for cause in ("demand", "hint", "prewarm")) >= 1, met.loads
    assert min(met.sources[source] for source in ("prepare", "next_header", "show", "tags")) >= 1, met.sources
    assert min(met.priorities[priority] for priority in ("high", "normal", "low")) >= 20
    assert len(met.tenants) >= 5, "four keys, and who has none"
    assert min(met.decisions[kind] for kind in ("Dispatch", "Reject", "Load", "Unload", "Observe")) >= 1
    assert met.events["DispatchFailed"] + met.events["WorkerUnreachable"] >= 1
    await simulates(folder, served=met.decisions["Dispatch"])


async def simulates(folder: Path, *, served: int) -> None:
    """The same log is a trace: the same requests in virtual time, under other policies too."""
    command = [sys.executable, "-m", "bellmare", "simulate", "--trace", str(folder), "--policy", "lru,hv", "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    rows = json.loads(done.stdout)["rows"]
    assert [row["policy"] for row in rows] == ["lru", "hv"]
    assert all(row["requests"] >= 300 and row["unfinished"] == 0 for row in rows), (rows, served)
