"""Context classes: one blob with several contexts, of which a worker holds one at a time."""

from typing import Any

import msgspec
from core_script import GIB, Script, loaded, names, stored

from bellmare.core import decisions as d
from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.events import HintGiven, HintSource, LoadedModel, OperationEnded, OperationOutcome
from bellmare.core.residency import Residency


def classes(*contexts: int, name: str = "m", **said: Any) -> CoreConfig:
    return CoreConfig(models={name: ModelConfig(context_classes=contexts, **said)})


def turns(script: Script) -> tuple[d.Unload, d.Load]:
    """One context leaves and the other comes; both operations."""
    unload = script.one(d.Unload)
    script.ends(unload)
    load = script.one(d.Load)
    script.ends(load)
    return unload, load


# ---------------------------------------------------------------------- which contexts there are


def test_contexts_are_the_canonical_one_and_the_classes_capped_to_training() -> None:
    script = Script(classes(65_536, 131_072, 2048, 16_384, 8192))
    script.worker("w", stored("m", context_max=20_000), stored("other"))
    fleet = script.engine.fleet
    assert fleet.contexts("m") == (2048, 8192, 16_384, 20_000)
    assert fleet.contexts("other") == (8192,)
    assert fleet.contexts("nobody") == ()


def test_the_class_for_a_prompt_is_the_canonical_one_if_that_holds_it_else_the_smallest_that_does() -> None:
    script = Script(classes(2048, 16_384, 32_768))
    script.worker("w", stored("m"))
    fleet = script.engine.fleet
    asked = {tokens: fleet.class_for("m", tokens) for tokens in (1, 8192, 8193, 16_384, 20_000, 32_769)}
    assert asked == {1: "m", 8192: "m", 8193: "m#16384", 16_384: "m#16384", 20_000: "m#32768", 32_769: None}
    assert fleet.class_for("nobody", 1) is None


def test_the_class_that_a_client_asks_for_is_the_smallest_not_below_else_the_largest() -> None:
    script = Script(classes(2048, 32_768))
    script.worker("w", stored("m"), stored("plain"))
    fleet = script.engine.fleet
    asked = {num_ctx: fleet.class_asked("m", num_ctx) for num_ctx in (1, 2048, 2049, 8192, 9000, 1 << 20)}
    assert asked == {1: "m#2048", 2048: "m#2048", 2049: "m", 8192: "m", 9000: "m#32768", 1 << 20: "m#32768"}
    assert fleet.class_asked("plain", 1 << 20) == "plain"
    assert fleet.class_asked("nobody", 1) is None


def test_classes_follow_the_settings_the_name_and_the_description() -> None:
    script = Script()
    script.worker("w", stored("m"), holds=(loaded("m"),))
    script.configures(classes(32_768))
    assert script.engine.fleet.contexts("m") == (8192, 32_768)
    script.shows("w", loaded("m"), stores=[stored("m", context_max=16_384)])
    assert script.engine.fleet.contexts("m") == (8192, 16_384)
    script.shows("w", stores=[stored("m", model="other")])
    assert script.engine.fleet.contexts("m") == (8192, 32_768)
    script.configures(CoreConfig())
    assert script.engine.fleet.contexts("m") == (8192,)
    assert not [model for model in script.engine.fleet.state.models if "#" in model]


def test_a_class_is_no_name_of_the_fleet() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"))
    assert list(script.engine.fleet.state.votes) == list(script.seen("w").stored) == ["m"]


def test_a_snapshot_keeps_the_classes() -> None:
    script = Script(classes(32_768, 2048))
    script.worker("w", stored("m"))
    copy = script.copy()
    assert copy.engine.snapshot() == script.engine.snapshot()
    assert copy.engine.fleet.contexts("m") == (2048, 8192, 32_768)
    assert msgspec.json.decode(script.engine.snapshot())["models"]["blob-m#2048"]["blob"] == "blob-m"


# ---------------------------------------------------------------------- a worker runs a blob once


