"""Runs all that the cases need, each once, and makes rows with verdicts of them: the document that is printed."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from msgspec.structs import replace

from bellmare.sim.claims import conditions
from bellmare.sim.claims.cases import GPUS_MAX, Case, Metric
from bellmare.sim.claims.conditions import Setup
from bellmare.sim.claims.measure import Measured, measure
from bellmare.sim.claims.verdict import PUBLISHED, TOLERANCE, Claim, holds, verdict
from bellmare.sim.jobs import begin_child

SEEDS = 3
"""Of the loop's draws, unless another number is asked for."""
DIGITS = 3

Results = dict[Setup, Measured]


def setups(cases: Iterable[Case], seeds: Sequence[int]) -> list[Setup]:
    """Every run that the cases need, each once, in order."""
    found: dict[Setup, None] = {}
    for case in cases:
        for side in (case.before, case.after):
            for setup in case.at(side):
                found.update({replace(setup, seed=seed): None for seed in seeds})
    return list(found)


def run_all(wanted: Sequence[Setup], processes: int, told: Callable[[], None]) -> Results:
    """Each setup measured, in at most so many processes; the results do not depend on their number."""
    found: Results = {}
    if min(processes, len(wanted)) <= 1:
        for setup in wanted:
            found[setup] = measure(setup)
            told()
        return found
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=begin_child) as pool:
        try:
            for setup, result in zip(wanted, pool.map(measure, wanted), strict=True):
                found[setup] = result
                told()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def document(cases: Sequence[Case], results: Results, *, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """``claims``: a row for each case; ``verdicts``: one for each claim; ``conditions``: what all runs share."""
    rows = [_row(case, results, seeds) for case in cases]
    verdicts = {
        claim: verdict([(row["stated"], row["holds"]) for row in rows if row["claim"] == claim])
        for claim in Claim
        if any(row["claim"] == claim for row in rows)
    }
    return {
        "claims": [{**row, "verdict": str(verdicts[row["claim"]])} for row in rows],
        "verdicts": {str(claim): str(found) for claim, found in verdicts.items()},
        "conditions": {**_shared(), "seeds": list(seeds)},
        "command": command,
    }


def _row(case: Case, results: Results, seeds: Sequence[int]) -> dict[str, Any]:
    published = PUBLISHED[case.claim]
    from_, to = (_figure(case, results, seeds, after=after) for after in (False, True))
    change = None if not from_ or to is None else round(100 * (to / from_ - 1), 1)
    unit = published.unit
    return {
        "claim": str(case.claim),
        "published": published.text,
        "measured": str(case.metric),
        "stated": case.stated,
        "conditions": case.conditions,
        "before": case.before.subject,
        "after": case.after.subject,
        f"published_from_{unit}": published.from_,
        f"published_to_{unit}": published.to,
        "published_change_percent": round(100 * (published.quotient - 1), 1),
        f"ours_from_{unit}": _rounded(from_),
        f"ours_to_{unit}": _rounded(to),
        "ours_change_percent": change,
        "holds": holds(published, from_, to),
        "unfinished": sum(
            results[replace(setup, seed=seed)].unfinished
            for side in (case.before, case.after)
            for setup in case.at(side)
            for seed in seeds
        ),
    }


def _figure(case: Case, results: Results, seeds: Sequence[int], *, after: bool) -> float | None:
    """The figure of one side; None: there is none."""
    setup, metric = case.after if after else case.before, case.metric
    if case.tried:
        fit = [
            count
            for count, tried in zip(case.tried, case.at(setup), strict=True)
            if _mean(results[replace(tried, seed=seed)].added_wait_p95_s for seed in seeds) <= case.bound_s
        ]
        if metric is Metric.most_models:
            return max(fit) / setup.gpus if fit else 0.0
        return float(min(fit, default=GPUS_MAX + 1))
    runs = [results[replace(setup, seed=seed)] for seed in seeds]
    if metric is Metric.cold or (metric is Metric.cold_to_every and not after):
        known = [run.first_token_cold_mean_s for run in runs if run.first_token_cold_mean_s is not None]
        return _mean(known) if known else None
    if metric is Metric.share:
        return _mean(run.cold_percent for run in runs)
    if metric is Metric.rate:
        return _mean(run.requests_per_s for run in runs)
    return _mean(run.first_token_mean_s for run in runs)


def _shared() -> dict[str, Any]:
    """What holds for every run, with units in the names."""
    kinds = (conditions.SEVEN, conditions.THIRTEEN, conditions.ONE)
    return {
        "gpu": "NVIDIA L4",
        "vram_gb": conditions.VRAM_BYTES / 1e9,
        "decode_gb_per_s": conditions.DECODE_BYTES_PER_S / 1e9,
        "prefill_7b_tokens_per_s": round(conditions.PREFILL_BYTE_TOKENS_PER_S / conditions.SEVEN.weights_bytes),
        "disk_gb_per_s": conditions.DISK_BYTES_PER_S / 1e9,
        "pcie_gb_per_s": conditions.PCIE_BYTES_PER_S / 1e9,
        "slot_cost_percent": conditions.SLOT_COST_PERCENT,
        "context_tokens": conditions.CONTEXT,
        "popularity_zipf": conditions.ZIPF,
        "stay_percent": conditions.STAY_PERCENT,
        "weights_gb": {kind.label: kind.weights_bytes / 1e9 for kind in kinds},
        "kv_bytes_per_token": {kind.label: kind.kv_bytes_per_token for kind in kinds},
        "log_normal_prompt_and_output": {str(name): list(drawn) for name, drawn in conditions.LOG_NORMAL.items()},
        "tolerance_percent": round(100 * TOLERANCE),
    }


def _mean(figures: Iterable[float]) -> float:
    found = list(figures)
    return sum(found) / len(found)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, DIGITS)
