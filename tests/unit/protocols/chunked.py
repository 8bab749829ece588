"""Data cut anywhere: what a codec gives must not depend on how its input came."""

import itertools
from typing import Any, AnyStr

from bellmare.protocols.ndjson import LineSplitter


def chunked(data: AnyStr, cuts: list[int]) -> list[AnyStr]:
    """``data`` in pieces; any integers will do as ``cuts``."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def written(codec: Any, data: bytes, cuts: list[int]) -> bytes:
    """What a stream's codec makes of native lines that come in pieces."""
    splitter = LineSplitter()
    return b"".join(codec.line(line) for piece in chunked(data, cuts) for line in splitter.feed(piece))
