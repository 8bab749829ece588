"""Aliases, fallbacks, ollama.com's names; what a model cannot do is refused before anything is loaded."""

import json
from typing import Any

import pytest

from bellmare.gateway.errands import native, openai
from bellmare.gateway.errands.errand import Errand, Stamp, prepare
from bellmare.gateway.naming import NameRules, Naming
from bellmare.gateway.options import options_of
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import full_name, local_name, named
from bellmare.settings.load import load_settings

CHAT = frozenset({"completion"})
EVERYTHING = frozenset({"completion", "tools", "insert", "thinking", "vision"})
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def errand(parse: Any = native.chat, **fields: Any) -> Errand:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    found: Errand = parse(json.dumps({key: value for key, value in body.items() if value is not None}).encode())
    return found


def naming(abilities: frozenset[str] | None = EVERYTHING, **rules: Any) -> Naming:
    return Naming(NameRules(**rules), lambda name: abilities)


def refusal(given: Errand, abilities: frozenset[str] | None, **rules: Any) -> tuple[int, str]:
    with pytest.raises(InvalidRequest) as caught:
        naming(abilities, **rules).address(given)
    return caught.value.status, caught.value.message


def test_a_usual_request_is_left_alone() -> None:
    given = errand()
    assert naming().address(given) is given


def test_an_alias_is_answered_by_its_model_under_the_name_that_the_client_used() -> None:
    found = naming(aliases={"gpt-4o:latest": "m:8b"}).address(errand(model="GPT-4o"))
    assert (found.name, found.asked, found.spelling, found.redirected) == ("m:8b", "m:8b", "GPT-4o", True)
    assert json.loads(found.body(512))["model"] == "m:8b"
    translator = found.translator(Stamp("r", 0, found.spelling, found.asked))
    lines = b'{"model":"m:8b","message":{"content":"\\n{\\"model\\":\\"m:8b\\""},"done":false}\n' * 2
    assert translator.feed(lines) == lines.replace(b'{"model":"m:8b"', b'{"model":"GPT-4o"')


def test_so_is_an_unstreamed_one_and_one_in_another_dialect() -> None:
    rules = {"aliases": {"gpt-4o:latest": "m:8b"}}
    found = naming(**rules).address(errand(model="gpt-4o", stream=False))
    translator = found.translator(Stamp("r", 0, found.spelling, found.asked))
    translator.feed(b'{"model":"m:8b","done":true}')
    assert translator.end() == b'{"model":"gpt-4o","done":true}'
    found = naming(**rules).address(errand(openai.chat_completions, model="gpt-4o"))
    translator = found.translator(Stamp("r", 0, found.spelling, found.asked))
    translator.feed(b'{"model":"m:8b","message":{"content":"x"},"done":true,"done_reason":"stop"}')
    assert json.loads(translator.end())["model"] == "gpt-4o"


def test_a_large_request_is_not_encoded_again_for_another_model() -> None:
    found = prepare(errand(options={"seed": 1})).for_model("other:8b")
    body = found.body(512)
    assert isinstance(body, list)
    assert json.loads(b"".join(body)) == json.loads(errand(model="other:8b", options={"seed": 1}).body(512))  # type: ignore[arg-type]


def test_fallbacks_are_tried_in_order() -> None:
    found = naming(fallbacks={"m:latest": ("a:1b", "b:1b")}).address(errand())
    assert (found.name, found.fallbacks) == ("m:latest", ("a:1b", "b:1b"))
    found = found.fallen_back()
    assert (found.name, found.asked, found.spelling, found.fallbacks) == ("a:1b", "a:1b", "m", ("b:1b",))


@pytest.mark.parametrize("name", ["m:cloud", "m:8b-cloud", "m:8b:cloud"])
def test_names_of_ollama_com_are_refused_unless_allowed(name: str) -> None:
    status, text = refusal(errand(model=name), EVERYTHING)
    assert status == 403
    assert "ollama.com" in text
    assert naming(cloud=True).address(errand(model=name)).name == ""


