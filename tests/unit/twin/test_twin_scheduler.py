"""Queue, placement, eviction, reload and the stall (ollama.md 3.1-3.5, 12)."""

from typing import Any

import pytest
from twin_driving import Drive, S, model

from bellmare.twin.config import FOREVER_US, GIB
from bellmare.twin.messages import Failed, Finished, Granted, LoadReplied, RunnerGone, Tick


def test_two_names_over_one_blob_are_one_runner_shown_by_its_first_loader() -> None:
    """3.1: /api/ps shows only the first loader's name and digest."""
    drive = Drive(model("a:1", blob="x"), model("a:latest", blob="x"))
    drive.loaded_now("a:1")
    request = drive.generate("a:latest")
    drive.later(5)
    assert drive.the(Granted, request).waited_us == 0
    assert drive.ps() == ["a:1"]
    assert drive.twin.counters.loads == 1


def test_tags_that_differ_in_num_ctx_reload_each_other() -> None:
    """3.1, 12: tag over the same blob with num_ctx 8192: reload, /api/ps shows the other tag's name; back: reload."""
    drive = Drive(model("a:1", blob="x"), model("a:8k", blob="x", num_ctx=8192))
    drive.loaded_now("a:1")
    drive.generate("a:8k")
    drive.later(10)
    assert drive.ps() == ["a:8k"]
    drive.generate("a:1")
    drive.later(10)
    assert drive.ps() == ["a:1"]
    assert drive.twin.counters.reloads == 2
    assert drive.twin.counters.own_evictions == 0


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        ({"num_ctx": 8192}, None),
        ({"num_batch": 256}, None),
        ({"num_gpu": 0}, None),
        ({"num_thread": 3}, None),
        ({"main_gpu": 1}, None),
        ({"use_mmap": False}, None),
        ({}, False),
    ],
)
def test_what_forces_a_reload(options: dict[str, Any], shift: bool | None) -> None:
    """3.4, 12: any runner option that differs after defaults, and `shift`; and back again."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.generate("a:1", options=options, shift=shift)
    drive.later(30)
    assert drive.twin.counters.reloads == 1
    drive.generate("a:1")
    drive.later(30)
    # num_gpu counts only if the request sets it to 0 or more: the way back is free (3.4)
    assert drive.twin.counters.reloads == (1 if "num_gpu" in options else 2)


@pytest.mark.parametrize(
    "options", [{}, {"num_ctx": 4096}, {"num_batch": 512}, {"num_gpu": -1}, {"draft_num_predict": 9}]
)
def test_what_does_not_force_a_reload(options: dict[str, Any]) -> None:
    """3.4, 12: equal after defaults; num_gpu -1; draft_num_predict without a draft model."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.generate("a:1", options=options, shift=True)
    drive.later(5)
    assert drive.twin.counters.reloads == 0


def test_num_ctx_is_capped_to_the_training_context_before_it_is_compared() -> None:
    """3.4: num_ctx after capping; at least 2048 for vision models, else 4."""
    drive = Drive(model("a:1", context_max=8192), model("v:1", capabilities=("completion", "vision")))
    drive.load("a:1", options={"num_ctx": 100_000})
    drive.load("v:1", options={"num_ctx": 16})
    drive.until(20)
    assert drive.row("a:1").context_length == 8192
    assert drive.row("v:1").context_length == 2048
    drive.generate("a:1", options={"num_ctx": 8192})
    drive.generate("v:1", options={"num_ctx": 2048})
    drive.later(5)
    assert drive.twin.counters.reloads == 0


def test_a_reload_loses_the_pin() -> None:
    """12: a reload starts a new runner with the default keep_alive, so the pin of keep_alive -1 is lost."""
    drive = Drive()
    drive.load("a:1", keep_alive_us=FOREVER_US, options={"num_ctx": 2048})
    drive.until(10)
    drive.generate("a:1")
    drive.until(20)
    assert drive.row("a:1").context_length == 4096
    assert drive.expires_s("a:1") < 330


