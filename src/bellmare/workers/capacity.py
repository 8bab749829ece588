"""How much memory models may take on this machine: NVIDIA's GPUs if there are any, else half of main memory."""

import os

from bellmare.core.units import Bytes


def local_capacity_bytes() -> Bytes | None:
    """Total memory of all local NVIDIA GPUs, else half of physical memory; None if neither can be read."""
    return _nvidia_bytes() or _half_of_memory()


def _nvidia_bytes() -> Bytes | None:
    """None without a driver. The library is imported here because most machines that run a gateway have no GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return Bytes(sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)) or None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _half_of_memory() -> Bytes | None:
    """An Ollama without a GPU runs in main memory, which it shares with everything else."""
    try:
        return Bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    except (ValueError, OSError, AttributeError):
        return None
