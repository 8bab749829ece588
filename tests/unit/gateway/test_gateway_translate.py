"""From native bytes to each dialect: whole lines only, and an answer that merely stops is no answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.gateway.translate import (
    BODY_BYTES_MAX,
    LINE_BYTES_MAX,
    DialectBody,
    DialectStream,
    EventsBody,
    Native,
    Plain,
    ReadBody,
    TooLong,
)
from bellmare.protocols.errors import BadAnswer
from bellmare.protocols.ndjson import LineTooLong
from bellmare.protocols.openai_embeddings import EmbeddingReader
from bellmare.protocols.openai_stream import ChatStream, completion


def token(text: str) -> bytes:
    return json.dumps({"model": "m", "message": {"role": "assistant", "content": text}, "done": False}).encode() + b"\n"


FINAL = (
    json.dumps(
        {
            "model": "m",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 3,
            "eval_count": 2,
        }
    ).encode()
    + b"\n"
)
ERROR = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'


def openai_stream() -> DialectStream:
    return DialectStream(ChatStream(completion_id="chatcmpl-1", created_s=1, model="m", include_usage=True))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_any_chunking_gives_the_same_native_bytes(size: int) -> None:
    whole = token("a") + token("b") + FINAL
    native = Native()
    out = b"".join(native.feed(whole[i : i + size]) for i in range(0, len(whole), size))
    assert out + native.end() == whole
    assert native.final is not None
    assert native.final.eval_count == 2


def test_half_a_line_never_leaves() -> None:
    native = Native()
    assert native.feed(token("a") + b'{"model":"m","mess') == token("a")
    assert native.final is None
    native.end()
    assert json.loads(native.cut("it broke")) == {"error": "it broke"}


def test_an_error_as_first_line_is_held_back_for_a_status() -> None:
    native = Native()
    assert native.feed(ERROR) == b""
    assert native.error is not None
    assert native.error.startswith("an error was encountered")


def test_an_error_line_after_tokens_stays_here_with_all_that_follows() -> None:
    """Its words are the worker's: they may quote other requests (ollama.md 12)."""
    native = Native()
    assert native.feed(token("a") + ERROR + token("b")) == token("a")
    assert native.feed(token("c")) == b""
    assert native.error is not None
    assert native.error.startswith("an error was encountered")
    assert native.final is None


def test_what_follows_the_closing_line_is_nobodys() -> None:
    native = Native()
    assert native.feed(token("a") + FINAL + token("b") + FINAL) == token("a") + FINAL
    assert native.feed(token("c")) == b""
    assert native.final is not None
    assert native.error is None


def test_the_words_error_and_done_in_a_text_end_nothing() -> None:
    native = Native()
    tricky = token('an "error" and "done":true in the text')
    assert native.feed(tricky) == tricky
    assert native.final is None
    assert native.error is None


