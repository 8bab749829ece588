"""Bytes and spans for people."""


def size_text(size: int) -> str:
    """``23.4 GB``: powers of ten, as cards and Ollama name them."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def span_text(seconds: float) -> str:
    """``350 ms``, ``12.3 s``, ``4 min``, ``2.1 h``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
