"""Changes to what is stored: checked names, kept fields, and the progress of many told as that of one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.management import parse_change, parse_copy, parse_digest
from bellmare.protocols.progress import LAYERS_MAX, STATUS_CHARS_MAX, STATUSES_MAX, STEPS, MergedProgress

LAYER = "sha256:" + "a" * 64


def line(status: str, completed: int | None = None, total: int = 1000, **more: Any) -> bytes:
    layer = {} if completed is None else {"digest": LAYER, "total": total, "completed": completed}
    return json.dumps({"status": status, **layer, **more}).encode()


def test_a_change_keeps_what_it_does_not_know_and_leaves_out_what_is_not_the_workers() -> None:
    said = {"name": "M:8b", "stream": False, "password": "x", "quantize": "q4_0", "parameters": {"stop": ["a"]}}
    change = parse_change(json.dumps(said).encode())
    assert (change.name, change.spelling, change.stream) == ("m:8b", "M:8b", False)
    assert json.loads(change.body(stream=True)) == {
        "model": "M:8b",
        "quantize": "q4_0",
        "parameters": {"stop": ["a"]},
        "stream": True,
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"{}", "model is required"),
        (b'{"model":"a b"}', "invalid model name"),
        (b'{"model":1}', "must be a string"),
        (b'{"model":"m","stream":"yes"}', "stream must be a boolean"),
        (b'{"model":"m","model":"n"}', "duplicate"),
        (b'{"model":"m","Model":"n"}', "must be written"),
        (b'{"model":"m:cloud"}', "ollama.com"),
        (b'{"model":"m","files":' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
    ],
)
def test_a_bad_change_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        parse_change(body)


def test_a_copy_has_both_names_in_ollamas_words() -> None:
    change = parse_copy(b'{"source":"A","destination":"b:1"}')
    assert (change.source, change.name) == ("a:latest", "b:1")
    for fields, text in (({"source": "a b"}, "source"), ({"source": "a", "destination": ""}, "destination")):
        with pytest.raises(InvalidRequest, match=f'{text} ".*" is invalid'):
            parse_copy(json.dumps(fields).encode())


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, LAYER[:-1], "../" + LAYER, LAYER + "/x"])
def test_a_digest_is_one_or_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid digest format"):
        parse_digest(text)


def test_a_digest_may_be_written_as_a_file_name() -> None:
    assert parse_digest(LAYER.replace(":", "-")) == parse_digest(LAYER) == LAYER


def test_one_worker_is_told_as_it_is() -> None:
    progress = MergedProgress(["w"])
    said: list[dict[str, Any]] = []
    for heard in (line("pulling manifest"), line("pulling aa", 0), line("pulling aa", 1000), line("writing manifest")):
        said += progress.take("w", heard)
    said += progress.take("w", line("success"))
    assert progress.over
    assert [*said, progress.end()] == [
        {"status": "pulling manifest"},
        {"status": "pulling aa", "digest": LAYER, "total": 1000},
        {"status": "pulling aa", "digest": LAYER, "total": 1000, "completed": 1000},
        {"status": "writing manifest"},
        {"status": "success"},
    ]


def test_of_several_an_average_copy_is_told_and_each_step_once() -> None:
    progress = MergedProgress(["a", "b"])
    assert progress.take("a", line("pulling manifest")) == [{"status": "pulling manifest"}]
    assert progress.take("b", line("pulling manifest")) == []
    progress.take("a", line("pulling aa", 0))
    assert progress.take("a", line("pulling aa", 1000))[-1]["completed"] == 500
    assert progress.take("b", line("pulling aa", 500))[-1]["completed"] == 750
    assert progress.take("b", line("success"))[-1]["completed"] == 1000, "who has ended has all of it"
    assert not progress.over
    progress.take("a", line("success"))
    assert progress.end() == {"status": "success"}


def test_a_worker_that_fails_is_named_and_the_others_go_on() -> None:
    progress = MergedProgress(["a", "b"])
    progress.take("a", line("pulling aa", 500))
    progress.take("b", b'{"error":"no space left"}')
    assert progress.take("b", line("pulling aa", 1000)) == [], "nothing follows its end"
    assert progress.take("a", line("success"))[-1]["completed"] == 1000
    assert progress.end() == {"error": "done on 1 of 2 workers; b: no space left"}


def test_what_all_say_is_said_in_their_words() -> None:
    progress = MergedProgress(["a", "b"])
    for worker in ("a", "b"):
        progress.take(worker, b'{"error":"pull model manifest: file does not exist"}')
    assert progress.end() == {"error": "pull model manifest: file does not exist"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 10_000) | st.sampled_from(["x", "success", "error", "garbage"])
        ),
        max_size=200,
    )
)
def test_whatever_comes_progress_never_goes_back_and_is_bounded(given_lines: list[tuple[str, Any]]) -> None:
    progress = MergedProgress("abc")
    told: list[dict[str, Any]] = []
    for worker, said in given_lines:
        if isinstance(said, int):
            told += progress.take(worker, line("pulling aa", said, 10_000))
        else:
            texts = {"error": b'{"error":"e"}', "<": b"<html>"}
            told += progress.take(worker, texts.get(said, line(said)))
    figures = [entry.get("completed", 0) for entry in told if "digest" in entry]
    failed = bool(progress.failures)
    assert failed or figures == sorted(figures), "a worker less may lower the average"
    assert len(figures) <= STEPS + 2 + 3 * len(progress.failures)
    assert all(0 <= figure <= 10_000 for figure in figures)
    statuses = [entry["status"] for entry in told if "digest" not in entry]
    assert len(statuses) == len(set(statuses))
    assert {"status": "success"} not in told, "only the end says so"


def test_a_worker_that_never_stops_inventing_layers_and_statuses_fills_no_memory() -> None:
    progress = MergedProgress(["a", "b"])
    for number in range(LAYERS_MAX + 500):
        progress.take("a", b'{"status":"pulling","digest":"sha256:%d","total":10}' % number)
        progress.take("a", b'{"status":"%d"}' % number)
    assert len(progress._layers) == LAYERS_MAX
    assert len(progress._said) == STATUSES_MAX
    assert progress.take("b", b'{"status":"pulling","digest":"sha256:1","total":10,"completed":10}')
    (told,) = MergedProgress(["a"]).take("a", b'{"status":"' + b"x" * 5000 + b'"}')
    assert told == {"status": "x" * STATUS_CHARS_MAX}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["success", "error", "x", "y"]), st.integers(0, 99), st.integers(0)
        ),
        max_size=40,
    )
)
def test_the_sums_of_layers_are_those_counted_anew(lines: list[tuple[str, str, int, int]]) -> None:
    progress = MergedProgress("abc")
    for worker, what, total, completed in lines:
        completed = min(completed, 2**50)
        if what in ("x", "y"):
            progress.take(worker, b'{"digest":"%b","total":%d,"completed":%d}' % (what.encode(), total, completed))
        else:
            progress.take(worker, b'{"status":"success"}' if what == "success" else b'{"error":"no"}')
        for layer in progress._layers.values():
            assert layer.under_way == sum(layer.completed.values())
            assert not layer.completed.keys() & (progress.done | progress.failures.keys())
