"""Random cuts and random damage: the same bytes give the same requests however they come, and never more than they say.

The oracle of requests below is a second, slower reading of RFC 9112 that shares nothing with the listener's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
from battery import BODY, GROUPS, MARK, H
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_client import split_answers

from bellmare.gateway.translate import DialectStream, Native
from bellmare.http.call import Call
from bellmare.http.client import DEFAULT_UPSTREAM_LIMITS
from bellmare.http.connection import Connection
from bellmare.http.messages import Limits, Refusal, Request
from bellmare.http.server import Exchange, Server
from bellmare.http.upstream_connection import UpstreamConnection
from bellmare.protocols.errors import BadAnswer, InvalidRequest
from bellmare.protocols.jsonbody import check_object
from bellmare.protocols.ndjson import LineGate, LineSplitter, LineTooLong
from bellmare.protocols.openai_stream import ChatStream

pytestmark = pytest.mark.slow

FUZZ = settings(max_examples=300)
BODY_BYTES_MAX = 10_000


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.reading = True
        self.ended = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        assert not self.ended, "written behind the end"
        self.out += data

    def write_eof(self) -> None:
        self.ended = True

    close = abort = write_eof

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Echo:
    """Answers each request with what it was."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.bad: list[int] = []

    def on_head(self, request: Request) -> Refusal | int:
        return BODY_BYTES_MAX

    def on_request(self, exchange: Exchange) -> None:
        request = exchange.request
        self.requests.append((request.method, request.target, request.body))
        exchange.respond(200, [], b"%d" % len(request.body))

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        self.bad.append(status)
        return Refusal(status, (), reason.encode())


def listen(pieces: list[bytes]) -> tuple[Echo, Pipe]:
    """A connection that is sent ``pieces``."""

    async def run() -> tuple[Echo, Pipe]:
        app, pipe = Echo(), Pipe()
        server = Server(app, Limits(chunks_free=50))
        server.date_line = b"date: now\r\n"
        connection = Connection(server)
        connection.connection_made(pipe)  # type: ignore[arg-type]
        for piece in pieces:
            assert pipe.reading, "answers are immediate, so nothing is ever held"
            connection.data_received(piece)
        server._sweeper.cancel()
        return app, pipe

    return LOOP.run_until_complete(run())


LOOP = asyncio.new_event_loop()


@pytest.fixture(autouse=True)
def _gate() -> None:
    """These tests are not of a loop: the gate of the others has nothing to look at."""


def statuses(pipe: Pipe) -> list[bytes]:
    return [status for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", bytes(pipe.out)) if status != b"100"]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(one % (len(data) + 1) for one in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


CASES = [case.data for group in GROUPS.values() for case in group.values() if len(case.data) < 3000]
VALID = [case.data for group in GROUPS.values() for case in group.values()
         if case.statuses[0] < 400 and not case.ends and case.data[:5] != b"HEAD "]  # fmt: skip


@FUZZ
@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=3), st.lists(st.integers(0, 4000), max_size=12))
def test_any_cut_of_a_clients_bytes_gives_the_same_requests_and_answers(cases, cuts):
    data = b"".join(cases)
    whole, whole_pipe = listen([data])
    app, pipe = listen(cut(data, cuts))
    assert app.requests == whole.requests
    # Of a head with two faults either may be named: the one that comes first, or the one that is looked for first.
    assert len(app.bad) == len(whole.bad) <= 1
    assert statuses(pipe)[: len(app.requests)] == statuses(whole_pipe)[: len(app.requests)]
    assert len(statuses(pipe)) == len(statuses(whole_pipe)) == len(app.requests) + len(app.bad)
    assert pipe.ended == whole_pipe.ended


@FUZZ
@given(st.sampled_from(VALID))
def test_byte_by_byte_is_as_good_as_at_once(data):
    whole, pieces = listen([data]), listen([data[n : n + 1] for n in range(len(data))])
    assert pieces[0].requests == whole[0].requests != []
    assert whole[0].bad == pieces[0].bad == []


# The oracle: what a strict reader sees in a stream, and nothing after the first doubt.

