"""The header reader: what the engine's own writer writes, and what a hostile file may claim."""

import struct
from pathlib import Path

import pytest

from bellmare.workers.embedded import gguf_header
from bellmare.workers.embedded.gguf_header import GgufArray, GgufError, read_header
from engine_models import TINY, VOCABULARY_SIZE, shape_of, write_model


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(*, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def read(tmp_path: Path, content: bytes) -> gguf_header.GgufHeader:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return read_header(path)


def test_a_model_is_described_as_it_was_written(tmp_path: Path) -> None:
    found = read_header(write_model(tmp_path, "a"))
    assert (found.architecture, found.file_type) == ("llama", "F16")
    assert found.context_length == TINY.context_length
    assert found.embedding_length == TINY.embedding
    assert found.vocabulary_size == VOCABULARY_SIZE
    assert "[assistant]" in found.chat_template
    assert found.kv_bytes_per_token == 2 * TINY.layers * TINY.kv_width() * 2
    assert found.parameter_count > TINY.layers * TINY.layer_values()
    assert {tensor.type for tensor in found.tensors} == {"F16", "F32"}
    assert not found.is_embedding_model


def test_equal_arguments_write_equal_files_and_other_seeds_do_not(tmp_path: Path) -> None:
    first = write_model(tmp_path, "a", seed=1).read_bytes()
    assert write_model(tmp_path, "a", seed=1).read_bytes() == first
    assert write_model(tmp_path, "a", seed=2).read_bytes() != first


@pytest.mark.slow
def test_a_model_is_about_as_large_as_was_asked(tmp_path: Path) -> None:
    path = write_model(tmp_path, "a", shape=shape_of(20_000_000))
    assert 15_000_000 < path.stat().st_size < 25_000_000


def test_every_cut_through_a_header_is_an_error_and_never_a_crash(tmp_path: Path) -> None:
    content = write_model(tmp_path, "a").read_bytes()
    size = content.index(b"output.weight") + len(b"output.weight")
    for end in range(0, size, 97):
        with pytest.raises(GgufError):
            read(tmp_path, content[:end])


def test_per_layer_head_counts_are_summed(tmp_path: Path) -> None:
    def entry(key: bytes, *values: int) -> bytes:
        if len(values) == 1:
            return string(key) + struct.pack("<II", 4, values[0])
        return string(key) + struct.pack("<IIQ", 9, 4, len(values)) + struct.pack(f"<{len(values)}I", *values)

    architecture = string(b"general.architecture") + struct.pack("<I", 8) + string(b"x")
    numbers = entry(b"x.block_count", 3) + entry(b"x.embedding_length", 64) + entry(b"x.attention.head_count", 8)
    heads = entry(b"x.attention.head_count_kv", 0, 2, 4)
    found = read(tmp_path, header(entries=5) + architecture + numbers + heads)
    assert found.kv_bytes_per_token == (0 + 2 + 4) * (8 + 8) * 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cut off"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "version"),
        (header(tensors=1 << 60), "tensors"),
        (header(entries=1 << 60), "metadata entries"),
        (header(entries=1) + struct.pack("<Q", 1 << 62), "string bytes"),
        (header(entries=1) + string(b"k") + struct.pack("<IQ", 8, 1 << 62), "string bytes"),
        (header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 0, 1 << 62), "array elements"),
        (header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 0, 16_000_000), "cut off"),
        (header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 8, 16_000_000), "cut off"),
        (header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 9, 1), "nested"),
        (header(entries=1) + string(b"k") + struct.pack("<I", 77), "value type 77"),
        (header(entries=1) + string(b"k") + struct.pack("<IIQ", 9, 77, 16_000_000), "value type 77"),
        (header(tensors=1) + string(b"t") + struct.pack("<I", 4_000_000_000), "dimensions"),
    ],
)
def test_a_hostile_count_is_refused_before_it_costs_anything(tmp_path: Path, content: bytes, text: str) -> None:
    with pytest.raises(GgufError, match=text):
        read(tmp_path, content)


def test_a_long_array_is_counted_and_not_kept(tmp_path: Path) -> None:
    length = gguf_header.ARRAY_KEPT_MAX + 1
    entry = string(b"k") + struct.pack("<IIQ", 9, 8, length) + string(b"token") * length
    numbers = string(b"n") + struct.pack("<IIQ", 9, 4, length) + bytes(4 * length)
    found = read(tmp_path, header(entries=2) + entry + numbers)
    assert found.metadata == {"k": GgufArray(length), "n": GgufArray(length)}


def test_a_header_larger_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "HEADER_BYTES_MAX", 100)
    with pytest.raises(GgufError, match="too large"):
        read(tmp_path, header(entries=1) + string(b"k") + struct.pack("<I", 8) + string(bytes(200)))
