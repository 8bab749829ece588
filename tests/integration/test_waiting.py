"""What clients and operators hear while requests wait: heartbeats that official clients ignore, places, the queue."""

from __future__ import annotations

import asyncio
import json

import ollama
import openai
import pytest
from rig import begin, open_talk, until
from typer.testing import CliRunner

from bellmare.cli.commands import app
from bellmare.core.events import DispatchFailed
from bellmare.workers.sim.faults import Fault

LONG = {"options": {"num_predict": 100_000}}
QUEUE = {"heartbeat": "1s"}


@pytest.fixture
async def busy(sim, gateway):
    """A gateway whose only slot is taken."""
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue=QUEUE, admin="127.0.0.1:0")
    holder = await running.open_chat(**LONG)
    assert await holder.head() == 200
    return running, holder, worker


async def waits(running, count: int = 1) -> None:
    await until(lambda: running.state.waiting >= count, "it waits")


async def test_a_waiting_native_stream_hears_blanks_and_then_its_answer(busy):
    running, holder, _ = busy
    talk = await running.open_chat(options={"num_predict": 5})
    assert await talk.head() == 200, "by the heartbeat"
    assert talk.headers["content-type"] == "application/x-ndjson"
    assert talk.headers["x-bellmare-queue-position"] == "1"
    assert int(talk.headers["x-bellmare-eta-ms"]) >= 0
    assert await talk.piece() == b" "
    holder.leave()
    body = b" " + await talk.rest()
    lines = [json.loads(line) for line in body.splitlines()]
    assert body.lstrip(b" ").startswith(b"{"), "a blank is no line of its own"
    assert lines[-1]["done"] is True
    assert len(lines) == 6


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
async def test_a_waiting_event_stream_hears_comments_with_its_position(path, busy):
    running, holder, _ = busy
    messages = [{"role": "user", "content": "hi"}]
    said = {"/v1/responses": {"input": "hi"}, "/v1/completions": {"prompt": "hi"}}.get(path, {"messages": messages})
    body = {"model": "a:1", "stream": True, **said}
    body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 16
    talk = await open_talk(running.port, "POST", path, body)
    assert await talk.head() == 200
    assert talk.headers["content-type"] == "text/event-stream"
    first = await talk.piece()
    assert first.startswith(b": queue position=1 eta_ms=")
    assert first.endswith(b"\n\n")
    holder.leave()
    frames = (await talk.rest()).decode().split("\n\n")
    events = [frame for frame in frames if frame and not frame.startswith(":")]
    assert events, "the answer follows"
    assert all(frame.startswith(("data: ", "event: ")) for frame in events)


async def test_official_clients_read_past_them(busy):
    running, holder, _ = busy
    address = f"http://127.0.0.1:{running.port}"
    native = ollama.AsyncClient(host=address)
    foreign = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
    messages = [{"role": "user", "content": "hi"}]

    async def by_ollama() -> str:
        stream = await native.chat("a:1", messages=messages, stream=True, options={"num_predict": 8})
        return "".join([part.message.content or "" async for part in stream])

    async def by_openai() -> str:
        stream = await foreign.chat.completions.create(model="a:1", messages=messages, stream=True, max_tokens=8)
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    both = [begin(by_ollama()), begin(by_openai())]
    await waits(running, 2)
    await asyncio.sleep(2.2)
    holder.leave()
    texts = await asyncio.gather(*both)
    assert all(len(text.split()) == 8 for text in texts)
    await native._client.aclose()
    await foreign.close()


async def test_an_unstreamed_request_hears_nothing_before_its_answer(busy):
    running, holder, _ = busy
    asked = begin(running.chat(options={"num_predict": 3}))
    await waits(running)
    await asyncio.sleep(1.8)
    holder.leave()
    reply = await asked
    assert reply.status == 200
    assert not reply.body.startswith(b" ")


async def test_a_refusal_after_a_heartbeat_is_an_error_in_the_stream(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port, queue={"heartbeat": "1s", "timeout": "3s", "wait": "3s"})
    for _ in range(5):  # so that a short wait is predicted
        assert (await running.chat(options={"num_predict": 1})).status == 200
    holder = await running.open_chat(**LONG)
    assert await holder.head() == 200
    talks = [await running.open_chat(), await running.open_completion()]
    for talk in talks:
        assert await talk.head() == 200, "by the heartbeat"
    native, events = [await talk.rest() for talk in talks]
    assert "deadline" in json.loads(native.splitlines()[-1])["error"]
    last = events.decode().rstrip().split("\n\n")[-1]
    assert "deadline" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert all(talk.complete for talk in talks), "it ends in good order"
    for talk in (holder, *talks):
        talk.leave()
    await running.settled()
    await running.close()
    ends = [(row["status"], row["outcome"], row.get("refusal")) for row in running.lines("request")]
    assert ends.count((200, "refused", "deadline_passed")) == 2, ends


async def test_a_worker_that_hangs_after_heartbeats_is_made_good(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, queue=QUEUE, limits={"first_token_timeout": "3s"})
    assert (await running.chat()).status == 200
    worker.faults.set(Fault(kind="hang", model="a:1"))
    talk = await running.open_chat(options={"num_predict": 4})
    assert await talk.head() == 200, "by the heartbeat"
    assert json.loads((await talk.rest()).splitlines()[-1])["done"] is True
    assert running.events(DispatchFailed)
    talk.leave()


async def test_without_the_setting_nothing_is_heard(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    holder = await running.open_chat(**LONG)
    assert await holder.head() == 200
    talk = await running.open_chat(options={"num_predict": 2})
    head = begin(talk.head())
    await asyncio.sleep(1.5)
    assert not head.done()
    holder.leave()
    assert await head == 200
    assert "x-bellmare-queue-position" not in talk.headers
    assert (await talk.rest()).startswith(b"{")


async def test_the_queue_shows_who_waits_and_whose_turn_it_is(busy):
    running, holder, _ = busy
    talks = []
    for priority in ("normal", "high"):
        body = {"model": "a:1", "messages": [{"role": "user", "content": "x"}]}
        talks.append(
            await open_talk(running.port, "POST", "/api/chat", body, headers={"x-bellmare-priority": priority})
        )
        await waits(running, len(talks))
    answer = (await running.admin("GET", "/api/v1/queue")).json
    assert answer["waiting"] == 2
    rows = {row["priority"]: row for row in answer["rows"]}
    assert (rows["high"]["position"], rows["normal"]["position"]) == (1, 2)
    for row in rows.values():
        assert row["model"] == "a:1"
        assert row["waits_for"] == "a free slot"
        assert 0 <= row["age_s"] < 30
        assert 0 < row["left_s"] <= 300
    url = f"http://127.0.0.1:{running.admin_port}"
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["queue", "--admin-url", url])
    assert shown.exit_code == 0
    assert shown.output.count("a:1") == 2
    assert shown.output.index("high") < shown.output.index("normal")
    raw = await asyncio.to_thread(CliRunner().invoke, app, ["queue", "--admin-url", url, "--json"])
    assert json.loads(raw.output)["waiting"] == 2
    for talk in (holder, *talks):
        talk.leave()
    await running.settled()
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["queue", "--admin-url", url])
    assert "nobody waits" in shown.output
