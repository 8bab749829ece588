"""One contract for everything behind ``WorkerPort``: a stock Ollama's wire, our simulated one, and the real engine.

The simulated worker without its extension cannot be told from a stock Ollama; a real one joins this list where one is.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bellmare.core.events import FaultKind, WorkerKind
from bellmare.core.units import WorkerId
from bellmare.http.client import Upstream
from bellmare.protocols.ollama import encode_for_worker, parse_chat, parse_generate
from bellmare.runtime.clock import Clock
from bellmare.workers import ollama as adapter
from bellmare.workers.ollama import OllamaWorker, WorkerSettings
from bellmare.workers.port import WorkerFault, WorkerPort
from bellmare.workers.sim import Fault, SimConfig, SimModel, SimServer, start_sim_worker

TIMEOUT_S = 20.0
SIM_MODELS = (
    SimModel("a:1"),
    SimModel("b:1"),
    SimModel("ctx:1", num_ctx=1024),
    SimModel(
        "e:1", "nomic-bert", 12, 12, 12, 0, 768, 3072, 30_522, 2048, quantization="F16", capabilities=("embedding",)
    ),
)


class Place:
    """A running server of one kind, and what the contract needs to know about it."""

    def __init__(self, kind: WorkerKind, server: Any, *, add: Callable[[str], Awaitable[None]], known: bool) -> None:
        self.kind = kind
        self.server = server
        self.port: int = server.port
        self.add = add
        """Make a new name appear on its disk."""
        self.known = known
        """It tells its own capacity."""

    def counters(self) -> Any:
        return self.server.twin.counters if isinstance(self.server, SimServer) else self.server.counters


async def simulated(*, extension: bool) -> Place:
    config = SimConfig(models=SIM_MODELS, time_scale=0.01, parallel=2, extension=extension, context_length=4096)
    server = await start_sim_worker(config)
    kind = WorkerKind.sim if extension else WorkerKind.ollama

    async def add(name: str) -> None:
        upstream = Upstream("127.0.0.1", server.port)
        body = b'{"source":"a:1","destination":"%b"}' % name.encode()
        assert (await upstream.fetch("POST", "/api/copy", body=body, timeout_s=TIMEOUT_S)).status == 200
        await upstream.close()

    return Place(kind, server, add=add, known=extension)


async def embedded(folder: Path) -> Place:
    from bellmare.workers.embedded.server import EmbeddedConfig, start_embedded_worker
    from engine_models import write_model

    write_model(folder, "a__1", seed=1)
    write_model(folder, "b__1", seed=2)
    config = EmbeddedConfig(models_dir=folder, memory_bytes=1 << 30, parallel=2, threads=1, num_ctx=512)

    async def add(name: str) -> None:
        write_model(folder, name.replace(":", "__"), seed=3)

    return Place(WorkerKind.embedded, await start_embedded_worker(config), add=add, known=True)


KINDS = [
    "stock",
    "sim",
    pytest.param("embedded", marks=[pytest.mark.engine, pytest.mark.slow]),
]


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, _gate: None, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param != "embedded":
        made = await simulated(extension=request.param == "sim")
    elif importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    else:
        made = await embedded(tmp_path)
    yield made
    await made.server.close(grace_s=0.0)


@pytest.fixture
async def adapt(_gate: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., OllamaWorker]]:
    """Make an adapter for a port; keyword arguments are of ``WorkerSettings``."""
    monkeypatch.setattr(adapter, "MEMORY_BACK_S", 0.05)  # the simulated machine is a hundred times faster
    made: list[OllamaWorker] = []

    def make(port: int, **settings: Any) -> OllamaWorker:
        made.append(
            OllamaWorker(
                WorkerId("w"),
                Upstream("127.0.0.1", port),
                settings=WorkerSettings(**settings),
                now_utc=Clock().rfc3339,
            )
        )
        return made[-1]

    yield make
    for one in made:
        assert one.upstream.in_flight == 0
        await one.close()


@pytest.fixture
async def worker(place: Place, adapt: Callable[..., OllamaWorker]) -> OllamaWorker:
    return adapt(place.port)


async def loaded_now(worker: WorkerPort) -> dict[str, Any]:
    seen = await worker.observe(timeout_s=TIMEOUT_S)
    return {one.name: one for one in seen.loaded}


async def test_a_profile_is_the_workers_own_word_else_the_defaults_of_a_stock_ollama(place, worker):
    profile = await worker.profile(timeout_s=TIMEOUT_S)
    assert profile.kind is place.kind
    assert profile.capacity_known is place.known
    stock = (adapter.GUESSED_CAPACITY_BYTES, 1, adapter.STOCK_RUNNERS_MAX, 80)
    told = {
        WorkerKind.ollama: stock,
        WorkerKind.sim: (24 << 30, 2, 3, 80),
        WorkerKind.embedded: (1 << 30, 2, 0, 100),
    }[place.kind]
    assert (profile.capacity_bytes, profile.parallel, profile.runners_max, profile.fit_percent) == told


async def test_what_the_operator_says_comes_before_what_the_worker_says(place, adapt):
    worker = adapt(place.port, capacity_bytes=5 << 30, parallel=7, runners_max=9, headroom=lambda kind, size: size // 8)
    profile = await worker.profile(timeout_s=TIMEOUT_S)
    assert (profile.capacity_bytes, profile.capacity_known) == (5 << 30, True)
    assert (profile.headroom_bytes, profile.parallel, profile.runners_max) == ((5 << 30) // 8, 7, 9)


async def test_the_first_observation_describes_every_stored_name(place, worker):
    seen = await worker.observe(timeout_s=TIMEOUT_S)
    assert seen.loaded == ()
    assert seen.version
    stored = {model.name: model for model in seen.stored}
    assert {"a:1", "b:1"} <= stored.keys()
    for model in stored.values():
        assert model.weights_bytes > 0
        assert len(model.digest) == 64
        assert model.context_max > 0
        assert model.embedding or model.kv_bytes_per_token > 0
    assert len({model.model for model in stored.values()}) == len(stored), "the blob is the identity"
    assert worker.tags.keys() == stored.keys()
    if place.kind is not WorkerKind.embedded:
        assert (stored["e:1"].embedding, stored["e:1"].parallel_max) == (True, 1)
        assert (stored["ctx:1"].num_ctx, stored["a:1"].num_ctx) == (1024, 0)


async def test_an_unchanged_list_is_told_again_in_full(worker):
    """An observation that got lost on its way must not take the list with it."""
    first = await worker.observe(timeout_s=TIMEOUT_S)
    assert first.stored
    assert (await worker.observe(timeout_s=TIMEOUT_S)).stored == first.stored


async def test_a_new_name_appears_in_the_next_observation(place, worker):
    before = {model.name for model in (await worker.observe(timeout_s=TIMEOUT_S)).stored}
    await place.add("new:1")
    after = {model.name for model in (await worker.observe(timeout_s=TIMEOUT_S)).stored}
    assert after - before == {"new:1"}


async def test_a_load_pins_and_reports_what_the_worker_then_shows(worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    loaded = await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert (loaded.name, loaded.num_ctx, loaded.pinned, loaded.expired) == ("a:1", 2048, True, False)
    assert loaded.bytes > 0
    assert loaded.spilled_bytes == 0
    assert loaded.model is not None
    assert await loaded_now(worker) == {"a:1": loaded}


async def test_loading_what_is_loaded_in_the_same_shape_changes_nothing(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    first = await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S) == first
    assert (place.counters().loads, place.counters().reloads) == (1, 0)


async def test_an_unload_returns_when_the_model_is_gone(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    await worker.load("b:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    await worker.unload("a:1", timeout_s=TIMEOUT_S)
    assert [entry.name for entry in worker.running] == ["b:1"], "the list that clients see is as fresh"
    assert list(await loaded_now(worker)) == ["b:1"]
    if isinstance(place.server, SimServer):
        used = place.server.twin.vram_used_bytes
        (left,) = place.server.twin.loaded()
        assert used < 2 * left.vram_bytes, "and its memory is back"


async def test_an_unload_waits_for_the_request_that_still_runs(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    body = canonical_generate("a:1", tokens=200)
    request = asyncio.get_running_loop().create_task(
        worker.upstream.fetch("POST", "/api/generate", body=body, timeout_s=TIMEOUT_S)
    )
    while not place_is_busy(place):
        await asyncio.sleep(0)
    await worker.unload("a:1", timeout_s=TIMEOUT_S)
    assert request.done() or not await loaded_now(worker)
    assert (await request).status == 200
    assert await loaded_now(worker) == {}


async def test_unloading_what_is_not_loaded_is_no_fault(worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    await worker.unload("a:1", timeout_s=TIMEOUT_S)
    assert await loaded_now(worker) == {}


async def test_an_unknown_name_is_a_not_found_fault(worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    for call in (
        worker.load("nobody:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S),
        worker.load("nobody:1", num_ctx=2048, embedding=True, timeout_s=TIMEOUT_S),
        worker.unload("nobody:1", timeout_s=TIMEOUT_S),
    ):
        with pytest.raises(WorkerFault) as caught:
            await call
        assert caught.value.fault is FaultKind.not_found
        assert "nobody:1" in caught.value.detail


async def test_a_server_that_is_gone_is_a_refused_fault(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    await place.server.close(grace_s=0.0)
    await all_calls_fault(worker, FaultKind.refused, timeout_s=TIMEOUT_S)


def canonical_generate(model: str, *, tokens: int = 8) -> bytes:
    client = (
        b'{"model":"%b","prompt":"hello","stream":false,"keep_alive":"5m","shift":false,'
        b'"options":{"num_ctx":99,"num_predict":%d}}'
    )
    return encode_for_worker(parse_generate(client % (model.encode(), tokens)), model=model, num_ctx=2048)


async def test_a_canonical_request_never_reloads_nor_unpins(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    loaded = await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    chat = parse_chat(
        b'{"model":"a:1","messages":[{"role":"user","content":"x"}],"stream":false,"keep_alive":0,'
        b'"options":{"num_ctx":512,"num_batch":7,"num_gpu":0,"num_thread":3,"use_mmap":false,"num_predict":4}}'
    )
    for path, body in (
        ("/api/generate", canonical_generate("a:1")),
        ("/api/chat", encode_for_worker(chat, model="a:1", num_ctx=2048)),
    ):
        answer = await worker.upstream.fetch("POST", path, body=body, timeout_s=TIMEOUT_S)
        assert answer.status == 200, answer.body
    assert (place.counters().loads, place.counters().reloads) == (1, 0)
    assert await loaded_now(worker) == {"a:1": loaded}


def place_is_busy(place: Place) -> bool:
    if isinstance(place.server, SimServer):
        return any(row.refcount for row in place.server.twin.loaded())
    return any(runner.references for runner in place.server.engine.runners())


@pytest.mark.parametrize("extension", [False, True])
async def test_an_embedding_model_is_loaded_through_its_own_route(extension, adapt):
    place = await simulated(extension=extension)
    worker = adapt(place.port)
    await worker.observe(timeout_s=TIMEOUT_S)
    loaded = await worker.load("e:1", num_ctx=2048, embedding=True, timeout_s=TIMEOUT_S)
    assert (loaded.name, loaded.pinned) == ("e:1", True)
    with pytest.raises(WorkerFault) as caught:
        await worker.load("e:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert caught.value.fault is FaultKind.failed
    await worker.unload("e:1", timeout_s=TIMEOUT_S)
    assert await loaded_now(worker) == {}
    await place.server.close()


@pytest.mark.parametrize("extension", [False, True])
async def test_a_server_that_hangs_is_a_timeout_fault(extension, adapt):
    place = await simulated(extension=extension)
    worker = adapt(place.port)
    await worker.observe(timeout_s=TIMEOUT_S)
    place.server.faults.frozen = True
    await all_calls_fault(worker, FaultKind.timeout, timeout_s=0.1)
    place.server.faults.frozen = False
    await worker.observe(timeout_s=TIMEOUT_S)
    await place.server.close()


async def test_a_load_that_fails_is_a_failed_fault_with_the_workers_words(adapt):
    place = await simulated(extension=True)
    worker = adapt(place.port)
    await worker.observe(timeout_s=TIMEOUT_S)
    place.server.faults.set(Fault("fail_load", model="a:1"))
    with pytest.raises(WorkerFault) as caught:
        await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert caught.value.fault is FaultKind.failed
    assert "terminated" in caught.value.detail
    assert await loaded_now(worker) == {}
    await place.server.close()


async def test_a_crashed_runner_is_unloaded_without_waiting_for_memory_that_is_back(adapt):
    place = await simulated(extension=True)
    worker = adapt(place.port)
    await worker.observe(timeout_s=TIMEOUT_S)
    for name in ("a:1", "b:1"):
        await worker.load(name, num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    place.server.faults.set(Fault("crash", model="a:1"))
    assert sorted(await loaded_now(worker)) == ["a:1", "b:1"], "Ollama goes on listing it (ollama.md 12)"
    async with asyncio.timeout(1.0):
        await worker.unload("a:1", timeout_s=TIMEOUT_S)
    assert list(await loaded_now(worker)) == ["b:1"]
    await place.server.close()


async def test_a_cancelled_load_is_aborted_on_the_worker(place, worker):
    await worker.observe(timeout_s=TIMEOUT_S)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert worker.upstream.in_flight == 0
    assert await loaded_now(worker) == {}
    loaded = await worker.load("b:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert list(await loaded_now(worker)) == [loaded.name]


async def all_calls_fault(worker: WorkerPort, fault: FaultKind, *, timeout_s: float) -> None:
    for call in (
        worker.profile(timeout_s=timeout_s),
        worker.observe(timeout_s=timeout_s),
        worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=timeout_s),
        worker.unload("a:1", timeout_s=timeout_s),
    ):
        with pytest.raises(WorkerFault) as caught:
            await call
        assert caught.value.fault is fault


async def test_two_names_over_one_blob_are_one_runner_under_either_name(adapt):
    place = await simulated(extension=True)
    await place.add("alias:1")
    worker = adapt(place.port)
    stored = {model.name: model for model in (await worker.observe(timeout_s=TIMEOUT_S)).stored}
    assert stored["alias:1"].model == stored["a:1"].model
    first = await worker.load("a:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S)
    assert await worker.load("alias:1", num_ctx=2048, embedding=False, timeout_s=TIMEOUT_S) == first
    await worker.unload("alias:1", timeout_s=TIMEOUT_S)
    assert await loaded_now(worker) == {}
    assert (place.counters().loads, place.counters().reloads) == (1, 0)
    await place.server.close()
