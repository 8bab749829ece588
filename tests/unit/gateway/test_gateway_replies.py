"""What the gateway says by itself: a status, a text that helps, and headers that clients obey."""

import json

import pytest

from bellmare.core.decisions import Refusal, Reject
from bellmare.core.units import RequestId, SpanUs
from bellmare.gateway import replies
from bellmare.gateway.faults import FAILED_TEXT, is_crash, public_text
from bellmare.protocols.errors import Dialect


def reject(refusal: Refusal, *, retry_us: int = 0, detail: str = "") -> Reject:
    return Reject(request=RequestId("r"), refusal=refusal, retry_after_us=SpanUs(retry_us), detail=detail)


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_has_a_status_and_a_text(refusal: Refusal) -> None:
    assert 400 <= replies.STATUS[refusal] < 600
    text = replies.refusal_text(reject(refusal, retry_us=2_500_000), "llama3", [])
    assert "llama3" in text
    assert "{" not in text


def test_retry_after_is_never_earlier_than_the_wait_in_both_forms() -> None:
    headers = dict(replies.refusal_headers(reject(Refusal.queue_full, retry_us=2_500_001)))
    assert headers[b"retry-after"] == b"3"
    assert headers[b"retry-after-ms"] == b"2500"


@pytest.mark.parametrize("refusal", sorted(replies.POINTLESS))
def test_where_retrying_is_pointless_clients_are_told(refusal: Refusal) -> None:
    assert (b"x-should-retry", b"false") in replies.refusal_headers(reject(refusal))


def test_a_failed_load_that_is_tried_again_later_is_a_503_with_the_time_and_no_word_against_retrying() -> None:
    for refusal, status in ((Refusal.load_failed, 503), (Refusal.model_does_not_fit, 503)):
        later, never = reject(refusal, retry_us=20_000_000), reject(refusal)
        assert replies.refusal_status(later) == status
        assert dict(replies.refusal_headers(later))[b"retry-after"] == b"20"
        assert b"x-should-retry" not in dict(replies.refusal_headers(later))
        assert "try again in 20 s" in replies.refusal_text(later, "m", [])
        assert "try again" not in replies.refusal_text(never, "m", [])
    assert replies.refusal_status(reject(Refusal.load_failed)) == 502


def test_an_unknown_model_comes_with_close_names() -> None:
    text = replies.refusal_text(reject(Refusal.unknown_model), "llama3.1", ["llama3.1:8b", "phi4:14b"])
    assert "did you mean 'llama3.1:8b'?" in text


def test_why_a_load_failed_is_told_without_the_workers_paths() -> None:
    detail = "llama-server process has terminated: /usr/share/ollama/blobs/sha256-ab: bad magic C:\\Users\\ada\\m.gguf"
    text = replies.refusal_text(reject(Refusal.load_failed, detail=detail), "m", [])
    assert "has terminated" in text
    assert "bad magic" in text
    assert "ollama/blobs" not in text
    assert "ada" not in text


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/api/x", {"error": "no"}), ("/v1/x", None)],
)
def test_errors_before_a_body_have_the_shape_of_the_paths_dialect(path: str, shape: object) -> None:
    body = json.loads(replies.http_refusal(404, "no", path).body)
    assert body == shape if shape else body["error"]["message"] == "no"
    assert replies.http_refusal(404, "no", "/").body == b"404 no\n"


def test_only_the_beginning_of_a_workers_text_is_believed() -> None:
    """Further on it may quote errors of other requests (ollama.md 12)."""
    assert is_crash(500, "llama-server process has terminated: signal killed")
    assert not is_crash(500, "template: x: llama-server process has terminated")
    assert not is_crash(400, "llama-server process has terminated")
    assert public_text(500, "template: /secret") == FAILED_TEXT
    assert public_text(404, "as it is") == "as it is"


def test_an_error_names_a_character_set_where_ollamas_does() -> None:
    kinds = [
        (Dialect.ollama, 404, {}, replies.JSON),
        (Dialect.ollama, 400, {"plain": True}, replies.PLAIN_JSON),
        (Dialect.openai, 400, {}, replies.JSON),
        (Dialect.openai, 400, {"public_id": "r1"}, replies.PLAIN_JSON),
        (Dialect.openai, 404, {}, replies.PLAIN_JSON),
        (Dialect.anthropic, 500, {"public_id": "r1"}, replies.PLAIN_JSON),
    ]
    for dialect, status, more, kind in kinds:
        assert replies.error_answer(dialect, status, "x", **more)[0][0] == kind  # type: ignore[arg-type]
