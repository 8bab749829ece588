"""What a process that hands over passes on: byte for byte, each once, and in words where the other one is gone."""

import json

from rig import open_talk, until

from bellmare.core.decisions import Dispatch
from bellmare.core.events import StandbyChanged
from bellmare.gateway.relay import Relay
from bellmare.http.client import Upstream

TIMEOUT_S = 30.0


async def test_what_waits_and_what_comes_is_answered_by_the_other_and_counted_there(sim, gateway):
    worker = await sim(parallel=1)
    old, new = await gateway(worker.port), await gateway(worker.port)
    await old.chat()
    old.driver.feed(StandbyChanged(standby=True))
    waiting = await old.open_chat("b:1")
    await until(lambda: old.state.waiting == 1)
    relay = Relay(Upstream("127.0.0.1", new.port), timeout_s=TIMEOUT_S)
    old.service.gateway.give_away(relay)
    assert old.state.waiting == old.driver.requests == 0
    assert await waiting.head() == 200
    assert json.loads((await waiting.rest()).splitlines()[-1])["done"] and waiting.complete
    await waiting.close()
    later = await old.post("/v1/chat/completions", {"model": "a:1", "messages": [{"role": "user", "content": "x"}]})
    assert later.json["object"] == "chat.completion"
    assert (await old.post("/api/chat", b"{no json")).status == 400
    assert (await old.chat("nobody:1")).status == 404
    assert (await old.ask("GET", "/api/version")).status == 200, "the rest it answers itself"
    assert relay.passed == 4
    assert len(old.decisions(Dispatch)) == 1
    assert len(new.decisions(Dispatch)) == 2
    await old.close()
    assert [row["model"] for row in old.lines("request")] == ["a:1"]


async def test_a_client_that_leaves_frees_the_slot_behind_both(sim, gateway):
    worker = await sim(time_scale=0.2)
    old, new = await gateway(worker.port), await gateway(worker.port)
    relay = Relay(Upstream("127.0.0.1", new.port), timeout_s=TIMEOUT_S)
    old.service.gateway.give_away(relay)
    talk = await old.open_chat(options={"num_predict": 50_000})
    assert await talk.head() == 200
    talk.leave()
    await until(lambda: not worker.busy(), "the worker's slot")
    await until(lambda: relay.upstream.in_flight == 0)


async def test_a_slow_reader_behind_both_pauses_the_other_and_loses_nothing(sim, gateway):
    worker = await sim(time_scale=0.0005)
    old, new = await gateway(worker.port), await gateway(worker.port)
    relay = Relay(Upstream("127.0.0.1", new.port), timeout_s=TIMEOUT_S)
    old.service.gateway.give_away(relay)
    talk = await old.open_chat(window=4096, options={"num_predict": 60_000})
    await until(lambda: any(one.write_paused for one in old.service._server._connections), "full buffers")
    assert [call.paused for call in relay.upstream._calls] == [True]
    assert await talk.head() == 200
    assert (await talk.rest()).count(b"\n") == 60_001
    assert talk.complete
    await talk.close()


async def test_another_one_that_is_gone_is_told_in_words_or_shown_by_a_cut(sim, gateway):
    worker = await sim(time_scale=0.2)
    old, new = await gateway(worker.port), await gateway(worker.port)
    old.service.gateway.give_away(Relay(Upstream("127.0.0.1", new.port), timeout_s=TIMEOUT_S))
    talk = await open_talk(
        old.port, "POST", "/api/generate", {"model": "a:1", "prompt": "x", "options": {"num_predict": 50_000}}
    )
    assert await talk.head() == 200
    for connection in tuple(new.service._server._connections):
        connection.cut()
    rest = await talk.rest()
    assert not talk.complete and b'"done":true' not in rest
    await talk.close()
    await new.close()
    for path, kind in (("/api/chat", str), ("/v1/chat/completions", dict)):
        answer = await old.post(path, {"model": "a:1", "messages": []})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert isinstance(answer.json["error"], kind)


async def test_a_large_one_that_waits_has_no_body_any_more_and_is_to_come_again(sim, gateway):
    worker = await sim(parallel=1)
    old, new = await gateway(worker.port), await gateway(worker.port)
    await old.chat()
    old.driver.feed(StandbyChanged(standby=True))
    asked = {"model": "b:1", "prompt": "x " * 200_000, "raw": True}
    waiting = await open_talk(old.port, "POST", "/api/generate", asked)
    await until(lambda: old.state.waiting == 1)
    relay = Relay(Upstream("127.0.0.1", new.port), timeout_s=TIMEOUT_S)
    old.service.gateway.give_away(relay)
    assert await waiting.head() == 503
    assert waiting.headers["retry-after"] == "1"
    assert b"restarted" in await waiting.rest()
    await waiting.close()
    assert relay.passed == 0
    assert old.driver.requests == 0
    again = await old.post("/api/generate", asked | {"stream": False})
    assert again.status == 200
    await old.close()
    assert [(row["model"], row["status"]) for row in old.lines("request")] == [("a:1", 200), ("b:1", 503)]