def test_loads_are_serial_while_a_loaded_model_answers() -> None:
    """12: two loads at once: one after the other; a loaded model answers meanwhile."""
    drive = Drive()
    drive.loaded_now("a:1")
    first, second = drive.load("b:1"), drive.load("c:1")
    busy = drive.generate("a:1")
    drive.later(20)
    start = 10.0
    assert drive.at_s(Finished, busy) == start + 2
    assert drive.at_s(LoadReplied, first) == start + 5
    assert drive.at_s(LoadReplied, second) == start + 10


def test_the_queue_bounds_cold_requests_and_not_those_of_a_loaded_model() -> None:
    """12 MAX_QUEUE=2: 6 at once to a cold model: 3 x 200 (1 loading, 2 queued), 3 x 503; 12 to a loaded one: 200."""
    drive = Drive(queue_max=2)
    cold = [drive.generate("a:1") for _ in range(6)]
    drive.until(60)
    assert [len(drive.all(Finished, request)) for request in cold] == [1, 1, 1, 0, 0, 0]
    assert {(failed.status, failed.text) for failed in drive.all(Failed)} == {
        (503, "server busy, please try again.  maximum pending requests exceeded")
    }
    hot = [drive.generate("a:1") for _ in range(12)]
    drive.until(120)
    assert all(drive.all(Finished, request) for request in hot)
    assert drive.twin.counters.rejected_503 == 3


def test_a_hot_model_serves_first_come_first_served_by_slots() -> None:
    """3.2: a per-runner semaphore of size numParallel, FIFO, unbounded."""
    drive = Drive(num_parallel=2)
    drive.loaded_now("a:1")
    requests = [drive.generate("a:1") for _ in range(5)]
    drive.later(20)
    assert [drive.at_s(Finished, request) - 10 for request in requests] == [2, 2, 4, 4, 6]
    counters = drive.twin.counters
    assert (counters.semaphore_waits, counters.queued_total, counters.own_queue_max) == (3, 3, 3)
    assert counters.in_flight_max == {"a": 5}


@pytest.mark.parametrize("more", [{"embedding": True}, {"family": "qwen3next"}])
def test_embedding_models_and_some_families_have_one_slot(more: dict[str, Any]) -> None:
    """3.2: NUM_PARALLEL is forced to 1 for embedding models and families such as qwen3next."""
    drive = Drive(model("m:1", **more), num_parallel=4)
    drive.loaded_now("m:1")
    for _ in range(2):
        drive.generate("m:1", embed=bool(more.get("embedding")))
    assert drive.twin.counters.semaphore_waits == 1


def test_kv_memory_is_paid_per_slot() -> None:
    """3.2: -c num_ctx x parallel: each slot gets num_ctx."""
    sizes = []
    for slots in (1, 4):
        drive = Drive(model("m:1", kv_bytes_per_token=65_536), num_parallel=slots)
        drive.loaded_now("m:1")
        sizes.append(drive.row("m:1").vram_bytes)
    extra = 3 * 4096 * 65_536
    assert sizes[1] - sizes[0] == pytest.approx(extra, rel=0.3)  # the batch grows too: 512 -> 1024
    assert sizes[1] - sizes[0] >= extra


def test_a_cancelled_request_keeps_its_place_in_the_queue_until_popped() -> None:
    """3.2: cancelled requests keep their place until popped, and no answer is ever sent."""
    drive = Drive(queue_max=1)
    drive.load("a:1")
    gone = drive.load("b:1")
    drive.cancel(gone)
    refused = drive.load("c:1")
    assert drive.the(Failed, refused).status == 503
    drive.until(20)
    assert drive.ps() == ["a:1"]
    assert [effect for effect in drive.effects if getattr(effect, "request", "") == gone] == []


def test_at_most_three_runners_by_default() -> None:
    """3.3: OLLAMA_MAX_LOADED_MODELS 0 = 3 per GPU."""
    drive = Drive(*(model(f"{name}:1", gib=1) for name in "abcd"))
    drive.loaded_now("a:1", "b:1", "c:1", "d:1")
    assert sorted(drive.ps()) == ["b:1", "c:1", "d:1"]
    assert drive.twin.counters.own_evictions == 1


