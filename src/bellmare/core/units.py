"""Ids and units of the core. Time is integer microseconds, memory integer bytes: equal inputs, equal decisions."""

from typing import NewType

WorkerId = NewType("WorkerId", str)
ModelId = NewType("ModelId", str)
"""Identity of a model: the digest of its weights blob, because Ollama keys runners by blob, not by name; behind it, for
a context class, ``#`` and the context."""
RequestId = NewType("RequestId", str)
OperationId = NewType("OperationId", int)

Bytes = NewType("Bytes", int)
InstantUs = NewType("InstantUs", int)
"""An instant on the monotonic clock, in microseconds. A deadline is an instant."""
SpanUs = NewType("SpanUs", int)
"""A length of time in microseconds. A timeout is a span."""

SECOND_US = 1_000_000
MIB = 1 << 20
GIB = 1 << 30