_TCHAR = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def strict_requests(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Method and body of each request up to the first that is in any doubt."""
    while True:
        if data.startswith(b"\r\n"):
            data = data[2:]
        head, found, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        if not found or any((c < 32 and c != 9) or c == 127 for line in lines for c in line):
            return
        words = lines[0].split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
            return
        headers: dict[bytes, list[bytes]] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not name or not _TCHAR.issuperset(name):
                return
            headers.setdefault(name.lower(), []).append(value.strip(b" \t"))
        lengths, codings = headers.get(b"content-length", []), headers.get(b"transfer-encoding", [])
        body: bytes | None = b""
        if codings:
            if lengths or codings != [b"chunked"] or words[2] == b"HTTP/1.0":
                return
            body, data = strict_chunks(data)
        elif lengths:
            if len(lengths) != 1 or not re.fullmatch(rb"[0-9]+", lengths[0]) or len(data) < int(lengths[0]):
                return
            body, data = data[: int(lengths[0])], data[int(lengths[0]) :]
        if body is None:
            return
        yield words[0].decode("latin-1"), body
        if b"close" in b",".join(headers.get(b"connection", [])).lower():
            return


def strict_chunks(data: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        size = re.fullmatch(rb"([0-9A-Fa-f]+)(;[^\r\n\x00]*)?", line)
        if not found or size is None:
            return None, b""
        length = int(size[1], 16)
        if length == 0:
            break
        if data[length : length + 2] != b"\r\n":
            return None, b""
        body, data = body + data[:length], data[length + 2 :]
    while not data.startswith(b"\r\n"):
        line, found, data = data.partition(b"\r\n")
        name, colon, _ = line.partition(b":")
        if not found or not colon or not name or not _TCHAR.issuperset(name):
            return None, b""
    return body, data[2:]


SPICE = [b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b";", b",", b"0", b"\x0b", b"\xff", b"0\r\n\r\n", b"5\r\n",
         b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n",
         b"content-length: 0\r\n",
         H, b"\r\n\r\n", b"GET /x HTTP/1.1\r\n" + H + b"\r\n", b"HTTP/1.0", b"+", b"-", b"0x"]  # fmt: skip


@st.composite
def damaged(draw: Any) -> bytes:
    """One to three valid requests, with some bytes put in, taken out, or changed."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("put", "take", "change", "repeat"))):
            case "put":
                data[place:place] = draw(st.sampled_from(SPICE))
            case "take":
                del data[place : place + draw(st.integers(1, 8))]
            case "change":
                data[place : place + 1] = bytes((draw(st.integers(0, 255)),))
            case "repeat":
                end = data.find(b"\n", place) + 1
                data[end:end] = data[place:end]
    return bytes(data)


@settings(FUZZ, max_examples=1500)
@given(damaged(), st.lists(st.integers(0, 4000), max_size=6))
def test_damaged_requests_never_become_more_than_a_strict_reader_sees(data, cuts):
    app, pipe = listen(cut(data, cuts))
    strict = list(strict_requests(data))
    seen = [(method, body) for method, _, body in app.requests]
    assert seen == strict[: len(seen)]
    assert 500 not in app.bad
    heads = app.requests and app.requests[0][0] == "HEAD"
    if not any(method == "HEAD" for method, _, _ in app.requests):
        answers = split_answers(bytes(pipe.out), head_only=bool(heads))
        assert len(answers) == len(app.requests) + len(app.bad)
    assert pipe.ended or not app.bad


# The other side: a worker's answers.


class Books:
    """The upstream of one connection, and its receiver."""

    limits = DEFAULT_UPSTREAM_LIMITS

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.body = b""
        self.known: Any = None

    def lost(self, connection: UpstreamConnection) -> None: ...

    def release(self, connection: UpstreamConnection) -> None: ...

    def retry(self, call: Call) -> None:
        raise AssertionError("nothing was reused")

    def end(self, call: Call) -> None:
        call.retire().on_end()

    def fail(self, call: Call, failure: Any) -> None:
        call.retire().on_failure(failure)

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.heard.append((status, sorted(headers)))

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.heard.append("end")

    def on_failure(self, failure: Any) -> None:
        self.heard.append("failure")


def answer(pieces: list[bytes], known: Any = None) -> Books:
    """``known``: the head that the upstream remembers from an earlier answer."""
    books, pipe = Books(), Pipe()
    books.known = known
    connection = UpstreamConnection(books)  # type: ignore[arg-type]
    connection.connection_made(pipe)  # type: ignore[arg-type]
    call = Call(books, b"", books, False, inf)  # type: ignore[arg-type]
    connection.carry(call, reused=False)
    for piece in pieces:
        if not pipe.ended:
            connection.data_received(piece)
    connection.connection_lost(None)
    return books


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n3\r\nabc\r\n0\r\nT: r\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
]

KNOWN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@FUZZ
@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 300), max_size=10))
def test_any_cut_of_a_workers_answer_is_heard_as_the_same_answer(data, cuts):
    whole, pieces = answer([data]), answer(cut(data, cuts))
    again, other = answer([data], whole.known), answer(cut(data, cuts), answer([KNOWN]).known)
    assert pieces.heard == whole.heard == again.heard == other.heard
    assert pieces.body == whole.body == again.body == other.body
    assert b"stolen" not in pieces.body
    assert whole.heard[-1] in ("end", "failure")


