"""The published claims: the closed loop, both sides of it, the rule for the verdict, and the document."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest
from msgspec.structs import replace

from bellmare.sim.claims.cases import GPUS_MAX, Case, Metric, cases
from bellmare.sim.claims.command import run_claims, seeds_of
from bellmare.sim.claims.conditions import (
    OUTPUT_MAX,
    PROMPT_MAX,
    SEVEN,
    STAY_PERCENT,
    THIRTEEN,
    Lengths,
    Mix,
    Setup,
    home,
    kind_of,
)
from bellmare.sim.claims.findings import document, run_all, setups
from bellmare.sim.claims.loop import HINT_LEAD_US, Loop, LoopTally
from bellmare.sim.claims.measure import measure, measured, run_setup
from bellmare.sim.claims.verdict import PUBLISHED, TOLERANCE, Claim, Verdict, holds, verdict
from bellmare.sim.command import run_simulate
from bellmare.sim.subjects import Asked, UsageError
from bellmare.sim.tally import NEVER, BrokenRunError
from bellmare.sim.world import FOREVER_US

BUSY = Setup(gateway=False, lengths=Lengths.short, models=3, warm_up_s=10.0, horizon_s=60.0)
CALM = Setup(gateway=False, think_s=60.0, warm_up_s=60.0, horizon_s=600.0)
SIDES = pytest.mark.parametrize("gateway", [False, True], ids=["stock", "gateway"])


# ---- the closed loop ------------------------------------------------------------------------------------------------


@SIDES
@pytest.mark.parametrize("setup", [BUSY, CALM], ids=["busy", "calm"])
def test_every_request_that_is_made_is_answered_once(setup: Setup, gateway: bool) -> None:
    tally = run_setup(replace(setup, gateway=gateway))
    count = len(tally.asks)
    assert count > 50 and tally.open == 0 and not tally.refused
    assert len(tally.first_us) == len(tally.end_us) == tally.arrived_count == count
    for asked_us, start_us, first_us, end_us in zip(
        tally.asked_us, tally.start_us, tally.first_us, tally.end_us, strict=True
    ):
        assert NEVER < asked_us <= start_us < first_us <= end_us


@SIDES
def test_a_connection_has_one_request_at_a_time_and_all_of_them_never_more_than_there_are(gateway: bool) -> None:
    setup = replace(BUSY, gateway=gateway, connections=7)
    tally = run_setup(setup)
    spans: dict[int, list[tuple[int, int]]] = {}
    for ask, asked_us, end_us in zip(tally.asks, tally.asked_us, tally.end_us, strict=True):
        spans.setdefault(ask.connection, []).append((asked_us, end_us))
    assert len(spans) == 7 and tally.open_max == 7
    for mine in spans.values():
        assert len(mine) > 1
        for (_, ended_us), (asked_us, _) in pairwise(mine):
            assert asked_us == ended_us  # no pause: the next comes with the answer


@SIDES
def test_a_run_is_the_same_again_for_a_seed_and_another_for_another(gateway: bool) -> None:
    setup = replace(BUSY, gateway=gateway)
    first = run_setup(setup).digest()
    assert run_setup(setup).digest() == first != run_setup(replace(setup, seed=2)).digest()


@pytest.mark.slow
def test_a_run_is_the_same_under_every_hash_seed() -> None:
    program = (
        "from bellmare.sim.claims.conditions import Lengths, Setup\n"
        "from bellmare.sim.claims.measure import run_setup\n"
        "for gateway in (False, True):\n"
        "    print(run_setup(Setup(gateway=gateway, gpus=2, think_s=30.0, horizon_s=300.0, hints_percent=50)).digest())"
    )
    found = set()
    for hash_seed in ("0", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().split()) == 2


def test_both_sides_are_asked_the_same_by_each_connection() -> None:
    def asked(gateway: bool) -> dict[int, list[object]]:
        by_connection: dict[int, list[object]] = {}
        for ask in run_setup(replace(BUSY, gateway=gateway)).asks:
            by_connection.setdefault(ask.connection, []).append(ask)
        return by_connection

    stock, gateway = asked(False), asked(True)
    for connection, asks in stock.items():
        common = min(len(asks), len(gateway[connection]))
        assert common and asks[:common] == gateway[connection][:common]


def test_nothing_is_asked_after_the_horizon() -> None:
    tally = run_setup(CALM)
    assert max(tally.asked_us) <= 600_000_000 < max(tally.end_us) + 60_000_000


def test_prompts_answers_and_models_are_drawn_as_the_conditions_say() -> None:
    loop, tally = Loop(replace(CALM, think_s=1.0, horizon_s=1e9)), LoopTally(Loop(CALM).workload())
    asks = []
    for _ in range(6_000):
        ask = loop.take()
        number = tally.asked(ask, 0, cold=False)
        tally.started(number, 0)
        tally.ended(number, 0)
        loop.settle(tally)
        asks.append(ask)
    prompts, outputs = [ask.prompt_tokens for ask in asks], [ask.output_tokens for ask in asks]
    assert min(prompts) >= 1 and max(prompts) == PROMPT_MAX and max(outputs) <= OUTPUT_MAX
    assert sum(prompts) / len(prompts) == pytest.approx(1_000, rel=0.1)  # 1,155 in the trace, before it is cut
    assert sum(outputs) / len(outputs) == pytest.approx(211, rel=0.1)
    counts = [sum(ask.model == model for ask in asks) for model in range(8)]
    assert counts[0] > counts[1] > counts[3] > counts[7] > 0
    last: dict[int, int] = {}
    stayed = 0
    for ask in asks:
        stayed += last.get(ask.connection) == ask.model
        last[ask.connection] = ask.model
    assert 100 * stayed / len(asks) > STAY_PERCENT  # and now and then the draw names the same model again


def test_a_hint_comes_before_its_request_by_no_more_than_the_lead() -> None:
    loop = Loop(replace(CALM, hints_percent=100))
    hints, asks = [], []
    while loop.hint_due_us() < FOREVER_US:
        hints.append(loop.take_hint())
    while loop.ask_due_us() < FOREVER_US:
        asks.append((loop.ask_due_us(), loop.take()))
    due = {f"user-{ask.connection}": (at_us, loop.models[ask.model].name) for at_us, ask in asks}
    assert len(hints) == len(asks) == len(due) == 50
    for timed in hints:
        at_us, name = due[timed.hint.tenant]
        assert timed.at_us <= at_us <= timed.at_us + HINT_LEAD_US and timed.hint.name == name


def test_hints_spare_cold_starts_where_a_loader_is_idle() -> None:
    plain = Setup(gateway=True, gpus=4, models=16, think_s=600.0, page_cache=True, horizon_s=7_200.0)
    assert measure(replace(plain, hints_percent=90)).cold_percent < measure(plain).cold_percent / 2


def test_books_that_are_kept_wrongly_break_the_run() -> None:
    loop = Loop(BUSY)
    tally = LoopTally(loop.workload())
    number = tally.asked(loop.take(), 100, cold=True)
    with pytest.raises(BrokenRunError, match="before he asks"):
        tally.started(number, 99)
    with pytest.raises(BrokenRunError, match="before it is asked"):
        tally.answered(number, 99)


# ---- the card -------------------------------------------------------------------------------------------------------


def test_one_request_takes_as_long_as_the_rates_say() -> None:
    setup = Setup(gateway=False, models=1, connections=1, think_s=1.0, warm_up_s=0.0, horizon_s=3.0)
    tally = run_setup(setup)
    ask = tally.asks[0]
    load_s = 1.0 + SEVEN.weights_bytes / 1.5e9
    prefill_s, decode_s = ask.prompt_tokens / 1_995, (ask.output_tokens - 1) / 58.4
    assert tally.cold[0] and tally.loads == 1
    assert (tally.first_us[0] - tally.asked_us[0]) / 1e6 == pytest.approx(load_s + prefill_s, rel=0.01)
    assert (tally.end_us[0] - tally.first_us[0]) / 1e6 == pytest.approx(decode_s, rel=0.01)


def test_page_cache_makes_the_second_load_quick_and_not_the_first() -> None:
    setup = replace(CALM, models=6, horizon_s=1_800.0)
    cached, disk = measure(replace(setup, page_cache=True)), measure(setup)
    assert cached.first_token_cold_mean_s is not None and disk.first_token_cold_mean_s is not None
    assert cached.first_token_cold_mean_s < disk.first_token_cold_mean_s


def test_the_mix_is_7b_and_13b_in_turn_and_a_careful_operator_puts_one_of_each_on_a_gpu() -> None:
    setup = Setup(gateway=False, gpus=4, assigned=True, pinned=True)
    assert [kind_of(setup, model) for model in range(4)] == [SEVEN, THIRTEEN, SEVEN, THIRTEEN]
    assert [home(setup, model) for model in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert [home(replace(setup, mix=Mix.seven), model) for model in range(5)] == [0, 1, 2, 3, 0]
    assert measure(replace(setup, think_s=60.0, warm_up_s=300.0, horizon_s=900.0)).cold_percent == 0.0


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_a_change_holds_if_it_is_at_least_as_large_within_the_tolerance() -> None:
    cost = PUBLISHED[Claim.gpu_cost]
    assert holds(cost, 5, 3) and holds(cost, 100, 60 * (1 + TOLERANCE) - 0.1)
    assert not holds(cost, 100, 60 * (1 + TOLERANCE) + 0.1) and not holds(cost, 5, 4)
    density = PUBLISHED[Claim.density]
    assert holds(density, 5, 12) and holds(density, 100, 240 * (1 - TOLERANCE) + 1)
    assert not holds(density, 100, 240 * (1 - TOLERANCE) - 1)


def test_a_published_figure_must_be_reached_too() -> None:
    start, rate = PUBLISHED[Claim.cold_start], PUBLISHED[Claim.throughput]
    assert holds(start, 4.2, 0.35) and not holds(start, 42.0, 3.5)
    assert holds(rate, 12, 34) and not holds(rate, 0.2, 0.6)


def test_nothing_holds_without_figures_or_with_nothing_to_improve_on() -> None:
    share = PUBLISHED[Claim.cold_starts]
    assert holds(share, 50.0, 0.0) and not holds(share, 0.0, 0.0) and not holds(share, share.least_from, 0.0)
    assert not holds(share, None, 1.0) and not holds(share, 50.0, None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(True, True), (True, True), (False, False)], Verdict.reproduced),
        ([(True, True), (True, False)], Verdict.elsewhere),
        ([(True, False), (False, True)], Verdict.elsewhere),
        ([(True, False), (False, False)], Verdict.refuted),
    ],
)
def test_all_rows_of_the_published_conditions_must_hold_and_any_row_counts_as_elsewhere(
    rows: list[tuple[bool, bool]], said: Verdict
) -> None:
    assert verdict(rows) is said


def test_a_claim_is_judged_under_its_own_conditions_or_not_at_all() -> None:
    with pytest.raises(AssertionError, match="its own conditions"):
        verdict([(False, True)])


# ---- cases and document ---------------------------------------------------------------------------------------------


def test_every_claim_has_cases_under_the_published_conditions() -> None:
    found = cases()
    assert {case.claim for case in found} == set(Claim) == {case.claim for case in found if case.stated}
    for case in found:
        assert case.after.connections == case.before.connections == 50
        if case.stated:
            assert case.before.mix is Mix.mixed and case.after.gateway and not case.after.hints_percent
            assert not case.before.pinned and case.before.parallel == 1
            assert case.before.gpus == 1 or case.metric is Metric.least_gpus
        same = ("gpus", "models", "mix", "think_s", "lengths", "page_cache", "horizon_s", "warm_up_s")
        assert all(getattr(case.before, name) == getattr(case.after, name) for name in same)


@dataclass
class Scan:
    """A case and results whose waits are known."""

    case: Case
    waits_s: dict[tuple[bool, int], float]

    def row(self) -> dict[str, object]:
        sample = measured(run_setup(BUSY), BUSY)
        results = {}
        for setup in setups([self.case], [1]):
            count = setup.models if self.case.metric is Metric.most_models else setup.gpus
            wait_s = self.waits_s[setup.gateway, count]
            results[setup] = replace(sample, added_wait_p95_s=wait_s)
        found: dict[str, object] = document([self.case], results, seeds=[1], command="")["claims"][0]
        return found


def scan(claim: Claim, metric: Metric, **load: int) -> Case:
    before, after = replace(CALM, **load), replace(CALM, gateway=True, **load)
    return Case(claim=claim, metric=metric, before=before, after=after, stated=True, tried=(1, 2, 3), bound_s=5.0)


def test_density_is_the_most_models_within_the_bound_per_gpu() -> None:
    waits_s = {(False, 1): 6.0, (False, 2): 5.0, (False, 3): 5.1, (True, 1): 1.0, (True, 2): 1.0, (True, 3): 5.0}
    row = Scan(scan(Claim.density, Metric.most_models, gpus=2), waits_s).row()
    assert (row["ours_from_models_per_gpu"], row["ours_to_models_per_gpu"]) == (1.0, 1.5)
    assert "1 to 3 models" in str(row["conditions"]) and "within 5 s" in str(row["conditions"])


def test_cost_is_the_fewest_gpus_within_the_bound_and_one_more_than_tried_if_none_is_enough() -> None:
    waits_s = {(False, 1): 9.0, (False, 2): 9.0, (False, 3): 9.0, (True, 1): 9.0, (True, 2): 5.0, (True, 3): 4.0}
    row = Scan(scan(Claim.gpu_cost, Metric.least_gpus), waits_s).row()
    assert (row["ours_from_gpus"], row["ours_to_gpus"]) == (GPUS_MAX + 1, 2.0)
    assert "1 to 3 GPUs" in str(row["conditions"])


@pytest.fixture
def few() -> list[Case]:
    after = replace(BUSY, gateway=True, parallel=4)
    return [
        Case(claim=Claim.throughput, metric=Metric.rate, before=BUSY, after=after, stated=True),
        Case(claim=Claim.cold_start, metric=Metric.cold, before=CALM, after=replace(CALM, gateway=True), stated=True),
    ]


def test_the_document_has_rows_with_units_conditions_and_verdicts(
    few: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    run_claims(Asked(seeds=2, jobs=1, as_json=True), command="the line", tried=few)
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["seeds"] == [1, 2] and found["conditions"]["vram_gb"] == 24.0
    assert found["command"] == "the line" and set(found["verdicts"]) == {"throughput", "cold_start"}
    rate, start = found["claims"]
    assert (rate["published_from_requests_per_s"], rate["published_to_requests_per_s"]) == (12.0, 34.0)
    assert rate["ours_from_requests_per_s"] > 0 and rate["ours_to_requests_per_s"] > 0
    assert rate["verdict"] in list(Verdict) and rate["before"] == "stock, parallel 1"
    assert start["ours_from_s"] > start["published_to_s"]


def test_the_tables_show_every_case_and_its_verdict(few: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    run_claims(Asked(seeds=1, jobs=1), command="the line", tried=few)
    out = capsys.readouterr().out
    assert "12 -> 34 requests/s: " in out and "cold start 4.2 s -> 0.35 s: " in out and "the line" in out


@pytest.mark.slow
def test_the_figures_do_not_depend_on_the_number_of_processes(few: list[Case]) -> None:
    wanted = setups(few, [1])
    told: list[int] = []
    alone, together = (run_all(wanted, processes, lambda: told.append(1)) for processes in (1, 2))
    assert alone == together and len(told) == 2 * len(wanted) == 8


@pytest.mark.parametrize(
    "changed",
    [{"scenario": "S1"}, {"fleet": "1x24GB"}, {"policy": "lru"}, {"seeds": 0}, {"seeds": 101}, {"first_seed": -1}],
)
def test_the_claims_have_conditions_of_their_own(
    changed: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = replace(Asked(suite="claims"), **changed)
    with pytest.raises(UsageError):
        seeds_of(asked)
    assert run_simulate(asked) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
