"""What clients say of requests to come is read strictly, and everything in it is bounded."""

import json

import pytest

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.hints import IN_MS_MAX, MODELS_MAX, NEXT_MAX, TTL_MS_MAX, parse_next, parse_prepare


def prepare(**said):
    return parse_prepare(json.dumps(said).encode())


def test_one_model_or_several_are_named_canonically_and_each_once():
    one = prepare(model="Llama3.1", in_ms=2500, ttl_ms=60_000)
    assert [(model.name, model.spelling, model.in_us) for model in one.models] == [
        ("llama3.1:latest", "Llama3.1", 2_500_000)
    ]
    assert one.ttl_us == 60_000_000
    several = prepare(models=["a:1", "library/A:1", "b"], in_ms=0.5)
    assert [(model.name, model.spelling) for model in several.models] == [("a:1", "a:1"), ("b:latest", "b")]
    assert {model.in_us for model in several.models} == {500}
    assert several.ttl_us == 0


@pytest.mark.parametrize(
    ("said", "why"),
    [({}, "model is required"), ({"model": ""}, "model is required"), ({"models": []}, "1 to 8"),
     ({"models": ["m"] * (MODELS_MAX + 1)}, "1 to 8"), ({"model": "a", "models": ["b"]}, "not both"),
     ({"model": "a b"}, "invalid model name"), ({"model": "a", "in_ms": -1}, "in_ms must be"),
     ({"model": "a", "in_ms": IN_MS_MAX + 1}, "in_ms must be"), ({"model": "a", "ttl_ms": TTL_MS_MAX + 1}, "ttl_ms"),
     ({"model": "a", "in_ms": "5s"}, "Expected"), ({"model": "a", "in_s": 5}, "unknown field"),
     ({"models": "a"}, "Expected"), ({"Model": "a"}, "must be written")],
)  # fmt: skip
def test_what_is_wrong_in_a_preparation_is_said(said, why):
    with pytest.raises(InvalidRequest, match=why) as caught:
        prepare(**said)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"a","model":"b"}', b'{"model":"a","in_ms":1e999}'])
def test_what_is_no_object_of_ours_is_refused(body):
    with pytest.raises(InvalidRequest):
        parse_prepare(body)


def test_the_bounds_themselves_are_taken():
    said = prepare(models=[f"m{number}" for number in range(MODELS_MAX)], in_ms=IN_MS_MAX, ttl_ms=TTL_MS_MAX)
    assert len(said.models) == MODELS_MAX
    assert len(parse_next(",".join(f"m{number}" for number in range(NEXT_MAX)))) == NEXT_MAX


def test_the_header_names_models_with_their_times():
    found = parse_next(" Rerank:1 ;in_ms=200, chat ; in_ms = 3000,embed,rerank:1")
    assert [(model.name, model.in_us) for model in found] == [
        ("rerank:1", 200_000), ("chat:latest", 3_000_000), ("embed:latest", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    ["", ",", "a,", "a;", "a;in_ms", "a;in_ms=", "a;in_ms=-1", "a;in_ms=1.5", "a;in_ms=1;in_ms=2", "a;in_s=1", "a b",
     "a;in_ms=" + "9" * 12, "a;in_ms=" + "9" * 40, "\xe4", "a,b,c,d,e"],
)  # fmt: skip
def test_a_malformed_header_is_a_400_that_names_it(value):
    with pytest.raises(InvalidRequest) as caught:
        parse_next(value)
    assert caught.value.status == 400


def test_names_that_run_on_ollama_com_are_refused_as_elsewhere():
    for parse in (lambda: prepare(model="big:120b-cloud"), lambda: parse_next("a, big:cloud")):
        with pytest.raises(InvalidRequest, match=r"ollama\.com") as caught:
            parse()
        assert caught.value.status == 403
