"""Writes tiny random GGUF models that the real engine runs: deterministic from a seed, of a chosen size, in no time.

A llama of byte tokens. The first hidden dimension is kept constant through all layers and acts as a bias of the output,
so that only printable ASCII and the end token are ever sampled: random bytes would be invalid UTF-8, and a chat parser
refuses them.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

UNKNOWN, BEGIN, END = 0, 1, 2
FIRST_BYTE = 3
VOCABULARY_SIZE = FIRST_BYTE + 256
PRINTABLE = range(0x20, 0x7F)

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a llama. ``head_dimension`` is ``embedding / heads``."""

    layers: int = 2
    embedding: int = 64
    feed_forward: int = 128
    heads: int = 4
    kv_heads: int = 2
    context_length: int = 4096

    def layer_values(self) -> int:
        attention = 2 * self.embedding**2 + 2 * self.embedding * self.kv_width()
        return attention + 3 * self.embedding * self.feed_forward

    def kv_width(self) -> int:
        return self.embedding // self.heads * self.kv_heads


TINY = Shape()
"""About 0.2 MB; loads in 0.04 s and makes some 1,000 tokens a second."""


def shape_of(size_bytes: int) -> Shape:
    """A shape whose file has about ``size_bytes`` (within one layer), with few layers so that it stays quick."""
    if size_bytes < 4_000_000:
        return TINY
    embedding = 256 if size_bytes < 30_000_000 else 512 if size_bytes < 200_000_000 else 1024
    wide = Shape(layers=1, embedding=embedding, feed_forward=4 * embedding, heads=8, kv_heads=4)
    layers = max(1, round(size_bytes / 2 / wide.layer_values()))
    return msgspec.structs.replace(wide, layers=layers)


def write_model(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    shape: Shape = TINY,
    chat_template: bool = True,
    endless: bool = False,
    pooling: bool = False,
) -> Path:
    """Write ``folder/name.gguf`` and return its path. Equal arguments give equal bytes.

    ``endless``: the end token is never sampled, so a generation ends only at its limit. ``pooling``: for embeddings.
    """
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, chat_template=chat_template)
    _add_weights(writer, shape, np.random.default_rng(seed), endless=endless)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, *, chat_template: bool) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY_SIZE)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(writer: gguf.GGUFWriter, shape: Shape, random: np.random.Generator, *, endless: bool) -> None:
    def matrix(rows: int, columns: int) -> FloatArray:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))

    def half(name: str, values: FloatArray) -> None:
        writer.add_tensor(name, values.astype(np.float16))

    width, ones = shape.embedding, np.ones(shape.embedding, dtype=np.float32)
    embedding = matrix(VOCABULARY_SIZE, width)
    embedding[:, 0] = 4.0
    half("token_embd.weight", embedding)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        writer.add_tensor(prefix + "attn_norm.weight", ones)
        writer.add_tensor(prefix + "ffn_norm.weight", ones)
        half(prefix + "attn_q.weight", matrix(width, width))
        half(prefix + "attn_k.weight", matrix(shape.kv_width(), width))
        half(prefix + "attn_v.weight", matrix(shape.kv_width(), width))
        half(prefix + "attn_output.weight", _without_bias_row(matrix(width, width)))
        half(prefix + "ffn_gate.weight", matrix(shape.feed_forward, width))
        half(prefix + "ffn_up.weight", matrix(shape.feed_forward, width))
        half(prefix + "ffn_down.weight", _without_bias_row(matrix(width, shape.feed_forward)))
    writer.add_tensor("output_norm.weight", ones)
    half("output.weight", _output(matrix(VOCABULARY_SIZE, width), endless=endless))


def _without_bias_row(values: FloatArray) -> FloatArray:
    """Nothing is ever added to the first dimension of the residual stream."""
    values[0, :] = 0.0
    return values


def _output(values: FloatArray, *, endless: bool) -> FloatArray:
    """Logits: all but printable bytes, and the end token unless ``endless``, are pushed below any chance."""
    values[:, 0] = -1000.0
    for byte in PRINTABLE:
        values[FIRST_BYTE + byte, 0] = 0.0
    if not endless:
        values[END, 0] = 0.0
    return values
