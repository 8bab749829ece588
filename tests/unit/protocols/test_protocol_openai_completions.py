"""OpenAI's text completions over /api/generate; ollama.md 1.8."""

import json

import pytest

from bellmare.protocols import ollama
from bellmare.protocols.errors import BadAnswer, InvalidRequest
from bellmare.protocols.openai_completions import CompletionStream, parse_completion, text_completion, to_native
from bellmare.protocols.openai_fields import STOPS_MAX

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "num_ctx": 8192}


def body(**fields) -> bytes:
    return json.dumps({"model": "m", "prompt": "Once", **fields}).encode()


def native(**fields) -> dict:
    """What the worker gets."""
    request = to_native(parse_completion(body(**fields)))
    return json.loads(ollama.encode_for_worker(request, model="m:latest", num_ctx=8192))


def refusal(**fields) -> str:
    with pytest.raises(InvalidRequest) as caught:
        to_native(parse_completion(body(**fields)))
    assert caught.value.status == (404 if "not found" in caught.value.message else 400)
    return caught.value.message


def test_a_plain_request():
    assert native() == {"model": "m:latest", "prompt": "Once", "stream": False, "options": DEFAULTS}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 4, "seed": 7, "stop": "x"}, {"num_predict": 4, "seed": 7, "stop": ["x"]}),
        ({"temperature": 0, "top_p": 0}, {"temperature": 0, "top_p": 1.0}),  # as Ollama: no top_p is zero
        ({"top_p": 0.5, "frequency_penalty": 1, "presence_penalty": -1}, {"top_p": 0.5}),
        ({"temperature": None, "stop": None, "n": 1, "best_of": 1, "user": "u", "echo": False, "logit_bias": {}}, {}),
    ],
)
def test_sampling_fields_become_options(fields, options):
    penalties = {name: fields[name] for name in ("frequency_penalty", "presence_penalty") if name in fields}
    assert native(**fields)["options"] == {**DEFAULTS, **penalties, **options}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": ["Once"]}, {"prompt": "Once"}),
        ({"prompt": None}, {"prompt": ""}),
        ({"suffix": "end."}, {"suffix": "end."}),
        ({"stream": True}, {"stream": True}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": 0}, {"logprobs": None, "top_logprobs": None}),
    ],
)
def test_other_fields(fields, expected):
    written = native(**fields)
    assert {name: written.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model '' not found"),
        ({"prompt": ["a", "b"]}, "a list as prompt is not supported"),
        ({"prompt": []}, "a list as prompt is not supported"),
        ({"prompt": [1, 2]}, "at `$.prompt[0]`"),
        ({"prompt": 7}, "at `$.prompt`"),
        ({"n": 2}, "n must be 1"),
        ({"best_of": 2}, "best_of must be 1"),
        ({"echo": True}, "echo is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"max_tokens": -2}, "max_tokens must not be negative"),
        ({"logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"stop": [1, 2]}, "invalid type for 'stop' field: float64"),
        ({"stop": ["x"] * (STOPS_MAX + 1)}, "stop has more than"),
    ],
)
def test_refusals(fields, message):
    assert message in refusal(**fields)


def test_without_a_prompt_it_only_loads():
    assert ollama.is_load(to_native(parse_completion(body(prompt=""))))
    assert not ollama.is_load(to_native(parse_completion(body())))
    stream = CompletionStream(completion_id="cmpl-1", created_s=9, model="m", include_usage=False)
    frames = stream.line(b'{"model":"m","response":"","done":true,"done_reason":"load"}').split(b"\n\n")
    assert json.loads(frames[0][6:])["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]
    assert frames[1:] == [b"data: [DONE]", b""]


def test_an_unstreamed_answer():
    alternatives = [{"token": "He", "logprob": -0.5}, {"token": "Ho", "logprob": -1}]
    logprobs = [{"token": "He", "logprob": -0.5, "top_logprobs": alternatives}, {"token": "y", "logprob": -2}]
    answer = {"response": "Hey", "done": True, "done_reason": "length", "prompt_eval_count": 3, "eval_count": 2}
    written = text_completion(
        json.dumps({**answer, "logprobs": logprobs}).encode(), completion_id="cmpl-1", created_s=9, model="m"
    )
    assert json.loads(written) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 9,
        "model": "m",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {
                "text": "Hey",
                "index": 0,
                "finish_reason": "length",
                "logprobs": {
                    "tokens": ["He", "y"],
                    "token_logprobs": [-0.5, -2],
                    "top_logprobs": [{"He": -0.5, "Ho": -1}, {}],
                    "text_offset": [0, 2],
                },
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error":"broken"}', "^broken$"),
        (b'{"response":"x"}', "unfinished"),
        (b'{"response":"x","done":true,"logprobs":[7]}', "logprobs could not be read"),
    ],
)
def test_a_bad_answer_is_the_workers_fault(answer, message):
    with pytest.raises(BadAnswer, match=message):
        text_completion(answer, completion_id="c", created_s=1, model="m")


@pytest.mark.parametrize("line", [b"<html>", b'{"error":"x"}', b'{"response":7}', b'{"logprobs":[7]}'])
def test_a_line_that_is_no_answer_fails_the_stream(line):
    stream = CompletionStream(completion_id="c", created_s=1, model="m", include_usage=False)
    assert b'"error"' in stream.line(line)
    assert stream.failed and not stream.finished and stream.error
    assert stream.line(b'{"response":"x"}') == b""
