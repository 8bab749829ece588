"""Native answers to Anthropic's events; the golden streams are what Ollama's own converter makes of the same lines."""

import json
from pathlib import Path

import pytest
from chunked import written
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.anthropic_stream import PING, MessageStream, message
from bellmare.protocols.errors import BadAnswer
from bellmare.protocols.forced_tools import ForcedCall, forced_call
from bellmare.protocols.ollama_requests import Tool, ToolFunction

GOLDEN = sorted((Path(__file__).parent / "golden").glob("anthropic_*.ndjson"))
FORCED = forced_call([Tool(function=ToolFunction(name="get_weather", parameters={"type": "object"}))])
CALL = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": [1, "\u00e9"]}}}
FINAL = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2, "content": ""}


def stream(forced: ForcedCall | None = None) -> MessageStream:
    return MessageStream(message_id="msg_7", model="llama3.2:3b", input_tokens=25, forced=forced)


def native(done=False, **fields) -> bytes:
    said = {name: fields.pop(name) for name in ("content", "thinking", "tool_calls") if name in fields}
    return json.dumps({"model": "x", "message": {"role": "assistant", **said}, "done": done, **fields}).encode()


def events(data: bytes) -> list[dict]:
    frames = data.split(b"\n\n")
    assert frames.pop() == b""
    found = []
    for frame in frames:
        name, text = frame.split(b"\n")
        event = json.loads(text.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        found.append(event)
    return found


class Accumulated:
    """A message as a client puts it together, that insists on well-formed events: an oracle of its own."""

    def __init__(self, data: bytes) -> None:
        self.blocks: list[dict] = []
        self.stop: dict | None = None
        self.usage: dict = {}
        self.ended = False
        open_index = None
        for number, event in enumerate(events(data)):
            kind = event["type"]
            assert not self.ended, "nothing follows message_stop"
            assert (kind == "message_start") == (number == 0)
            if kind == "content_block_start":
                assert open_index is None and event["index"] == len(self.blocks)
                open_index = event["index"]
                self.blocks.append({**event["content_block"], "json": ""})
            elif kind == "content_block_delta":
                assert open_index == event["index"] and self.stop is None
                self._grow(self.blocks[-1], event["delta"])
            elif kind == "content_block_stop":
                assert open_index == event["index"]
                open_index = None
            elif kind == "message_delta":
                assert open_index is None and self.stop is None
                self.stop, self.usage = event["delta"], event["usage"]
            elif kind == "message_stop":
                assert self.stop is not None
                self.ended = True
            else:
                assert kind == "message_start"

    @staticmethod
    def _grow(block: dict, delta: dict) -> None:
        field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[delta["type"]]
        if field == "partial_json":
            assert block["type"] == "tool_use"
            block["json"] += delta[field]
        else:
            assert block["type"] == field
            block[field] += delta[field]

    def joined(self, kind: str) -> str:
        return "".join(block[kind] for block in self.blocks if block["type"] == kind)

    @property
    def calls(self) -> list[tuple[str, dict]]:
        return [(block["name"], json.loads(block["json"])) for block in self.blocks if block["type"] == "tool_use"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_stream(path):
    chat = stream(FORCED if "forced" in path.stem else None)
    data = b"".join(chat.line(line) for line in path.read_bytes().splitlines())
    assert data.decode() == path.with_suffix(".sse").read_text()
    assert chat.finished and not chat.failed
    assert Accumulated(data).ended


def test_there_are_golden_streams():
    assert len(GOLDEN) >= 10


def test_a_golden_streams_whole_says_the_same_unstreamed():
    for path in GOLDEN:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        said = {
            "content": "".join(line["message"]["content"] for line in lines),
            "thinking": "".join(line["message"].get("thinking", "") for line in lines),
            "tool_calls": [call for line in lines for call in line["message"].get("tool_calls", ())],
        }
        whole = {**lines[-1], "message": {**lines[-1]["message"], **said}}
        forced = FORCED if "forced" in path.stem else None
        answer = json.loads(message(json.dumps(whole).encode(), message_id="msg_7", model="m", forced=forced))
        streamed = Accumulated(path.with_suffix(".sse").read_bytes())
        assert [block["type"] for block in answer["content"]] == [block["type"] for block in streamed.blocks], path
        for given_block, built in zip(answer["content"], streamed.blocks, strict=True):
            if built["type"] == "tool_use":
                assert (given_block["id"], given_block["name"]) == (built["id"], built["name"])
                assert given_block["input"] == json.loads(built["json"])
            else:
                assert given_block[built["type"]] == built[built["type"]]
        assert {name: answer[name] for name in ("stop_reason",) if name in answer} == streamed.stop
        assert answer["usage"] == streamed.usage


def test_the_start_says_what_is_guessed_until_the_count_is_known():
    (start,) = events(stream().line(native(content="")))
    assert start["message"]["usage"] == {"input_tokens": 25, "output_tokens": 0}
    start, *_ = events(stream().line(native(**FINAL)))
    assert start["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}


@pytest.mark.parametrize(
    ("reason", "stop"),
    [("stop", {"stop_reason": "end_turn"}), ("length", {"stop_reason": "max_tokens"}), ("", {})]
    + [(other, {"stop_reason": "stop_sequence"}) for other in ("load", "unload", "new")],
)
def test_reasons_are_ollamas(reason, stop):
    body = native(**{**FINAL, "done_reason": reason})
    assert Accumulated(stream().line(body)).stop == stop
    answer = json.loads(message(body, message_id="msg_7", model="m"))
    assert {name: answer[name] for name in answer if name.startswith("stop")} == stop


def test_a_call_is_the_reason_whatever_the_worker_says():
    body = native(**{**FINAL, "done_reason": "length", "tool_calls": [CALL]})
    assert Accumulated(stream().line(body)).stop == {"stop_reason": "tool_use"}
    assert json.loads(message(body, message_id="msg_7", model="m"))["stop_reason"] == "tool_use"


def test_calls_without_an_id_get_one_each_and_a_repeated_call_is_one():
    bare = {"function": {"name": "f", "arguments": {}}}
    data = stream().line(native(tool_calls=[bare, bare, CALL, CALL], **FINAL))
    built = Accumulated(data)
    assert [block["id"] for block in built.blocks] == ["toolu_7_0", "toolu_7_1", "call_1"]
    answer = json.loads(message(native(tool_calls=[bare, bare], **FINAL), message_id="msg_7", model="m"))
    assert [block["id"] for block in answer["content"]] == ["toolu_7_0", "toolu_7_1"]


def test_blocks_are_well_formed_in_whatever_order_a_worker_speaks():
    lines = [native(content="a"), native(thinking="b"), native(content="c"), native(tool_calls=[CALL])]
    chat = stream()
    data = b"".join(map(chat.line, [*lines, native(content="d"), native(**FINAL)]))
    built = Accumulated(data)
    assert [block["type"] for block in built.blocks] == ["text", "thinking", "text", "tool_use", "text"]
    assert (built.joined("text"), built.joined("thinking"), built.ended) == ("acd", "b", True)


def test_null_arguments_are_none():
    call = {"id": "c", "function": {"name": "f", "arguments": None}}
    assert Accumulated(stream().line(native(tool_calls=[call], **FINAL))).calls == [("f", {})]
    answer = json.loads(message(native(tool_calls=[call], **FINAL), message_id="msg_7", model="m"))
    assert answer["content"][0]["input"] == {}


def test_an_unstreamed_answer():
    body = native(**{**FINAL, "content": "hello", "thinking": "hm", "tool_calls": [CALL]})
    assert json.loads(message(body, message_id="msg_7", model="m")) == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "hello"},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": [1, "\u00e9"]}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }


def test_an_empty_answer_has_an_empty_list():
    assert json.loads(message(native(**FINAL), message_id="msg_7", model="m"))["content"] == []


@pytest.mark.parametrize(
    ("body", "text"),
    [(b'{"error":"broken"}', "^broken$"), (native(content="x"), "unfinished"), (b"", "/api/chat"), (b"x", "/api/chat")],
)
def test_a_bad_answer_is_the_workers_fault(body, text):
    with pytest.raises(BadAnswer, match=text):
        message(body, message_id="msg_7", model="m")


# ---------------------------------------------------------------------- a call that must come


def test_a_forced_call_that_the_limit_cuts_is_no_call():
    cut = native(**{**FINAL, "done_reason": "length"})
    chat = stream(FORCED)
    built = Accumulated(chat.line(native(content='{"city":"Os')) + chat.line(cut))
    assert built.blocks[0]["type"] == "tool_use"
    assert built.stop == {"stop_reason": "max_tokens"}
    whole = native(**{**FINAL, "done_reason": "length", "content": '{"city":"Os'})
    answer = json.loads(message(whole, message_id="msg_7", model="m", forced=FORCED))
    assert answer["content"] == [{"type": "text", "text": '{"city":"Os'}]
    assert answer["stop_reason"] == "max_tokens"


def test_what_comes_instead_of_a_forced_call_is_text():
    chat = stream(FORCED)
    built = Accumulated(chat.line(native(content="I will not")) + chat.line(native(**FINAL)))
    assert (built.joined("text"), built.stop) == ("I will not", {"stop_reason": "end_turn"})
    whole = native(**{**FINAL, "content": "I will not"})
    answer = json.loads(message(whole, message_id="msg_7", model="m", forced=FORCED))
    assert answer["content"] == [{"type": "text", "text": "I will not"}]
    assert answer["stop_reason"] == "end_turn"


def test_thoughts_come_before_a_forced_call():
    chat = stream(FORCED)
    built = Accumulated(
        chat.line(native(thinking="hm")) + chat.line(native(content='{"a":1}')) + chat.line(native(**FINAL))
    )
    assert [block["type"] for block in built.blocks] == ["thinking", "tool_use"]
    assert built.calls == [("get_weather", {"a": 1})]
    assert built.stop == {"stop_reason": "tool_use"}


# ---------------------------------------------------------------------- ends


def test_nothing_comes_after_the_end():
    chat = stream()
    chat.line(native(**FINAL))
    assert chat.line(native(content="x")) == b""
    assert chat.line(b'{"error":"x"}') == b""
    assert not chat.failed


@pytest.mark.parametrize("line", [b"x", b'{"message":5}', b'{"message":{"content":"\xff"}}', b'"x"'])
def test_a_line_that_cannot_be_read_fails_the_stream(line):
    chat = stream()
    chat.line(native(content="a"))
    assert chat.line(line) == b""
    assert chat.failed and not chat.finished and "could not be read" in chat.error


def test_an_error_line_fails_the_stream_and_its_text_is_for_the_log():
    chat = stream()
    assert chat.line(b'{"error":"boom"}') == b""
    assert (chat.failed, chat.error) == (True, "boom")


def test_a_cut_stream_ends_in_an_error_event():
    (event,) = events(stream().cut("the worker\nfailed"))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "the worker\nfailed"}}


