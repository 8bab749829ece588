"""What the twin's machine, server settings and stored models are. Numbers only; nothing here moves."""

import msgspec

SECOND_US = 1_000_000
GIB = 1 << 30
MIB = 1 << 20

FOREVER_US = ((1 << 63) - 1) // 1000
"""keep_alive < 0: Go's MaxInt64 nanoseconds, about 292 years (section 2.2)."""

SINGLE_SLOT_FAMILIES = frozenset(
    {
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    }
)
"""Families that Ollama runs with one slot whatever OLLAMA_NUM_PARALLEL says (section 3.2). Looked up, never iterated.
"""


class GpuConfig(msgspec.Struct, frozen=True):
    """The machine. The default is a 24 GiB card of the RTX 4090 / L4 class behind an NVMe disk."""

    vram_bytes: int = 24 * GIB
    """Zero: no GPU; everything runs on the CPU and /api/ps shows sizes of 0 (section 12)."""
    context_overhead_bytes: int = 450 * MIB
    """CUDA context and kernels of one llama-server process, not in size_vram (section 4.2: 0.3-0.6 GB)."""
    disk_bytes_per_s: int = 2_000_000_000
    pcie_bytes_per_s: int = 12_000_000_000
    host_cache_bytes: int = 32 * GIB
    """Page cache that keeps weights files, least recently loaded out first."""
    decode_bytes_per_s: int = 600_000_000_000
    """Effective memory bandwidth: one token of one slot reads all weights once."""
    host_decode_bytes_per_s: int = 40_000_000_000
    """The same for the part that spilled to host memory."""
    prefill_byte_tokens_per_s: int = 20_000_000_000_000
    """Prompt tokens per second times weights bytes: 4000 tokens/s for a 5 GB model."""
    slot_cost_percent: int = 15
    """How much longer a token takes per further busy slot of the same runner: batched decode is nearly free."""


class TwinConfig(msgspec.Struct, frozen=True):
    """The server's settings, named after the environment variables of section 3.6."""

    gpu: GpuConfig = GpuConfig()
    num_parallel: int = 1
    queue_max: int = 512
    """OLLAMA_MAX_QUEUE: pending loads, not requests to loaded models."""
    loaded_models_max: int = 0
    """OLLAMA_MAX_LOADED_MODELS; zero is automatic, three per GPU."""
    keep_alive_us: int = 300 * SECOND_US
    context_length: int = 0
    """OLLAMA_CONTEXT_LENGTH; zero: 4096, 32768 or 262144 by total VRAM."""
    load_timeout_us: int = 300 * SECOND_US
    """OLLAMA_LOAD_TIMEOUT: a stall timer, met only by a load that hangs."""
    spawn_us: int = SECOND_US
    """Process start to ready without any weights (policy.md 3: 1.0 s)."""
    unload_us: int = 750_000
    """SIGKILL, exit and the wait for VRAM (section 2.3: 0.5-1.5 s; policy.md 3: 0.75 s)."""
    fit_percent: int = 80
    """A load beside others must be predicted within this share of free memory (section 3.3)."""
    fit_target_bytes: int = 1024 * MIB
    """llama-server leaves so much free per device or offloads layers (LLAMA_ARG_FIT_TARGET, section 3.3)."""
    stall_switch: bool = True
    """True: the eviction stall of section 3.5, as stock. False: a runner chosen as victim takes no new requests."""

    @property
    def runners_max(self) -> int:
        """Loaded models at once; three where there is one GPU or none (section 3.3)."""
        return self.loaded_models_max or 3

    @property
    def context_default(self) -> int:
        """Context of a request that names none (section 3.6)."""
        if self.context_length:
            return self.context_length
        if self.gpu.vram_bytes >= 47 * GIB:
            return 262_144
        return 32_768 if self.gpu.vram_bytes >= 23 * GIB else 4_096


class TwinModel(msgspec.Struct, frozen=True):
    """One name on disk. Two names may share ``blob``: they are one runner to the scheduler (section 3.1)."""

    name: str
    blob: str
    """Digest of the weights file, 64 hex digits: the scheduler's key and the tie-breaker of eviction."""
    digest: str
    """Digest of the manifest, 64 hex digits, as /api/tags and /api/ps show it."""
    weights_bytes: int
    host_weights_bytes: int = 0
    """The part that stays in host memory: token_embd, if it is not tied to the output (section 4.2)."""
    layers: int = 32
    kv_bytes_per_token: int = 131_072
    """Layers that see the whole context, keys and values, f16, one slot."""
    window_kv_bytes_per_token: int = 0
    """The same of layers with a sliding window, whose cache holds ``window`` and one batch (section 4.2)."""
    window: int = 0
    predicted_kv_bytes_per_token: int = 0
    """What Ollama's crude prediction takes for all layers (section 4.4); zero: the two above together."""
    embedding_length: int = 4096
    feed_forward_length: int = 14_336
    context_max: int = 131_072
    num_ctx: int = 0
    """PARAMETER num_ctx of the Modelfile; zero if unset."""
    family: str = "llama"
    embedding: bool = False
    capabilities: tuple[str, ...] = ("completion",)

    def parallel(self, num_parallel: int) -> int:
        """Slots that Ollama gives a runner of this model (section 3.2)."""
        return 1 if self.embedding or self.family in SINGLE_SLOT_FAMILIES else max(1, num_parallel)
