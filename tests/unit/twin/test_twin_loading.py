"""Loading, unloading, keep-alive and /api/ps (ollama.md 2.1-2.3, 2.5, 4.2, 12)."""

import pytest
from twin_driving import GPU, WORLD, Drive, S, model

from bellmare.twin.config import FOREVER_US, GIB, MIB, GpuConfig, TwinConfig
from bellmare.twin.loading import HostCache
from bellmare.twin.memory import kv_bytes, predicted_bytes
from bellmare.twin.messages import (
    CopyName,
    DeleteName,
    Failed,
    FailLoad,
    Finished,
    FirstToken,
    Granted,
    HangRunner,
    LoadAborted,
    LoadReplied,
    MemoryFreed,
    RunnerGone,
    RunnerOptions,
    UnloadReplied,
)
from bellmare.twin.shape import resolve


def test_a_load_takes_spawn_and_disk_once_and_pcie_from_the_page_cache_later() -> None:
    """policy.md 3: load = 1.0 s + bytes over the rate; a file in host memory skips the disk."""
    drive = Drive()
    first = drive.load("a:1")
    drive.until(10)
    drive.unload("a:1")
    drive.until(20)
    second = drive.load("a:1")
    drive.until(30)
    assert drive.at_s(LoadReplied, first) == 5.0
    assert drive.at_s(LoadReplied, second) == 22.0


def test_the_page_cache_forgets_the_least_recently_loaded_file() -> None:
    cache = HostCache(10)
    cache.touch("a", 4)
    cache.touch("b", 4)
    cache.touch("a", 4)
    cache.touch("c", 4)
    cache.touch("huge", 11)
    assert [name for name in ("a", "b", "c", "huge") if name in cache] == ["a", "c"]
    assert cache.bytes_used == 8


def test_a_loading_model_is_not_in_ps() -> None:
    """12: `/api/ps` during a load is an empty list; 1.2: it appears only when ready."""
    drive = Drive()
    drive.load("a:1")
    drive.until(4.9)
    assert drive.ps() == []
    drive.until(5)
    assert drive.ps() == ["a:1"]


def test_a_load_whose_client_leaves_is_aborted() -> None:
    """2.1: if the client disconnects while loading, the load is aborted, the process killed; 12: nothing resident."""
    drive = Drive()
    left = drive.load("a:1")
    other = drive.load("b:1")
    drive.until(2)
    drive.cancel(left)
    drive.until(20)
    assert drive.ps() == ["b:1"]
    assert len(drive.all(LoadAborted)) == 1
    assert drive.all(LoadReplied, left) == []
    assert drive.at_s(LoadReplied, other) == 2 + 0.75 + 5
    assert drive.twin.vram_used_bytes == drive.row("b:1").vram_bytes + GPU.context_overhead_bytes


def test_without_keep_alive_the_runner_leaves_five_minutes_after_its_last_request() -> None:
    """2.2: absent = OLLAMA_KEEP_ALIVE on a first load; the timer starts when the last request ends."""
    drive = Drive()
    drive.generate("a:1")
    drive.until(6.5)
    assert drive.expires_s("a:1") == 306.5, "shown as now + duration while it never was idle"
    drive.until(7)
    assert drive.expires_s("a:1") == 307
    drive.until(306.9)
    assert drive.ps() == ["a:1"]
    drive.until(307)
    assert drive.ps() == []
    assert not drive.all(RunnerGone)[0].by_own_choice


def test_every_native_keep_alive_overwrites_the_runners() -> None:
    """2.2: last writer wins; absent keeps the runner's current duration."""
    drive = Drive()
    drive.load("a:1", keep_alive_us=FOREVER_US)
    drive.until(5)
    assert drive.expires_s("a:1") > 9e9
    drive.generate("a:1", keep_alive_us=10 * S)
    drive.until(7)
    assert drive.expires_s("a:1") == 17
    drive.generate("a:1")
    drive.until(9)
    assert drive.expires_s("a:1") == 19
    drive.until(19)
    assert drive.ps() == []


def test_keep_alive_zero_on_a_request_unloads_when_it_ends() -> None:
    """2.2: 0 = unload when idle."""
    drive = Drive()
    request = drive.generate("a:1", keep_alive_us=0)
    drive.until(7)
    assert drive.the(Finished, request).output_tokens == 11
    assert drive.ps() == []


def test_a_request_stops_the_timer_and_leaves_the_shown_expiry_stale() -> None:
    """12: `expires_at` is only corrected when a request ends; it may lie in the past while one runs."""
    drive = Drive()
    drive.load("a:1", keep_alive_us=2 * S)
    drive.until(6)
    drive.generate("a:1", output_tokens=101)
    drive.until(10)
    assert drive.expires_s("a:1") == 7
    assert drive.ps() == ["a:1"]
    drive.until(17)
    assert drive.expires_s("a:1") == 19


def test_unload_is_answered_at_once_also_for_what_is_not_loaded_and_404_only_without_the_name() -> None:
    """2.3: immediate 200, also when the model was not loaded; 404 only if the name no longer exists on disk."""
    drive = Drive()
    assert isinstance(drive.unload("a:1")[0], UnloadReplied)
    (failed,) = drive.unload("nobody:1")
    assert isinstance(failed, Failed)
    assert (failed.status, failed.text) == (404, "model 'nobody:1' not found")