@pytest.mark.parametrize("line", [b"", b"   ", b"\r"])
def test_blank_lines_and_heartbeats_give_nothing(line):
    chat = stream()
    assert chat.line(line) == b""
    assert not chat.failed


def test_a_ping_is_an_event_of_its_own():
    assert events(PING) == [{"type": "ping"}]


# ---------------------------------------------------------------------- any chunking, any garbage

texts = st.text('a{}"\n\r\\: \u2028\u00e9\U0001f40e', max_size=6)
calls = st.builds(lambda number: {**CALL, "id": f"call_{number}"}, st.integers(0, 3))
lines = st.builds(native, content=texts, thinking=texts) | st.builds(lambda call: native(tool_calls=[call]), calls)


@given(
    body=st.lists(lines, max_size=6),
    ends=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    crlf=st.booleans(),
    forced=st.sampled_from([None, FORCED]),
)
def test_any_chunking_gives_the_same_events(body, ends, cuts, crlf, forced):
    terminator = b"\r\n" if crlf else b"\n"
    data = b"".join(line + terminator for line in [*body, *([native(**FINAL)] if ends else [])])
    whole, parts = stream(forced), stream(forced)
    expected = b"".join(whole.line(line) for line in data.split(terminator))
    got = written(parts, data, cuts)
    assert got == expected
    assert whole.finished == parts.finished == ends
    said = [json.loads(line)["message"] for line in body]
    built = Accumulated(got)
    assert built.ended == ends
    assert built.joined("thinking") == "".join(m.get("thinking", "") for m in said)
    if forced is None:
        assert built.joined("text") == "".join(m.get("content", "") for m in said)
        ids = {call["id"] for m in said for call in m.get("tool_calls", ())}
        assert {block["id"] for block in built.blocks if block["type"] == "tool_use"} == ids


