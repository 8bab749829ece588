"""Hints for a workload: some of its requests are announced seconds before they come, and some announcements lie."""

from typing import NamedTuple

import msgspec

from bellmare.core.events import HintGiven, HintSource
from bellmare.core.units import SECOND_US, SpanUs
from bellmare.sim.workload import Workload, randomness


class HintPlan(msgspec.Struct, frozen=True):
    """How much is announced. 15 s ahead is as good as any longer (policy findings 4.6)."""

    coverage_percent: int
    """Of the requests."""
    wrong_percent: int = 0
    """Of the hints: another model, drawn by how often each is asked for."""
    lead_us: int = 15 * SECOND_US
    ttl_us: int = 30 * SECOND_US


class TimedHint(NamedTuple):
    """A hint and when it is given."""

    at_us: int
    hint: HintGiven


def hints_for(workload: Workload, plan: HintPlan) -> list[TimedHint]:
    """The hints of one run, the same for a seed; in order of arrivals."""
    chance = randomness(workload.seed, f"hints {plan.coverage_percent} {plan.wrong_percent}")
    arrivals, models = workload.arrivals, workload.models
    found = []
    for arrival in arrivals:
        if chance.random() * 100 >= plan.coverage_percent:
            continue
        model = arrival.model
        if chance.random() * 100 < plan.wrong_percent:
            model = arrivals[chance.randrange(len(arrivals))].model
        hint = HintGiven(
            source=HintSource.prepare,
            name=models[model].name,
            tenant=f"user-{arrival.user}",
            in_us=SpanUs(plan.lead_us),
            ttl_us=SpanUs(plan.ttl_us),
        )
        found.append(TimedHint(max(1, arrival.at_us - plan.lead_us), hint))
    return found
