"""One key per model: ollama.md 6.2 and 1.9, reliability.md C6 and C7."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import names
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import (
    KNOWN_NAMES_MAX,
    canonical_name,
    close_names,
    display_name,
    is_cloud_name,
    named,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("llama3.1", "llama3.1:latest"),
        ("LLaMA3.1:8B", "llama3.1:8b"),
        (" llama3.1:8b\n", "llama3.1:8b"),
        ("library/llama3.1", "llama3.1:latest"),
        ("Registry.Ollama.AI/Library/llama3.1:8b", "llama3.1:8b"),
        ("registry.ollama.ai/user/m", "user/m:latest"),
        ("https://registry.ollama.ai/library/m:1", "m:1"),
        ("HTTP://registry.ollama.ai/library/m", "m:latest"),
        ("user/m:tag", "user/m:tag"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M", "hf.co/bartowski/llama-3.2-1b-gguf:q4_k_m"),
        ("hf.co/library/m", "hf.co/library/m:latest"),
        ("gw:8080/library/m:1", "gw:8080/library/m:1"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("_m-1.2_3", "_m-1.2_3:latest"),
        ("a" * 80 + ":" + "b" * 80, "a" * 80 + ":" + "b" * 80),
        ("h" * 350 + "/n/m:t", "h" * 350 + "/n/m:t"),
    ],
)
def test_spellings_of_one_model_have_one_key(text, canonical):
    assert canonical_name(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "m@sha256:" + "0" * 64,
        "m:",
        ":tag",
        "/m",
        "m/",
        "a//m",
        "a/b/c/d",
        "../m",
        "../../etc/passwd",
        "a/../m",
        ".hidden",
        "-m",
        "m:.tag",
        "hf.co/m",  # two parts: a namespace has no dots
        "gw:8080/m",  # ollama.md 6.2
        "m:8b:local",
        "http://host/m",
        "ftp://h/n/m",
        "m n",
        "m\x00",
        "m\n:8b",
        "m\u212a",  # the Kelvin sign lower-cases to k
        "\uff4d",
        "m+q4",
        "m%2f",
        "a" * 81,
        "m:" + "t" * 81,
        "n" * 81 + "/m",
        "h" * 351 + "/n/m",
        "x" * 100_000,
    ],
)
def test_invalid_names_are_refused_in_ollamas_words(text):
    with pytest.raises(InvalidRequest) as caught:
        canonical_name(text)
    assert (caught.value.status, caught.value.message) == (400, "invalid model name")


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_name_is_missing(text):
    with pytest.raises(InvalidRequest, match=r"^model is required$"):
        canonical_name(text)


def test_display_keeps_the_case_and_shows_the_tag():
    assert display_name("registry.ollama.ai/library/Llama3.1") == "Llama3.1:latest"
    assert display_name("hf.co/User/Model:Q4") == "hf.co/User/Model:Q4"


part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
namespace = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,8}", fullmatch=True) | st.just("library")
host = st.sampled_from(["registry.ollama.ai", "hf.co", "gw:8080", "http://h.example"])
tag = st.just("") | st.just(":latest") | part.map(":{}".format)
valid_names = st.one_of(
    st.tuples(part, tag),
    st.tuples(namespace, st.just("/"), part, tag),
    st.tuples(host, st.just("/"), namespace, st.just("/"), part, tag),
).map("".join)


@pytest.mark.slow
@given(valid_names, st.data())
def test_the_key_is_a_fixed_point_and_blind_to_case(name, data):
    key = canonical_name(name)
    assert canonical_name(key) == key
    assert canonical_name(display_name(name)) == key
    flips = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    flipped = "".join(char.swapcase() if flip else char for char, flip in zip(name, flips, strict=True))
    assert canonical_name(flipped) == key
    assert ":" in key.rpartition("/")[2]


@given(st.text(max_size=40))
def test_any_text_gives_a_plain_key_or_a_refusal(text):
    try:
        key = canonical_name(text)
    except InvalidRequest:
        return
    assert key.isascii() and key == key.lower() and key.isprintable() and " " not in key


@pytest.mark.parametrize("text", ["m:cloud", "gpt-oss:120b-cloud", "M:CLOUD", "m:8b:cloud", "u/m:x-Cloud ", "m: cloud"])
def test_cloud_names_are_seen(text):
    assert is_cloud_name(text)


@pytest.mark.parametrize("text", ["m", "my-cloud", "cloud", "cloud:8b", "m:cloudy", "gw:80-cloud/n/m", "", "m:local"])
def test_other_names_are_not_cloud(text):
    assert not is_cloud_name(text)


KNOWN = [
    "llama3.1:8b",
    "llama3.1:70b",
    "qwen2.5-coder:7b",
    "qwen2.5-coder:1.5b-base",
    "nomic-embed-text:latest",
    "mistral:latest",
    "mistral-nemo:12b",
    "someone/llama3.1:8b",
    "hf.co/bartowski/llama-3.2-1b-gguf:q4_k_m",
    *(f"filler{index}:{index}b" for index in range(300)),
]


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("llama3", "llama3.1:8b"),
        ("llama3.1", "llama3.1:8b"),
        ("llama3.1:latest", "llama3.1:8b"),
        ("lama3.1:8b", "llama3.1:8b"),
        ("LLama3.1:70", "llama3.1:70b"),
        ("llama3.1:8", "llama3.1:8b"),
        ("mistrall", "mistral:latest"),
        ("mistral:7b", "mistral:latest"),
        ("nomic-embed", "nomic-embed-text:latest"),
        ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b-base"),
        ("qwen-2.5-coder:7b", "qwen2.5-coder:7b"),
        ("other/mistral", "mistral:latest"),
    ],
)
def test_a_near_miss_finds_the_model(name, best):
    found = close_names(name, KNOWN)
    assert found[0] == best
    assert len(found) <= 3


@pytest.mark.parametrize("name", ["zzzzzz", "", "m@x", "\u212a" * 10])
def test_nothing_near_gives_nothing(name):
    assert close_names(name, KNOWN) == []


def test_the_number_of_suggestions_is_bounded():
    assert len(close_names("filler1", KNOWN, most=2)) == 2
    assert close_names("llama3.1", [], most=2) == []


@pytest.mark.slow
def test_names_past_the_bound_are_not_looked_at():
    others = [f"other{index}:1b" for index in range(KNOWN_NAMES_MAX)]
    assert close_names("llama3", [*others[1:], "llama3.1:8b"]) == ["llama3.1:8b"]
    assert close_names("llama3", [*others, "llama3.1:8b"]) == []


@pytest.mark.parametrize("text", ["m", " M:8B ", "https://host/space/m:t", "Library/x", "hf.co/a/b:Q4"])
def test_a_name_means_the_same_however_often_it_is_asked_for(text):
    for _ in range(2):
        meant = named(text)
        assert meant.canonical == canonical_name(text)
        assert meant.spelling == (canonical_name(text) if "://" in text else text)
        assert not meant.cloud


@pytest.mark.parametrize("text", ["m:cloud", "m:8b-cloud", "m:8b:cloud"])
def test_a_cloud_name_is_one_every_time(text):
    assert named(text).cloud and named(text).cloud


@pytest.mark.parametrize("text", ["", "a//b", "m:", "\u212a"])
def test_an_invalid_name_is_refused_every_time(text):
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            named(text)


def test_what_is_remembered_of_names_is_bounded():
    for number in range(names._REMEMBERED_MAX + 50):
        assert named(f"m{number}").canonical == f"m{number}:latest"
    blanks = "m" + " " * 10_000
    assert named(blanks).canonical == "m:latest"
    assert len(names._remembered) == names._REMEMBERED_MAX
    assert "m0" not in names._remembered
    assert blanks not in names._remembered


def test_the_close_one_of_thousands_is_found_with_few_compared_letter_by_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []
    closeness = names._Wanted.closeness
    monkeypatch.setattr(names._Wanted, "closeness", lambda one, known: compared.append(known) or closeness(one, known))
    many = [f"{word}-{number}-instruct:8b" for word in ("gemma", "mistral", "phi") for number in range(600)]
    assert close_names("qwen2.5-codr", [*many, "qwen2.5-coder:7b"]) == ["qwen2.5-coder:7b"]
    assert close_names("mistral-41-instrct:8b", many)[0] == "mistral-41-instruct:8b"
    assert len(compared) == 2 * names.COMPARED_MAX