@pytest.mark.parametrize(
    ("given", "abilities", "text"),
    [
        (errand(), frozenset({"embedding"}), '"m" does not support chat'),
        (errand(native.generate, prompt="x"), frozenset({"embedding"}), '"m" does not support generate'),
        (errand(native.generate), frozenset({"embedding"}), '"m" does not support generate'),
        (errand(openai.chat_completions), frozenset({"embedding"}), '"m" does not support chat'),
        (errand(think=True), CHAT, '"m" does not support thinking'),
        (errand(think="low"), CHAT, '"m" does not support thinking'),
        (errand(native.generate, prompt="x", think=True), CHAT, '"m" does not support thinking'),
        (errand(tools=[TOOL]), CHAT, "registry.ollama.ai/library/m:latest does not support tools"),
        (
            errand(native.generate, prompt="x", suffix="y"),
            CHAT,
            "registry.ollama.ai/library/m:latest does not support insert",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused_in_ollamas_words(
    given: Errand, abilities: frozenset[str], text: str
) -> None:
    assert refusal(given, abilities) == (400, text)
    assert naming(None).address(given) is given, "what nobody has said is the worker's to judge"


@pytest.mark.parametrize("given", [errand(think=False), errand(tools=[]), errand(native.embed, input="x")])
def test_what_asks_for_nothing_special_passes(given: Errand) -> None:
    assert naming(CHAT).address(given) is given


def test_embeddings_and_releases_are_asked_of_any_model() -> None:
    for given in (errand(native.embed, input="x"), errand(native.generate, keep_alive=0)):
        assert naming(frozenset({"nothing"})).address(given) is given


def test_a_local_name_means_the_model_on_this_side() -> None:
    assert named("m:local").canonical == "m:latest"
    assert named("ns/m:8b:LOCAL").canonical == "ns/m:8b"
    assert named("m:local").spelling == "m:local"
    for text in ("m:cloud:local", "m:8b-cloud:local", "m:local:local"):
        with pytest.raises(InvalidRequest, match="not both"):
            local_name(text)


def test_the_full_name_has_host_and_namespace() -> None:
    assert full_name("m:8b") == "registry.ollama.ai/library/m:8b"
    assert full_name("hf.co/a/b:q4") == "hf.co/a/b:q4"


def test_the_rules_come_from_the_settings() -> None:
    models = {"M:8b": {"aliases": ["GPT-4o", "best:1"], "fallbacks": ["small"]}}
    rules = options_of(load_settings(None, environment={}, overrides={"models": models, "cloud": True})).names
    assert rules.aliases == {"gpt-4o:latest": "m:8b", "best:1": "m:8b"}
    assert rules.fallbacks == {"m:8b": ("small:latest",)}
    assert rules.cloud


def in_context(name: str, num_ctx: int) -> tuple[str, int] | None:
    """A model of 8192 with one class of 32768."""
    return (f"{name}#32768", 32768) if num_ctx > 8192 else (name, 8192)


@pytest.mark.parametrize(
    ("num_ctx", "context", "asked", "overridden"),
    [
        (4096, 8192, "", ("num_ctx",)),
        (8192, 8192, "", ()),
        (20_000, 32768, "m:latest#32768", ("num_ctx",)),
        (32_768, 32768, "m:latest#32768", ()),
        (1_000_000, 32768, "m:latest#32768", ("num_ctx",)),
    ],
)
def test_a_clients_context_is_that_of_the_model_or_of_a_class(
    num_ctx: int, context: int, asked: str, overridden: tuple[str, ...]
) -> None:
    given = errand(options={"num_ctx": num_ctx, "seed": 1})
    found = Naming(NameRules(), lambda name: EVERYTHING, in_context).address(given)
    assert (found.name, found.context, found.context_class) == ("m:latest", context, asked)
    assert found.overridden == overridden
    assert found.for_model("other:1b").context_class == "", "another model has other classes"
