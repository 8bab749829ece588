"""Bytes: what Ollama predicts before a load, what the load really takes, and how many layers fit (sections 3.3, 4.2,
4.4).
"""

import msgspec

from bellmare.twin.config import TwinConfig, TwinModel
from bellmare.twin.shape import Shape


class Placement(msgspec.Struct, frozen=True):
    """Where a runner's buffers lie. ``size_bytes`` and ``vram_bytes`` are what /api/ps shows: no CUDA context."""

    size_bytes: int
    vram_bytes: int
    overhead_bytes: int
    """CUDA context of the process; zero if nothing is on the GPU."""
    short: bool
    """Layers stayed on the host because memory was short, not because the request wanted it so."""

    @property
    def used_bytes(self) -> int:
        """What the driver shows as taken by this process."""
        return self.vram_bytes + self.overhead_bytes


def _padded(cells: int) -> int:
    return -(-cells // 256) * 256


def kv_bytes(model: TwinModel, shape: Shape, *, slots: int) -> int:
    """KV cache of all slots, f16; llama.cpp pads to 256 cells (section 4.2)."""
    window = min(shape.context, model.window + shape.batch)
    per_slot = model.kv_bytes_per_token * _padded(shape.context) + model.window_kv_bytes_per_token * _padded(window)
    return per_slot * slots


def compute_bytes(model: TwinModel, shape: Shape) -> int:
    """Compute buffers of a dense model with flash attention: 4 U (2 FF + 7.5 E) + 2 U C (section 4.2, measured)."""
    batch = shape.batch
    return batch * (8 * model.feed_forward_length + 30 * model.embedding_length) + 2 * batch * shape.context


def predicted_bytes(model: TwinModel, shape: Shape, *, slots: int) -> int:
    """Ollama's own prediction: file plus KV as if no layer had a window; no compute, no CUDA context (section 4.4)."""
    per_token = model.predicted_kv_bytes_per_token or model.kv_bytes_per_token + model.window_kv_bytes_per_token
    return model.weights_bytes + per_token * shape.context * slots


def fits_beside(config: TwinConfig, predicted: int, *, free_bytes: int) -> bool:
    """The rule for a load beside others (section 3.3 item 4). The batch is lowered before it would tip the balance
    (item 9).
    """
    return predicted * 100 <= free_bytes * config.fit_percent


def place(config: TwinConfig, model: TwinModel, *, shape: Shape, free_bytes: int, slots: int) -> Placement:
    """Where a load ends up if ``free_bytes`` of VRAM are free: llama-server's --fit keeps 1 GiB and drops layers (3.3
    item 7).
    """
    layered = model.weights_bytes - model.host_weights_bytes + kv_bytes(model, shape, slots=slots)
    compute = compute_bytes(model, shape)
    if not config.gpu.vram_bytes:
        return Placement(0, 0, 0, short=False)
    overhead = config.gpu.context_overhead_bytes
    wanted = model.layers if shape.num_gpu < 0 else min(shape.num_gpu, model.layers)
    room = max(0, free_bytes - config.fit_target_bytes - overhead - compute)
    if wanted == model.layers and layered <= room:
        return Placement(layered + compute, layered + compute, overhead, short=False)
    layer_bytes = -(-layered // model.layers)
    on_gpu = min(wanted, room // layer_bytes)
    if on_gpu == model.layers:  # the last layer is smaller than the rounded share
        on_gpu -= 1
    on_gpu = max(on_gpu, 0)
    vram = on_gpu * layer_bytes + compute if on_gpu else 0
    return Placement(layered + compute, vram, overhead if on_gpu else 0, short=on_gpu < wanted)