@FUZZ
@given(st.sampled_from(ANSWERS), st.integers(0, 200), st.binary(max_size=6), st.lists(st.integers(0, 300), max_size=5))
def test_a_damaged_answer_ends_exactly_once(data, place, junk, cuts):
    place %= len(data)
    damaged = data[:place] + junk + data[place + len(junk) :]
    books = answer(cut(damaged, cuts))
    assert answer([damaged], answer([data]).known).heard == answer([damaged]).heard
    assert [one for one in books.heard if one in ("end", "failure")] == books.heard[-1:]


# Lines, frames and objects.

LINES = st.lists(
    st.sampled_from(
        [b'{"message":{"content":"a"},"done":false}\n', '{"message":{"content":"\u00e4\U0001f600"}}\n'.encode(), b"\n",
         b'{"done":true,"eval_count":2}\n', b'{"error":"x"}\n', b"{}\r\n", b"no json\n", b'{"message":{"content":"c']
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


def translated(make: Any, pieces: list[bytes]) -> tuple[bytes, Any, Any]:
    translator = make()
    out = b""
    try:
        for piece in pieces:
            out += translator.feed(piece)
        out += translator.end()
    except (BadAnswer, LineTooLong) as error:
        return out, type(error), None
    return out, translator.error, translator.final


def openai() -> DialectStream:
    return DialectStream(ChatStream(completion_id="c", created_s=0, model="m", include_usage=True))


@FUZZ
@given(LINES, st.lists(st.integers(0, 500), max_size=10), st.sampled_from((Native, openai)))
def test_any_cut_of_a_stream_gives_the_same_frames(data, cuts, make):
    whole, pieces = translated(make, [data]), translated(make, cut(data, cuts))
    if whole[1] is None and pieces[1] is None:
        assert pieces == whole
    else:
        assert pieces[1:] == whole[1:]
        assert pieces[0].startswith(whole[0]) or whole[0].startswith(pieces[0])
    for out in (whole[0], pieces[0]):
        assert out == b"" or out.endswith(b"\n" if make is Native else b"\n\n")


@FUZZ
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10))
def test_any_cut_of_bytes_gives_the_same_lines(data, cuts):
    splitter, gate = LineSplitter(), LineGate()
    lines = [line for piece in cut(data, cuts) for line in splitter.feed(piece)]
    assert lines == [line.removesuffix(b"\r") for line in data.split(b"\n")[:-1]]
    assert b"".join(gate.feed(piece) for piece in cut(data, cuts)) == data[: data.rfind(b"\n") + 1]
    assert gate.rest == splitter.rest == data[data.rfind(b"\n") + 1 :]


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["model", "Model", "MODEL", "stream", "\u212aeep_alive", "keep_alive", "x", "X", "a:b", "\\u0061"]
        ),
        st.sampled_from(['"a:1"', "1", '{"model":1,"model":2}', "[1,2]", '":"', "null", '"\\u003a"', '"\u00e4"']),
    ),
    max_size=6,
)


@FUZZ
@given(MEMBERS, st.sampled_from(["", " ", "\n"]))
def test_an_object_that_passes_the_gate_has_each_key_once_in_any_case(members, blank):
    text = "{" + ",".join(f'{blank}"{key}"{blank}:{value}' for key, value in members) + "}"
    known = frozenset({"model", "stream", "keep_alive"})
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=lambda found: found) or []
    folded = [key.casefold() for key, _ in pairs]
    try:
        fields = check_object(text.encode(), known=known)
    except InvalidRequest:
        twice = len(set(folded)) < len(folded)
        odd = any(key.casefold() in known and key not in known for key, _ in pairs)
        assert twice or odd or any(":" in key for key, _ in pairs)
        return
    assert len(set(folded)) == len(folded)
    assert set(fields) <= {key for key, _ in pairs}
    assert all(key in known for key, _ in pairs if key.casefold() in known)


def test_the_oracle_is_no_pushover():
    assert [method for method, _ in strict_requests(VALID[0] + b"GET / HTTP/1.1\r\n" + H + b"\r\n")] == ["POST", "GET"]
    assert list(strict_requests(b"GET / HTTP/1.1\nHost: a\n\n")) == []
    assert next(strict_requests(VALID[0]))[1] == BODY
    assert any(MARK in data for data in VALID), "requests that hide in bodies are among them"
