"""The report for programs: one JSON document, units in the names."""

import platform
from collections.abc import Sequence
from importlib import metadata

import msgspec

from bellmare.sim.report.rows import PolicyRow, RunRow, averaged
from bellmare.sim.report.scores import Comparison, Score, compare, summed


class Document(msgspec.Struct, frozen=True):
    """What ``bellmare simulate --json`` prints."""

    rows: list[PolicyRow]
    """One for each scenario, fleet and policy: means over the seeds."""
    runs: list[RunRow]
    scores: dict[str, dict[str, Score]]
    """By name of the score and policy."""
    by_scenario: dict[str, Comparison]
    """By scenario and fleet, as ``S1 1x24GB``."""
    command: str
    """What gives these figures again, but for those of the machine."""
    versions: dict[str, str]


def document(rows: Sequence[RunRow], command: str) -> Document:
    """Everything that is known of ``rows``."""
    means = averaged(rows)
    comparisons = compare(means)
    return Document(
        rows=means,
        runs=list(rows),
        scores=summed(comparisons),
        by_scenario={comparison.title: comparison for comparison in comparisons},
        command=command,
        versions={"bellmare": _version(), "python": platform.python_version()},
    )


def _version() -> str:
    try:
        return metadata.version("bellmare")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