def test_an_idle_model_is_gone_from_ps_at_the_reply_and_its_memory_comes_back_later() -> None:
    """2.3, 12: gone from /api/ps at the reply; it leaves the list before the wait for VRAM ends."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.unload("a:1")
    assert drive.ps() == []
    used = drive.twin.vram_used_bytes
    assert used > 4 * GIB
    drive.later(0.74)
    assert drive.twin.vram_used_bytes == used
    drive.later(0.01)
    assert drive.twin.vram_used_bytes == 0
    assert drive.all(MemoryFreed)[0].vram_bytes == used


def test_a_load_sent_before_the_memory_is_back_spills() -> None:
    """2.3: "unloaded" = gone from /api/ps and the memory back; 3.3 item 4: alone, it loads whatever happens."""
    drive = Drive(model("a:1", gib=16), model("b:1", gib=16))
    drive.loaded_now("a:1", wait_s=20)
    drive.unload("a:1")
    drive.load("b:1")
    drive.later(20)
    assert 0 < drive.row("b:1").vram_bytes < drive.row("b:1").size_bytes
    assert drive.twin.counters.vram_overcommits == 1


def test_unload_of_a_busy_model_lets_it_finish_and_shows_an_expiry_in_the_past() -> None:
    """2.3, 12: reply at once; in /api/ps with `expires_at` in the past; the request finishes normally, then gone."""
    drive = Drive()
    drive.loaded_now("a:1")
    request = drive.generate("a:1", output_tokens=301)
    drive.later(2)
    drive.unload("a:1")
    drive.later(1)
    assert drive.row("a:1").expires_us < drive.now_us
    drive.later(40)
    assert drive.the(Finished, request).output_tokens == 301
    assert drive.ps() == []


def test_a_request_with_its_own_keep_alive_cancels_a_pending_unload() -> None:
    """2.3: a new request with its own keep_alive in that window cancels the unload; 12: the expiry stays stale."""
    drive = Drive(num_parallel=2)
    drive.loaded_now("a:1")
    drive.generate("a:1", output_tokens=51)
    drive.later(2)
    drive.unload("a:1")
    asked_us = drive.now_us
    drive.later(1)
    drive.generate("a:1", output_tokens=101, keep_alive_us=300 * S)
    drive.later(1)
    assert drive.row("a:1").expires_us == asked_us
    drive.later(20)
    assert drive.ps() == ["a:1"]
    assert drive.row("a:1").expires_us > drive.now_us + 280 * S


def test_a_request_without_keep_alive_does_not_cancel_a_pending_unload() -> None:
    """2.3: only a request with its own keep_alive does."""
    drive = Drive(num_parallel=2)
    drive.loaded_now("a:1")
    drive.generate("a:1", output_tokens=51)
    drive.later(2)
    drive.unload("a:1")
    late = drive.generate("a:1", output_tokens=101)
    drive.later(30)
    assert drive.the(Finished, late)
    assert drive.ps() == []


def test_an_embed_without_input_and_with_keep_alive_zero_loads_first() -> None:
    """2.3: /api/embed with keep_alive 0 and no input first loads the model, then unloads."""
    drive = Drive()
    request = drive.load("e:1", embed=True, keep_alive_us=0)
    drive.until(1)
    assert drive.all(LoadReplied) == []
    drive.until(2)
    assert drive.the(LoadReplied, request)
    assert drive.ps() == []


def test_deleting_a_name_does_not_unload_it() -> None:
    """2.3, 12: the runner stays in /api/ps; keep_alive 0 by that name answers 404."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.give(DeleteName("a:1"))
    assert drive.ps() == ["a:1"]
    (failed,) = drive.unload("a:1")
    assert isinstance(failed, Failed) and failed.status == 404
    assert drive.ps() == ["a:1"]


def test_a_name_that_moved_to_another_blob_keeps_the_old_digest_in_ps_and_cannot_unload_it() -> None:
    """12: the next use loads the new blob, the old runner stays until evicted or expired."""
    drive = Drive()
    drive.loaded_now("a:1")
    drive.give(CopyName("b:1", "a:1"))
    assert drive.row("a:1").digest == "d-a:1"
    drive.unload("a:1")
    assert drive.row("a:1").digest == "d-a:1"
    drive.generate("a:1")
    drive.later(10)
    assert sorted((row.name, row.digest) for row in drive.twin.loaded()) == [("a:1", "d-a:1"), ("a:1", "d-b:1")]


def test_a_failed_load_answers_500_and_leaves_nothing() -> None:
    """1.6: 500 `llama-server process has terminated: …`."""
    drive = Drive()
    drive.give(FailLoad("a"))
    failed, next_one = drive.load("a:1"), drive.load("b:1")
    drive.until(20)
    assert drive.the(Failed, failed).text.startswith("llama-server process has terminated: ")
    assert drive.the(LoadReplied, next_one)
    assert drive.ps() == ["b:1"]


