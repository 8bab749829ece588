"""Slots, ghosts, crashes and the limits of the context (ollama.md 2.4, 5, 12)."""

import pytest
from twin_driving import Drive, S, model

from bellmare.twin.messages import (
    CrashRunner,
    Failed,
    Finished,
    FirstToken,
    Granted,
    HangRunner,
    LoadReplied,
    Slow,
    Stalled,
)


def test_a_request_is_prefilled_and_then_decoded() -> None:
    drive = Drive()
    drive.loaded_now("a:1")
    request = drive.generate("a:1")
    drive.later(5)
    first, finished = drive.the(FirstToken, request), drive.the(Finished, request)
    assert (first.at_us, first.token_us, first.tokens) == (11 * S, S // 10, 11)
    assert (finished.prompt_us, finished.output_us, finished.total_us) == (S, S, 2 * S)
    assert (finished.prompt_tokens, finished.output_tokens, finished.done_reason) == (100, 11, "stop")


def test_runners_share_the_bandwidth_of_the_gpu() -> None:
    drive = Drive()
    drive.loaded_now("a:1", "b:1")
    drive.generate("a:1", output_tokens=1000)
    drive.later(2)
    slowed = drive.generate("b:1")
    drive.later(5)
    assert drive.the(FirstToken, slowed).token_us == 2 * S // 10


def test_a_cancel_during_decode_frees_the_slot_at_once() -> None:
    """2.4, 12: disconnect in decode: slot idle after 0.02 s."""
    drive = Drive()
    drive.loaded_now("a:1")
    left = drive.generate("a:1", output_tokens=1000)
    drive.later(2)
    drive.cancel(left)
    request = drive.generate("a:1")
    drive.later(5)
    assert drive.at_s(Finished, request) == 14
    assert drive.all(Finished, left) == []
    assert drive.twin.counters.slot_waits == 0


def test_a_cancel_during_prefill_leaves_a_ghost_in_the_slot() -> None:
    """2.4: Ollama's semaphore says free, the next request waits inside llama-server without any signal."""
    drive = Drive()
    drive.loaded_now("a:1")
    left = drive.generate("a:1", prompt_tokens=1000)
    drive.later(2)
    drive.cancel(left)
    request = drive.generate("a:1")
    assert drive.the(Granted, request).waited_us == 0
    counters = drive.twin.counters
    assert (counters.slot_waits, counters.semaphore_waits, counters.queued_total) == (1, 0, 0)
    drive.later(30)
    assert drive.at_s(Finished, request) == 10 + 10 + 2


def test_the_ghost_does_not_hold_the_runner() -> None:
    """2.4: the reference count is freed; the runner may be unloaded over the ghost."""
    drive = Drive()
    drive.loaded_now("a:1")
    left = drive.generate("a:1", prompt_tokens=1000)
    drive.later(2)
    drive.cancel(left)
    drive.unload("a:1")
    assert drive.ps() == []
    drive.later(30)
    assert drive.twin.vram_used_bytes == 0


def test_an_embedding_is_not_cancelled_at_all() -> None:
    """2.4: non-streaming requests (Ollama uses these only for embeddings) run on."""
    drive = Drive()
    drive.loaded_now("e:1")
    left = drive.generate("e:1", embed=True, prompt_tokens=4000)
    drive.later(1)
    drive.cancel(left)
    request = drive.generate("e:1", embed=True, prompt_tokens=400)
    drive.later(30)
    assert drive.at_s(Finished, request) == 10 + 10 + 1


def test_a_cancel_on_the_semaphore_leaves_the_line() -> None:
    drive = Drive()
    drive.loaded_now("a:1")
    drive.generate("a:1")
    left, request = drive.generate("a:1"), drive.generate("a:1")
    drive.cancel(left)
    drive.later(10)
    assert drive.at_s(Finished, request) == 14
    assert drive.row("a:1").refcount == 0


def test_a_cancel_behind_a_ghost_leaves_the_line() -> None:
    drive = Drive()
    drive.loaded_now("a:1")
    ghost = drive.generate("a:1", prompt_tokens=1000)
    drive.later(1)
    drive.cancel(ghost)
    left = drive.generate("a:1")
    drive.cancel(left)
    request = drive.generate("a:1")
    drive.later(30)
    assert drive.at_s(Finished, request) == 22


def test_a_cancel_of_an_unknown_or_ended_request_is_ignored() -> None:
    drive = Drive()
    drive.cancel("nobody")
    request = drive.load("a:1")
    drive.until(10)
    drive.cancel(request)
    assert drive.twin.counters.cancelled_total == 0


def test_a_crash_fails_what_is_inside_and_ps_does_not_notice() -> None:
    """12: `unexpected EOF` in mid-stream; /api/ps lists the dead runner until the next request, which reloads."""
    drive = Drive()
    drive.loaded_now("a:1")
    running, queued = drive.generate("a:1"), drive.generate("a:1")
    drive.later(1.25)
    drive.give(CrashRunner("a"))
    failed = drive.the(Failed, running)
    assert (failed.status, failed.tokens) == (500, 3)
    assert failed.text == "an error was encountered while running the model: unexpected EOF"
    assert drive.the(Failed, queued).text.startswith("model runner has unexpectedly stopped, ")
    assert drive.the(Failed, queued).tokens == 0
    assert drive.ps() == ["a:1"]
    assert not drive.row("a:1").alive
    assert drive.twin.vram_used_bytes == 0
    drive.later(5)
    assert drive.ps() == ["a:1"]
    request = drive.generate("a:1")
    drive.later(20)
    assert drive.the(Finished, request)
    assert drive.twin.counters.reloads == 1


def test_a_hung_runner_goes_on_taking_requests_and_can_be_killed_once_idle() -> None:
    """8: stuck runner, /api/ps fine; unload frees it when its clients have left."""
    drive = Drive()
    drive.loaded_now("a:1")
    running = drive.generate("a:1")
    drive.later(1.25)
    drive.give(HangRunner("a"))
    assert drive.the(Stalled, running).tokens == 3
    drive.cancel(running)
    stuck = drive.generate("a:1")
    drive.later(600)
    assert drive.all(Finished) == []
    assert drive.ps() == ["a:1"]
    drive.unload("a:1")
    drive.cancel(stuck)
    assert drive.ps() == []
    drive.later(2)
    fresh = drive.generate("a:1")
    drive.later(20)
    assert drive.the(Finished, fresh)


def test_a_planned_failure_comes_after_its_tokens() -> None:
    """1.6: mid-stream error after k tokens."""
    drive = Drive()
    drive.loaded_now("a:1")
    request = drive.generate("a:1", fail_after_tokens=4)
    at_once = drive.generate("a:1", fail_after_tokens=0)
    drive.later(20)
    failed = drive.the(Failed, request)
    assert (failed.tokens, failed.at_us) == (4, 10 * S + S + 4 * S // 10)
    assert drive.the(Failed, at_once).tokens == 0
    assert drive.all(FirstToken, at_once) == []
    assert drive.row("a:1").refcount == 0


def test_embedding_asked_of_a_completion_model_is_501_after_loading_it() -> None:
    """12: 501 with llama-server's text, after loading it."""
    drive = Drive()
    request = drive.generate("a:1", embed=True)
    drive.until(10)
    failed = drive.the(Failed, request)
    assert (failed.status, failed.at_us) == (501, 5 * S)
    assert failed.text == "This server does not support embeddings. Start it with `--embeddings`"
    assert drive.ps() == ["a:1"]


@pytest.mark.parametrize(
    ("embed", "text"), [(False, "model 'x:1' not found"), (True, 'model "x:1" not found, try pulling it first')]
)
def test_an_unknown_name_is_404(embed: bool, text: str) -> None:
    """1.6: the text differs between generate and embed."""
    drive = Drive()
    request = drive.generate("x:1", embed=embed)
    assert (drive.the(Failed, request).status, drive.the(Failed, request).text) == (404, text)


def test_an_overlong_prompt_is_silently_cut_in_half() -> None:
    """12: 15018 tokens at ctx 4096 become 2051; only sign: prompt_eval_count."""
    drive = Drive()
    drive.loaded_now("a:1")
    request = drive.generate("a:1", prompt_tokens=15_018)
    drive.later(100)
    assert drive.the(Finished, request).prompt_tokens == 2051


def test_an_overlong_prompt_without_truncation_is_400_with_the_counts() -> None:
    """1.6, 12: llama-server's JSON as a string, with n_prompt_tokens."""
    drive = Drive()
    drive.loaded_now("a:1")
    request = drive.generate("a:1", prompt_tokens=4551, truncate=False)
    failed = drive.the(Failed, request)
    assert failed.status == 400
    assert '"n_prompt_tokens":4551,"n_ctx":4096' in failed.text


def test_an_overlong_embedding_is_truncated_to_the_context_or_refused() -> None:
    """5: embed token-truncates to num_ctx; `truncate:false` is 400 `the input length exceeds the context length`."""
    drive = Drive()
    drive.loaded_now("e:1")
    cut = drive.generate("e:1", embed=True, prompt_tokens=9000)
    refused = drive.generate("e:1", embed=True, prompt_tokens=9000, truncate=False)
    drive.later(100)
    assert drive.the(Finished, cut).prompt_tokens == 4096
    assert drive.the(Failed, refused).text == "the input length exceeds the context length"


def test_without_shift_generation_stops_at_the_context() -> None:
    """5 stage 3: `shift:false` stops, done_reason "length"; with shift the limit is ten contexts."""
    drive = Drive(model("a:1"), context_length=256)
    stopped = drive.generate("a:1", shift=False, output_tokens=9000)
    drive.until(100)
    shifted = drive.generate("a:1", shift=False, output_tokens=9000)
    long = drive.generate("a:1", output_tokens=9000)
    drive.until(2000)
    finished = drive.the(Finished, stopped)
    assert (finished.output_tokens, finished.done_reason) == (156, "length")
    assert drive.the(Finished, shifted).output_tokens == 156
    assert drive.the(Finished, long).output_tokens == 2560


def test_num_predict_ends_with_length() -> None:
    drive = Drive()
    request = drive.generate("a:1", output_tokens=3, length_cut=True)
    drive.until(20)
    assert drive.the(Finished, request).done_reason == "length"


def test_a_load_only_request_takes_no_slot() -> None:
    """2.1: it waits for the runner, not for a slot."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.generate("a:1")
    request = drive.load("a:1")
    assert drive.the(LoadReplied, request).at_us == drive.now_us


def test_slowness_counts_for_what_begins_later() -> None:
    drive = Drive()
    drive.loaded_now("a:1")
    normal = drive.generate("a:1")
    drive.give(Slow(300))
    slow = drive.generate("a:1")
    drive.later(20)
    assert (drive.at_s(Finished, normal), drive.at_s(Finished, slow)) == (14, 20)


def test_requests_that_have_ended_are_not_in_flight_while_the_server_waits_for_memory() -> None:
    """2.3, 3.2: the completed loop books no end while it waits for video memory, but the slots are free all the same;
    and a load takes no slot."""
    drive = Drive(num_parallel=2, unload_us=5 * S)
    drive.loaded_now("a:1", "b:1")
    before = drive.twin.counters.granted_total
    drive.unload("b:1")
    for _ in range(3):
        drive.generate("a:1")
        drive.generate("a:1")
        drive.load("a:1")
        drive.later(3)
    counters = drive.twin.counters
    assert counters.in_flight_max == {"a": 2, "b": 0}
    assert (counters.granted_total - before, counters.finished_total, counters.load_replies_total) == (9, 6, 5)
    assert counters.semaphore_waits == 0