scalars = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([2**64, 10**40, 1e300, "stop"]) | st.text(max_size=4)
)
names = (
    "message",
    "content",
    "thinking",
    "tool_calls",
    "function",
    "arguments",
    "name",
    "id",
    "done",
    "error",
    "done_reason",
)
values = st.recursive(
    scalars,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(names), children, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.binary(max_size=60), st.dictionaries(st.sampled_from(names), values, max_size=5), st.booleans())
def test_any_answer_of_a_worker_gives_whole_events_or_a_failure(raw, fields, is_forced):
    for line in (raw, json.dumps(fields).encode(), b'{"message":{"content":"' + raw + b'"},"done":true}'):
        chat = stream(FORCED if is_forced else None)
        data = chat.line(line)
        assert data.endswith((b"", b"\n\n"))
        assert not (chat.finished and chat.failed)
        if data:
            assert Accumulated(data).ended == chat.finished
        try:
            json.loads(message(line, message_id="msg_7", model="m", forced=FORCED if is_forced else None))
        except BadAnswer:
            assert not chat.finished


@given(st.text(max_size=8), st.sampled_from([{}, {"logprobs": None}, {"error": None}, {"done": False}]))
def test_a_text_is_written_alike_on_the_short_and_the_long_way(text, more):
    chat = stream()
    chat.line(native(content="first"))
    line = json.dumps({"message": {"role": "assistant", "content": text}, **more}).encode()
    frames = events(chat.line(line))
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    assert frames == ([delta] if text else [])
