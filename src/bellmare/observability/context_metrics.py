"""Metrics of the context guard: what was counted, how well, and what was cut. Plain integers, read when scraped."""

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

ERROR_SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
"""Bounds of the histogram of errors; 0.02 is what is promised of a tokeniser's counts."""
BY = ("gateway", "worker")
PROVEN = "proven"
"""Counted by nobody: so few bytes cannot be too many tokens."""
METHODS = (PROVEN, "exact", "learned")


class ContextMetrics(Collector):
    """``label`` bounds the models' names."""

    def __init__(self, label: Callable[[str], str]) -> None:
        self._label = label
        self.proven = 0
        """Added to by the guard itself: once for nearly every request."""
        self._requests = dict.fromkeys(METHODS[1:], 0)
        self._shifts: dict[tuple[str, str], int] = {}
        self._refused: dict[str, int] = {}
        self._routed: dict[str, int] = {}
        self._cut_tokens: dict[str, int] = {}
        self._errors = {method: [0] * (len(ERROR_SHARES) + 1) for method in METHODS[1:]}
        self._error_sums = dict.fromkeys(METHODS[1:], 0.0)
        self.state: Callable[[], dict[str, int]] = dict
        """Figures of the counter: ``vocabularies``, ``bytes``, ``failures``, ``overloads``, ``late``, ``waiting``."""

    def counted(self, method: str) -> None:
        """A request was counted, by ``exact`` or ``learned``."""
        self._requests[method] += 1

    def cut(self, model: str, tokens: int) -> None:
        """We left messages out, of so many tokens."""
        label = self._label(model)
        self._cut_tokens[label] = self._cut_tokens.get(label, 0) + tokens
        self._shift(label, "gateway")

    def worker_cut(self, model: str) -> None:
        """A worker left out a part of a prompt, or shifted its context in the middle of an answer."""
        self._shift(self._label(model), "worker")

    def refused(self, model: str) -> None:
        """A prompt was refused for its length."""
        label = self._label(model)
        self._refused[label] = self._refused.get(label, 0) + 1

    def routed(self, model: str) -> None:
        """A request was sent to a larger context class."""
        label = self._label(model)
        self._routed[label] = self._routed.get(label, 0) + 1

    def error(self, method: str, share: float) -> None:
        """How far a count was from the worker's own."""
        share = abs(share)
        self._errors[method][bisect_left(ERROR_SHARES, share)] += 1
        self._error_sums[method] += share

    def _shift(self, label: str, by: str) -> None:
        key = (label, by)
        self._shifts[key] = self._shifts.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "bellmare_context_requests", "Prompts by how their tokens were counted", None, _M
        )
        for method, count in {PROVEN: self.proven, **self._requests}.items():
            requests.add_metric([method], count)
        text = "Prompts and contexts that were cut: by the gateway, or, as far as it shows, by a worker"
        shifts = CounterMetricFamily("bellmare_context_shift_events", text, None, ("model", "by"))
        for (model, by), count in self._shifts.items():
            shifts.add_metric([model, by], count)
        yield from (requests, shifts)
        for name, text, counts in (
            ("refusals", "Prompts refused because they do not fit", self._refused),
            ("routed", "Requests served by a larger context class", self._routed),
            ("cut_tokens", "Tokens of messages that were left out", self._cut_tokens),
        ):
            family = CounterMetricFamily(f"bellmare_context_{name}", text, None, ("model",))
            for model, count in counts.items():
                family.add_metric([model], count)
            yield family
        yield self._error_family()
        yield from self._state_families()

    def _error_family(self) -> HistogramMetricFamily:
        text = "Distance of counts from the workers' own, as a share"
        family = HistogramMetricFamily("bellmare_context_count_error_ratio", text, labels=_M)
        bounds = [str(floatToGoString(bound)) for bound in (*ERROR_SHARES, float("inf"))]  # type: ignore[no-untyped-call]
        for method, counts in self._errors.items():
            total, buckets = 0, []
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([method], buckets, self._error_sums[method])
        return family

    def _state_families(self) -> Iterator[Metric]:
        state = self.state()
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"bellmare_context_{name}", text)
            gauge.add_metric([], state.get(name, 0))
            yield gauge
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"bellmare_context_{name}", text)
            counter.add_metric([], state.get(name, 0))
            yield counter


_M = ("method",)
_GAUGES = {
    "vocabularies": "Vocabularies in memory",
    "vocabulary_bytes": "Memory that vocabularies take, about",
    "counts_waiting": "Prompts that wait to be counted",
}
_COUNTERS = {
    "vocabulary_failures": "Vocabularies that no worker gave",
    "count_overloads": "Prompts estimated because too many waited to be counted",
    "count_timeouts": "Prompts estimated because counting took too long",
}
