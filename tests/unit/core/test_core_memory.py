"""Bytes of a runner before and after it was measured, against the worked example of ollama.md 4.3."""

from typing import Any

import msgspec
import pytest
from core_script import GIB, Script, loaded, need, stored

from bellmare.core import decisions as d
from bellmare.core.costs import estimate_bytes
from bellmare.core.memory import memory_shape
from bellmare.core.state import Model
from bellmare.core.units import MIB

LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
WEIGHTS_ON_GPU = 4411 * MIB


def model_of(info: dict[str, Any], weights: int) -> Model:
    shape = memory_shape(info)
    entry = stored(
        "llama",
        kv_bytes_per_token=shape.kv_bytes_per_token,
        recurrent_bytes_per_slot=shape.fixed_bytes_per_slot,
        compute_bytes=shape.compute_bytes,
    )
    return Model(model="blob", stored=msgspec.structs.replace(entry, weights_bytes=weights))  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_ctx", "expected_mib"), [(4096, 5043), (131_072, 21_039)])
def test_the_formula_gives_the_worked_example(num_ctx: int, expected_mib: int) -> None:
    estimate = estimate_bytes(model_of(LLAMA, WEIGHTS_ON_GPU), num_ctx, 1) / MIB
    assert abs(estimate - expected_mib) < 2


def test_the_cache_grows_with_slots_and_the_weights_do_not() -> None:
    model = model_of(LLAMA, WEIGHTS_ON_GPU)
    one, four = (estimate_bytes(model, 4096, slots) for slots in (1, 4))
    assert four - one == 3 * 512 * MIB


def test_windowed_layers_hold_a_window_and_not_the_context() -> None:
    gemma = {key.replace("llama", "gemma3"): value for key, value in LLAMA.items()}
    gemma |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 1024}
    shape = memory_shape(gemma)
    per_layer = 4096
    assert shape.kv_bytes_per_token == 5 * per_layer  # layers 5, 11, 17, 23, 29 see everything
    assert shape.fixed_bytes_per_slot == 27 * per_layer * 1536


def test_latent_attention_holds_keys_only() -> None:
    deepseek = {key.replace("llama", "deepseek2"): value for key, value in LLAMA.items()}
    deepseek |= {
        "general.architecture": "deepseek2",
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
    }
    assert memory_shape(deepseek).kv_bytes_per_token == 32 * 576 * 2


@pytest.mark.parametrize("info", [{}, {"general.architecture": "x"}, {**LLAMA, "llama.block_count": None}])
def test_an_unknown_shape_is_zero(info: dict[str, Any]) -> None:
    shape = memory_shape(info)
    assert (shape.kv_bytes_per_token, shape.fixed_bytes_per_slot, shape.compute_bytes) == (0, 0, 0)


def test_a_measured_runner_is_booked_as_measured_and_the_next_load_reserves_that() -> None:
    script = Script()
    script.worker("w", stored("a", 4), overhead_bytes=GIB // 2)
    script.asks("r1", "a")
    load = script.one(d.Load)
    assert load.reserved_bytes == need(4) + GIB // 2
    script.ends(load, line=loaded("a", 4.0))
    assert script.runner("a", "w").bytes == 4 * GIB + GIB // 2
    script.done("r1")
    script.passes(60)
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.asks("r2", "a")
    assert script.one(d.Load).reserved_bytes == 4 * GIB + GIB // 2


def test_growth_of_a_resident_is_booked_but_is_no_need_of_the_next_load() -> None:
    script = Script()
    script.worker("w", stored("a", 4))
    script.resident("a", "w", line=loaded("a", 4.0))
    script.shows("w", loaded("a", 20.0))
    assert script.runner("a", "w").bytes == 20 * GIB
    script.unloads("a")
    script.ends(script.one(d.Unload))
    script.asks("r", "a")
    assert script.one(d.Load).reserved_bytes == 4 * GIB


def test_a_worker_that_cannot_say_its_bytes_keeps_the_estimate() -> None:
    script = Script()
    script.worker("w", stored("a", 4))
    script.resident("a", "w", line=loaded("a", 0))
    assert script.runner("a", "w").bytes == need(4)


def test_memory_over_the_real_capacity_sends_the_least_used_idle_runner_away_and_only_that() -> None:
    script = Script()
    script.worker("w", stored("a", 4), stored("b", 4), stored("c", 4))
    for name in "abc":
        script.resident(name, "w")
    script.shows("w", loaded("a", 9.0), loaded("b", 9.0), loaded("c", 9.0))
    drain, unload = script.one(d.Drain), script.one(d.Unload)
    assert drain.model == unload.model == "blob-a"
    assert unload.cause is d.UnloadCause.over_budget
    script.ends(unload)
    assert script.none(d.Unload, d.Drain)


def test_a_guessed_capacity_rises_to_what_was_seen_to_fit() -> None:
    script = Script()
    script.worker("w", stored("a", 4), gib=8, capacity_known=False, holds=(loaded("a", 14.0),))
    assert script.seen("w").capacity_bytes == 14 * GIB


def test_a_guessed_capacity_never_refuses_a_load_on_an_empty_worker() -> None:
    script = Script()
    script.worker("w", stored("big", 40), gib=8, capacity_known=False)
    script.asks("r", "big")
    assert script.one(d.Load).model == "blob-big"


def test_overhead_that_the_worker_shows_is_not_booked_twice() -> None:
    script = Script()
    script.worker("w", stored("a", 4), overhead_bytes=GIB, overhead_shown=True)
    script.resident("a", "w", line=loaded("a", 5.0))
    assert script.runner("a", "w").bytes == 5 * GIB
