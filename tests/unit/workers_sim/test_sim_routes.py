"""Routes, listings, refusals and names of the simulated worker (ollama.md 1.3, 1.4, 1.6, 1.7, 2.3)."""

import re
from pathlib import Path
from typing import Any

import pytest
from sim_client import Worker

from bellmare.workers.sim import DEFAULT_MODELS, load_models


async def test_the_root_says_that_it_runs(worker: Worker) -> None:
    """1.3: GET,HEAD / is 200 text/plain."""
    reply = await worker.ask("GET", "/")
    assert (reply.status, reply.body) == (200, b"Ollama is running")
    assert reply.headers["content-type"].startswith("text/plain")
    head = await worker.ask("HEAD", "/")
    assert (head.status, head.body) == (200, b"")
    assert (await worker.ask("GET", "/api/version")).json == {"version": "0.33.0"}


@pytest.mark.parametrize("path", ["/api/abort", "/api/tokenize", "/metrics", "/health", "/api/unload"])
async def test_unknown_paths_are_404_in_plain_text(worker: Worker, path: str) -> None:
    """12: `404 page not found`, text/plain."""
    reply = await worker.ask("POST", path, {})
    assert (reply.status, reply.body) == (404, b"404 page not found")


async def test_a_wrong_method_is_405_in_plain_text(worker: Worker) -> None:
    """12: `405 method not allowed`, text/plain."""
    reply = await worker.ask("GET", "/api/generate")
    assert (reply.status, reply.body) == (405, b"405 method not allowed")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost:1234"}, 200),
        ({"host": "gpu.internal"}, 200),
        ({"host": "192.168.1.5"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "vscode-webview://x"}, 200),
        ({"origin": "chrome-extension://x"}, 403),
    ],
)
async def test_foreign_hosts_and_origins_are_403_with_an_empty_body(
    worker: Worker, headers: dict[str, str], status: int
) -> None:
    """1.7, 12."""
    reply = await worker.ask("GET", "/api/version", **headers)
    assert reply.status == status
    assert reply.body == b"" or status == 200


async def test_tags_lists_newest_first_with_details(worker: Worker) -> None:
    """12: details with context_length and embedding_length, capabilities; digest without prefix; newest first."""
    models = (await worker.ask("GET", "/api/tags")).json["models"]
    assert [model["name"] for model in models] == ["e:1", "r:1", "b:1", "a:1"]
    first = models[-1]
    assert re.fullmatch(r"[0-9a-f]{64}", first["digest"])
    assert first["details"]["context_length"] == 131_072
    assert first["details"]["parameter_size"] == "8.0B"
    assert first["capabilities"] == ["completion", "tools"]
    assert first["model"] == first["name"]
    assert 4.8e9 < first["size"] < 5e9


async def test_show_gives_what_a_memory_formula_needs(worker: Worker) -> None:
    """1.4, 4.1: FROM line with the model blob, model_info keys, tensors, null arrays."""
    shown = (await worker.post("/api/show", {"model": "a:1"})).json
    blob = re.search(r"^FROM \S*/blobs/sha256-([0-9a-f]{64})$", shown["modelfile"], re.MULTILINE)
    model = worker.twin.model("a:1")
    assert blob is not None and model is not None and blob.group(1) == model.blob
    info = shown["model_info"]
    assert info["general.architecture"] == "llama"
    assert (info["llama.block_count"], info["llama.attention.head_count_kv"]) == (32, 8)
    assert info["tokenizer.ggml.tokens"] is None
    names = [tensor["name"] for tensor in shown["tensors"]]
    assert "token_embd.weight" in names and "blk.31.ffn_down.weight" in names and "output.weight" in names
    verbose = (await worker.post("/api/show", {"name": "A:1", "verbose": True})).json
    assert verbose["model_info"]["tokenizer.ggml.tokens"]
    embedder = (await worker.post("/api/show", {"model": "e:1"})).json
    assert embedder["model_info"]["nomic-bert.pooling_type"] == 1