def test_another_context_is_loaded_after_the_one_that_is_there_was_unloaded() -> None:
    """However much room there is: by ourselves, by plain names, each request with the context of its class."""
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.resident("m", "w")
    script.asks("long", "m#32768")
    unload, load = turns(script)
    assert (unload.model, unload.name, unload.cause, unload.wanted_by) == (
        "blob-m", "m", d.UnloadCause.context, "blob-m#32768",
    )  # fmt: skip
    assert (load.model, load.name, load.num_ctx, load.cause) == ("blob-m#32768", "m", 32_768, d.LoadCause.demand)
    dispatch = script.one(d.Dispatch)
    assert (dispatch.model, dispatch.num_ctx, dispatch.cache) == ("blob-m#32768", 32_768, d.CacheState.cold)


def test_a_busy_sibling_is_drained_only_after_patience_and_never_cut_off() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.resident("m", "w")
    script.asks("short", "m")
    script.asks("long", "m#32768")
    assert script.out == []
    assert "Drain" in names(script.passes(6))
    script.asks("late", "m")
    assert script.none(d.Dispatch, d.Unload)
    script.done("short")
    turns(script)
    assert [dispatch.request for dispatch in script.some(d.Dispatch)] == ["long", "late"]


def test_with_room_elsewhere_both_contexts_live() -> None:
    script = Script(classes(32_768))
    for worker in ("w1", "w2"):
        script.worker(worker, stored("m"))
    script.resident("m", "w1")
    script.asks("short", "m")
    script.asks("long", "m#32768")
    load = script.one(d.Load)
    assert (load.worker, load.num_ctx) == ("w2", 32_768)
    script.ends(load)
    assert script.one(d.Dispatch).worker == "w2"
    script.asks("short2", "m")
    assert (script.one(d.Dispatch).worker, script.one(d.Dispatch).num_ctx) == ("w1", 8192)


def test_beside_the_sibling_only_who_is_needed_leaves() -> None:
    """A larger context may need more than its sibling leaves, and then the cheapest set beside it goes."""
    shape = {"kv_bytes_per_token": 1 << 17, "compute_bytes": 1}  # with two slots: 2 GiB for 8192, 8 GiB for 32768
    script = Script(classes(32_768))
    script.worker("w", stored("m", 4, **shape), stored("b", 3), stored("c", 6), gib=20)
    for name in ("m", "b", "c"):
        script.resident(name, "w")
    script.asks("long", "m#32768")
    gone = [decision.model for decision in script.some(d.Drain)]
    assert gone[0] == "blob-m"
    assert gone[1:] in (["blob-b"], ["blob-c"])
    causes = {decision.model: decision.cause for decision in script.some(d.Drain)}
    assert causes["blob-m"] is d.UnloadCause.context
    assert causes[gone[1]] is d.UnloadCause.room


def test_a_class_that_fits_in_its_siblings_place_sends_nobody_else_away() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m", 10), stored("b", 10), gib=24)
    script.resident("m", "w")
    script.resident("b", "w")
    script.asks("long", "m#32768")
    assert [decision.model for decision in script.some(d.Drain)] == ["blob-m"]


def test_an_operator_loads_and_unloads_classes() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.resident("m", "w")
    assert script.loads("m#32768").text == "loading; m must leave first"
    turns(script)
    assert list(script.seen("w").runners) == ["blob-m#32768"]
    assert not script.loads("m#4096").accepted
    assert script.unloads("m").accepted, "a plain name means the model, with whichever context"
    assert script.one(d.Unload).model == "blob-m#32768"


def test_a_pinned_context_is_no_victim_of_its_classes() -> None:
    """Elsewhere the class may come in; where it never can, who asks is told at once."""
    script = Script(classes(32_768, pinned=True))
    script.worker("w1", stored("m"), gib=80)
    script.ends(script.one(d.Load))
    script.passes(60)
    script.asks("long", "m#32768")
    assert script.one(d.Reject).refusal is d.Refusal.model_does_not_fit
    script.worker("w2", stored("m"), gib=80)
    script.asks("long2", "m#32768")
    assert (script.one(d.Load).worker, script.one(d.Load).num_ctx) == ("w2", 32_768)


