"""A head that came before is only compared: whatever is not that head again gets the strict reading it always gets."""

from __future__ import annotations

import asyncio

import pytest
from http_peers import WAIT_S, App, RawClient, Recorder
from hypothesis import given
from hypothesis import strategies as st
from test_http_client import finished, send
from test_http_strictness import BATTERY

from bellmare.http.messages import Request
from bellmare.http.repeats import HEAD_BYTES_MAX, know

HEAD = b"POST /api/chat HTTP/1.1\r\nHost: a\r\nX-A: b\r\nContent-Length: 12\r\nX-C: d\r\n\r\n"


class Ticketed(App):
    """Leaves a ticket for each head."""

    def on_head(self, request: Request):  # type: ignore[no-untyped-def]
        verdict = super().on_head(request)
        request.ticket = f"ticket {len(self.heads)}"
        return verdict


def post(body: bytes, *, path: bytes = b"/", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, more, len(body), body)


async def test_the_same_head_with_another_length_is_read_once(serve) -> None:
    app = Ticketed()
    client = await RawClient.open((await serve(app)).port)
    for body in (b"a", b"bb", b"c" * 1000, b"dddddddddd"):
        client.send(post(body))
        assert (await client.answer()).body == body
    assert len(app.heads) == 1
    assert [request.ticket for request in app.requests] == ["ticket 1"] * 4
    assert [request.body_bytes for request in app.requests] == [1, 2, 1000, 10]
    assert len({id(request) for request in app.requests}) == 4
    await client.close()


@pytest.mark.parametrize(
    "other",
    [
        post(b"xx", path=b"/other"),
        post(b"xx", more=b"X-Other: 1\r\n"),
        post(b"xx").replace(b"Host: a", b"Host: b"),
        post(b"xx").replace(b"Content-Length", b"content-length"),
    ],
    ids=["path", "header", "host", "case"],
)
async def test_another_head_is_read_anew(other: bytes, serve) -> None:
    app = Ticketed()
    client = await RawClient.open((await serve(app)).port)
    for data in (post(b"1"), other, other, post(b"2")):
        client.send(data)
        assert (await client.answer()).status == 200
    assert len(app.heads) == 3
    await client.close()


@pytest.mark.parametrize("name", BATTERY)
async def test_a_known_head_opens_no_door_for_doubtful_ones(name: str, serve) -> None:
    status, data = BATTERY[name]
    app = Ticketed()
    client = await RawClient.open((await serve(app)).port)
    client.send(post(b"known"))
    assert (await client.answer()).status == 200
    client.send(data)
    assert (await client.answer(head_only=data.startswith(b"HEAD"))).status == status
    assert len(app.requests) == 1
    await client.close()


@pytest.mark.parametrize("cut", range(1, len(post(b"known")), 3))
async def test_a_known_head_may_come_in_pieces(cut: int, serve) -> None:
    app = Ticketed()
    client = await RawClient.open((await serve(app)).port)
    data = post(b"known")
    client.send(data)
    await client.answer()
    client.send(data[:cut])
    await asyncio.sleep(0.002)
    client.send(data[cut:] + data + data)
    for _ in range(3):
        assert (await client.answer()).body == b"known"
    assert len(app.requests) == 4
    await client.close()


async def test_a_body_beyond_the_bound_is_refused_behind_a_known_head(serve) -> None:
    app = Ticketed(body_bytes_max=10)
    client = await RawClient.open((await serve(app)).port)
    client.send(post(b"known"))
    await client.answer()
    client.send(post(b"12345678901"))
    assert (await client.answer()).status == 413
    await client.close()


@pytest.mark.parametrize(
    "more", [b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"X: " + b"y" * HEAD_BYTES_MAX + b"\r\n"]
)
async def test_heads_that_mean_more_than_a_request_are_not_kept(more: bytes, serve) -> None:
    app = Ticketed()
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(post(b"a", more=more))
    assert (await client.answer()).status == 200
    if b"close" not in more:
        client.send(post(b"a", more=more))
        assert (await client.answer()).status == 200
        assert len(app.heads) == 2
    await client.close()


async def test_an_application_without_tickets_sees_every_head(serve) -> None:
    app = App()
    client = await RawClient.open((await serve(app)).port)
    for _ in range(3):
        client.send(post(b"a"))
        await client.answer()
    assert len(app.heads) == 3
    await client.close()


@given(st.binary(max_size=40), st.integers(0, len(HEAD)), st.integers(0, len(HEAD)))
def test_only_the_same_bytes_with_a_plain_length_are_known(splice: bytes, begin: int, end: int) -> None:
    known = know(HEAD, None)
    assert known is not None
    body = b"x" * 12
    assert known.body(HEAD + body) == body
    head = HEAD[: min(begin, end)] + splice + HEAD[max(begin, end) :]
    found = known.body(head + body)
    if found:
        before, _, rest = HEAD.partition(b"12")
        digits = head.removeprefix(before).removesuffix(rest)
        assert head == before + digits + rest
        assert digits.isdigit()
        assert not digits.startswith(b"0")
        assert int(digits) == len(found) == 12


@pytest.mark.parametrize(
    "digits", [b"+5", b"05", b"5 ", b" 5", b"5,5", b"0x5", b"\xb2", b"", b"-5", b"5\r\nX: y", b"0"]
)
def test_odd_digits_are_left_to_the_strict_reading(digits: bytes) -> None:
    known = know(HEAD, None)
    assert known is not None
    assert not known.body(HEAD.replace(b"12", digits) + b"x" * 5)


async def test_a_workers_known_head_is_only_compared_too(dial, scripted) -> None:
    def answer(body: bytes, length: bytes | None = None) -> bytes:
        said = length if length is not None else b"%d" % len(body)
        return b"HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: %b\r\n\r\n%b" % (said, body)

    server = await scripted(answer(b"one"), answer(b"three"), answer(b""), answer(b"x", b"+1"), answer(b"last"))
    upstream = dial(server.port)
    for body in (b"one", b"three", b""):
        recorder = Recorder()
        send(upstream, recorder)
        await finished(recorder)
        assert (recorder.failure, recorder.body) == (None, body)
        assert dict(recorder.headers)[b"content-length"] == b"%d" % len(body)
    recorder = Recorder()
    send(upstream, recorder)
    await finished(recorder)
    assert recorder.failure is not None
    assert upstream.dialled_total == 1


async def test_an_answer_in_chunks_is_the_same_however_it_is_cut(dial, scripted) -> None:
    lines = [b'{"n":%d}\n' % number for number in range(50)]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%b\r\n" % (len(line), line) for line in lines]

    async def one_by_one(_reader, writer) -> None:
        writer.write(head)
        for number, chunk in enumerate([*chunks, b"0\r\n\r\n"]):
            half = len(chunk) // 2 if number % 3 == 1 else len(chunk)
            writer.write(chunk[:half])
            await writer.drain()
            await asyncio.sleep(0.001)
            if half < len(chunk):
                writer.write(chunk[half:])

    server = await scripted(
        one_by_one, head + b"".join(chunks) + b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    upstream = dial(server.port)
    for _ in range(2):
        recorder = Recorder()
        send(upstream, recorder)
        async with asyncio.timeout(WAIT_S):
            await finished(recorder)
        assert (recorder.failure, recorder.body) == (None, b"".join(lines))
    recorder = Recorder()
    send(upstream, recorder)
    await finished(recorder)
    assert recorder.body == b"ok"
    assert upstream.dialled_total == 1  # the end of the chunks was found: the connection carried all three
