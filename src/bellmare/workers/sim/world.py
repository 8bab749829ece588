"""The catalogue: what is on the simulated disk, described as a GGUF file would, so that every memory formula can be
tried on it.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from bellmare.protocols.names import canonical_name
from bellmare.twin.config import TwinModel
from bellmare.workers.sim.vocabulary import KINDS, vocabulary

_TYPE_BYTES = {  # bytes / elements of a block (ollama.md 4.1)
    "F32": (4, 1),
    "F16": (2, 1),
    "Q8_0": (34, 32),
    "Q4_0": (18, 32),
    "Q4_K": (144, 256),
    "Q6_K": (210, 256),
}
_QUANTIZATIONS = {  # the many, the important
    "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q4_0": ("Q4_0", "Q6_K"),
    "Q8_0": ("Q8_0", "Q8_0"),
    "F16": ("F16", "F16"),
}


_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gptoss": 2, "gpt-oss": 2, "cohere2": 4, "olmo3": 4, "exaone4": 4}
"""Of so many layers the last sees everything."""


class Tensor(msgspec.Struct, frozen=True):
    """One line of ``show.tensors``."""

    name: str
    type: str
    shape: list[int]

    @property
    def size_bytes(self) -> int:
        size, elements = _TYPE_BYTES[self.type]
        count = 1
        for side in self.shape:
            count *= side
        return count * size // elements


class SimModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One name of the catalogue; a models file is a JSON or YAML list of these. Defaults are llama3.1:8b's."""

    name: str
    architecture: str = "llama"
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_length: int = 0
    """Length of a key or value of one head; zero: embedding_length / heads."""
    embedding_length: int = 4096
    feed_forward_length: int = 14_336
    vocabulary: int = 128_256
    context_max: int = 131_072
    sliding_window: int = 0
    tied: bool = False
    """The output matrix is the token embedding: no output.weight."""
    gated: bool = True
    """Three feed-forward matrices (SwiGLU); false: two."""
    quantization: str = "Q4_K_M"
    capabilities: tuple[str, ...] = ("completion",)
    num_ctx: int = 0
    """PARAMETER num_ctx of the Modelfile; zero: none."""
    shares: str = ""
    """Name of an earlier model whose weights blob this one uses."""
    tokenizer: str = ""
    """gpt2, llama or bert: prompts are counted by a vocabulary, which /api/show tells. Empty: four bytes a token."""
    template: str = ""
    """Empty: ChatML (``prompting``)."""
    system: str = ""
    parameters: dict[str, Any] = {}
    """PARAMETERs of the Modelfile but num_ctx: options of requests that name none of their own."""

    @property
    def embedding(self) -> bool:
        return self.capabilities == ("embedding",)

    @property
    def key_length(self) -> int:
        return self.head_length or self.embedding_length // self.heads

    @property
    def windowed_layers(self) -> int:
        """Layers with a sliding window; llama.cpp's default patterns (ollama.md 4.2)."""
        period = _WINDOW_PERIODS.get(self.architecture, 0) if self.sliding_window else 0
        return self.layers - self.layers // period if period else 0

    def tensors(self) -> list[Tensor]:
        """All of them, named and shaped as llama.cpp does, norms left out of the blocks' small change."""
        many, important = _QUANTIZATIONS[self.quantization]
        width, inner = self.embedding_length, self.feed_forward_length
        queries, keys = self.heads * self.key_length, self.kv_heads * self.key_length
        found = [Tensor("token_embd.weight", important if self.tied else many, [width, self.vocabulary])]
        for index in range(self.layers):
            better = important if index < self.layers // 8 or index % 3 == 2 else many
            block = {
                "attn_norm": ("F32", [width]),
                "attn_q": (many, [width, queries]),
                "attn_k": (many, [width, keys]),
                "attn_v": (better, [width, keys]),
                "attn_output": (many, [queries, width]),
                "ffn_norm": ("F32", [width]),
                "ffn_up": (many, [width, inner]),
                "ffn_down": (better, [inner, width]),
            }
            if self.gated:
                block["ffn_gate"] = (many, [width, inner])
            found += [Tensor(f"blk.{index}.{name}.weight", kind, shape) for name, (kind, shape) in block.items()]
        found.append(Tensor("output_norm.weight", "F32", [width]))
        if not self.tied and not self.embedding:
            found.append(Tensor("output.weight", important, [width, self.vocabulary]))
        return found

    def model_info(self) -> dict[str, Any]:
        """GGUF keys that the memory formula reads (ollama.md 4.1)."""
        prefix = self.architecture
        parameters = sum(_count(tensor) for tensor in self.tensors())
        found: dict[str, Any] = {
            "general.architecture": prefix,
            "general.file_type": 15,
            "general.parameter_count": parameters,
            "general.quantization_version": 2,
            f"{prefix}.block_count": self.layers,
            f"{prefix}.context_length": self.context_max,
            f"{prefix}.embedding_length": self.embedding_length,
            f"{prefix}.feed_forward_length": self.feed_forward_length,
            f"{prefix}.attention.head_count": self.heads,
            f"{prefix}.attention.head_count_kv": self.kv_heads,
            f"{prefix}.vocab_size": self.vocabulary,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": None,
        }
        if self.head_length:
            found[f"{prefix}.attention.key_length"] = self.head_length
            found[f"{prefix}.attention.value_length"] = self.head_length
        if self.sliding_window:
            found[f"{prefix}.attention.sliding_window"] = self.sliding_window
        if self.embedding:
            found[f"{prefix}.pooling_type"] = 1
        if self.tokenizer:
            found |= vocabulary(self.tokenizer).info
        return found