def test_two_contexts_in_turn_serve_everybody_without_a_reload_by_the_worker() -> None:
    """One worker, both asked for all the time: neither starves, and each load follows an unload that has ended."""
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    served = {"m": 0, "m#32768": 0}
    asked: dict[str, str] = {}
    for number in range(60):
        name = "m" if number % 2 else "m#32768"
        asked[f"r{number}"] = name
        script.asks(f"r{number}", name)
        for _ in range(20):
            running = [r.request for r in script.engine.fleet.state.requests.values() if r.phase == "running"]
            ops = list(script.engine.fleet.state.operations.values())
            if ops:
                done = next(o for o in script.all if getattr(o, "operation", None) == ops[0].operation)
                script.passes(1)
                script.ends(done)
            elif running:
                script.passes(1)
                served[asked[running[0]]] += 1
                script.done(running[0])
            else:
                break
    assert served == {"m": 30, "m#32768": 30}


# ---------------------------------------------------------------------- a larger context stands in


def test_a_larger_context_with_a_free_slot_serves_who_would_have_to_wait_for_a_load() -> None:
    script = Script(classes(2048, 32_768))
    script.worker("w", stored("m"), gib=80, parallel=4)
    script.resident("m#32768", "w")
    for request, name in (("r1", "m"), ("r2", "m"), ("r3", "m#2048")):
        script.asks(request, name)
        assert names(script.out) == ["Dispatch"]
        assert (script.one(d.Dispatch).model, script.one(d.Dispatch).num_ctx) == ("blob-m#32768", 32_768)
    assert script.engine.fleet.state.counters["stood_in"] == 3
    for request in ("r1", "r2", "r3"):
        script.done(request)
    assert script.engine.fleet.state.requests == {}


def test_a_smaller_or_shortened_context_never_stands_in() -> None:
    script = Script(classes(2048, 32_768))
    script.worker("w1", stored("m"), holds=(loaded("m", num_ctx=2048),))
    script.asks("r", "m")
    assert script.none(d.Dispatch)
    short = Script(classes(32_768))
    short.worker("w", stored("m"), gib=80)
    short.loads("m#32768")
    line = LoadedModel(name="m", model="blob-m", bytes=GIB, num_ctx=4096, pinned=True)  # type: ignore[arg-type]
    short.ends(short.one(d.Load), line=line)
    short.asks("r", "m")
    assert short.none(d.Dispatch)


def test_nobody_stands_in_where_a_copy_is_there_or_somebody_waits_or_the_name_is_another_blobs() -> None:
    script = Script(classes(32_768))
    script.worker("w1", stored("m"), gib=80, parallel=1)
    script.worker("w2", stored("m"), gib=80, parallel=1)
    script.resident("m", "w1")
    script.resident("m#32768", "w2")
    script.asks("r1", "m")
    script.asks("r2", "m")
    assert script.none(d.Dispatch), "its own copy is busy: it waits there as it would without classes"
    other = Script(classes(32_768))
    other.worker("w1", stored("m"), stored("x", model="blob-m"), gib=80)
    other.resident("m#32768", "w1")
    other.worker("w2", stored("m"), stored("y", model="blob-m"), gib=80)
    other.asks("r", "y")
    assert other.one(d.Load).worker == "w2", "the worker that holds the larger one does not know the name"