async def test_ps_shows_a_pinned_runner_far_in_the_future(worker: Worker) -> None:
    """1.4, 2.2: expires_at about the year 2318."""
    await worker.post("/api/generate", {"model": "a:1", "keep_alive": -1, "options": {"num_ctx": 2048}})
    (row,) = (await worker.ask("GET", "/api/ps")).json["models"]
    assert row["expires_at"][:4] in ("2317", "2318", "2319")
    assert row["size"] == row["size_vram"] > 4e9
    assert row["context_length"] == 2048
    assert set(row) == {
        "name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", b"", 400, "missing request body"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/embeddings", {}, 400, "model is required"),
        ("/api/show", {"model": "x"}, 404, "model 'x:latest' not found"),
        ("/api/generate", {"model": "x:1", "prompt": "x", "options": {"seed": "x"}}, 404, "model 'x:1' not found"),
        (
            "/api/generate",
            {"model": "a:1", "prompt": "x", "options": {"stop": "x"}},
            500,
            'option "stop" must be of type array',
        ),
        ("/api/generate", {"model": "a b", "prompt": "x"}, 400, "invalid model name"),
        ("/api/generate", {"model": "x:1", "prompt": "x"}, 404, "model 'x:1' not found"),
        ("/api/chat", {"model": "x:1", "messages": [{"role": "user", "content": "x"}]}, 404, "model 'x:1' not found"),
        ("/api/show", {"model": "x:1"}, 404, "model 'x:1' not found"),
        ("/api/embed", {"model": "x:1", "input": "x"}, 404, 'model "x:1" not found, try pulling it first'),
        ("/api/embed", {"model": "e:1", "input": 5}, 400, "invalid input type"),
        ("/api/generate", {"model": "e:1", "prompt": "x"}, 400, '"e:1" does not support generate'),
        ("/api/chat", {"model": "e:1", "messages": [{"role": "user"}]}, 400, '"e:1" does not support chat'),
        ("/api/generate", {"model": "a:1", "prompt": "x", "think": True}, 400, '"a:1" does not support thinking'),
        (
            "/api/chat",
            {"model": "b:1", "messages": [{"role": "user"}], "tools": [{}]},
            400,
            "registry.ollama.ai/library/b:1 does not support tools",
        ),
        (
            "/api/generate",
            {"model": "a:1", "prompt": "x", "options": {"num_ctx": "big"}},
            500,
            'option "num_ctx" must be of type integer',
        ),
        (
            "/api/generate",
            {"model": "a:1", "prompt": "x", "keep_alive": "300"},
            400,
            'time: missing unit in duration "300"',
        ),
        ("/api/generate", {"model": "a:1", "prompt": "x", "keep_alive": True}, 400, "Unsupported type: 'bool'"),
    ],
)
async def test_refusals_have_ollamas_words(worker: Worker, path: str, body: Any, status: int, text: str) -> None:
    """1.4, 1.6, 2.2."""
    reply = await worker.post(path, body)
    assert (reply.status, reply.error) == (status, text)
    assert reply.headers["content-type"] == "application/json; charset=utf-8"


