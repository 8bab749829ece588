"""Context classes: one blob with several contexts, of which a worker holds one at a time."""

from typing import Any

import msgspec
from core_script import Script, loaded, stored

from bellmare.core.config import CoreConfig, ModelConfig


def classes(*contexts: int, name: str = "m", **said: Any) -> CoreConfig:
    return CoreConfig(models={name: ModelConfig(context_classes=contexts, **said)})


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
