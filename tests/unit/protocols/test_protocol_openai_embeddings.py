"""OpenAI's embeddings over /api/embed, in Ollama's words."""

import base64
import json
import struct

import pytest
from chunked import chunked
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols import ollama, openai_embeddings
from bellmare.protocols.errors import BadAnswer, InvalidRequest
from bellmare.protocols.ollama_requests import EMBED_INPUTS_MAX
from bellmare.protocols.openai_embeddings import EmbeddingReader, embedding_list, parse_embedding, to_native

VECTORS = [[0.25, -0.5, 1e-3], [1.0, 0.0, -3.4028235e38]]


def body(**fields) -> bytes:
    return json.dumps({"model": "e", "input": "hi", **fields}).encode()


def native(**fields) -> dict:
    """What the worker gets."""
    request = to_native(parse_embedding(body(**fields)))
    return json.loads(ollama.encode_for_worker(request, model="e:latest", num_ctx=512))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"input": "hi"}),
        ({"input": ["a", "b"]}, {"input": ["a", "b"]}),
        ({"input": ""}, {"input": [""]}),
        ({"dimensions": 64, "user": "u", "encoding_format": "base64"}, {"input": "hi", "dimensions": 64}),
    ],
)
def test_requests(fields, expected):
    assert native(**fields) == {"model": "e:latest", "options": {"num_ctx": 512}, **expected}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": " "}, "model '' not found"),
        ({"input": None}, "invalid input"),
        ({"input": []}, "invalid input"),
        ({"input": 7}, "invalid input type"),
        ({"input": [1, 2]}, "invalid input type"),
        ({"input": [[1, 2]]}, "invalid input type"),
        ({"input": ["a"] * (EMBED_INPUTS_MAX + 1)}, f"more than {EMBED_INPUTS_MAX} inputs"),
        (
            {"encoding_format": "hex"},
            "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64'].",
        ),
        ({"dimensions": "many"}, "invalid request: Expected `int | null`, got `str` - at `$.dimensions`"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(InvalidRequest) as caught:
        parse_embedding(body(**fields))
    assert (caught.value.status, caught.value.message) == (404 if "not found" in message else 400, message)


@pytest.mark.parametrize("written", ["base64", "Base64", "BASE64"])
def test_the_format_is_read_without_regard_to_case(written):
    assert parse_embedding(body(encoding_format=written)).as_base64
    assert not parse_embedding(body(encoding_format="Float")).as_base64
    assert not parse_embedding(body()).as_base64


def answer(**fields) -> bytes:
    return json.dumps(
        {"model": "x", "embeddings": VECTORS, "total_duration": 5, "prompt_eval_count": 4, **fields}
    ).encode()


def test_an_answer():
    assert json.loads(embedding_list(answer(), model="e", as_base64=False)) == {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": VECTORS[0], "index": 0},
            {"object": "embedding", "embedding": VECTORS[1], "index": 1},
        ],
        "model": "e",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


def test_numbers_are_the_workers_to_the_last_digit():
    raw = b'{"embeddings":[[0.012345678,-1e-07]]}'
    assert b"[0.012345678,-1e-07]" in embedding_list(raw, model="e", as_base64=False)


def test_base64_is_of_little_endian_floats():
    shown = json.loads(embedding_list(answer(), model="e", as_base64=True))
    for vector, entry in zip(VECTORS, shown["data"], strict=True):
        assert base64.b64decode(entry["embedding"]) == struct.pack("<3f", *vector)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b'{"error":"broken"}', "^broken$"),
        (b"{}", "/api/embed"),
        (b'{"embeddings":[["a"]]}', "/api/embed"),
        (b'{"embeddings":[[1e400]]}', "/api/embed"),
        (b"<html>", "/api/embed"),
    ],
)
def test_a_bad_answer_is_the_workers_fault(written, message):
    with pytest.raises(BadAnswer, match=message):
        embedding_list(written, model="e", as_base64=True)


vectors = st.lists(st.lists(st.floats(-10, 10), max_size=4), max_size=5)


@pytest.mark.slow
@given(vectors, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(0, 999), max_size=9))
def test_any_chunking_gives_the_same_answer(numbers, as_base64, indent, cuts):
    head = {"model": 'a"embeddings":[', "embeddings": numbers, "prompt_eval_count": 4}
    data = json.dumps(head, indent=indent).encode()
    reader = EmbeddingReader(model="e", as_base64=as_base64)
    for piece in chunked(data, cuts):
        reader.feed(piece)
    written = reader.written()
    assert written == embedding_list(data, model="e", as_base64=as_base64)
    shown = [entry["embedding"] for entry in json.loads(written)["data"]]
    packed = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in numbers]
    assert shown == (packed if as_base64 else numbers)


@pytest.mark.parametrize("written", [b"", b'{"embeddings":[[1,2]', b'{"embeddings":[[1,2],[3', b'{"embeddings":['])
def test_an_answer_that_stops_is_the_workers_fault(written):
    with pytest.raises(BadAnswer):
        embedding_list(written, model="e", as_base64=False)


def test_nothing_is_kept_without_bound(monkeypatch):
    monkeypatch.setattr(openai_embeddings, "HEAD_BYTES_MAX", 50)
    monkeypatch.setattr(openai_embeddings, "VECTOR_BYTES_MAX", 50)
    for begin, more in (
        (b'{"model":"', b"x" * 60),
        (b'{"embeddings":[[', b"1," * 30),
        (b'{"embeddings":[[1]],"x":"', b"x" * 60),
    ):
        reader = EmbeddingReader(model="e", as_base64=False)
        reader.feed(begin)
        with pytest.raises(BadAnswer):
            reader.feed(more)
