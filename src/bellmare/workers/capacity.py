"""How much memory models may take on this machine: NVIDIA's GPUs if there are any, else half of main memory."""

import os
from typing import NamedTuple

from bellmare.core.units import Bytes


def local_capacity_bytes() -> Bytes | None:
    """Total memory of all local NVIDIA GPUs, else half of physical memory; None if neither can be read."""
    return Bytes(sum(gpu.total_bytes for gpu in nvidia_gpus())) or _half_of_memory()


class Gpu(NamedTuple):
    """One GPU as its driver names it."""

    uuid: str
    total_bytes: int


def nvidia_gpus() -> list[Gpu]:
    """The local NVIDIA GPUs; empty without a driver. Imported here: most machines that run a gateway have none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(str(pynvml.nvmlDeviceGetUUID(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _half_of_memory() -> Bytes | None:
    """An Ollama without a GPU runs in main memory, which it shares with everything else."""
    try:
        return Bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    except (ValueError, OSError, AttributeError):
        return None