def _count(tensor: Tensor) -> int:
    size, elements = _TYPE_BYTES[tensor.type]
    return tensor.size_bytes * elements // size


class Entry:
    """A model of the catalogue with what follows from it."""

    def __init__(self, model: SimModel, blob: str) -> None:
        self.model = model
        written = (model.template, model.system, model.num_ctx, sorted(model.parameters.items()))
        tensors = model.tensors()
        self.tensors = tensors
        self.model_info = model.model_info()
        self.weights_bytes = sum(tensor.size_bytes for tensor in tensors)
        parameters: int = self.model_info["general.parameter_count"]
        self.details: dict[str, Any] = {
            "parent_model": "",
            "format": "gguf",
            "family": model.architecture,
            "families": [model.architecture],
            "parameter_size": f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M",
            "quantization_level": model.quantization,
        }
        host = next((t.size_bytes for t in tensors if t.name == "token_embd.weight"), 0)
        layer_kv = 4 * model.kv_heads * model.key_length
        windowed = model.windowed_layers
        self.twin = TwinModel(
            name=canonical_name(model.name),
            blob=blob,
            digest=_digest("manifest", model.name, blob, *([str(written)] if any(written) else [])),
            weights_bytes=self.weights_bytes,
            host_weights_bytes=0 if model.tied else host,
            layers=model.layers,
            kv_bytes_per_token=0 if model.embedding else layer_kv * (model.layers - windowed),
            window_kv_bytes_per_token=layer_kv * windowed,
            window=model.sliding_window,
            predicted_kv_bytes_per_token=4 * model.layers * model.kv_heads * (model.embedding_length // model.heads),
            embedding_length=model.embedding_length,
            feed_forward_length=model.feed_forward_length,
            context_max=model.context_max,
            num_ctx=model.num_ctx,
            family=model.architecture,
            embedding=model.embedding,
            capabilities=model.capabilities,
        )

    def tags_details(self) -> dict[str, Any]:
        """``details`` of /api/tags, which say more than those of /api/ps (ollama.md 1.4)."""
        more = {"context_length": self.model.context_max, "embedding_length": self.model.embedding_length}
        return self.details | more


class World:
    """All entries, by blob; what a name means is the twin's to know, because names move."""

    def __init__(self, models: tuple[SimModel, ...]) -> None:
        self.entries: list[Entry] = []
        blobs: dict[str, str] = {}
        for model in models:
            blobs[model.name] = blobs.get(model.shares, blob_of(model))
            self.entries.append(Entry(model, blobs[model.name]))
        self._by_key = {(entry.twin.blob, entry.twin.digest): entry for entry in self.entries}

    def add(self, model: SimModel, blob: str) -> Entry:
        """Describe a name that is created or pulled. A blob is a file of the same digest everywhere."""
        entry = Entry(model, blob)
        self._by_key[entry.twin.blob, entry.twin.digest] = entry
        return entry

    def entry(self, model: TwinModel) -> Entry:
        """What the catalogue says of a name of the twin."""
        return self._by_key[model.blob, model.digest]

    def loaded_entry(self, blob: str, digest: str) -> Entry:
        """What the catalogue says of a line of /api/ps, whose name may be gone."""
        return self._by_key[blob, digest]


def blob_of(model: SimModel) -> str:
    """The digest of a model's weights file, unless it shares another's."""
    return _digest("blob", model.name)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(("bellmare-sim", *parts)).encode()).hexdigest()


