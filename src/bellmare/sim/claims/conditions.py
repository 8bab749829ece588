"""Under which conditions a run stands: the card, the models, what is asked and by how many, each with its source."""

from enum import StrEnum

import msgspec

from bellmare.core.events import StoredModel
from bellmare.core.units import GIB, SECOND_US, Bytes, ModelId
from bellmare.sim.fleet import FOOTPRINT_BYTES, SimFleet, SimMachine
from bellmare.sim.workload import GB, SimModel
from bellmare.twin.config import FOREVER_US, GpuConfig, TwinConfig, TwinModel
from bellmare.twin.messages import RunnerOptions

CONNECTIONS = 50
"""As published."""
VRAM_BYTES = 24 * GB
"""An L4 has 24 GB (data sheet); the driver keeps about 0.5 GB of it, which the headroom of 1 GiB covers."""
DECODE_BYTES_PER_S = 240_000_000_000
"""Data sheet: 300 GB/s. Four fifths of it, from experience with quantised decoding: 58 tokens/s for a 7B. A P40 with
346 GB/s makes 56 (llama.cpp pull request 4766, llama 7B Q4_0), so this is rather kind to the card."""
PREFILL_BYTE_TOKENS_PER_S = 8_200_000_000_000
"""2,000 tokens/s for a 7B, the round figure of ``workloads.azure``."""
DISK_BYTES_PER_S = 1_500_000_000
"""A cloud's local SSD; with it a 7B is ready after 3.7 s, near the published 4.2 s."""
PCIE_BYTES_PER_S = 12_000_000_000
"""From page cache over PCIe 4.0, pageable memory: about half of what the lanes carry."""
SLOT_COST_PERCENT = 15
"""How much longer a token takes per further busy slot: the twin's default."""
PAGE_CACHE_BYTES = 32 * GIB
"""Where a condition has page cache: of a machine with 48 GB of memory."""
CONTEXT = 4_096
"""Ollama's default on a card below 23 GiB, which an L4 is; the same for the gateway, so that neither has more room."""
BATCH = 512
OPTIONS = RunnerOptions(num_ctx=CONTEXT, num_batch=BATCH)
"""The same for every request and load, so that nothing is ever reloaded for its shape."""
QUEUE_MAX = 100_000
"""Nobody is refused, so that waits can be compared; 50 connections never meet it."""
UNLIMITED = 1_000
"""Runners at once where there is to be no limit of three."""
ZIPF = 1.0
"""Slope of the models' popularity: with eight models the first has 37 %, the last 5 %. GenTD26 is steeper (1.7)."""
STAY_PERCENT = 73
"""So often a user asks for the model that he asked before (GenTD26, in a session)."""


class Lengths(StrEnum):
    """How long prompts and answers are."""

    chat = "chat"
    """Azure LLM 2023, conversations: 1,155 and 211 tokens on average."""
    short = "short"
    """A classifier's call: a prompt of about 60 tokens, an answer of about 5."""


LOG_NORMAL = {Lengths.chat: ((6.63, 0.985), (5.02, 0.859)), Lengths.short: ((4.0, 0.5), (1.5, 0.5))}
"""Mean and deviation of the logarithm, of prompt tokens and of output tokens. ``chat`` is fitted to the 19,366 rows of
``azure_llm2023_conv``; ``short`` is ours."""
PROMPT_MAX, OUTPUT_MAX = 3_000, 1_000
"""Longer ones are cut, so that both fit the context."""


class Kind(msgspec.Struct, frozen=True):
    """A size of model."""

    label: str
    weights_bytes: int
    layers: int
    embedding_length: int
    feed_forward_length: int
    kv_bytes_per_token: int


SEVEN = Kind("7b", 4_110_000_000, 32, 4096, 14_336, 131_072)
"""Mistral 7B, Q4_0: 8 of 32 heads have keys, so a token takes 32 layers x 2 x 1,024 x 2 bytes."""
THIRTEEN = Kind("13b", 7_370_000_000, 40, 5120, 13_824, 819_200)
"""Llama 2 13B, Q4_0: every head has keys, so a token takes 40 layers x 2 x 5,120 x 2 bytes, and 4,096 tokens 3.4 GB:
with four slots one such model fills the card."""


ONE = Kind("1b", 810_000_000, 16, 2048, 8_192, 32_768)
"""Llama 3.2 1B, Q4: 8 of 32 heads have keys, 64 wide."""


class Mix(StrEnum):
    """Which sizes of model there are."""

    mixed = "7B and 13B in turn"
    """As published. The most popular is a 7B."""
    seven = "all 7B"
    small = "all 1B"


