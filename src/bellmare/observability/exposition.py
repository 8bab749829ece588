"""Prometheus' text format, as ``prometheus_client`` writes it but in a fifth of the time; and the counting behind it.

Counting is adding to plain integers: whoever serves requests pays nothing for names and labels, the scrape does.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]

US_PER_S = 1_000_000
_PLAIN_MAX = 1_000_000
"""From here on numbers are written with an exponent."""


def number(value: float) -> str:
    """As Prometheus' own libraries write it."""
    if isinstance(value, int) and 0 <= value < _PLAIN_MAX:
        return f"{value}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def labelled(names: Labels, values: Iterable[str]) -> str:
    """``{a="1",b="2"}``, by name; empty without labels."""
    if not names:
        return ""
    pairs = sorted(zip(names, values, strict=True))
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in pairs]) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def heading(name: str, text: str, kind: str) -> str:
    """The two lines before a family. ``name`` as it stands in its lines."""
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def metric_lines(metric: Metric) -> Iterator[str]:
    """A family that a collector of ``prometheus_client`` gave: gauges, and counters without ``_created``."""
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    yield heading(name, metric.documentation, metric.type)
    for sample in metric.samples:
        labels = labelled(tuple(sample.labels), sample.labels.values())
        yield f"{sample.name}{labels} {number(sample.value)}\n"


class Counters:
    """A family of counters. ``name`` without the prefix and ``_total``."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = f"bellmare_{name}_total"
        self.heading = heading(self.name, text, "counter")
        self._labels = labels
        self._counts: dict[Labels, int] = {} if labels else {(): 0}

    def add(self, *values: str) -> None:
        """One more of the series with these labels, in the family's order."""
        self._counts[values] = self._counts.get(values, 0) + 1

    def lines(self) -> Iterator[str]:
        yield self.heading
        for values, count in self._counts.items():
            yield f"{self.name}{labelled(self._labels, values)} {number(count)}\n"


class Buckets:
    """The bounds of a histogram, in seconds, as its users count: in microseconds, each the largest of its bucket."""

    def __init__(self, *bounds_s: float) -> None:
        self.bounds_us = [round(bound * US_PER_S) for bound in bounds_s]
        self.names = [str(floatToGoString(bound)) for bound in (*bounds_s, float("inf"))]  # type: ignore[no-untyped-call]


class Spans:
    """One series of a histogram."""

    __slots__ = ("_bounds_us", "_heads", "counts", "sum_us")

    def __init__(self, buckets: Buckets) -> None:
        self._bounds_us = buckets.bounds_us
        self._heads: list[str] | None = None
        self.counts = [0] * len(buckets.names)
        """By bucket, not summed up."""
        self.sum_us = 0

    def add(self, span_us: int) -> None:
        self.counts[bisect_left(self._bounds_us, span_us)] += 1
        self.sum_us += span_us

    def text(self, name: str, labels: Labels, values: Labels, *, buckets: Buckets) -> str:
        """Its lines. What stands before their numbers never changes, and is written once."""
        if self._heads is None:
            bounds = [labelled(("le", *labels), (bound, *values)) for bound in buckets.names]
            rest = labelled(labels, values)
            self._heads = [f"{name}_bucket{bound} " for bound in bounds] + [
                f"{name}_count{rest} ",
                f"{name}_sum{rest} ",
            ]
        heads, total = self._heads, 0
        pieces = []
        for head, count in zip(heads, self.counts, strict=False):  # two heads are not of buckets
            total += count
            pieces.append(f"{head}{total}.0\n" if total < _PLAIN_MAX else f"{head}{number(total)}\n")
        pieces.append(f"{heads[-2]}{number(total)}\n{heads[-1]}{number(self.sum_us / US_PER_S)}\n")
        return "".join(pieces)


class Histograms:
    """A family of histograms. ``name`` without the prefix."""

    def __init__(self, name: str, text: str, buckets: Buckets, *, labels: Labels = ()) -> None:
        self.name = f"bellmare_{name}"
        self.heading = heading(self.name, text, "histogram")
        self.buckets = buckets
        self._labels = labels
        self._series: dict[Labels, Spans] = {}
        if not labels:
            self.series()

    def series(self, *values: str) -> Spans:
        """The series with these labels, which exists from here on."""
        spans = self._series.get(values)
        if spans is None:
            spans = self._series[values] = Spans(self.buckets)
        return spans

    def lines(self) -> Iterator[str]:
        yield self.heading
        for values, spans in self._series.items():
            yield spans.text(self.name, self._labels, values, buckets=self.buckets)