def load_models(path: Path) -> tuple[SimModel, ...]:
    """Read a models file, ``.json`` or YAML. Raises ``ValueError`` with the place of what does not fit."""
    if path.suffix == ".json":
        found: object = msgspec.json.decode(path.read_bytes())
    else:
        from ruamel.yaml import YAML

        found = YAML(typ="safe", pure=True).load(path)
    models = msgspec.convert(found, tuple[SimModel, ...])
    strange = sorted({model.tokenizer for model in models} - {"", *KINDS})
    if strange:
        raise ValueError(f"unknown tokenizer {', '.join(strange)}; known: {', '.join(KINDS)}")
    unknown = sorted({model.quantization for model in models} - _QUANTIZATIONS.keys())
    if unknown:
        raise ValueError(f"unknown quantization {', '.join(unknown)}; known: {', '.join(_QUANTIZATIONS)}")
    return models


_TOOLS = ("completion", "tools")

DEFAULT_MODELS = (
    SimModel("llama3.2:3b", "llama", 28, 24, 8, 128, 3072, 8192, tied=True, capabilities=_TOOLS, tokenizer="gpt2"),
    SimModel("llama3.1:8b", capabilities=_TOOLS, tokenizer="gpt2"),
    SimModel("qwen2.5:7b", "qwen2", 28, 28, 4, 0, 3584, 18_944, 152_064, 32_768, capabilities=_TOOLS, tokenizer="gpt2"),
    SimModel(
        "qwen2.5:14b", "qwen2", 48, 40, 8, 0, 5120, 13_824, 152_064, 32_768, capabilities=_TOOLS, tokenizer="gpt2"
    ),
    SimModel("mistral:7b", vocabulary=32_768, context_max=32_768, capabilities=_TOOLS, tokenizer="llama"),
    SimModel("gemma2:9b", "gemma2", 42, 16, 8, 256, 3584, 14_336, 256_000, 8192, 4096, tied=True, tokenizer="llama"),
    SimModel("phi4:14b", "phi3", 40, 40, 10, 0, 5120, 17_920, 100_352, 16_384, tokenizer="gpt2"),
    SimModel(
        "deepseek-r1:8b",
        "qwen3",
        36,
        32,
        8,
        128,
        4096,
        12_288,
        151_936,
        capabilities=("completion", "thinking"),
        tokenizer="gpt2",
    ),
    SimModel(
        "nomic-embed-text:latest",
        "nomic-bert",
        12,
        12,
        12,
        0,
        768,
        3072,
        30_522,
        2048,
        quantization="F16",
        capabilities=("embedding",),
        tokenizer="bert",
    ),
)
"""Real shapes and default quantizations, from 0.3 to 9 GB: about 48 GB for a card of 24 (architectures from memory)."""

REGISTRY = (
    SimModel(
        "smollm2:135m", "llama", 30, 9, 3, 0, 576, 1536, 49_152, 8192, tied=True, quantization="Q8_0", tokenizer="gpt2"
    ),
    SimModel(
        "tinyllama:latest", "llama", 22, 32, 4, 0, 2048, 5632, 32_000, 2048, quantization="Q4_0", tokenizer="llama"
    ),
    SimModel(
        "qwen3:4b",
        "qwen3",
        36,
        32,
        8,
        128,
        2560,
        9728,
        151_936,
        40_960,
        tied=True,
        capabilities=(*_TOOLS, "thinking"),
        tokenizer="gpt2",
    ),
    SimModel(
        "all-minilm:latest",
        "bert",
        6,
        12,
        12,
        0,
        384,
        1536,
        30_522,
        512,
        gated=False,
        quantization="F16",
        capabilities=("embedding",),
        tokenizer="bert",
    ),
)
"""What can be pulled: a small made-up registry, and no others."""
