"""Blobs, create, pull and push over HTTP (ollama.md 1.6, 6.3, 6.4)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from sim_client import Worker

from bellmare.workers.sim import Fault
from bellmare.workers.sim.library import BLOBS_MAX

GGUF = b"GGUF" + b"\x00" * 60


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def names(worker: Worker) -> list[str]:
    return [row["name"] for row in (await worker.ask("GET", "/api/tags")).json["models"]]


async def upload(worker: Worker, data: bytes) -> str:
    digest = digest_of(data)
    assert (await worker.post(f"/api/blobs/{digest}", data)).status == 201
    return digest


async def test_a_blob_is_there_once_it_was_sent_with_its_own_digest(worker: Worker) -> None:
    digest, other = digest_of(GGUF), digest_of(b"other")
    assert (await worker.ask("HEAD", f"/api/blobs/{digest}")).status == 404
    wrong = await worker.post(f"/api/blobs/{other}", GGUF)
    assert (wrong.status, wrong.error) == (400, f'digest mismatch, expected "{other}", got "{digest}"')
    await upload(worker, GGUF)
    assert (await worker.ask("HEAD", f"/api/blobs/{digest}")).status == 200
    assert (await worker.post(f"/api/blobs/{digest}", GGUF)).status == 200
    assert (await worker.ask("HEAD", "/api/blobs/sha256:beef")).status == 400
    assert (await worker.ask("GET", f"/api/blobs/{digest}")).status == 405
    weights = worker.twin.names()[0].blob
    assert (await worker.ask("HEAD", f"/api/blobs/sha256:{weights}")).status == 200


async def test_a_large_blob_is_hashed_aside(worker: Worker) -> None:
    await upload(worker, GGUF + b"x" * (2 << 20))


async def test_only_so_many_blobs_are_remembered(worker: Worker) -> None:
    library = worker.server.library
    first = await upload(worker, GGUF)
    for number in range(BLOBS_MAX):
        library._blobs[f"{number:064x}"] = (1, b"GGUF")
    await upload(worker, b"GGUF more")
    assert len(library._blobs) <= BLOBS_MAX + 1
    assert (await worker.ask("HEAD", f"/api/blobs/{first}")).status == 404


async def test_a_model_is_created_from_an_uploaded_file(worker: Worker) -> None:
    digest = await upload(worker, GGUF)
    lines = (await worker.post("/api/create", {"model": "mine", "files": {"m.gguf": digest}})).lines
    assert lines[0] == {"status": "parsing GGUF"} and lines[-1] == {"status": "success"}
    assert (await names(worker))[0] == "mine:latest"
    answer = (await worker.generate("mine", stream=False, options={"num_predict": 3})).json
    assert answer["eval_count"] == 3
    shown = (await worker.post("/api/show", {"model": "mine"})).json
    assert f"FROM /models/blobs/sha256-{digest[7:]}" in shown["modelfile"]


async def test_a_model_is_created_from_another_with_its_parameters(worker: Worker) -> None:
    body = {
        "model": "mine:2",
        "from": "a:1",
        "system": "Be brief.",
        "template": "{{ .Prompt }}",
        "parameters": {"num_ctx": 2048, "num_predict": 4, "stop": ["x", "y"]},
        "stream": False,
    }
    assert (await worker.post("/api/create", body)).json == {"status": "success"}
    shown = (await worker.post("/api/show", {"model": "mine:2"})).json
    assert (shown["system"], shown["template"]) == ("Be brief.", "{{ .Prompt }}")
    assert shown["parameters"].splitlines()[0].split() == ["num_ctx", "2048"]
    base, made = worker.twin.model("a:1"), worker.twin.model("mine:2")
    assert base is not None and made is not None
    assert base.blob == made.blob and base.digest != made.digest
    assert (await worker.generate("mine:2", stream=False)).json["eval_count"] == 4
    (row,) = (await worker.ask("GET", "/api/ps")).json["models"]
    assert row["context_length"] == 2048


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"model": "m"}, "neither 'from' or 'files' was specified"),
        ({"model": "m", "files": {}}, "no files provided to convert"),
        ({"model": "m", "files": {"a": digest_of(b"nobody has it")}}, "no such file or directory"),
        ({"model": "m", "files": {"a": "beef"}}, "invalid digest format"),
        ({"model": "a b", "from": "a:1"}, "invalid model name"),
    ],
)
async def test_what_cannot_be_created_is_refused(worker: Worker, body: Any, text: str) -> None:
    refused = await worker.post("/api/create", body)
    assert refused.status == 400 and text in refused.error


async def test_a_file_that_is_no_gguf_is_refused(worker: Worker) -> None:
    digest = await upload(worker, b"text")
    refused = await worker.post("/api/create", {"model": "m", "files": {"a": digest}})
    assert (refused.status, refused.error) == (400, "supplied file was not in GGUF format")


async def test_a_pull_tells_bytes_over_time_and_then_the_model_is_there(start_worker: Any) -> None:
    worker = await start_worker(pull_bytes_per_s=6_000_000)
    lines = (await worker.post("/api/pull", {"model": "smollm2:135m"})).lines
    layers = [line for line in lines if "digest" in line]
    total = layers[0]["total"]
    sizes = [line.get("completed", 0) for line in layers]
    assert len(layers) > 3 and sizes == sorted(sizes) and sizes[-1] == total > 100e6
    assert layers[0]["status"] == f"pulling {layers[0]['digest'][7:19]}"
    assert [line["status"] for line in lines if "digest" not in line] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert (await names(worker))[0] == "smollm2:135m"
    assert (await worker.post("/api/pull", {"model": "smollm2:135m", "stream": False})).json == {"status": "success"}
    assert (await worker.generate("smollm2:135m", stream=False)).status == 200


async def test_a_pull_that_was_left_goes_on_where_it_stopped(start_worker: Any) -> None:
    worker = await start_worker(pull_bytes_per_s=2_000_000)
    reader, writer = await worker.open("POST", "/api/pull", {"model": "smollm2:135m"})
    while b'"completed"' not in await reader.readline():
        pass
    writer.close()
    downloads = worker.server.library._downloads
    (download,) = downloads._open.values()
    await worker.until(lambda: not download._waiters)
    assert "smollm2:135m" not in await names(worker)
    lines = (await worker.post("/api/pull", {"model": "smollm2:135m"})).lines
    assert lines[1]["completed"] > 0 and lines[-1] == {"status": "success"}
    assert not downloads._open


async def test_a_pull_can_break_and_be_repeated(worker: Worker) -> None:
    worker.server.faults.set(Fault("fail_pull"))
    assert "error" in (await worker.post("/api/pull", {"model": "smollm2:135m"})).lines[-1]
    assert (await worker.post("/api/pull", {"model": "smollm2:135m"})).lines[-1] == {"status": "success"}


async def test_a_push_needs_a_model_and_a_namespace(worker: Worker) -> None:
    missing = (await worker.post("/api/push", {"model": "me/x:1"})).lines
    assert [line.get("status") for line in missing[:2]] == ["retrieving manifest", "couldn't retrieve manifest"]
    assert "no such file" in missing[-1]["error"]
    assert "not authorized" in (await worker.post("/api/push", {"model": "a:1"})).lines[-1]["error"]
    await worker.post("/api/copy", {"source": "a:1", "destination": "me/a:1"})
    lines = (await worker.post("/api/push", {"model": "me/a:1"})).lines
    assert lines[1]["status"].startswith("pushing ") and lines[1]["total"] > 1e9
    assert [line["status"] for line in lines[-2:]] == ["pushing manifest", "success"]


async def test_copy_has_words_of_its_own(worker: Worker) -> None:
    for body, status, text in (
        ({"source": "nobody:1", "destination": "x"}, 404, 'model "nobody:1" not found'),
        ({"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ({"source": "a:1", "destination": "a b"}, 400, 'destination "a b" is invalid'),
    ):
        reply = await worker.post("/api/copy", body)
        assert (reply.status, reply.error) == (status, text)