def test_an_endless_line_is_a_limit() -> None:
    native = Native()
    with pytest.raises(LineTooLong):
        for _ in range(LINE_BYTES_MAX // 1000 + 2):
            native.feed(b"x" * 1000)


def test_an_unstreamed_answer_is_passed_on_as_it_is() -> None:
    plain = Plain()
    body = FINAL.strip()
    assert plain.feed(body[:10]) == plain.feed(body[10:]) == b""
    assert plain.end() == body
    assert plain.final is not None
    assert plain.error is None


def test_html_from_a_captive_proxy_is_no_answer() -> None:
    plain = Plain()
    plain.feed(b"<html>log in first</html>")
    with pytest.raises(BadAnswer):
        plain.end()


def test_an_unstreamed_answer_is_bounded() -> None:
    plain = Plain()
    piece = b"x" * (1 << 20)
    with pytest.raises(TooLong):
        for _ in range(BODY_BYTES_MAX // len(piece) + 1):
            plain.feed(piece)


def test_an_error_inside_a_200_is_an_error() -> None:
    plain = Plain()
    plain.feed(ERROR)
    plain.end()
    assert plain.error is not None


@pytest.mark.parametrize("size", [1, 5, 64, 10_000])
def test_a_stream_of_events_ends_with_done_only_if_the_worker_ended(size: int) -> None:
    stream = openai_stream()
    whole = token("a") + token("b") + FINAL
    out = b"".join(stream.feed(whole[i : i + size]) for i in range(0, len(whole), size))
    assert out.endswith(b"data: [DONE]\n\n")
    assert stream.final is not None
    events = [json.loads(line[6:]) for line in out.decode().split("\n\n") if line.startswith("data: {")]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == "ab"
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_cut_stream_of_events_ends_with_one_error_and_no_done() -> None:
    stream = openai_stream()
    out = stream.feed(token("a")) + stream.end() + stream.cut("it broke")
    assert stream.final is None
    assert b"[DONE]" not in out
    assert json.loads(out.decode().rstrip().rpartition("data: ")[2])["error"]["message"] == "it broke"


def test_an_error_line_amid_events_becomes_one_error_event() -> None:
    stream = openai_stream()
    out = stream.feed(token("a") + ERROR + token("b"))
    assert b"unexpected EOF" not in out
    assert stream.error is not None
    assert (out + stream.cut("it broke")).count(b'"error"') == 1


def test_one_completion_from_one_native_answer() -> None:
    body = DialectBody(lambda native: completion(native, completion_id="chatcmpl-1", created_s=1, model="m"))
    body.feed(token("hello").replace(b'"done": false', b'"done": true, "done_reason": "length", "eval_count": 1'))
    answer = json.loads(body.end())
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["choices"][0]["finish_reason"] == "length"


@given(
    st.lists(
        st.sampled_from(
            [b'{"a":1}\n', b'{"message":{"content":"it is true"}}\n', b'{"error":"x"}\n', b'{"done":true}\n', b"half",
             b'{"done": true}\n', b'{"done":false}\r\n', b"\n"]
        ),
        max_size=6,
    ),
    st.lists(st.sampled_from([b'{"a":1}\n', b"{", b'{"error":"y"}\n', b'{"done":true}\n']), max_size=3),
)  # fmt: skip
def test_a_chunk_is_passed_on_unread_only_if_reading_it_would_change_nothing(
    parts: list[bytes], earlier: list[bytes]
) -> None:
    read, content = Native(), b"".join(parts)
    for part in earlier:
        try:
            read.feed(part)
        except BadAnswer:
            return
    passed: list[bytes] = []
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    if not read.relay(passed.append)(chunk):
        assert passed == []
        return
    assert passed == [chunk]
    assert read.feed(content) == content
    assert (read.error, read.final) == (None, None)


def test_usual_tokens_are_passed_on_unread() -> None:
    read, token = Native(), b'{"message":{"content":"a"},"done":false}\n'
    chunk = b"%x\r\n%b\r\n" % (len(token), token)
    passed: list[bytes] = []
    relay = read.relay(passed.append)
    assert not relay(chunk)  # the first line decides the status
    read.feed(token)
    assert relay(chunk)
    assert passed == [chunk]


def test_a_whole_native_answer_can_be_a_stream_of_events() -> None:
    body = EventsBody(lambda native: b"data: " + native + b"\n\n")
    assert not body.streams
    assert b"text/event-stream" in body.headers
    assert body.feed(b'{"done"') == b"" and body.feed(b":true}") == b""
    assert body.end() == b'data: {"done":true}\n\n'
    assert body.final is not None


def test_a_body_can_be_taken_apart_as_it_comes() -> None:
    body = ReadBody(EmbeddingReader(model="e", as_base64=False))
    assert body.feed(b'{"embeddings":[[1,2') == b""
    assert body.feed(b'],[3]],"prompt_eval_count":2}') == b""
    assert [entry["embedding"] for entry in json.loads(body.end())["data"]] == [[1, 2], [3]]
    assert body.final is not None and body.error is None


def test_an_error_in_the_place_of_such_a_body_is_told() -> None:
    body = ReadBody(EmbeddingReader(model="e", as_base64=False))
    body.feed(b'{"error":"broken"}')
    assert (body.end(), body.error) == (b"", "broken")


def test_such_a_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellmare.gateway.translate.BODY_BYTES_MAX", 20)
    body = ReadBody(EmbeddingReader(model="e", as_base64=False))
    body.feed(b'{"embeddings":[')
    with pytest.raises(TooLong):
        body.feed(b"[1,2,3],")
