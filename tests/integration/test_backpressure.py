"""Bounds on waiting, honest refusals, what an answer tells of itself, and clients that are slow or leave."""

import asyncio
import re

import pytest
from rig import HUGE, SMALL, Gateway, Sim, Talk, at_most, begin, until

from bellmare.core.decisions import CacheState, Dispatch, Load, Reject
from bellmare.core.events import Outcome, RequestArrived, RequestCancelled, RequestFinished
from bellmare.workers.sim import Fault

ERROR_TYPES = {429: "rate_limit_error", 503: "api_error", 504: "api_error"}
MANY_TOKENS = 80_000
"""Near the ten contexts at which Ollama ends any answer."""
STALLED_BYTES_MAX = 512 * 1024
"""What one stalled reader may cost the gateway: its own buffer's mark, a read of the worker's, one line in hand."""


async def stuck(running: Gateway, worker: Sim, model: str = "a:1") -> Talk:
    """A stream that holds a slot of ``model`` until it is left: its runner has stopped working."""
    talk = await running.open_chat(model, options={"num_predict": MANY_TOKENS})
    assert await talk.head() == 200
    worker.faults.set(Fault("hang", model=model))
    return talk


async def waiting(running: Gateway, count: int) -> None:
    await until(lambda: running.state.waiting == count, f"{count} waiting")


def is_honest(reply, status: int) -> None:
    """Retry-After in whole seconds, and in milliseconds, and both the same."""
    assert reply.status == status
    assert re.fullmatch(r"[1-9][0-9]*", reply.headers["retry-after"])
    milliseconds = int(reply.headers["retry-after-ms"])
    assert int(reply.headers["retry-after"]) == -(-milliseconds // 1000)
    assert 0 < milliseconds <= 60_000
    assert "x-should-retry" not in reply.headers


async def in_both_dialects(running: Gateway, model: str):
    """The same request to both; their errors have the same text, in the dialect's shape."""
    native = await running.chat(model)
    openai = await running.post(
        "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "x"}]}
    )
    assert native.json.keys() == {"error"}
    assert openai.json["error"].keys() == {"message", "type", "param", "code"}
    assert openai.json["error"]["type"] == ERROR_TYPES[openai.status]
    # Only the figure of seconds may differ: it is spread so that refused clients do not return together.
    assert re.sub(r"\d+ s", "N s", openai.error) == re.sub(r"\d+ s", "N s", native.error)
    return native, openai


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"per_model": 2})
    holder = await stuck(running, worker)
    queued = [await running.open_chat() for _ in range(2)]
    await waiting(running, 2)
    async with at_most(1.0):
        for reply in await in_both_dialects(running, "a:1"):
            is_honest(reply, 429)
    assert [reject.refusal for reject in running.decisions(Reject)] == ["queue_full"] * 2
    assert (await running.chat("b:1")).status == 200, "the bound is the model's own"
    holder.leave()
    for talk in queued:
        talk.leave()
    await until(lambda: not running.driver.requests)


async def test_a_full_gateway_refuses_whatever_the_model(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"per_model": 1, "total": 1})
    holders = [await stuck(running, worker, model) for model in ("a:1", "b:1")]
    queued = await running.open_chat("a:1")
    await waiting(running, 1)
    is_honest(await running.chat("b:1"), 429)
    for talk in (*holders, queued):
        talk.leave()


async def test_a_predicted_wait_over_the_bound_is_refused_at_once(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"wait": "1ms"})
    assert (await running.chat(options={"num_predict": 200})).status == 200  # teaches how long an answer takes
    holder = await stuck(running, worker)
    queued = await running.open_chat()  # the first to wait is never refused for it
    await waiting(running, 1)
    async with at_most(1.0):
        for reply in await in_both_dialects(running, "a:1"):
            is_honest(reply, 429)
    assert [reject.refusal for reject in running.decisions(Reject)] == ["wait_too_long"] * 2
    holder.leave()
    queued.leave()