def test_a_load_beside_others_must_be_predicted_within_four_fifths_of_free_memory() -> None:
    """3.3 item 4: predicted <= 80 % of free, else evict one and loop."""
    for gib, evicted in ((15, 0), (16, 1)):
        drive = Drive(model("a:1"), model("b:1", gib=gib))
        drive.loaded_now("a:1")
        drive.load("b:1")
        drive.later(40)
        # 24 - 4 - 0.7 GiB are free, four fifths of it are 15.4 GiB
        assert drive.twin.counters.own_evictions == evicted, gib
        assert drive.ps() == (["b:1"] if evicted else ["a:1", "b:1"])


def test_eviction_goes_on_until_the_load_fits() -> None:
    """3.3 item 4: else evict one and loop."""
    drive = Drive(model("a:1"), model("b:1"), model("big:1", gib=17))
    drive.loaded_now("a:1", "b:1")
    request = drive.load("big:1")
    drive.later(40)
    assert drive.ps() == ["big:1"]
    assert drive.twin.counters.own_evictions == 2
    assert drive.at_s(LoadReplied, request) == 20 + 2 * 0.75 + 18
    assert drive.row("big:1").size_bytes == drive.row("big:1").vram_bytes


def test_the_victim_has_the_shortest_keep_alive_however_much_it_is_used() -> None:
    """12 victim order (MAX_LOADED=2): a used last and most, 5m; b idle, 1h; loading c evicts a."""
    drive = Drive(loaded_models_max=2)
    drive.load("a:1")
    drive.load("b:1", keep_alive_us=3600 * S)
    drive.until(20)
    drive.generate("a:1")
    drive.until(30)
    drive.load("c:1")
    drive.until(50)
    assert sorted(drive.ps()) == ["b:1", "c:1"]


def test_with_equal_keep_alives_the_victim_is_the_first_blob() -> None:
    """12: both at -1: blob 04a2… before e3ab…; 3.3: keep_alive -1 models are evicted all the same."""
    drive = Drive(model("x:1", blob="e3ab"), model("y:1", blob="04a2"), model("z:1", blob="55"), loaded_models_max=2)
    drive.loaded_now("x:1", "y:1", "z:1")
    assert sorted(drive.ps()) == ["x:1", "z:1"]


def test_an_idle_runner_goes_before_a_busy_one_with_a_shorter_keep_alive() -> None:
    """3.3 item 5: first idle one, else the first of the list."""
    drive = Drive(loaded_models_max=2)
    drive.load("a:1")
    drive.load("b:1", keep_alive_us=FOREVER_US)
    drive.until(20)
    drive.generate("a:1", output_tokens=300)
    drive.load("c:1")
    drive.later(20)
    assert sorted(drive.ps()) == ["a:1", "c:1"]


def test_a_busy_victim_finishes_first() -> None:
    """3.3, 2.3: nothing is cut; the load waits."""
    drive = Drive(loaded_models_max=1)
    drive.loaded_now("a:1")
    running = drive.generate("a:1", output_tokens=101)
    request = drive.load("b:1")
    drive.later(40)
    assert drive.at_s(Finished, running) == 10 + 1 + 10
    assert drive.at_s(LoadReplied, request) == 21 + 0.75 + 5
    assert drive.all(RunnerGone)[0].by_own_choice


def _two_clients_on_a(drive: Drive, *, seconds: int, gap_s: float = 0, **more: Any) -> None:
    """Two clients, each sending its next 2 s request to a when the last one ends, half a period apart."""
    end_us = drive.now_us + seconds * S
    turns = {0: drive.now_us, 1: drive.now_us + S}
    while True:
        turn, at_us = min(turns.items(), key=lambda item: item[1])
        if at_us > end_us:
            return
        drive.until(at_us / S)
        drive.generate("a:1", **more)
        turns[turn] = at_us + round((2 + gap_s) * S)


