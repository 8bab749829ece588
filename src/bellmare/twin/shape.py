"""A runner's shape: the options that a request asks for after defaults and caps, and whether a loaded one satisfies it
(3.4).
"""

import msgspec

from bellmare.twin.config import TwinConfig, TwinModel
from bellmare.twin.messages import RunnerOptions

CONTEXT_MIN = 4
CONTEXT_MIN_VISION = 2048


class Shape(msgspec.Struct, frozen=True):
    """What a llama-server is started with. ``context`` is per slot; ``*_auto`` marks values that nobody asked for."""

    context: int
    context_auto: bool
    batch: int
    batch_auto: bool
    num_gpu: int
    main_gpu: int
    use_mmap: bool | None
    num_thread: int
    shift: bool


def resolve(config: TwinConfig, model: TwinModel, *, options: RunnerOptions, shift: bool | None) -> Shape:
    """The shape that a request asks for: request > Modelfile > environment > VRAM tier, then minima and the training
    context.
    """
    asked = options.num_ctx or model.num_ctx or config.context_length
    minimum = CONTEXT_MIN_VISION if "vision" in model.capabilities else CONTEXT_MIN
    context = min(max(asked or config.context_default, minimum), model.context_max)
    return Shape(
        context=context,
        context_auto=not asked,
        batch=options.num_batch or _batch(model, context, slots=model.parallel(config.num_parallel)),
        batch_auto=options.num_batch is None,
        num_gpu=options.num_gpu,
        main_gpu=options.main_gpu,
        use_mmap=options.use_mmap,
        num_thread=options.num_thread,
        shift=(model.family != "deepseek2") if shift is None else shift,
    )


def _batch(model: TwinModel, context: int, *, slots: int) -> int:
    """num_batch as Ollama chooses it, before it is lowered for want of headroom (section 3.3 item 9)."""
    if model.embedding:
        return min(2048, context)
    if context * slots <= 4096:
        return 512
    return 1024 if context * slots <= 32_768 else 2048


def needs_reload(loaded: Shape, asked: Shape) -> bool:
    """Whether a request with shape ``asked`` throws a runner of shape ``loaded`` away (section 3.4)."""
    return (
        (loaded.context != asked.context and not (loaded.context_auto and asked.context_auto))
        or (loaded.batch != asked.batch and not (loaded.batch_auto and asked.batch_auto))
        or (asked.num_gpu >= 0 and loaded.num_gpu != asked.num_gpu)
        or loaded.main_gpu != asked.main_gpu
        or loaded.use_mmap != asked.use_mmap
        or loaded.num_thread != asked.num_thread
        or loaded.shift != asked.shift
    )
