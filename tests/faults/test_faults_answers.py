"""Part A of the fault catalogue, live: what a worker may do to the answer of a request (docs/faults.md has the table).

Two workers in front of simulated ones; both hold the model. Each test asks through a real gateway and demands the
status, what must not be lost, and that the next request is served.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import pytest
from hostile_worker import (
    CHUNKED,
    GOOD,
    OK,
    Act,
    HostileWorker,
    chunk,
    chunked,
    close,
    done,
    flood,
    hang,
    honest,
    lines,
    pause,
    raw,
    reset,
    sliced,
    status,
    token,
    whole,
)
from rig import Gateway, Reply, at_most, until

from bellmare.core.decisions import Dispatch, HealthChange, Reject, Unload, UnloadCause
from bellmare.core.events import DispatchFailed, FaultKind, LoadRequested, RequestFinished
from bellmare.core.units import WorkerId

FAST = {"first_token_timeout": "1s", "token_timeout": "1s"}


class Pair:
    """A gateway over two hostile workers that both hold ``a:1``; ``bad`` is the one that the next request meets."""

    def __init__(self, running: Gateway, workers: list[HostileWorker]) -> None:
        self.running = running
        self.workers = workers

    @property
    def bad(self) -> HostileWorker:
        return self.workers[0]

    async def chat(self, **more: Any) -> Reply:
        return await self.running.chat(**more)

    async def stream(self) -> tuple[int, bytes, bool]:
        """Status, body and whether the framing was whole, of one streamed chat."""
        talk = await self.running.open_chat(stream=True)
        code = await talk.head()
        body = await talk.rest()
        await talk.close()
        return code, body, talk.complete

    async def is_well(self) -> None:
        """Both requests that follow are served, and nothing of the fault is in them."""
        for _ in range(2):
            reply = await self.chat()
            assert (reply.status, reply.json["done"]) == (200, True), reply.body
            assert b"evil" not in reply.body
        await self.running.settled()

    @property
    def faults(self) -> list[FaultKind]:
        return [event.fault for event in self.running.events(DispatchFailed)]


@pytest.fixture
async def pair(hostile, gateway):
    async def start(count: int = 2, **limits: Any) -> Pair:
        workers = [await hostile() for _ in range(count)]
        running = await gateway(*(worker.port for worker in workers), limits={**FAST, **limits})
        for number in range(count):
            await hold(running, f"w{number}")
        return Pair(running, workers)

    return start


async def hold(running: Gateway, worker: str, model: str = "a:1") -> None:
    """As an operator: ``model`` becomes resident on ``worker``."""
    answer = await running.driver.ask(LoadRequested(ticket=f"{model}@{worker}", name=model, worker=WorkerId(worker)))
    assert answer.accepted, answer.text

    def there() -> bool:
        runners = running.state.workers[worker].runners.values()
        return any(runner.name == model and runner.residency == "resident" for runner in runners)

    await until(there, f"{model} on {worker}")


# ---------------------------------------------------------------------- connections


async def test_a01_a_refused_connection_is_retried_elsewhere_and_the_worker_gets_nothing_more(pair):
    both = await pair()
    await both.bad.refuse()
    before = both.bad.accepted
    for _ in range(10):
        assert (await both.chat()).status == 200
    assert both.bad.accepted == before
    sent = [one.worker for one in both.running.decisions(Dispatch)]
    assert sent.count("w0") <= 1, "at most the request that found out"
    await both.bad.open()
    await until(lambda: both.running.state.workers["w0"].healthy, "its return")
    await both.is_well()


async def test_a01_without_a_replica_it_is_503_with_a_time_to_come_back(pair):
    alone = await pair(1)
    await alone.bad.refuse()
    await until(lambda: not alone.running.state.workers["w0"].healthy, "its loss")
    await asyncio.sleep(2.1)  # the grace in which who just lost his worker may wait
    reply = await alone.chat()
    assert (reply.status, int(reply.headers["retry-after"]) >= 1) == (503, True)


async def test_a03_a_reset_before_the_head_is_retried_elsewhere(pair):
    both = await pair()
    both.bad.script(reset, times=2)  # the first may only mean that a kept connection was stale: once more, fresh
    assert (await both.chat()).status == 200
    assert both.faults == [FaultKind.reset]
    assert len(both.bad.served) <= 2
    await until(lambda: both.running.state.workers["w0"].healthy, "its return by an observation")
    await both.is_well()


async def test_a03_a_reset_everywhere_is_502_and_within_the_attempts(pair):
    both = await pair()
    for worker in both.workers:
        worker.always = (reset,)
    reply = await both.chat()
    assert reply.status in (502, 503)
    assert 1 <= len(both.faults) <= 3


async def test_a04_a_death_in_mid_stream_is_one_error_frame_and_no_second_try(pair):
    both = await pair()
    both.bad.script(raw(CHUNKED), chunk(json.dumps(token("kept")).encode() + b"\n"), pause(0.05), reset)
    code, body, complete = await both.stream()
    rows = [json.loads(line) for line in body.splitlines()]
    assert (code, complete, len(rows)) == (200, True, 2)
    assert rows[0]["message"]["content"] == "kept"
    assert rows[1].keys() == {"error"}
    assert sum(len(worker.served) for worker in both.workers) == 1, "nothing is done twice after its first byte"
    await both.is_well()


async def test_a05_silence_in_mid_stream_is_an_error_frame_within_the_stall_timeout_and_the_runner_is_suspect(pair):
    both = await pair()
    both.bad.script(raw(CHUNKED), chunk(json.dumps(token("kept")).encode() + b"\n"), hang)
    async with at_most(10):
        code, body, complete = await both.stream()
    assert (code, complete) == (200, True)
    assert b'"kept"' in body and body.splitlines()[-1].startswith(b'{"error":')
    assert b'"done":true' not in body
    finished = both.running.events(RequestFinished)[-1]
    assert finished.fault is FaultKind.timeout
    await until(lambda: both.running.decisions(Unload), "the end of the stuck runner")
    assert both.running.decisions(Unload)[0].cause is UnloadCause.crashed
    await both.is_well()


async def test_a06_silence_before_the_first_token_runs_elsewhere_if_nothing_was_sent(pair):
    both = await pair()
    both.bad.script(hang)
    async with at_most(10):
        code, body, _ = await both.stream()
    assert (code, b'"done": true' in body or b'"done":true' in body) == (200, True)
    assert both.faults == [FaultKind.timeout]
    await both.is_well()


async def test_a06_silence_everywhere_is_504(pair):
    alone = await pair(1)
    alone.bad.always = (hang,)
    async with at_most(30):
        code, body, _ = await alone.stream()
    assert (code, b"did not begin in time" in body) == (504, True)
    assert len(alone.faults) == 3


async def test_a06_silence_under_an_unstreamed_request_runs_elsewhere_too(pair):
    both = await pair(answer_timeout="1s")
    both.bad.script(hang)
    async with at_most(10):
        reply = await both.chat()
    assert (reply.status, reply.json["done"]) == (200, True)
    assert both.faults == [FaultKind.timeout]
    await both.is_well()


async def test_a06_a_slow_prefill_within_its_budget_is_no_fault(pair):
    both = await pair()
    both.bad.script(pause(0.6), GOOD)
    code, _, _ = await both.stream()
    assert (code, both.faults) == (200, [])


# ---------------------------------------------------------------------- errors inside answers


@pytest.mark.parametrize(
    ("text", "code", "retried"),
    [
        ("server busy, please try again.  maximum pending requests exceeded", 200, True),
        ("model 'a:1' not found", 200, True),
        ("llama runner process has terminated: signal: killed", 200, True),
        ("error in the template", 500, False),
    ],
)
async def test_a07_an_error_as_the_first_line_of_a_200_is_the_status_that_it_should_have_been(
    pair, text, code, retried
):
    both = await pair()
    both.bad.script(lines({"error": text}))
    got, body, _ = await both.stream()
    assert (got, bool(both.faults)) == (code, retried)
    assert (b'"error"' in body) is (code != 200)
    await both.is_well()


async def test_a08_an_error_line_after_tokens_is_passed_as_the_error_frame_and_counts_as_a_failure(pair):
    both = await pair()
    both.bad.script(lines(token("kept"), {"error": "an error was encountered while running the model: /secret/path"}))
    code, body, complete = await both.stream()
    assert (code, complete, b'"kept"' in body) == (200, True, True)
    assert body.splitlines()[-1].startswith(b'{"error":') and b"secret" not in body
    assert both.running.events(RequestFinished)[-1].fault is FaultKind.failed
    assert both.running.state.workers["w0"].breaker.window_bad == 1
    await both.is_well()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("answer", [lines(), whole(b""), raw(OK + b"connection: close\r\n\r\n")])
async def test_a09_an_empty_200_is_never_a_success(pair, answer, stream):
    both = await pair()
    both.bad.script(answer, close)
    reply = await both.chat(stream=stream)
    assert (reply.status, both.faults) == (200, [FaultKind.bad_answer])
    for worker in both.workers:
        worker.always = (answer, close)
    assert (await both.chat(stream=stream)).status == 502


async def test_a09_an_end_without_done_after_tokens_is_an_error_frame(pair):
    both = await pair()
    both.bad.script(lines(token("kept")))
    code, body, _ = await both.stream()
    assert (code, body.splitlines()[-1].startswith(b'{"error":')) == (200, True)
    assert both.running.events(RequestFinished)[-1].output_tokens == 0
    await both.is_well()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("page", [b"<html>\n<body>log in, evil\n</html>\n", b"evil text\n", b"[1,2]\n", b"null\n"])
async def test_a10_a_page_instead_of_an_answer_is_502_and_reaches_no_client(pair, page, stream):
    both = await pair()
    for worker in both.workers:
        worker.script(whole(page), times=3)
    reply = await both.chat(stream=stream)
    assert reply.status == 502
    assert b"evil" not in reply.body and b"html" not in reply.body
    for worker in both.workers:
        worker.scripts.clear()
    await both.is_well()


# ---------------------------------------------------------------------- bytes


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
async def test_a11_lines_cut_at_every_byte_and_many_in_a_packet_give_the_same_bytes(pair, ending):
    both = await pair()
    body = b"".join(json.dumps(row).encode() + ending for row in (token("hé"), token("llo"), done()))
    both.bad.script(sliced(CHUNKED + b"".join(chunked(body[at : at + 1]) for at in range(len(body))) + b"0\r\n\r\n"))
    code, got, _ = await both.stream()
    assert (code, got) == (200, body)
    both.bad.script(raw(CHUNKED + chunked(body) + b"0\r\n\r\n"))
    assert (await both.stream())[1] == body


async def test_a11_each_line_leaves_as_soon_as_it_is_whole(pair):
    both = await pair()
    go_on = asyncio.Event()

    async def wait(_: Any) -> None:
        await go_on.wait()

    first = json.dumps(token("one")).encode() + b"\n"
    rest = b'": 1}\n' + json.dumps(done()).encode() + b"\n"
    both.bad.script(raw(CHUNKED), chunk(first + b'{"half'), wait, chunk(rest), raw(b"0\r\n\r\n"))
    talk = await both.running.open_chat(stream=True)
    await talk.head()
    assert await talk.piece() == first
    go_on.set()
    await talk.rest()
    await talk.close()


async def test_a12_an_endless_line_is_cut_at_its_bound_and_costs_no_memory(pair):
    both = await pair()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for worker in both.workers:
        worker.script(raw(CHUNKED), flood(chunked(b"x" * 65_536), 400), times=3)
    code, _, _ = await both.stream()
    assert code == 502
    assert set(both.faults) == {FaultKind.bad_answer}
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 20_000, "26 MB were offered, three times"
    for worker in both.workers:
        worker.scripts.clear()
    await both.is_well()


async def test_a13_text_cut_inside_a_character_and_bytes_that_are_no_text_pass_as_they_are(pair):
    both = await pair()
    row = json.dumps(token("grüße €"), ensure_ascii=False).encode().replace(b"\xe2\x82\xac", b"\xe2\x82\xac\xff")
    body = row + b"\n" + json.dumps(done()).encode() + b"\n"
    at = body.index(b"\xe2\x82") + 1
    both.bad.script(raw(CHUNKED), chunk(body[:at]), pause(0.02), chunk(body[at:]), raw(b"0\r\n\r\n"))
    code, got, _ = await both.stream()
    assert (code, got) == (200, body)
    assert "\ufffd".encode() not in got


async def test_a14_what_follows_the_end_of_an_answer_is_nobodys(pair):
    both = await pair()
    evil = token("evil")
    both.bad.script(lines(token("good"), done(), evil, done() | {"eval_count": 99}))
    _, body, _ = await both.stream()
    assert b"evil" not in body and body.count(b'"done": true') == 1
    assert both.running.events(RequestFinished)[-1].output_tokens == 2
    await both.is_well()


async def test_a15_a_second_response_is_never_delivered_and_its_connection_is_not_used_again(pair):
    alone = await pair(1)
    second = whole({"evil": True, "done": True})
    used: list[int] = []

    async def twice(scene: Any) -> None:
        used.append(scene.writer.get_extra_info("peername")[1])
        await honest(scene)
        await second(scene)

    alone.bad.always = (twice,)
    for _ in range(5):
        reply = await alone.chat()
        assert (reply.status, reply.json["message"]["content"]) == (200, "hello")
    alone.bad.always = None
    await alone.is_well()
    assert len(set(used)) == len(used) == 5, "each poisoned connection was dropped"


BAD_HEADS: dict[str, Act] = {
    "two lengths": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 400\r\n\r\nevil"),
    "length and coding": raw(
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nevil"
    ),
    "an unknown coding": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "a signed length": raw(b"HTTP/1.1 200 OK\r\ncontent-length: +4\r\n\r\nevil"),
    "a bare CR in a header": raw(b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 4\r\n\r\nevil"),
    "bare LF": raw(b"HTTP/1.1 200 OK\ncontent-length: 4\n\nevil"),
    "a folded header": raw(b"HTTP/1.1 200 OK\r\nx: a\r\n evil\r\ncontent-length: 4\r\n\r\nevil"),
    "no version": raw(b"200 evil\r\n\r\n"),
    "garbage": raw(bytes(range(256)) * 4),
    "a switch of protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: evil\r\n\r\n"),
    "compressed": raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00"),
    "a bad chunk": raw(CHUNKED + b"zz\r\nevil\r\n0\r\n\r\n"),
    "a huge chunk": raw(CHUNKED + b"ffffffffffffffffff\r\nevil"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_a16_an_answer_that_breaks_http_is_502_and_nothing_of_it_reaches_a_client(pair, name):
    both = await pair()
    for worker in both.workers:
        worker.script(BAD_HEADS[name], close, times=3)
    reply = await both.chat()
    assert reply.status == 502
    assert b"evil" not in reply.body
    assert both.running.state.workers["w0"].breaker.row >= 1
    for worker in both.workers:
        worker.scripts.clear()
    await both.is_well()


@pytest.mark.parametrize(
    "answer",
    [
        (raw(OK + b"content-length: 1000\r\n\r\n{"), close),
        (raw(CHUNKED + b"40\r\n{"), close),
        (raw(CHUNKED + b"40\r\n{"), reset),
    ],
    ids=["short body", "cut chunk", "cut chunk with reset"],
)
async def test_a16_a_body_that_is_cut_is_tried_elsewhere(pair, answer):
    both = await pair()
    both.bad.script(*answer)
    assert (await both.chat()).status == 200
    assert len(both.faults) == 1
    await both.is_well()


@pytest.mark.parametrize(
    "acts",
    [
        (raw(b"HTTP/1.1 200 OK\r\n"), flood(b"x-filler: " + b"y" * 4000 + b"\r\n", 5000)),
        (flood(b"HTTP/1.1 102 Processing\r\n\r\n" * 64, 3000),),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"h%d: 1\r\n" % n for n in range(500)) + b"\r\n"),),
    ],
    ids=["20 MB of head", "200,000 interim heads", "500 headers"],
)
async def test_a16_floods_before_the_answer_are_cut_early(pair, acts):
    both = await pair()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    both.bad.script(*acts)
    async with at_most(10):
        assert (await both.chat()).status == 200
    assert both.faults == [FaultKind.bad_answer]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 15_000
    await both.is_well()


async def test_a16_a_worker_that_goes_on_breaking_http_is_ejected(pair):
    both = await pair()
    both.bad.always = (BAD_HEADS["garbage"], close)
    for _ in range(12):
        assert (await both.chat()).status == 200
    changes = [(one.worker, one.reason) for one in both.running.decisions(HealthChange) if not one.healthy]
    assert changes == [("w0", "failing")]
    assert len(both.bad.served) == 3


# ---------------------------------------------------------------------- the worker's own errors


async def test_a17_busy_is_not_the_clients_fault_and_takes_one_slot_of_that_worker_for_a_while(pair):
    both = await pair()
    both.bad.script(status(503, "server busy, please try again.  maximum pending requests exceeded"))
    talk = await both.running.open_chat()
    assert await talk.head() == 200
    runner = next(iter(both.running.state.workers["w0"].runners.values()))
    assert (both.faults, len(runner.zombies)) == ([FaultKind.busy], 1)
    await talk.rest()
    await talk.close()
    assert both.running.state.workers["w0"].breaker.window_bad == 0
    await until(lambda: not runner.zombies, "its slot back")
    await both.is_well()


@pytest.mark.parametrize(
    "text", ["llama runner process has terminated: CUDA error: out of memory", "model runner has unexpectedly stopped"]
)
async def test_a18_a_dead_runner_is_retried_once_elsewhere_and_believed_gone(pair, text):
    both = await pair()
    both.bad.script(status(500, text))
    reply = await both.chat()
    assert (reply.status, reply.headers["x-bellmare-worker"]) == (200, "w1")
    assert both.faults == [FaultKind.crashed]
    await until(lambda: both.running.decisions(Unload), "its unload")
    assert both.running.decisions(Unload)[0].worker == "w0"
    await both.is_well()


async def test_a18_everywhere_it_is_502_after_two(pair):
    both = await pair(3)
    for worker in both.workers:
        worker.always = (status(500, "llama runner process has terminated: exit status 2"),)
    reply = await both.chat()
    assert reply.status == 502
    assert sum(len(worker.served) for worker in both.workers) == 2
    assert both.running.decisions(Reject)[0].refusal == "poison_suspected"