def test_the_eviction_stall() -> None:
    """3.5, 12 (MAX_LOADED=1): traffic on a with keep_alive 5m; b waits, and goes on waiting after the traffic stopped;
    c queued behind it waits too, while a keeps serving.
    """
    drive = Drive(loaded_models_max=1, num_parallel=2)
    drive.loaded_now("a:1")
    drive.generate("a:1")
    drive.later(0.1)
    waiting = drive.load("b:1")
    behind = drive.load("c:1")
    _two_clients_on_a(drive, seconds=15, keep_alive_us=300 * S)
    drive.later(27)
    assert drive.twin.stalled
    assert drive.all(LoadReplied, waiting) == drive.all(LoadReplied, behind) == []
    assert drive.ps() == ["a:1"]
    # the rescue: keep_alive 0 for the idle resident frees it; b loads, c after it
    rescue_s = drive.now_us / S
    drive.unload("a:1")
    drive.later(30)
    assert drive.at_s(LoadReplied, waiting) == pytest.approx(rescue_s + 0.75 + 5)
    assert drive.at_s(LoadReplied, behind) == pytest.approx(rescue_s + 0.75 + 5 + 0.75 + 5)


def test_traffic_without_keep_alive_lets_the_load_in_at_a_natural_gap() -> None:
    """12: the same traffic without keep_alive: b waits for a natural gap and then loads."""
    drive = Drive(loaded_models_max=1, num_parallel=2)
    drive.loaded_now("a:1")
    drive.generate("a:1")
    drive.later(0.1)
    waiting = drive.load("b:1")
    _two_clients_on_a(drive, seconds=9)
    drive.later(20)
    assert drive.all(LoadReplied, waiting)
    assert drive.the(LoadReplied, waiting).at_us > 19 * S


def test_any_unload_event_frees_the_waiter() -> None:
    """3.5: any unload event satisfies the waiter (#17309), which then looks again."""
    drive = Drive(model("a:1"), model("b:1"), model("c:1", gib=14), num_parallel=2)
    drive.loaded_now("b:1")
    drive.load("a:1", keep_alive_us=300 * S)
    drive.later(10)
    running = drive.generate("a:1", output_tokens=1000)
    drive.generate("b:1", output_tokens=51)
    drive.load("c:1")  # fits beside one of them; a is chosen, and busy
    drive.later(1)
    drive.unload("b:1")
    drive.later(1)
    assert drive.twin.stalled
    drive.later(30)
    assert sorted(drive.ps()) == ["a:1", "c:1"]
    assert drive.all(Finished, running) == []


def test_the_switch_turns_the_stall_off() -> None:
    """3.5: what #17416 would bring: a chosen victim takes no new requests."""
    drive = Drive(loaded_models_max=1, num_parallel=2, stall_switch=False)
    drive.loaded_now("a:1")
    drive.generate("a:1")
    drive.later(0.1)
    waiting = drive.load("b:1")
    later = drive.generate("a:1", keep_alive_us=300 * S)
    drive.later(30)
    assert drive.at_s(LoadReplied, waiting) == 10 + 2 + 0.75 + 5
    assert drive.the(Finished, later)


def test_a_reload_of_a_busy_runner_stalls_in_the_same_way() -> None:
    """3.5: load of B needs to evict A (or reload A)."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.generate("a:1", output_tokens=51)
    drive.generate("a:1", options={"num_ctx": 8192})
    drive.generate("a:1", keep_alive_us=300 * S)
    drive.later(60)
    assert drive.twin.stalled


def test_unloads_are_processed_one_after_another() -> None:
    """F8: one loop processes expiries and blocks while it waits for VRAM."""
    drive = Drive()
    drive.loaded_now("a:1", "b:1")
    drive.unload("a:1")
    drive.unload("b:1")
    assert drive.ps() == ["b:1"]
    drive.later(0.75)
    assert drive.ps() == []
    assert drive.twin.vram_used_bytes > 4 * GIB


def test_a_late_tick_changes_nothing_but_when_it_is_told() -> None:
    """Effects carry the instant at which they truly happened."""
    early, late = Drive(), Drive()
    for drive in (early, late):
        drive.load("a:1")
        drive.generate("b:1")
    early.until(20)
    late.now_us = 20 * S
    late.give(Tick())
    assert early.effects == late.effects
