"""Who is served first, through a whole gateway: pseudonyms instead of keys, priorities, and turns by client."""

from __future__ import annotations

from rig import open_talk, until

from bellmare.core.decisions import Dispatch
from bellmare.core.events import Priority, RequestArrived

BODY = {"model": "a:1", "messages": [{"role": "user", "content": "x"}], "stream": False}
KEY = "Bearer sk-nobody-may-read-this"


async def test_a_key_becomes_a_pseudonym_and_is_found_nowhere(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    for headers in ({"authorization": KEY}, {"authorization": KEY}, {"x-api-key": "other"}, {}):
        assert (await running.post("/api/chat", BODY, **headers)).status == 200
    first, again, other, none = (event.tenant for event in running.events(RequestArrived))
    assert first == again
    assert len({first, other, none}) == 3
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in (first, other, none))
    said = running.driver.engine.snapshot().decode() + str(running.lines("request"))
    assert "nobody-may-read" not in said


async def test_the_header_names_the_priority_and_anything_else_is_a_400(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port)
    for said in ("high", "low", "Normal"):
        assert (await running.post("/api/chat", BODY, **{"x-bellmare-priority": said})).status == 200
    for path in ("/api/chat", "/v1/chat/completions"):
        reply = await running.post(path, BODY, **{"x-bellmare-priority": "urgent"})
        assert reply.status == 400
        assert "high, normal or low" in reply.error
    assert [event.priority for event in running.events(RequestArrived)] == [
        Priority.high,
        Priority.low,
        Priority.normal,
    ]


async def test_a_client_that_floods_the_queue_does_not_keep_another_from_its_turn(sim, gateway):
    worker = await sim(parallel=1)
    running = await gateway(worker.port)
    holder = await running.open_chat(options={"num_predict": 80_000})
    assert await holder.head() == 200
    talks = []
    for key in ("flood", "flood", "flood", "flood", "other"):
        waiting = running.state.waiting
        talks.append(await open_talk(running.port, "POST", "/api/chat", BODY, headers={"authorization": key}))
        await until(lambda: running.state.waiting == waiting + 1, "it waits")  # noqa: B023 awaited at once
    holder.leave()
    for talk in talks:
        assert await talk.head() == 200
        await talk.close()
    asked = {event.request: event.tenant for event in running.events(RequestArrived)}
    turns = [asked[decision.request] for decision in running.decisions(Dispatch)][1:]
    flood, other = turns[0], asked[list(asked)[-1]]
    assert turns in ([flood, other, flood, flood, flood], [other, flood, flood, flood, flood])