async def test_a_request_that_waits_until_its_deadline_is_a_504(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"timeout": "150ms", "wait": "150ms"})
    holder = await stuck(running, worker)
    for late in await in_both_dialects(running, "a:1"):
        assert late.status == 504
        assert "retry-after" not in late.headers
        arrival, arrived_us, refused_us = arrival_and_refusal(running, late.headers["x-request-id"])
        assert arrival.deadline_us <= refused_us < arrived_us + 2_000_000
        # The gateway reads the clock once for the deadline, and the core's step again right after.
        assert 0 <= arrived_us + 150_000 - arrival.deadline_us < 100_000
    assert [reject.refusal for reject in running.decisions(Reject)] == ["deadline_passed"] * 2
    assert running.state.waiting == 0
    holder.leave()


def arrival_and_refusal(running: Gateway, request: str) -> tuple[RequestArrived, int, int]:
    """What the core heard of a request, when, and when it refused it; in us."""
    arrived_us, arrival = next(
        (now, event)
        for now, event, _ in running.steps
        if isinstance(event, RequestArrived) and event.request == request
    )
    refused_us = next(
        now for now, _, made in running.steps for one in made if isinstance(one, Reject) and one.request == request
    )
    return arrival, arrived_us, refused_us


async def test_no_healthy_worker_is_a_503_with_a_time_to_come_back(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    await worker.server.close()
    await until(lambda: not running.state.workers["w0"].healthy)
    for reply in await in_both_dialects(running, "a:1"):
        is_honest(reply, 503)
    assert [reject.refusal for reject in running.decisions(Reject)] == ["no_healthy_worker"] * 2


async def test_a_model_that_fits_nowhere_is_a_503_that_need_not_be_tried_again(sim, gateway):
    worker = await sim(models=(*SMALL, HUGE))
    running = await gateway(worker.port)
    async with at_most(1.0):
        for reply in await in_both_dialects(running, "huge:1"):
            assert (reply.status, reply.headers["x-should-retry"]) == (503, "false")
            assert "retry-after" not in reply.headers
            assert "fit" in reply.error
    assert running.decisions(Load) == []
    assert (await running.chat("a:1")).status == 200


async def test_an_answer_tells_where_and_how_it_was_served(sim, gateway):
    running = await gateway((await sim(parallel=1)).port)
    cold, hit = await running.chat(), await running.chat()
    assert cold.headers["x-bellmare-worker"] == hit.headers["x-bellmare-worker"] == "w0"
    assert (cold.headers["x-bellmare-cache"], hit.headers["x-bellmare-cache"]) == ("cold", "hit")
    assert int(cold.headers["x-bellmare-load-ms"]) > 0
    assert int(cold.headers["x-bellmare-queue-ms"]) >= 0
    assert (hit.headers["x-bellmare-load-ms"], hit.headers["x-bellmare-queue-ms"]) == ("0", "0")
    both = await asyncio.gather(*(running.chat(options={"num_predict": 300}) for _ in range(2)))
    queued = next(reply for reply in both if reply.headers["x-bellmare-cache"] == "queued")
    assert int(queued.headers["x-bellmare-queue-ms"]) > 0
    assert queued.headers["x-bellmare-load-ms"] == "0"


async def test_a_stream_tells_the_same_in_its_head(sim, gateway):
    running = await gateway((await sim()).port)
    for talk in (await running.open_chat(), await running.open_completion()):
        assert await talk.head() == 200
        names = {"x-bellmare-worker", "x-bellmare-cache", "x-bellmare-queue-ms", "x-bellmare-load-ms", "x-request-id"}
        assert names <= talk.headers.keys()
        await talk.rest()
        assert talk.complete
        await talk.close()


async def test_what_the_gateway_overrode_is_named(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    reply = await running.chat(options={"num_ctx": 512, "num_gpu": 1, "temperature": 0.5}, keep_alive="1s")
    assert sorted(reply.headers["x-bellmare-overridden"].split(",")) == ["num_ctx", "num_gpu"]
    assert "x-bellmare-overridden" not in (await running.chat()).headers
    (row,) = worker.twin.loaded()
    assert row.context_length == 8192


@pytest.mark.parametrize("theirs", ["abc", "A-b_9", "x" * 64])
async def test_a_valid_request_id_is_echoed(sim, gateway, theirs):
    running = await gateway((await sim()).port)
    for model, status in (("a:1", 200), ("nobody:1", 404)):
        reply = await running.post(
            "/api/generate", {"model": model, "prompt": "x", "stream": False}, x_request_id=theirs
        )
        assert (reply.status, reply.headers["x-request-id"]) == (status, theirs)
    await running.close()
    assert [line["id"] for line in running.lines("request")] == [theirs, theirs]


@pytest.mark.parametrize("theirs", ["", "x" * 65, "a b", "a;b", "a/b", "\u00e9"])
async def test_an_invalid_request_id_is_replaced(sim, gateway, theirs):
    running = await gateway((await sim()).port)
    reply = await running.post("/api/generate", {"model": "a:1", "prompt": "x"}, x_request_id=theirs)
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", reply.headers["x-request-id"])


# ---------------------------------------------------------------------- slow readers


def conversation(running: Gateway):
    """The one conversation under way; its insides say what a slow reader costs."""
    (sink,) = running.driver._sinks.values()
    return sink


async def test_a_slow_reader_costs_a_bounded_buffer_and_stalls_nobody_else(sim, gateway):
    worker = await sim(time_scale=0.0001)
    running = await gateway(worker.port)
    slow = await running.open_chat(window=4096, options={"num_predict": MANY_TOKENS})
    assert await slow.head() == 200
    held = conversation(running)
    await until(lambda: held.exchange.paused, "the gateway's pause")
    assert held._call.paused, "the worker's stream is paused"
    await until(lambda: worker.twin.counters.finished_total == 1, "the model's own end")
    transport = held.exchange._connection._transport
    assert transport.get_write_buffer_size() <= STALLED_BYTES_MAX
    for model in ("a:1", "b:1"):
        other = await running.open_chat(model, options={"num_predict": 2_000})
        await other.head()
        assert (await other.rest()).count(b"\n") == 2_001
        assert other.complete
        await other.close()
    assert transport.get_write_buffer_size() <= STALLED_BYTES_MAX
    assert held.exchange.paused and not held.ended
    body = await slow.rest()
    assert slow.complete
    assert body.count(b"\n") == MANY_TOKENS + 1
    assert b'"done":true' in body[-600:]
    await slow.close()
    await until(lambda: not running.driver.requests)
    assert [event.outcome for event in running.events(RequestFinished)] == [Outcome.completed] * 3


async def test_a_slow_reader_that_leaves_frees_its_slot(sim, gateway):
    worker = await sim(time_scale=0.0001, parallel=1)
    running = await gateway(worker.port)
    slow = await running.open_chat(window=4096, options={"num_predict": MANY_TOKENS})
    assert await slow.head() == 200
    held = conversation(running)
    await until(lambda: held.exchange.paused)
    slow.leave()
    await until(lambda: not running.driver.requests, "its end")
    assert (await running.chat()).status == 200


# ---------------------------------------------------------------------- clients that leave


async def is_as_before(running: Gateway, worker: Sim, *, model: str = "a:1") -> None:
    """Everything that a request took has been given back, and the next one is served."""
    await until(lambda: not running.driver.requests, "the request's end")
    assert running.state.waiting == 0
    await until(lambda: not worker.busy(), "the worker's slot")
    assert all(not runner.in_flight for one in running.state.workers.values() for runner in one.runners.values())
    assert (await running.chat(model)).status == 200
    await running.settled()
    await until(lambda: not running.in_flight(), "the upstream calls")
    assert running.driver.engine.check() == []


async def test_a_client_that_leaves_while_queued_frees_its_place(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    holder = await running.open_chat(options={"num_predict": 2_000})
    assert await holder.head() == 200
    queued = await running.open_chat()
    await waiting(running, 1)
    queued.leave()
    await waiting(running, 0)
    assert (await holder.rest()).count(b"\n") == 2_001, "the one that runs is not disturbed"
    await holder.close()
    assert len(running.decisions(Dispatch)) == 1
    await is_as_before(running, worker)
    assert worker.twin.counters.cancelled_total == 0


async def test_a_client_that_leaves_while_its_model_loads_leaves_the_load_alone(sim, gateway):
    worker = await sim(time_scale=0.1)
    running = await gateway(worker.port)
    talk = await running.open_chat()
    await until(lambda: running.decisions(Load))
    talk.leave()
    await until(lambda: running.events(RequestCancelled))
    assert running.decisions(Dispatch) == []
    await running.settled()
    assert (worker.loaded(), worker.twin.counters.loads_aborted) == (["a:1"], 0)
    await is_as_before(running, worker)


async def test_a_client_that_leaves_during_prefill_closes_the_upstream_and_its_slot_stays_taken(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    worker.faults.set(Fault("slow", percent=30_000))
    talk = await running.open_chat(messages=[{"role": "user", "content": "hello " * 300}])
    await until(lambda: worker.busy() == 1, "the prefill")
    worker.faults.set(Fault("clear"))
    talk.leave()
    await until(lambda: worker.twin.counters.cancelled_total == 1, "the upstream's close")
    (runner,) = running.state.workers["w0"].runners.values()
    assert (len(runner.in_flight), len(runner.zombies)) == (0, 1), (
        "a prefill that goes on on the worker (ollama.md 2.4)"
    )
    assert (await running.chat()).status == 200
    assert worker.twin.counters.slot_waits == 0, "nobody was sent into the slot behind it"
    await is_as_before(running, worker)


async def test_a_client_that_leaves_in_mid_stream_frees_its_slot_at_once(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    for opening in (
        lambda: running.open_chat(options={"num_predict": MANY_TOKENS}),
        lambda: running.open_completion(max_tokens=MANY_TOKENS),
    ):
        talk = await opening()
        assert await talk.head() == 200
        assert await talk.line()
        queued = begin(running.chat())
        await waiting(running, 1)
        talk.leave()
        assert (await queued).headers["x-bellmare-cache"] == CacheState.queued
    await is_as_before(running, worker)
    assert worker.twin.counters.cancelled_total == 2
    await running.close()
    lines = running.lines("request")
    assert [line["status"] for line in lines if line["outcome"] == "cancelled"] == [499, 499]


async def test_a_client_that_leaves_before_an_unstreamed_answer_frees_its_slot(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    talk = await running.open_chat(stream=False, options={"num_predict": MANY_TOKENS})
    await until(lambda: worker.busy() == 1 and running.decisions(Dispatch))
    talk.leave()
    await is_as_before(running, worker)


@pytest.mark.slow
async def test_clients_that_leave_at_any_instant_leave_nothing_behind(sim, gateway):
    worker = await sim(parallel=2)
    running = await gateway(worker.port)
    for step in range(60):
        talks = [
            await running.open_chat(model, options={"num_predict": 400}, stream=bool(step % 2))
            for model in ("a:1", "b:1", "c:1")
        ]
        for _ in range(step):
            await asyncio.sleep(0)  # turns of the loop: an instant, not a span
        for talk in talks:
            talk.leave()
    await is_as_before(running, worker, model="c:1")
    counters = await worker.counters()
    broken = ("own_evictions", "reloads", "semaphore_waits", "rejected_503", "vram_overcommits", "failed_total")
    assert {name: counters[name] for name in broken} == dict.fromkeys(broken, 0)