KINDS = {Mix.mixed: (SEVEN, THIRTEEN), Mix.seven: (SEVEN,), Mix.small: (ONE,)}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run depends on."""

    gateway: bool
    """False: stock Ollamas behind least connections."""
    parallel: int = 1
    """OLLAMA_NUM_PARALLEL."""
    pinned: bool = False
    """Stock with OLLAMA_KEEP_ALIVE=-1 and no limit of models; the gateway's workers are always so."""
    assigned: bool = False
    """Stock with each model on one server, chosen by hand, instead of least connections."""
    gpus: int = 1
    models: int = 8
    mix: Mix = Mix.mixed
    think_s: float = 0.0
    """Mean of the exponential pause between an answer and the connection's next request."""
    lengths: Lengths = Lengths.chat
    page_cache: bool = False
    hints_percent: int = 0
    """So many requests are announced ``loop.HINT_LEAD_US`` before they are made."""
    connections: int = CONNECTIONS
    seed: int = 1
    warm_up_s: float = 600.0
    """Requests made before are not counted."""
    horizon_s: float = 7_800.0
    """The last request is made by then."""

    @property
    def subject(self) -> str:
        """What is run, in words."""
        name = "bellmare" if self.gateway else "stock, keep_alive -1, no limit" if self.pinned else "stock"
        name += ", models assigned by hand" if self.assigned else ""
        hints = f", {self.hints_percent} % announced" if self.hints_percent else ""
        return f"{name}, parallel {self.parallel}{hints}"

    @property
    def load(self) -> str:
        """What it has to bear, in words."""
        think = f"{self.think_s:g} s of thought" if self.think_s else "no pause"
        cache = "32 GiB of page cache" if self.page_cache else "no page cache"
        who = f"{self.connections} connections, {think}, {self.lengths}"
        return f"{self.gpus} x L4, {self.models} models ({self.mix}), {who}, {cache}"


def home(setup: Setup, model: int) -> int:
    """Where a careful operator puts a model: a 7B and a 13B side by side, in order of popularity."""
    return model // len(KINDS[setup.mix]) % setup.gpus


def kind_of(setup: Setup, model: int) -> Kind:
    """Of the model with that place in the order of popularity."""
    kinds = KINDS[setup.mix]
    return kinds[model % len(kinds)]


def fleet(setup: Setup) -> SimFleet:
    """For the core's world: only the memory and the number of workers count there, the rest is the twin's."""
    return SimFleet((SimMachine(VRAM_BYTES),) * setup.gpus)


def twin_config(setup: Setup) -> TwinConfig:
    """One server of the run: stock in all that is not named here, its eviction stall included."""
    gpu = GpuConfig(
        vram_bytes=VRAM_BYTES,
        context_overhead_bytes=FOOTPRINT_BYTES,
        disk_bytes_per_s=DISK_BYTES_PER_S,
        pcie_bytes_per_s=PCIE_BYTES_PER_S,
        host_cache_bytes=PAGE_CACHE_BYTES if setup.page_cache else 0,
        decode_bytes_per_s=DECODE_BYTES_PER_S,
        prefill_byte_tokens_per_s=PREFILL_BYTE_TOKENS_PER_S,
        slot_cost_percent=SLOT_COST_PERCENT,
    )
    kept = setup.gateway or setup.pinned
    return TwinConfig(
        gpu=gpu,
        num_parallel=setup.parallel,
        queue_max=QUEUE_MAX,
        loaded_models_max=UNLIMITED if kept else 0,
        keep_alive_us=FOREVER_US if kept else 300 * SECOND_US,
    )


def twin_models(setup: Setup, models: tuple[SimModel, ...]) -> tuple[TwinModel, ...]:
    """What every server has on its disk."""
    found = []
    for number, model in enumerate(models):
        kind = kind_of(setup, number)
        found.append(
            TwinModel(
                name=model.name,
                blob=model.blob,
                digest=model.blob,
                weights_bytes=kind.weights_bytes,
                layers=kind.layers,
                kv_bytes_per_token=kind.kv_bytes_per_token,
                embedding_length=kind.embedding_length,
                feed_forward_length=kind.feed_forward_length,
                context_max=CONTEXT,
                num_ctx=CONTEXT,
            )
        )
    return tuple(found)


def stored_models(setup: Setup, models: tuple[SimModel, ...]) -> tuple[StoredModel, ...]:
    """The same as the gateway reads it from the servers."""
    return tuple(
        StoredModel(
            name=model.name,
            model=ModelId(model.blob),
            digest=model.blob,
            weights_bytes=Bytes(model.weights_bytes),
            kv_bytes_per_token=Bytes(kind_of(setup, number).kv_bytes_per_token),
            compute_bytes=Bytes(_compute_bytes(kind_of(setup, number))),
            context_max=CONTEXT,
            num_ctx=CONTEXT,
        )
        for number, model in enumerate(models)
    )


def _compute_bytes(kind: Kind) -> int:
    """4 U (2 FF + 7.5 E), the part that does not grow with the context (ollama.md 4.2)."""
    return BATCH * (8 * kind.feed_forward_length + 30 * kind.embedding_length)
