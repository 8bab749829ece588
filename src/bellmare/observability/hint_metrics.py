"""Metrics of hints and of loads ahead of demand: what was told, what became of it. Read off the core when scraped."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bellmare.core import hints
from bellmare.core.engine import Engine
from bellmare.core.events import HintSource

OUTCOMES = ("given", "right", "wrong")
"""As the core counts them; ``limited`` is what the gateway dropped before."""


class HintMetrics(Collector):
    """A few dozen lines, whatever the fleet: sources and outcomes are closed sets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limited = dict.fromkeys(HintSource, 0)

    def limited(self, source: HintSource, count: int) -> None:
        """Count hints that were over their client's allowance."""
        self._limited[source] += count

    def collect(self) -> Iterator[Metric]:
        fleet = self._engine.fleet
        counters = fleet.state.counters
        told = CounterMetricFamily("bellmare_hints", "Hints by source and what became of them", None, HINT_LABELS)
        precision = GaugeMetricFamily("bellmare_hint_precision", "Share of hints that come true", None, ["source"])
        lead = GaugeMetricFamily("bellmare_hint_lead_seconds", "From a hint to its request", None, ["source"])
        for source in HintSource:
            for outcome in OUTCOMES:
                told.add_metric([source, outcome], counters.get(f"hint_{outcome}_{source}", 0))
            told.add_metric([source, "limited"], self._limited[source])
            precision.add_metric([source], hints.precision(fleet, source))
            score = fleet.state.scores.get(source)
            if score is not None and score.lead_us:
                lead.add_metric([source], score.lead_us / 1e6)
        yield from (told, precision, lead)
        for outcome, text in AHEAD.items():
            ahead = CounterMetricFamily(f"bellmare_ahead_{outcome}", text)
            ahead.add_metric([], counters.get(f"ahead_{outcome}", 0))
            yield ahead


HINT_LABELS = ("source", "outcome")
AHEAD = {
    "useful": "Runners loaded ahead of demand that served somebody",
    "useless": "Runners loaded ahead of demand that left before anybody asked",
}
