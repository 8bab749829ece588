"""Twins of stock Ollama with the sizes, rates and service spans of a simulated machine.

The twin computes spans from tokens; here tokens are chosen so that a service takes exactly as long as the trace says,
whatever its neighbours do (policy.md 3: "model speed unaffected by neighbours").
"""

from bellmare.core.units import SECOND_US
from bellmare.sim.fleet import FOOTPRINT_BYTES, FOOTPRINT_PERCENT, SimMachine
from bellmare.sim.workload import SimModel, Workload
from bellmare.twin.config import FOREVER_US, GpuConfig, TwinConfig, TwinModel
from bellmare.twin.messages import Generate, LoadOnly, RunnerOptions

CONTEXT = 10_000_000
"""So many tokens fit a prompt that the longest service of a trace is expressed by one."""
BATCH = 1
"""Compute buffers grow with batch times context: with the smallest batch they stay at 20 MB."""
OPTIONS = RunnerOptions(num_ctx=CONTEXT, num_batch=BATCH)
"""The same for every request and load, so that nothing is ever reloaded for its shape."""
WINDOW = 255
"""One batch more makes the 256 cells to which llama.cpp pads: the cache is as large as is wanted, exactly."""
PREFILL_BYTE_TOKENS_PER_S = 270_000_000_000
"""A prompt token of the smallest model (0.27 GB) takes a millisecond; the rest of a span is tokens of a microsecond."""
UNLIMITED = 1 << 62
QUEUE_MAX = 1_000_000
"""As the core's own queues here: nobody is refused, so that waits can be compared."""
RUNNERS_UNLIMITED = 1_000


def twin_config(machine: SimMachine, *, slots: int, pinned: bool = False, unlimited: bool = False) -> TwinConfig:
    """The twin on ``machine``. ``pinned``: OLLAMA_KEEP_ALIVE=-1; ``unlimited``: no limit of three models."""
    gpu = GpuConfig(
        vram_bytes=machine.vram_bytes,
        context_overhead_bytes=FOOTPRINT_BYTES,
        disk_bytes_per_s=machine.disk_bytes_per_s,
        pcie_bytes_per_s=machine.host_bytes_per_s,
        host_cache_bytes=machine.host_cache_bytes,
        decode_bytes_per_s=UNLIMITED,
        host_decode_bytes_per_s=UNLIMITED,
        prefill_byte_tokens_per_s=PREFILL_BYTE_TOKENS_PER_S,
        slot_cost_percent=0,
    )
    stock = TwinConfig()
    return TwinConfig(
        gpu=gpu,
        num_parallel=slots,
        queue_max=QUEUE_MAX,
        loaded_models_max=RUNNERS_UNLIMITED if unlimited else 0,
        keep_alive_us=FOREVER_US if pinned else stock.keep_alive_us,
        spawn_us=machine.spawn_us,
        unload_us=machine.unload_us,
    )


def twin_model(model: SimModel, *, slots: int) -> TwinModel:
    """``model`` with a runner of weights x 1.08 + 0.5 GiB, predicted by Ollama without the last."""
    cache_bytes = model.weights_bytes * (FOOTPRINT_PERCENT - 100) // 100
    return TwinModel(
        name=model.name,
        blob=model.blob,
        digest=model.blob,
        weights_bytes=model.weights_bytes,
        kv_bytes_per_token=0,
        window_kv_bytes_per_token=cache_bytes // ((WINDOW + BATCH) * slots),
        window=WINDOW,
        predicted_kv_bytes_per_token=predicted_kv_bytes_per_token(model, slots=slots),
        embedding_length=0,
        feed_forward_length=0,
        context_max=CONTEXT,
        num_ctx=CONTEXT,
    )


def predicted_kv_bytes_per_token(model: SimModel, *, slots: int) -> int:
    """So that Ollama predicts about the cache that there is; at least one byte, which is 40 MB with four slots."""
    return max(1, model.weights_bytes * (FOOTPRINT_PERCENT - 100) // 100 // (CONTEXT * slots))


def twin_models(workload: Workload) -> tuple[TwinModel, ...]:
    return tuple(twin_model(model, slots=workload.slots) for model in workload.models)


def generate(request: str, model: SimModel, *, service_us: int) -> Generate:
    """A request that takes its slot for ``service_us``; at least one prompt token, 74 ms for the largest model."""
    weight = model.weights_bytes * SECOND_US
    prompt_tokens = min(max(1, service_us * PREFILL_BYTE_TOKENS_PER_S // weight), CONTEXT)
    rest_us = max(0, service_us - prompt_tokens * weight // PREFILL_BYTE_TOKENS_PER_S)
    return Generate(
        request=request, name=model.name, prompt_tokens=prompt_tokens, output_tokens=1 + rest_us, options=OPTIONS
    )


def load_only(request: str, name: str) -> LoadOnly:
    """The load call that the gateway sends: keep_alive -1."""
    return LoadOnly(request=request, name=name, keep_alive_us=FOREVER_US, options=OPTIONS)
