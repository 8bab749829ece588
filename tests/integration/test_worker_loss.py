"""A worker dies under load, comes back empty; the gateway itself is restarted: nobody's request is lost for it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest
from rig import Gateway, Reply, Talk, ask, at_most, begin, until

from bellmare.core.decisions import Dispatch, HealthChange, Load, LoadCause, Reject, Unload
from bellmare.core.events import (
    DispatchFailed,
    FaultKind,
    LoadRequested,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
)
from bellmare.core.units import WorkerId

CLIENTS = 24
MODELS = ("a:1", "b:1", "c:1")


async def load_on(running: Gateway, model: str, worker: str) -> None:
    """As an operator: ``model`` becomes resident on ``worker``."""
    ticket = f"{model}@{worker}"
    answer = await running.driver.ask(LoadRequested(ticket=ticket, name=model, worker=WorkerId(worker)))
    assert answer.accepted, answer.text
    await until(lambda: worker in {one.worker for one, _ in copies(running, model)}, f"{model} on {worker}")


def copies(running: Gateway, model: str):
    fleet = running.driver.engine.fleet
    return [(one, runner) for one, runner in fleet.copies(fleet.resolve(model)) if runner.residency == "resident"]


def ends(running: Gateway) -> Counter[str]:
    """How often each request was ended, in whatever way."""
    found = Counter(event.request for event in running.events(RequestFinished))
    found.update(event.request for event in running.events(RequestCancelled))
    found.update(decision.request for decision in running.decisions(Reject))
    return found


def is_broken_properly(reply: Reply, path: str) -> bool:
    """A stream that ended with exactly one well-formed error, and no sign of success."""
    if path.startswith("/v1"):
        events = reply.events
        errors = [event for event in events if "error" in json.loads(event)] if "[DONE]" not in events else []
        return len(errors) == 1 and events[-1] == errors[0]
    lines = reply.lines
    errors = [line for line in lines if "error" in line]
    return errors == [lines[-1]] and lines[-1].keys() == {"error"} and not any(line.get("done") for line in lines)


def is_whole(reply: Reply, path: str) -> bool:
    if path.startswith("/v1"):
        return reply.events[-1] == "[DONE]"
    return bool(reply.lines[-1].get("done")) and not any("error" in line for line in reply.lines)


@pytest.mark.slow
async def test_streams_under_way_end_with_one_error_and_what_has_sent_nothing_runs_elsewhere(process, gateway):
    first, second = process(time_scale=0.2), process(time_scale=0.2)
    running = await gateway(first.port, second.port)
    await load_on(running, "a:1", "w0")
    streams: list[tuple[Talk, str]] = [
        (await running.open_chat(options={"num_predict": 50_000}), "/api/chat"),
        (await running.open_completion(max_tokens=50_000), "/v1/chat/completions"),
    ]
    heads: dict[Talk, list[bytes]] = {}
    for talk, _ in streams:
        assert await talk.head() == 200
        assert talk.headers["x-bellmare-worker"] == "w0"
        heads[talk] = [await talk.line() for _ in range(4)]
    silent = [
        begin(running.chat(options={"num_predict": 500})),
        begin(running.chat(options={"num_predict": 500}, stream=True, messages=long_prompt())),
        begin(running.chat(options={"num_predict": 20})),  # waits: all four slots are taken
    ]
    await until(
        lambda: len(running.decisions(Dispatch)) == 4 and running.state.waiting == 1, "four at work, one waiting"
    )

    first.kill()

    async with at_most(20):
        for talk, path in streams:
            body = b"".join(heads[talk]) + await talk.rest()
            assert talk.complete, "the framing ends properly: the error is the answer's own last word"
            assert is_broken_properly(Reply(talk, body), path), body[-500:]
            await talk.close()
        for reply in await asyncio.gather(*silent):
            assert (reply.status, reply.headers["x-bellmare-worker"]) == (200, "w1")
    assert {event.fault for event in running.events(DispatchFailed)} <= {FaultKind.reset, FaultKind.refused}
    assert [(load.name, load.worker) for load in running.decisions(Load)] == [("a:1", "w0"), ("a:1", "w1")]
    assert ends(running) == Counter(event.request for event in running.events(RequestArrived))
    assert running.driver.requests == 0


def long_prompt() -> list[dict[str, str]]:
    """Its first token is far away, so that nothing has been sent when the worker dies."""
    return [{"role": "user", "content": "hello " * 20_000}]


class Load24:
    """Clients that go on until told; what they got is kept."""

    def __init__(self, running: Gateway) -> None:
        self.running = running
        self.done = 0
        self.broken = 0
        """Streams that ended with their proper error."""
        self.bad: list[str] = []
        self.on = True
        self._rng = random.Random(7)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        while self.on:
            try:
                await self._one()
            except Exception as error:
                self.bad.append(repr(error))
                raise

    async def _one(self) -> None:
        model, stream = self._rng.choice(MODELS), self._rng.random() < 0.5
        messages = [{"role": "user", "content": "hi " * self._rng.randint(1, 30)}]
        path, limit = "/api/chat", {"options": {"num_predict": 20}}
        if self._rng.random() < 0.5:
            path, limit = "/v1/chat/completions", {"max_tokens": 20}
        reply = await self.running.post(path, {"model": model, "messages": messages, "stream": stream, **limit})
        self.done += 1
        if reply.status != 200 or not reply.complete:
            self.bad.append(f"{path} {model}: {reply.status} {reply.body[-300:]!r}")
        elif stream and not is_whole(reply, path):
            self.broken += 1
            if not is_broken_properly(reply, path):
                self.bad.append(f"{path} {model}: {reply.body[-300:]!r}")

    async def goes_on(self, requests: int) -> None:
        goal = self.done + requests
        await until(lambda: self.done >= goal or self.bad, f"{requests} more answers (now {self.done} of {goal})")
        assert self.bad == []


@pytest.mark.slow
async def test_a_worker_killed_under_load_costs_no_request_and_is_used_again_when_it_returns(process, gateway):
    first, second = process(), process()
    running = await gateway(first.port, second.port, drain_after="100ms")
    load = Load24(running)
    clients = begin(load.run())
    await load.goes_on(300)
    lost = {runner.name for runner in running.state.workers["w0"].runners.values() if runner.residency == "resident"}

    killed = len(running.steps)
    first.kill()
    await until(lambda: not running.state.workers["w0"].healthy, "its loss")
    await load.goes_on(400)
    after = [one for _, _, decisions in running.steps[killed:] for one in decisions]
    # What it held is served by the other one. (A model may have been there already.)
    served = {one.model for one in after if isinstance(one, Dispatch) and one.worker == "w1"}
    names = {running.state.models[model].stored.name for model in served}
    assert lost <= names
    assert {one.name for one in after if isinstance(one, Load) and one.worker == "w1"}
    assert running.state.workers["w0"].healthy is False

    back = len(running.steps)
    process(first.port)
    await until(lambda: running.state.workers["w0"].healthy, "its return")
    await until(
        lambda: any(
            isinstance(one, Dispatch) and one.worker == "w0"
            for _, _, decisions in running.steps[back:]
            for one in decisions
        ),
        "its use",
    )
    await load.goes_on(100)
    load.on = False
    async with at_most(30):
        await clients

    assert load.bad == []
    assert load.broken <= CLIENTS, "only streams under way at the kill"
    assert running.decisions(Reject) == []
    assert ends(running) == Counter(event.request for event in running.events(RequestArrived))
    assert running.driver.requests == 0
    health = [(change.worker, change.healthy) for change in running.decisions(HealthChange)]
    assert health[-2:] == [("w0", False), ("w0", True)]
    told = (await ask(second.port, "GET", "/api/bellmare")).json["counters"]
    broken = ("own_evictions", "reloads", "rejected_503", "vram_overcommits", "semaphore_waits", "slot_waits")
    assert {name: told[name] for name in broken} == dict.fromkeys(broken, 0)


@pytest.mark.slow
async def test_a_restarted_gateway_adopts_what_is_resident_and_unloads_nothing(sim, gateway):
    workers = [await sim(time_scale=0.02), await sim(time_scale=0.02)]
    ports = [worker.port for worker in workers]
    before = await gateway(*ports, drain_after="100ms")
    load = Load24(before)
    clients = begin(load.run())
    await load.goes_on(300)
    clients.cancel()  # the machine with the gateway on it goes down, and its clients with it
    await before.close()
    for worker in workers:
        await until(lambda worker=worker: not worker.busy(), "idle workers")
    unloads = [worker.twin.counters.unloads_asked for worker in workers]
    loads = [worker.twin.counters.loads for worker in workers]
    resident = {name for worker in workers for name in worker.loaded()}
    assert resident, "nothing was resident: the test proves nothing"

    after = await gateway(*ports)
    assert after.state.counters["adopted"] == sum(len(worker.loaded()) for worker in workers)
    for name in sorted(resident):
        reply = await after.chat(name)
        assert (reply.status, reply.headers["x-bellmare-cache"]) == (200, "hit"), name
    assert [worker.twin.counters.unloads_asked for worker in workers] == unloads
    assert [worker.twin.counters.loads for worker in workers] == loads
    assert after.decisions(Unload) == []
    assert {one.cause for one in after.decisions(Load)} <= {LoadCause.adopt}

    load = Load24(after)
    clients = begin(load.run())
    await load.goes_on(200)
    load.on = False
    await clients
    assert load.bad == []
    assert load.broken == 0
    for worker in workers:
        counters = worker.twin.counters
        assert (counters.own_evictions, counters.reloads, counters.vram_overcommits) == (0, 0, 0)


async def test_a_gateway_that_starts_before_its_workers_serves_as_soon_as_one_is_there(sim, gateway, unused_port):
    async with at_most(5):
        running = await gateway(unused_port)
    early = await running.chat()
    assert (early.status, "retry-after" in early.headers) == (503, True)
    await sim(port=unused_port)
    await until(lambda: running.state.workers and running.state.workers["w0"].healthy, "its joining")
    assert (await running.chat()).status == 200