def test_who_waits_for_a_load_gets_a_slot_of_a_larger_context_that_becomes_free() -> None:
    """With one slot, as with stock settings: else a worker would change contexts with every other request."""
    script = Script(classes(2048, 32_768))
    script.worker("w", stored("m"), gib=80, parallel=1)
    script.resident("m#32768", "w")
    script.asks("long", "m#32768")
    script.asks("r1", "m", tenant="a")
    script.asks("r2", "m", tenant="a")
    script.asks("r3", "m#2048", tenant="b")
    assert script.none(d.Dispatch)
    order = []
    for request in ("long", "r1", "r2", "r3"):
        script.done(request)
        order += [(dispatch.request, dispatch.num_ctx) for dispatch in script.some(d.Dispatch)]
        assert script.none(d.Drain, d.Load, d.Unload)
    assert order == [("r1", 32_768), ("r2", 32_768), ("r3", 32_768)], "who waits longest is first"
    assert script.engine.fleet.state.requests == {}
    assert script.engine.fleet.state.waiting == 0


def test_a_larger_context_serves_its_own_queue_first() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80, parallel=1)
    script.resident("m#32768", "w")
    for request, name in (("l1", "m#32768"), ("s", "m"), ("l2", "m#32768")):
        script.asks(request, name)
    script.done("l1")
    assert script.one(d.Dispatch).request == "l2"
    script.done("l2")
    assert script.one(d.Dispatch).request == "s"


def test_what_a_larger_context_serves_is_not_loaded_ahead_beside_it() -> None:
    script = Script(classes(32_768))
    for worker in ("w1", "w2"):
        script.worker(worker, stored("m", 10), gib=80)
    script.resident("m#32768", "w1")
    script.tell(HintGiven(source=HintSource.prepare, name="m"))
    script.passes(30)
    assert not script.some(d.Load)
    assert script.engine.fleet.state.foreseen or not script.engine.fleet.state.models["blob-m"].demand.hints  # type: ignore[index]
    script.asks("r", "m")
    assert script.one(d.Dispatch).num_ctx == 32_768
    assert script.engine.fleet.state.counters["hint_right_prepare"] == 1


# ---------------------------------------------------------------------- what is seen


def test_a_runner_is_of_the_class_whose_context_it_has() -> None:
    script = Script(classes(32_768))
    script.worker("w1", stored("m"), holds=(loaded("m", num_ctx=32_768),))
    script.worker("w2", stored("m"), holds=(loaded("m", num_ctx=8192),))
    script.worker("w3", stored("m"), holds=(loaded("m", num_ctx=16_384),))
    assert list(script.seen("w1").runners) == ["blob-m#32768"]
    assert list(script.seen("w2").runners) == list(script.seen("w3").runners) == ["blob-m"]
    script.worker("w4", stored("m"), holds=(loaded("m", num_ctx=4096),))
    assert script.one(d.Unload).cause is d.UnloadCause.shape, "too small for any: as without classes"
    assert not script.some(d.Load)


def test_a_blob_that_somebody_loaded_anew_is_of_its_new_class() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), holds=(loaded("m"),))
    script.asks("r", "m")
    script.passes(1)
    script.shows("w", loaded("m", num_ctx=32_768))
    assert list(script.seen("w").runners) == ["blob-m#32768"]
    script.done("r")
    script.asks("long", "m#32768")
    assert script.one(d.Dispatch).num_ctx == 32_768


def test_an_old_observation_does_not_bring_the_sibling_back() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.resident("m", "w")
    asked = script.now
    script.asks("long", "m#32768")
    script.ends(script.one(d.Unload))
    script.shows("w", loaded("m"), asked=asked)
    assert list(script.seen("w").runners) == ["blob-m#32768"]
    script.ends(next(one for one in script.all if isinstance(one, d.Load) and one.num_ctx == 32_768))
    script.shows("w", loaded("m"), asked=asked + 1)
    assert list(script.seen("w").runners) == ["blob-m#32768"]


def test_room_for_a_class_is_given_up_when_somebody_else_loads_its_blob() -> None:
    """Else our own load would be a reload of theirs."""
    script = Script(classes(32_768, 16_384))
    script.worker("w", stored("m", 3), stored("b", 21), gib=24)
    script.resident("b", "w")
    script.passes(60)
    script.asks("long", "m#32768")
    unload = script.one(d.Unload)
    asked = script.now + 1
    script.passes(1)
    script.shows("w", loaded("b", 20), loaded("m", 1, num_ctx=16_384), asked=asked)
    script.ends(unload)
    assert not script.some(d.Load)
    assert (script.one(d.Unload).model, script.one(d.Unload).cause) == ("blob-m#16384", d.UnloadCause.context)


