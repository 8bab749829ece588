"""How many hints a client may give: token buckets, so that hints can flood neither the core, its log nor its queues.

Time is an argument. A client is a pseudonym of whatever it sends as its key, and can thus be as many as it likes: so
all of them together have a bucket too.
"""

import msgspec

from bellmare.core.units import SECOND_US, InstantUs, SpanUs

TENANTS_MAX = 10_000
"""Buckets kept; who took longest ago is forgotten, which gives him a full one: the bucket of all bounds that."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Hints per second, and how many may come at once after a pause: of one client, and of all together."""

    per_s: float
    burst: int
    all_per_s: float
    all_burst: int


class _Bucket:
    __slots__ = ("at_us", "tokens")

    def __init__(self, tokens: float, at_us: InstantUs) -> None:
        self.tokens = tokens
        self.at_us = at_us


class Allowance:
    """The buckets of one kind of hints."""

    __slots__ = ("_all", "_buckets", "rates")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self._all = _Bucket(rates.all_burst, InstantUs(0))
        self._buckets: dict[str, _Bucket] = {}
        """The last to take is the last."""

    def take(self, tenant: str, count: int, now_us: InstantUs) -> SpanUs:
        """Take ``count`` (at most the burst) or nothing: zero, or the span after which there may be enough."""
        rates = self.rates
        assert 0 < count <= rates.burst <= rates.all_burst
        bucket = self._buckets.pop(tenant, None)
        if bucket is None:
            bucket = _Bucket(rates.burst, now_us)
            if len(self._buckets) >= TENANTS_MAX:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[tenant] = bucket
        _fill(bucket, now_us, per_s=rates.per_s, burst=rates.burst)
        _fill(self._all, now_us, per_s=rates.all_per_s, burst=rates.all_burst)
        short_s = max((count - bucket.tokens) / rates.per_s, (count - self._all.tokens) / rates.all_per_s)
        if short_s > 0:
            return SpanUs(max(1, round(short_s * SECOND_US)))
        bucket.tokens -= count
        self._all.tokens -= count
        return SpanUs(0)

    @property
    def tenants(self) -> int:
        """Buckets kept; at most ``TENANTS_MAX``."""
        return len(self._buckets)


def _fill(bucket: _Bucket, now_us: InstantUs, *, per_s: float, burst: int) -> None:
    bucket.tokens = min(burst, bucket.tokens + (now_us - bucket.at_us) / SECOND_US * per_s)
    bucket.at_us = now_us
