"""Reads the header of a GGUF file: metadata and tensor shapes, never the weights. Trusts no count in the file.

Every length is checked against a bound and against the bytes that are there, so that a damaged or hostile file costs at
most ``HEADER_BYTES_MAX`` of reading. Format: ggml/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from bellmare.workers.embedded.gguf_names import FILE_TYPES, TENSOR_TYPES

HEADER_BYTES_MAX = 256 << 20
"""The largest known vocabularies (260,000 tokens with merges) take about 12 MB."""
ENTRIES_MAX = 65_536
TENSORS_MAX = 131_072
"""Mixtures of 384 experts, stored one tensor per expert in old files, reach some 70,000."""
ARRAY_LENGTH_MAX = 16_777_216
ARRAY_KEPT_MAX = 4_096
"""Longer arrays (vocabularies) are walked and counted, not kept."""
STRING_BYTES_MAX = 4 << 20
"""Chat templates reach 100 kB."""
KEY_BYTES_MAX = 65_535
DIMENSIONS_MAX = 8

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MAGIC = b"GGUF"

Scalar = int | float | bool | str


class GgufError(Exception):
    """The file is no GGUF, is cut off, or states a size past a bound."""


class GgufArray(msgspec.Struct, frozen=True):
    """``values`` is empty if the array was too long to keep; ``length`` is always true."""

    length: int
    values: tuple[Scalar, ...] = ()


class GgufTensor(msgspec.Struct, frozen=True):
    name: str
    type: str
    shape: tuple[int, ...]


class GgufHeader(msgspec.Struct, frozen=True):
    """Metadata in file order. ``parameter_count`` is the number of weights over all tensors."""

    metadata: dict[str, Scalar | GgufArray]
    tensors: tuple[GgufTensor, ...]
    parameter_count: int

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or "unknown"

    @property
    def file_type(self) -> str:
        """As Ollama prints it: ``Q4_K_M``, ``F16``, ``unknown``."""
        return FILE_TYPES.get(self.number("general.file_type", default=-1), "unknown")

    @property
    def context_length(self) -> int:
        """Training context in tokens; zero if not stated."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def embedding_length(self) -> int:
        return self.number(f"{self.architecture}.embedding_length")

    @property
    def vocabulary_size(self) -> int:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, GgufArray) else 0

    @property
    def chat_template(self) -> str:
        return self.text("tokenizer.chat_template")

    @property
    def is_embedding_model(self) -> bool:
        return f"{self.architecture}.pooling_type" in self.metadata

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of f16 KV cache for one token of one slot, over all layers; zero for models without attention."""
        prefix = self.architecture + "."
        layers = self.number(prefix + "block_count")
        heads = self._largest(prefix + "attention.head_count")
        if not layers or not heads:
            return 0
        head_dimension = self.embedding_length // heads
        key_length = self.number(prefix + "attention.key_length", default=head_dimension)
        value_length = self.number(prefix + "attention.value_length", default=head_dimension)
        return self._kv_heads_of_all_layers(layers, heads) * (key_length + value_length) * 2

    def text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str, *, default: int = 0) -> int:
        value = self.metadata.get(key)
        return value if isinstance(value, int) else default

    def _largest(self, key: str) -> int:
        value = self.metadata.get(key)
        if isinstance(value, GgufArray):
            return max((one for one in value.values if isinstance(one, int)), default=0)
        return value if isinstance(value, int) else 0

    def _kv_heads_of_all_layers(self, layers: int, heads: int) -> int:
        """Some models state the number of KV heads per layer."""
        value = self.metadata.get(f"{self.architecture}.attention.head_count_kv")
        if isinstance(value, GgufArray):
            return sum(one for one in value.values if isinstance(one, int))
        return layers * (value if isinstance(value, int) else heads)


def read_header(path: Path, *, whole_arrays: bool = False) -> GgufHeader:
    """Read ``path``; blocking. Raises :class:`GgufError`, or OSError if it cannot be read at all.

    ``whole_arrays``: keep the longest, too, for one answer: a vocabulary takes some 100 bytes of memory a token.
    """
    with path.open("rb") as file:
        return _Reader(
            file, path.stat().st_size, kept_max=ARRAY_LENGTH_MAX if whole_arrays else ARRAY_KEPT_MAX
        ).header()


class _Reader:
    def __init__(self, file: BinaryIO, file_bytes: int, *, kept_max: int) -> None:
        self._file = file
        self._kept_max = kept_max
        self._left = min(file_bytes, HEADER_BYTES_MAX)

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise GgufError("not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version} is not supported")
        tensor_count = self._count(TENSORS_MAX, "tensors")
        entry_count = self._count(ENTRIES_MAX, "metadata entries")
        metadata = {}
        for _ in range(entry_count):
            key = self._string(KEY_BYTES_MAX)
            metadata[key] = self._value(self._number("<I"))
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        return GgufHeader(metadata, tensors, sum(_volume(tensor.shape) for tensor in tensors))

    def _value(self, kind: int) -> Scalar | GgufArray:
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self._string(STRING_BYTES_MAX)
        code = _SCALARS.get(kind)
        if code is None:
            raise GgufError(f"unknown value type {kind}")
        value: Scalar = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _array(self) -> GgufArray:
        kind = self._number("<I")
        length = self._count(ARRAY_LENGTH_MAX, "array elements")
        if kind == _ARRAY:
            raise GgufError("nested arrays are not supported")
        if length <= self._kept_max:
            return GgufArray(length, tuple(self._scalar(kind) for _ in range(length)))
        if kind == _STRING:
            for _ in range(length):
                self._skip(self._count(STRING_BYTES_MAX, "string bytes"))
        elif kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
        else:
            raise GgufError(f"unknown value type {kind}")
        return GgufArray(length)

    def _tensor(self) -> GgufTensor:
        name = self._string(KEY_BYTES_MAX)
        dimensions = self._number("<I")
        if dimensions > DIMENSIONS_MAX:
            raise GgufError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        kind = self._number("<I")
        self._skip(8)  # offset of the weights
        return GgufTensor(name, TENSOR_TYPES.get(kind, f"type{kind}"), shape)

    def _string(self, bytes_max: int) -> str:
        return self._take(self._count(bytes_max, "string bytes")).decode("utf-8", "replace")

    def _count(self, count_max: int, what: str) -> int:
        count = self._number("<Q")
        if count > count_max:
            raise GgufError(f"{count} {what}, more than {count_max}")
        return count

    def _number(self, code: str) -> int:
        value: int = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _take(self, size: int) -> bytes:
        self._spend(size)
        piece = self._file.read(size)
        if len(piece) != size:
            raise GgufError("the file is cut off in its header")
        return piece

    def _skip(self, size: int) -> None:
        self._spend(size)
        self._file.seek(size, 1)

    def _spend(self, size: int) -> None:
        if size > self._left:
            raise GgufError("the file is cut off in its header, or the header is too large")
        self._left -= size


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for size in shape:
        volume *= size
    return volume