async def test_errors_on_v1_have_openais_shape(worker: Worker) -> None:
    """1.6: {"error":{"message","type","param":null,"code":null}}, 404 -> not_found_error."""
    reply = await worker.post("/v1/chat/completions", {"model": "x:1", "messages": [{"role": "user", "content": "x"}]})
    assert reply.status == 404
    assert reply.json["error"] == {
        "message": "model 'x:1' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }


async def test_keys_are_read_without_regard_to_case_and_the_last_wins(worker: Worker) -> None:
    """reliability.md F6: Go folds JSON keys, U+212A included: what the gateway must not pass on."""
    body = '{"model":"b:1","MODEL":"a:1","prompt":"","\u212aeep_alive":-1}'.encode()
    reply = await worker.post("/api/generate", body)
    assert reply.json["model"] == "a:1"
    assert (await worker.ask("GET", "/api/ps")).json["models"][0]["expires_at"] > "2300"


async def test_copy_and_delete_move_names_and_leave_runners_alone(worker: Worker) -> None:
    """2.3: 200 with an empty body; a deleted loaded model stays in /api/ps."""
    await worker.post("/api/generate", {"model": "a:1"})
    copied = await worker.post("/api/copy", {"source": "a:1", "destination": "mine"})
    assert (copied.status, copied.body) == (200, b"")
    names = [model["name"] for model in (await worker.ask("GET", "/api/tags")).json["models"]]
    assert names[0] == "mine:latest"
    assert (await worker.ask("DELETE", "/api/delete", {"model": "a:1"})).status == 200
    assert await worker.loaded() == ["a:1"]
    assert (await worker.post("/api/generate", {"model": "a:1", "keep_alive": 0})).status == 404
    assert (await worker.ask("DELETE", "/api/delete", {"name": "a:1"})).status == 404
    reply = await worker.post("/api/generate", {"model": "mine"})
    assert reply.json["done_reason"] == "load"
    assert worker.twin.counters.loads == 1


async def test_pull_answers_200_and_then_an_error_line(worker: Worker) -> None:
    """1.6 traps: HTTP 200, a progress line, then `{"error":…}`; non-stream: 500."""
    reply = await worker.post("/api/pull", {"name": "x:1"})
    assert reply.status == 200
    assert reply.lines == [
        {"status": "pulling manifest"},
        {"error": "pull model manifest: file does not exist"},
    ]
    assert (await worker.post("/api/pull", {"model": "x:1", "stream": False})).status == 500
    assert (await worker.post("/api/pull", {"model": "a:1"})).lines[-1] == {"status": "success"}


async def test_v1_models_is_null_without_models(start_worker: Any) -> None:
    """1.5: `/v1/models` with no models returns `"data":null`."""
    empty = await start_worker(models=())
    assert (await empty.ask("GET", "/v1/models")).json["data"] is None
    full = await start_worker()
    assert [row["id"] for row in (await full.ask("GET", "/v1/models")).json["data"]] == ["a:1", "b:1", "r:1", "e:1"]


async def test_the_extension_tells_capacity_and_can_be_switched_off(start_worker: Any) -> None:
    told = (await (await start_worker(parallel=3)).ask("GET", "/api/bellmare")).json
    assert (told["kind"], told["parallel"], told["runners_max"], told["fit_percent"]) == ("sim", 3, 3, 80)
    assert told["counters"]["own_evictions"] == 0
    stock = await start_worker(extension=False)
    assert (await stock.ask("GET", "/api/bellmare")).body == b"404 page not found"
    assert (await stock.post("/sim/fault", {"kind": "clear"})).status == 404


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models.json", '[{"name": "x:1", "layers": 4}, {"name": "y:1", "shares": "x:1", "num_ctx": 8192}]'),
        ("models.yaml", "- {name: 'x:1', layers: 4}\n- {name: 'y:1', shares: 'x:1', num_ctx: 8192}\n"),
    ],
)
async def test_a_models_file_is_json_or_yaml(tmp_path: Path, start_worker: Any, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    worker = await start_worker(models=load_models(tmp_path / file))
    one, two = worker.twin.names()
    assert (one.layers, two.num_ctx) == (4, 8192)
    assert one.blob == two.blob
    assert one.digest != two.digest


def test_a_bad_models_file_says_where(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('[{"name": "x:1", "layer": 4}]')
    with pytest.raises(ValueError, match="layer"):
        load_models(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('[{"name": "x:1", "quantization": "Q9"}]')
    with pytest.raises(ValueError, match="Q9"):
        load_models(tmp_path / "m.json")


async def test_the_default_catalogue_has_nine_models_for_a_24_gb_card(start_worker: Any) -> None:
    worker = await start_worker(models=DEFAULT_MODELS)
    models = (await worker.ask("GET", "/api/tags")).json["models"]
    assert len(models) == 9
    sizes = {model["name"]: model["size"] / 1e9 for model in models}
    assert 4.8 < sizes["llama3.1:8b"] < 5.0
    assert 8.5 < sizes["qwen2.5:14b"] < 9.3
    assert sum(sizes.values()) > 40
