"""The lists of models are made anew when the fleet or the names change, and only then: clients poll them."""

from __future__ import annotations

from rig import until


async def names(running):
    return {model["name"] for model in (await running.ask("GET", "/api/tags")).json["models"]}


async def test_the_list_is_kept_until_a_worker_comes_goes_or_stores_others(sim, gateway):
    one, two = await sim(), await sim()
    running = await gateway(one.port, two.port, manage=["127.0.0.1"], models={"a:1": {"aliases": ["best"]}})
    first = await names(running)
    assert "best:latest" in first
    kept = running.service.gateway.catalogue._listing()
    assert {model["id"] for model in (await running.ask("GET", "/v1/models")).json["data"]} == first
    assert running.service.gateway.catalogue._listing() is kept
    assert (await running.post("/api/copy", {"source": "a:1", "destination": "copied"})).status == 200
    assert await names(running) == first | {"copied:latest"}
    assert running.service.gateway.catalogue._listing() is not kept
    await two.server.close()
    await until(lambda: not running.state.workers["w1"].healthy, "w1 is gone")
    assert await names(running) == first | {"copied:latest"}, "the other worker has them all"
    await one.server.close()
    await until(lambda: not running.state.workers["w0"].healthy, "w0 is gone")
    assert await names(running) == set()