def test_a_load_that_brought_less_context_stays_in_its_class() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.loads("m#32768")
    load = script.one(d.Load)
    script.ends(load, line=LoadedModel(name="m", model="blob-m", bytes=GIB, num_ctx=8192, pinned=True))  # type: ignore[arg-type]
    script.passes(1)
    script.shows("w", loaded("m", 1, num_ctx=8192))
    assert list(script.seen("w").runners) == ["blob-m#32768"]
    assert script.none(d.Unload, d.Drain)


def test_another_blob_under_the_name_is_no_class_of_it() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"))
    script.loads("m#32768")
    load = script.one(d.Load)
    line = LoadedModel(name="m", model="other", bytes=GIB, num_ctx=32_768, pinned=True)  # type: ignore[arg-type]
    script.tell(OperationEnded(operation=load.operation, outcome=OperationOutcome.done, loaded=line))
    assert "Observe" in names(script.out)
    assert script.seen("w").runners["blob-m#32768"].residency is Residency.unloading  # type: ignore[index]


# ---------------------------------------------------------------------- settings that change


def test_a_class_that_is_configured_no_more_ends_with_its_runner() -> None:
    """Who runs finishes, who waits is told, and the runner is the next context's victim; then it is forgotten."""
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80, parallel=1)
    script.resident("m#32768", "w")
    script.asks("runs", "m#32768")
    script.asks("waits", "m#32768")
    script.configures(CoreConfig())
    assert script.engine.fleet.contexts("m") == (8192,)
    script.asks("late", "m#32768")
    assert script.one(d.Reject).refusal is d.Refusal.unknown_model
    script.done("runs")
    assert script.one(d.Dispatch).request == "waits"
    script.done("waits")
    script.passes(30)
    script.asks("short", "m")
    unload, load = turns(script)
    assert (unload.model, unload.cause, load.num_ctx) == ("blob-m#32768", d.UnloadCause.context, 8192)
    script.done("short")
    script.shows("w", loaded("m"))
    assert "blob-m#32768" not in script.engine.fleet.state.models


def test_who_waits_for_a_class_that_is_configured_no_more_gets_its_slots_when_its_worker_comes_back() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.resident("m#32768", "w")
    script.asks("r", "m#32768")
    script.configures(CoreConfig())
    script.fails("r", "w", "refused")
    script.shows("w", loaded("m", num_ctx=32_768))
    assert (script.one(d.Dispatch).request, script.one(d.Dispatch).num_ctx) == ("r", 32_768)


def test_a_lost_worker_takes_the_classes_with_it() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.unreachable("w")
    script.passes(5)
    script.asks("long", "m#32768")
    assert script.one(d.Reject).refusal is d.Refusal.no_healthy_worker
    script.shows("w")
    script.asks("long2", "m#32768")
    assert script.one(d.Load).num_ctx == 32_768


# ---------------------------------------------------------------------- the rest of the core


def test_bursts_of_a_class_take_the_express_lane() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80, parallel=8)
    script.resident("m#32768", "w")
    script.passes(5)
    for number in range(3):
        script.asks(f"r{number}", "m#32768")
        assert script.one(d.Dispatch).num_ctx == 32_768
    assert script.engine.fleet.state.bursts["m#32768"].count == 2


def test_explain_tells_of_all_contexts_under_the_plain_name() -> None:
    script = Script(classes(32_768))
    script.worker("w", stored("m"), gib=80)
    script.asks("long", "m#32768")
    told = " ".join(script.engine.explain("m"))
    assert "RequestArrived request=long" in told and "Load operation=1" in told
    assert "request=long" in " ".join(script.engine.explain("m#32768"))