def test_a_load_that_hangs_ends_at_the_load_timeout() -> None:
    """1.6, 3.3: OLLAMA_LOAD_TIMEOUT is a stall timer; 500 `timed out waiting for llama-server to start - …`."""
    drive = Drive(load_timeout_us=60 * S)
    drive.give(HangRunner("a"))
    request = drive.load("a:1")
    drive.until(59)
    assert drive.all(Failed) == []
    drive.until(61)
    assert drive.the(Failed, request).text.startswith("timed out waiting for llama-server to start - ")
    assert drive.twin.vram_used_bytes == 0


def test_sizes_are_weights_kv_and_compute_and_leave_the_cuda_context_out() -> None:
    """4.3: llama3.1:8b at 4096, one slot: 4411 + 512 + 120 MiB = 5043 MiB of buffers; the process takes more."""
    llama = model(
        "llama3.1:8b",
        weights_bytes=(4411 + 282) * MIB,
        host_weights_bytes=282 * MIB,
        kv_bytes_per_token=131_072,
        embedding_length=4096,
        feed_forward_length=14_336,
    )
    drive = Drive(llama)
    drive.loaded_now("llama3.1:8b")
    row = drive.row("llama3.1:8b")
    assert row.size_bytes == row.vram_bytes
    assert row.size_bytes // MIB == 5043
    assert drive.twin.vram_used_bytes == row.vram_bytes + GPU.context_overhead_bytes


def test_the_first_load_spills_rather_than_fail() -> None:
    """3.3 item 7: layers are dropped to leave 1 GiB free; not fitting is never an error; 2.5: size_vram < size."""
    drive = Drive(model("big:1", gib=40), load_timeout_us=900 * S)
    drive.load("big:1")
    drive.until(100)
    row = drive.row("big:1")
    assert 20 * GIB < row.vram_bytes < 24 * GIB - GIB
    assert row.size_bytes > 40 * GIB
    assert drive.twin.counters.vram_used_max <= 24 * GIB - GIB


def test_a_spilled_model_is_slow() -> None:
    drive = Drive(model("big:1", gib=40), model("a:1"))
    drive.load("big:1")
    drive.until(100)
    request = drive.generate("big:1")
    drive.until(400)
    assert drive.the(FirstToken, request).token_us > 4 * 40 * S // 40


def test_num_gpu_zero_runs_on_the_cpu_and_takes_no_video_memory() -> None:
    """2.5: size_vram 0 means CPU."""
    drive = Drive()
    drive.load("a:1", options={"num_gpu": 0})
    drive.until(10)
    assert (drive.row("a:1").vram_bytes, drive.twin.vram_used_bytes) == (0, 0)
    assert drive.row("a:1").size_bytes > 0
    assert drive.twin.counters.vram_overcommits == 0


def test_without_a_gpu_both_sizes_are_zero() -> None:
    """12: /api/ps shows size 0 and size_vram 0 on a CPU-only host."""
    drive = Drive(gpu=GpuConfig(vram_bytes=0))
    drive.load("a:1")
    drive.until(10)
    assert (drive.row("a:1").size_bytes, drive.row("a:1").vram_bytes) == (0, 0)


@pytest.mark.parametrize(("gib", "context"), [(8, 4096), (22, 4096), (24, 32_768), (48, 262_144)])
def test_the_default_context_follows_the_memory(gib: int, context: int) -> None:
    """3.6: 4096, 32768 or 262144 by total VRAM."""
    assert TwinConfig(gpu=GpuConfig(vram_bytes=gib * GIB)).context_default == context


def test_ps_is_sorted_by_latest_expiry() -> None:
    """1.3: sorted, latest expires_at first."""
    drive = Drive()
    drive.load("a:1", keep_alive_us=100 * S)
    drive.load("b:1", keep_alive_us=500 * S)
    drive.load("c:1", keep_alive_us=300 * S)
    drive.until(30)
    assert drive.ps() == ["b:1", "c:1", "a:1"]


def test_load_duration_includes_the_wait_in_the_queue() -> None:
    """1.4: load_duration = from handler start to runner granted."""
    drive = Drive()
    drive.load("a:1")
    request = drive.generate("b:1")
    drive.until(20)
    assert drive.the(Granted, request).waited_us == 10 * S
    assert drive.the(Finished, request).load_us == 10 * S


def test_the_world_has_no_two_models_of_one_name() -> None:
    with pytest.raises(AssertionError):
        Drive(*WORLD, WORLD[0])


def test_layers_with_a_window_take_little_and_are_predicted_in_full() -> None:
    """4.2: cells = pad256(min(C, window + U)); 4.4: Ollama overestimates such models 3-10x at long context."""
    swa = model("swa:1", kv_bytes_per_token=10_000, window_kv_bytes_per_token=50_000, window=1024)
    shape = resolve(TwinConfig(), swa, options=RunnerOptions(num_ctx=65_536), shift=None)
    assert shape.batch == 2048
    assert kv_bytes(swa, shape, slots=1) == 10_000 * 65_536 + 50_000 * 3072
    assert predicted_bytes(swa, shape, slots=1) == 4 * GIB + 60_000 * 65_536
