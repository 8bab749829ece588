"""The report as one HTML page: figures and charts with all that they need inside, so that it opens from a file.

The page's own part is ``page.html``; here the data is chosen, made small and put in.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bellmare.sim.jobs import Outcome
from bellmare.sim.report.document import Document
from bellmare.sim.report.scores import Comparison
from bellmare.sim.report.series import THRESHOLDS_S, Series, pooled
from bellmare.sim.report.timeline import OPEN, Bar, Timeline

TIMELINES_BYTES_MAX = 1_800_000
"""All timelines of a page together; further ones are left out, and the page says so. The rest of a page with 20
scenarios and 15 policies takes half a megabyte: together it stays under 3 MB."""
STEP_US = 100_000
"""Instants in a timeline are written in tenths of a second."""
PLACE = "/*DATA*/"

_TEMPLATE = Path(__file__).with_name("page.html")


def page(found: Document, outcomes: Sequence[Outcome]) -> str:
    """The whole page. ``outcomes`` are those of ``found.runs``, in their order."""
    timelines, left_out = _timelines(outcomes)
    data = {
        "command": found.command,
        "versions": found.versions,
        "scores": found.scores,
        "thresholds": THRESHOLDS_S,
        "scenes": [_scene(comparison, found, outcomes) for comparison in found.by_scenario.values()],
        "timelinesLeftOut": left_out,
    }
    text = msgspec.json.encode(data).decode()
    whole = text[:-1] + ',"timelines":[' + ",".join(timelines) + "]}"
    return _TEMPLATE.read_text(encoding="utf-8").replace(PLACE, whole.replace("</", "<\\/"), 1)


def _scene(comparison: Comparison, found: Document, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One scenario on one fleet."""
    here = (comparison.scenario, comparison.fleet)
    charts: dict[str, list[Series]] = {}
    for outcome in outcomes:
        if (outcome.row.scenario, outcome.row.fleet) == here and outcome.series is not None:
            charts.setdefault(outcome.row.policy, []).append(outcome.series)
    return {
        "title": comparison.title,
        "rows": [line for line in found.rows if (line.scenario, line.fleet) == here],
        "against": comparison.cold_starts_against_stock_percent,
        "within": {policy: pooled(several) for policy, several in charts.items()},
        "cold": {policy: several[0].cold for policy, several in charts.items()},
        "requests": next((several[0].requests for several in charts.values()), []),
        "hours": next((several[0].span_h for several in charts.values()), 0),
    }


def _timelines(outcomes: Iterable[Outcome]) -> tuple[list[str], int]:
    """As JSON, as many as fit; and how many do not."""
    kept: list[str] = []
    left_out = size = 0
    for outcome in outcomes:
        if outcome.timeline is None or not outcome.timeline.bars:
            continue
        line = outcome.row
        title = f"{line.scenario} {line.fleet}, {line.policy}, seed {line.seed}"
        text = msgspec.json.encode(_packed(title, outcome.timeline)).decode()
        if size + len(text) > TIMELINES_BYTES_MAX:
            left_out += 1
            continue
        size += len(text)
        kept.append(text)
    return kept, left_out


def _packed(title: str, timeline: Timeline) -> dict[str, Any]:
    return {
        "title": title,
        "workers": timeline.workers,
        "models": timeline.models,
        "end": timeline.end_us // STEP_US,
        "cut": timeline.cut,
        "bars": [_bar(bar) for bar in timeline.bars],
    }


def _bar(bar: Bar) -> list[Any]:
    """Worker, model, start of the load; from there on: ready, start of the unload, end (-1: never); loaded ahead; cold
    starts; spans of service, each number counted from the one before.
    """
    begin = bar.load_us // STEP_US

    def since(at_us: int) -> int:
        return OPEN if at_us == OPEN else at_us // STEP_US - begin

    busy, last = [], begin
    for at_us in bar.busy_us:
        at = at_us // STEP_US
        busy.append(at - last)
        last = at
    phases = [since(bar.ready_us), since(bar.unload_us), since(bar.gone_us)]
    return [bar.worker, bar.model, begin, *phases, int(bar.ahead), [since(at_us) for at_us in bar.cold_us], busy]
