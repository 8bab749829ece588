"""The only place that reads clocks. The core's time is monotonic; wall time is for people and stamps."""

import time
from datetime import UTC, datetime

from bellmare.core.units import InstantUs


class Clock:
    """Instants for the core, stamps for the outside."""

    def now_us(self) -> InstantUs:
        """Monotonic microseconds; the core's time."""
        return InstantUs(time.monotonic_ns() // 1000)

    def wall_s(self) -> int:
        """Seconds since 1970, for OpenAI's ``created``."""
        return int(time.time())

    def wall_us(self) -> int:
        """Microseconds since 1970, to judge ``expires_at``."""
        return time.time_ns() // 1000

    def rfc3339(self) -> str:
        """UTC with microseconds, as in ``created_at``."""
        return datetime.now(UTC).isoformat().replace("+00:00", "Z")
