"""One run of one side, in figures. Percentiles are nearest-rank; spans run from the request, not from its start."""

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.sim.claims.conditions import Setup
from bellmare.sim.claims.loop import Loop, LoopTally
from bellmare.sim.claims.sides import GatewaySide, StockSide
from bellmare.sim.report.rows import percentile_s
from bellmare.sim.tally import NEVER


class Measured(msgspec.Struct, frozen=True):
    """Of the requests made after the warm-up."""

    requests: int
    cold_percent: float
    first_token_mean_s: float
    first_token_cold_mean_s: float | None
    """Of those that found no ready runner; None: there were none."""
    added_wait_mean_s: float
    added_wait_p95_s: float
    loads_per_1000: float
    """Of the whole run, the warm-up included."""
    requests_per_s: float
    """Answers that ended between warm-up and horizon, by the length of that time."""
    in_flight_max: int
    unfinished: int
    refused: int
    digest: str


def run_setup(setup: Setup) -> LoopTally:
    """Run to the end; returns the books."""
    side = GatewaySide(Loop(setup)) if setup.gateway else StockSide(Loop(setup))
    side.run()
    return side.tally if isinstance(side, StockSide) else side.books


def measure(setup: Setup) -> Measured:
    """Run and count."""
    return measured(run_setup(setup), setup)


def measured(tally: LoopTally, setup: Setup) -> Measured:
    """The figures of books that are closed. At least one request must have been answered after the warm-up."""
    from_us, to_us = int(setup.warm_up_s * SECOND_US), int(setup.horizon_s * SECOND_US)
    counted = [n for n, at_us in enumerate(tally.asked_us) if at_us >= from_us and tally.first_us[n] != NEVER]
    assert counted, "a run answers something after its warm-up"
    first_us = [tally.first_us[n] - tally.asked_us[n] for n in counted]
    cold_us = [us for n, us in zip(counted, first_us, strict=True) if tally.cold[n]]
    waits_us = sorted(tally.start_us[n] - tally.asked_us[n] for n in counted)
    done = sum(from_us <= us < to_us for n, us in enumerate(tally.end_us) if tally.first_us[n] != NEVER)
    return Measured(
        requests=len(counted),
        cold_percent=100.0 * len(cold_us) / len(counted),
        first_token_mean_s=_mean_s(first_us),
        first_token_cold_mean_s=_mean_s(cold_us) if cold_us else None,
        added_wait_mean_s=_mean_s(waits_us),
        added_wait_p95_s=percentile_s(waits_us, 950),
        loads_per_1000=1000.0 * tally.loads / len(tally.asks),
        requests_per_s=done / (setup.horizon_s - setup.warm_up_s),
        in_flight_max=tally.open_max,
        unfinished=tally.open,
        refused=sum(tally.refused.values()),
        digest=tally.digest(),
    )


def _mean_s(spans_us: list[int]) -> float:
    return sum(spans_us) / len(spans_us) / SECOND_US
