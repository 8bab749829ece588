"""What one measurement is told and what it answers, as JSON between the benchmark and its load generator."""

from enum import StrEnum

import msgspec


class Mode(StrEnum):
    """What the load generator does."""

    saturate = "saturate"
    """Unstreamed requests on every connection, each as soon as the last is answered."""
    paced = "paced"
    """Unstreamed requests at a fixed rate."""
    stream = "stream"
    """Streams on every connection, one after the other."""
    hold = "hold"
    """Open slow streams all at once, and look at memory."""
    idle = "idle"
    """Open connections that have done one request, and look at memory."""
    stall = "stall"
    """Ask for floods and never read, and look at memory."""
    leave = "leave"
    """Break off running streams, and see when the upstream is left."""


class Job(msgspec.Struct, frozen=True):
    """One measurement through one address. Times in seconds unless they say otherwise."""

    mode: Mode
    port: int
    upstream_port: int
    pid: int = 0
    """The proxy; 0 is none, then no CPU and memory are taken."""
    connections: int = 64
    warmup_s: float = 0.3
    window_s: float = 1.0
    per_second: int = 200
    """Requests of ``paced``."""
    chunks: int = 40
    interval_us: int = 50_000
    body_bytes: int = 1024


class Outcome(msgspec.Struct):
    """What came of a job; figures of other modes stay at zero. Only what fell into the window counts."""

    requests: int = 0
    chunks: int = 0
    window_s: float = 0.0
    cpu_us: float = 0.0
    waited_us: float = 0.0
    """The proxy's threads were ready to run and something else had their core."""
    reads: int = 0
    """Reads of the client that brought chunks: fewer than chunks where somebody joined them by being late."""
    p50_us: float = 0.0
    """Latency of unstreamed requests."""
    p99_us: float = 0.0
    chunk_p50_us: float = 0.0
    """One-way delay from the upstream's send to the client's read."""
    chunk_p90_us: float = 0.0
    chunk_p99_us: float = 0.0
    first_byte_us: float = 0.0
    """Median from a request's send to its first chunk."""
    memory_bytes: int = 0
    """Growth of the proxy while ``held`` connections stood as the mode says."""
    held: int = 0
    left_ms: list[float] = []
    """From each client's leaving to the upstream's loss of the connection."""
    upstream_connections: int = 0
    """Accepted by the upstream during the job, our own control calls left out."""
    served: int = 0
    """All requests and streams that were answered whole, outside the window too."""
    errors: int = 0
    error: str = ""
    """The first one in words."""

    def fail(self, text: str) -> None:
        """Count an error."""
        self.errors += 1
        self.error = self.error or text


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie (nearest rank); 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
