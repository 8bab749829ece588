"""Names of files, digests and their cache, and what is said of a model."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from bellmare.protocols.errors import InvalidRequest
from bellmare.workers.embedded import catalogue
from bellmare.workers.embedded.catalogue import Catalogue, file_name_of, name_of_file
from engine_models import write_model


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("tiny-a", "tiny-a:latest"),
        ("foo__7b", "foo:7b"),
        ("a_b__q4_k_m", "a_b:q4_k_m"),
        ("a__b__c", "a__b:c"),
        ("Qwen2.5-0.5B-Instruct-Q4_K_M", "qwen2.5-0.5b-instruct-q4_k_m:latest"),
        ("foo__", "foo__:latest"),
        ("__foo", "__foo:latest"),
    ],
)
def test_a_file_name_gives_a_canonical_name(stem: str, name: str) -> None:
    assert name_of_file(stem) == name


@pytest.mark.parametrize("stem", ["", "with space", "a@b", "-a", "é"])
def test_a_file_name_that_ollama_would_not_take_is_no_model(stem: str) -> None:
    with pytest.raises(InvalidRequest):
        name_of_file(stem)


@pytest.mark.parametrize("name", ["foo:latest", "foo:7b", "a__b:c"])
def test_names_and_files_are_inverse(name: str) -> None:
    assert name_of_file(file_name_of(name).removesuffix(".gguf")) == name


async def test_a_folder_is_listed_newest_first_and_bad_files_are_named(tmp_path: Path) -> None:
    old, new = write_model(tmp_path, "old"), write_model(tmp_path, "new__1b", seed=1)
    os.utime(old, (1, 1))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "bad name.gguf").write_bytes(new.read_bytes())
    (tmp_path / "NEW__1b.gguf").write_bytes(old.read_bytes())
    (tmp_path / ".hidden.gguf").write_bytes(old.read_bytes())
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    (tmp_path / "readme.txt").write_text("x")
    models = Catalogue(tmp_path)
    await models.refresh()
    assert [model.name for model in models.models()] == ["new:1b", "old:latest"]
    assert set(models.skipped) == {"broken.gguf", "bad name.gguf", "new__1b.gguf", "gone.gguf"}


async def test_a_missing_folder_is_an_empty_one(tmp_path: Path) -> None:
    models = Catalogue(tmp_path / "none")
    await models.refresh()
    assert models.models() == []


async def test_a_link_is_a_second_name_of_one_blob(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m__135m")
    (tmp_path / "m.gguf").symlink_to(path.name)
    models = Catalogue(tmp_path)
    await models.refresh()
    first, second = await models.find("m:135m"), await models.find("m:latest")
    assert first is not None
    assert second is not None
    assert first.blob is second.blob
    assert first.blob.digest == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    original = catalogue._hash
    monkeypatch.setattr(catalogue, "_hash", lambda path: hashed.append(path.name) or original(path))
    path = write_model(tmp_path, "m")
    for _ in range(2):
        await Catalogue(tmp_path).refresh()
    assert hashed == ["m.gguf"]
    path = write_model(tmp_path, "m", seed=5)
    os.utime(path, (1, 1))
    models = Catalogue(tmp_path)
    await models.refresh()
    assert hashed == ["m.gguf", "m.gguf"]
    assert models.models()[0].blob.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"x": 1}', b"\xff", b'{"PATH": {"stamp": [1, 2], "sha256": "ab"}}'])
async def test_a_damaged_digest_cache_is_ignored_and_mended(tmp_path: Path, content: bytes) -> None:
    path = write_model(tmp_path, "m")
    cache = tmp_path / catalogue.DIGEST_CACHE
    cache.write_bytes(content.replace(b"PATH", str(path).encode()))
    models = Catalogue(tmp_path)
    await models.refresh()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert models.models()[0].blob.digest == digest
    assert json.loads(cache.read_bytes())[str(path)]["sha256"] == digest


async def test_a_model_put_into_the_folder_later_is_found_by_name(tmp_path: Path) -> None:
    models = Catalogue(tmp_path)
    await models.refresh()
    path = write_model(tmp_path, "late")
    assert await models.find("late:latest") is not None
    path.unlink()
    assert await models.find("late:latest") is None


async def test_show_names_the_blob_and_gives_no_arrays(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    models = Catalogue(tmp_path)
    await models.refresh()
    model = models.models()[0]
    last = catalogue.modelfile(model).splitlines()[-1]
    assert last.startswith("FROM ")
    assert last.endswith(f"sha256-{model.blob.digest}")
    shown = catalogue.model_info(model.blob.header)
    assert shown["general.architecture"] == "llama"
    assert shown["general.parameter_count"] == model.blob.header.parameter_count
    assert shown["llama.attention.head_count_kv"] == 2
    assert shown["tokenizer.ggml.tokens"] is None
    assert "tokenizer.chat_template" not in shown
    assert catalogue.details(model.blob)["quantization_level"] == "F16"


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (107_000, "107K"), (134_515_008, "134.52M"), (8_000_000_000, "8B"), (8_030_261_248, "8.0B")],
)
def test_numbers_are_short_as_ollama_writes_them(count: int, text: str) -> None:
    assert catalogue._short_number(count) == text
