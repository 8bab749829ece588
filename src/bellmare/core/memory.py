"""How many bytes a runner will take, before anything has been measured. Source: ollama.md 4, which was checked there
against llama-server; the figure is used for the first load of a shape only."""

from collections.abc import Mapping

import msgspec

from bellmare.core.units import MIB, Bytes

DEFAULT_BATCH = 512
SWA_PERIOD = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "gptoss": 2, "cohere2": 4, "olmo3": 4, "exaone4": 4}
"""Layer l attends to a window unless l mod n = n - 1 (llama.cpp's defaults)."""


class MemoryShape(msgspec.Struct, frozen=True):
    """What a model adds to its weights: linear in context and slots, fixed per slot, and fixed per runner."""

    kv_bytes_per_token: Bytes
    fixed_bytes_per_slot: Bytes
    compute_bytes: Bytes
    predicted_kv_bytes_per_token: Bytes = Bytes(0)
    """What Ollama itself predicts: 2 x layers x min(KV heads) x (E / heads) x 2 bytes (ollama.md 4.4)."""


class _Keys:
    """Reads ``model_info`` by architecture; anything missing or odd counts as zero."""

    def __init__(self, info: Mapping[str, object]) -> None:
        self.info = info
        self.architecture = str(info.get("general.architecture") or "")

    def number(self, key: str) -> int:
        value = self.info.get(f"{self.architecture}.{key}")
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else 0

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        value = self.info.get(f"{self.architecture}.{key}")
        if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            return [int(v) for v in value][:layers] + [default] * max(0, layers - len(value))
        return [self.number(key) or default] * layers


def memory_shape(info: Mapping[str, object]) -> MemoryShape:
    """The shape from /api/show's ``model_info``; all zero where it says too little."""
    keys = _Keys(info)
    layers = min(keys.number("block_count"), 1024)
    embedding = keys.number("embedding_length")
    heads = keys.number("attention.head_count")
    if not layers or not embedding:
        return MemoryShape(Bytes(0), Bytes(0), Bytes(0))
    head_dim = embedding // heads if heads else 0
    key_length = keys.number("attention.key_length") or head_dim
    value_length = keys.number("attention.value_length") or head_dim
    kv_heads = keys.per_layer("attention.head_count_kv", layers, heads)
    window = keys.number("attention.sliding_window")
    period = SWA_PERIOD.get(keys.architecture, 0)
    per_token = 0
    fixed = 0
    if keys.number("attention.key_length_mla"):
        rank = keys.number("attention.kv_lora_rank") + keys.number("rope.dimension_count")
        per_token = layers * rank * 2
    else:
        for layer in range(layers):
            cell = 2 * kv_heads[layer] * (key_length + value_length)
            if window and period and layer % period != period - 1:
                fixed += cell * _padded(window + DEFAULT_BATCH)
            else:
                per_token += cell
    fixed += _recurrent(keys, layers)
    feed_forward = keys.number("feed_forward_length") * max(1, keys.number("expert_used_count"))
    compute = 4 * DEFAULT_BATCH * (2 * feed_forward + 15 * embedding // 2)
    predicted = 4 * layers * min(kv_heads) * head_dim
    return MemoryShape(Bytes(per_token), Bytes(fixed), Bytes(compute), Bytes(predicted))


def _padded(cells: int) -> int:
    return -(-cells // 256) * 256


def _recurrent(keys: _Keys, layers: int) -> int:
    """State-space layers hold a fixed state per slot, f32."""
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    if not inner or not state:
        return 0
    kernel, group = keys.number("ssm.conv_kernel"), keys.number("ssm.group_count")
    interval = keys.number("full_attention_interval") or 4
    recurrent_layers = layers - layers // interval
    return recurrent_layers * 4 * (max(0, kernel - 1) * (inner + 2 * group * state) + state * inner)


UNKNOWN_SHAPE_FACTOR_PERCENT = 108
UNKNOWN_SHAPE_BYTES = 512 * MIB
"""Without a shape: weights x 1.08 + 0.5 GiB, the footprint that the policy findings were computed with."""
