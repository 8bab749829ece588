"""The admin listener: health, metrics with bounded labels, state, and what operators may ask for."""

import re
import socket

from rig import until

from bellmare.core.decisions import Load, LoadCause, Unload, UnloadCause
from bellmare.core.events import HintSource
from bellmare.core.eviction.registry import POLICIES

JSON = {"content_type": "application/json"}


async def test_a_gateway_with_a_healthy_worker_is_alive_and_ready(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    assert (await running.admin("GET", "/healthz")).body == b"ok\n"
    ready = await running.admin("GET", "/readyz")
    assert (ready.status, ready.body) == (200, b"ready\n")


async def test_a_gateway_whose_workers_are_all_away_is_alive_but_not_ready(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, admin="127.0.0.1:0")
    await worker.server.close()
    await until(lambda: not running.state.workers["w0"].healthy)
    assert (await running.admin("GET", "/healthz")).status == 200
    assert (await running.admin("GET", "/readyz")).status == 503


def samples(text: str) -> dict[str, float]:
    """Prometheus' text as a mapping of series to value."""
    rows = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in rows}


async def test_metrics_tell_what_happened_and_gauges_equal_the_state(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    for model in ("a:1", "a:1", "b:1"):
        assert (await running.chat(model)).status == 200
    assert (await running.chat("nobody")).status == 404
    found = samples((await running.admin("GET", "/metrics")).body.decode())
    assert found['bellmare_requests_total{model="a:1",status="200"}'] == 2
    assert found['bellmare_requests_total{model="unknown",status="404"}'] == 1
    assert found['bellmare_model_loads_total{cause="demand",model="a:1"}'] == 1
    assert found['bellmare_refusals_total{refusal="unknown_model"}'] == 1
    assert found['bellmare_tokens_total{direction="output",model="b:1"}'] > 0
    worker = running.state.workers["w0"]
    assert found['bellmare_active_models{worker="w0"}'] == len(worker.runners) == 2
    assert found['bellmare_vram_bytes{part="capacity",worker="w0"}'] == worker.capacity_bytes
    assert found['bellmare_vram_bytes{part="resident",worker="w0"}'] == worker.used_bytes
    assert found['bellmare_vram_bytes{part="free",worker="w0"}'] == worker.free_bytes
    assert found['bellmare_slots{state="busy",worker="w0"}'] == 0
    assert found['bellmare_slots{state="total",worker="w0"}'] == 8
    assert found['bellmare_worker_healthy{worker="w0"}'] == 1
    assert found["bellmare_requests_in_system"] == 0


async def test_a_thousand_unknown_names_add_one_label(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    first = await running.chat("nobody-0")
    assert first.status == 404
    before = set(samples((await running.admin("GET", "/metrics")).body.decode()))
    for number in range(1, 1000):
        assert (await running.post("/api/generate", {"model": f"nobody-{number}"})).status == 404
    text = (await running.admin("GET", "/metrics")).body.decode()
    assert set(samples(text)) == before
    assert "nobody" not in text
    assert samples(text)['bellmare_requests_total{model="unknown",status="404"}'] == 1000


async def test_state_is_listed_by_runner_worker_and_model(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, admin="127.0.0.1:0")
    await running.chat("a:1")
    (runner,) = (await running.admin("GET", "/api/v1/ps")).json
    assert (runner["model"], runner["worker"], runner["residency"], runner["busy"]) == ("a:1", "w0", "resident", 0)
    (row,) = (await running.admin("GET", "/api/v1/workers")).json
    assert (row["worker"], row["kind"], row["healthy"], row["stored"]) == ("w0", "sim", True, 4)
    assert row["address"] == f"127.0.0.1:{worker.port}"
    assert row["resident_bytes"] == runner["bytes"]
    models = {entry["model"]: entry for entry in (await running.admin("GET", "/api/v1/models")).json}
    assert sorted(models) == ["a:1", "b:1", "c:1", "e:1"]
    assert (models["a:1"]["resident"], models["b:1"]["resident"]) == (["w0"], [])
    assert (await running.admin("GET", "/api/v1/check")).json == {"problems": []}


async def test_a_worker_that_has_not_answered_yet_is_listed_as_joining(sim, gateway, unused_port):
    worker = await sim()
    running = await gateway(worker.port, unused_port, admin="127.0.0.1:0")
    rows = {row["worker"]: row for row in (await running.admin("GET", "/api/v1/workers")).json}
    assert (rows["w1"]["healthy"], rows["w1"]["operation"]) == (False, "joining")
    assert "refused" in rows["w1"]["reason"]


async def test_an_operator_loads_and_unloads_and_the_worker_obeys(sim, gateway):
    worker = await sim()
    running = await gateway(worker.port, admin="127.0.0.1:0")
    answer = await running.admin("POST", "/api/v1/load", {"model": "b:1"})
    assert (answer.status, answer.json["accepted"], answer.json["workers"]) == (202, True, ["w0"])
    await running.settled()
    assert worker.loaded() == ["b:1"]
    assert [load.cause for load in running.decisions(Load)] == [LoadCause.operator]
    answer = await running.admin("POST", "/api/v1/unload", {"model": "B:1", "worker": "w0"})
    assert (answer.status, answer.json["workers"]) == (202, ["w0"])
    await running.settled()
    assert worker.loaded() == []
    assert [unload.cause for unload in running.decisions(Unload)] == [UnloadCause.operator]


async def test_what_an_operator_cannot_have_is_refused_with_the_reason(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    for body, status in (
        ({"model": "nobody"}, 409),
        ({"model": "a:1", "worker": "w9"}, 409),
        ({"model": "not a name"}, 400),
        ({"model": 5}, 422),
        ({}, 422),
        (b"{", 422),
    ):
        for path in ("/api/v1/load", "/api/v1/unload"):
            answer = await running.admin("POST", path, body)
            assert answer.status == status, (path, body, answer.body)
    assert running.decisions(Load) == running.decisions(Unload) == []


async def test_explain_tells_of_a_request_a_model_and_a_worker(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    answer = await running.chat("a:1")
    request = answer.headers["x-request-id"]
    for subject in (request, "a:1", "A:1", "w0"):
        lines = (await running.admin("GET", f"/api/v1/explain/{subject}")).json["lines"]
        assert lines, subject
    assert (await running.admin("GET", "/api/v1/explain/nothing")).json == {"lines": []}


async def test_a_foreign_host_is_refused(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:1", ""):
        for path in ("/healthz", "/metrics", "/api/v1/ps", "/openapi.json"):
            assert (await running.admin("GET", path, host=host)).status == 403, (host, path)
    for host in ("localhost", f"127.0.0.1:{running.admin_port}", "[::1]:80", "[::1]"):
        assert (await running.admin("GET", "/healthz", host=host)).status == 200, host


async def test_a_listener_for_other_machines_serves_no_foreign_name_either(sim, gateway):
    """A page can bind its own name to our address, but not ours, nor a bare address."""
    running = await gateway((await sim()).port, admin="0.0.0.0:0", insecure=True)
    for host in ("evil.example", "evil.example:80", "evil.example.:80", "[evil]", "1.2.3.4.evil.example", "1.2.3", ""):
        assert (await running.admin("GET", "/api/v1/ps", host=host)).status == 403, host
    ours = (socket.gethostname(), f"{socket.gethostname().upper()}:80", "localhost:1", "localhost.:1")
    for host in (*ours, "10.1.2.3:80", "0.0.0.0", "127.0.0.1:1", "[fe80::1]:80", "[::1]"):
        assert (await running.admin("GET", "/api/v1/ps", host=host)).status == 200, host


async def test_a_page_of_another_origin_is_refused_whatever_it_asks(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    own = f"127.0.0.1:{running.admin_port}"
    for origin in ("http://evil.example", f"http://localhost:{running.admin_port}", "http://127.0.0.1:1", "null", ""):
        for method, path, body in (("GET", "/api/v1/ps", None), ("POST", "/api/v1/load", {"model": "a:1"})):
            assert (await running.admin(method, path, body, origin=origin)).status == 403, (origin, path)
    assert running.decisions(Load) == []
    assert (await running.admin("GET", "/api/v1/ps", host=own, origin=f"http://{own}")).status == 200


async def test_explain_knows_a_request_by_its_clients_own_id(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    body = {"model": "a:1", "messages": [], "stream": False}
    answer = await running.post("/api/chat", body, **{"x-request-id": "their-own_1"})
    assert (answer.status, answer.headers["x-request-id"]) == (200, "their-own_1")
    lines = (await running.admin("GET", "/api/v1/explain/their-own_1")).json["lines"]
    assert lines
    assert (await running.admin("GET", "/api/v1/explain/their-own_2")).json == {"lines": []}


async def test_a_body_that_a_web_page_could_send_is_refused(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await running.admin("POST", "/api/v1/load", {"model": "a:1"}, content_type=kind)
        assert answer.status == 415, kind
    assert running.decisions(Load) == []


async def test_every_metric_is_ours_and_every_label_is_from_a_closed_set(sim, gateway):
    running = await gateway((await sim()).port, admin="127.0.0.1:0")
    await running.chat("a:1")
    text = (await running.admin("GET", "/metrics")).body.decode()
    names = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert all(name.startswith("bellmare_") for name in names)
    labels = set(re.findall(r'[{,](\w+)="', text))
    known = {"model", "status", "direction", "refusal", "fault", "cause", "outcome", "worker", "healthy", "part", "le"}
    assert labels <= known | {"state", "source", "policy", "to", "method", "by"}
    assert set(re.findall(r'source="(\w+)"', text)) == set(HintSource)
    assert set(re.findall(r'policy="([^"]+)"', text)) <= {*POLICIES, "stock"}
