"""Every request that two servers could read differently is refused with its status and reaches nobody."""

import pytest
from http_peers import App, RawClient

H = b"Host: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def get(target: bytes = b"/", *, headers: bytes = H, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST / " + version + b"\r\n" + H + headers + b"\r\n" + body


def te(value: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    return post(b"Transfer-Encoding: " + value + b"\r\n", body)


def chunked(body: bytes) -> bytes:
    return te(b"chunked", body)


BATTERY: dict[str, tuple[int, bytes]] = {
    # Two lengths
    "cl and te": (400, post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    "te and cl": (400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n")),
    "cl twice, equal": (400, post(b"Content-Length: 1\r\nContent-Length: 1\r\n", b"x")),
    "cl twice, different": (400, post(b"Content-Length: 0\r\nContent-Length: 1\r\n", b"x")),
    "cl list": (400, post(b"Content-Length: 1, 1\r\n", b"x")),
    # Odd lengths
    "cl plus": (400, post(b"Content-Length: +1\r\n", b"x")),
    "cl minus": (400, post(b"Content-Length: -1\r\n", b"x")),
    "cl underscore": (400, post(b"Content-Length: 1_0\r\n", b"x")),
    "cl leading zero": (400, post(b"Content-Length: 01\r\n", b"x")),
    "cl zeros": (400, post(b"Content-Length: 00\r\n")),
    "cl with underscore in its name": (400, post(b"Content_Length: 1\r\n", b"x")),
    "te with underscore in its name": (400, post(b"Transfer_Encoding: chunked\r\n", b"0\r\n\r\n")),
    "cl hex": (400, post(b"Content-Length: 0x1\r\n", b"x")),
    "cl empty": (400, post(b"Content-Length: \r\n")),
    "cl huge": (400, post(b"Content-Length: 99999999999999999999\r\n")),
    "cl inner blank": (400, post(b"Content-Length: 1 0\r\n")),
    "cl fraction": (400, post(b"Content-Length: 1.0\r\n", b"x")),
    "cl fullwidth digit": (400, post("Content-Length: \uff11\r\n".encode(), b"x")),
    # Transfer codings
    "te xchunked": (501, te(b"xchunked")),
    "te identity": (501, te(b"identity")),
    "te gzip": (501, te(b"gzip")),
    "te gzip, chunked": (400, te(b"gzip, chunked")),
    "te chunked, gzip": (400, te(b"chunked, gzip")),
    "te comma first": (400, te(b",chunked")),
    "te comma last": (400, te(b"chunked,")),
    "te twice": (400, te(b"chunked\r\nTransfer-Encoding: chunked")),
    "te twice, second odd": (400, te(b"chunked\r\nTransfer-Encoding: x")),
    "te upper case": (400, te(b"Chunked")),
    "te quoted": (400, te(b'"chunked"')),
    "te parameter": (400, te(b"chunked;q=1")),
    "te vertical tab": (400, te(b"\x0bchunked")),
    "te nbsp": (400, te(b"\xa0chunked")),
    "te empty": (400, te(b"")),
    "te folded": (400, te(b"\r\n chunked")),
    "te name with blank": (400, post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n")),
    "te on 1.0": (400, post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.0")),
    # Chunks
    "chunk size empty": (400, chunked(b"\r\nx\r\n0\r\n\r\n")),
    "chunk size 0x": (400, chunked(b"0x1\r\nx\r\n0\r\n\r\n")),
    "chunk size plus": (400, chunked(b"+1\r\nx\r\n0\r\n\r\n")),
    "chunk size minus": (400, chunked(b"-1\r\nx\r\n0\r\n\r\n")),
    "chunk size underscore": (400, chunked(b"1_0\r\nx\r\n0\r\n\r\n")),
    "chunk size blank before": (400, chunked(b" 1\r\nx\r\n0\r\n\r\n")),
    "chunk size blank behind": (400, chunked(b"1 \r\nx\r\n0\r\n\r\n")),
    "chunk size overflow": (400, chunked(b"10000000000000001\r\nx\r\n0\r\n\r\n")),
    "chunk size bare lf": (400, chunked(b"1\nx\r\n0\r\n\r\n")),
    "chunk size bare cr": (400, chunked(b"1\rx\r\n0\r\n\r\n")),
    "chunk longer than its size": (400, chunked(b"1\r\nxy\r\n0\r\n\r\n")),
    "chunk without separator": (400, chunked(b"1\r\nx0\r\n\r\n")),
    "chunk separator bare lf": (400, chunked(b"1\r\nx\n0\r\n\r\n")),
    "chunk separator wrong": (400, chunked(b"1\r\nxXX0\r\n\r\n")),
    "chunk extension with lf": (400, chunked(b"1;a\nb\r\nx\r\n0\r\n\r\n")),
    "chunk extension with cr": (400, chunked(b"1;a=\rb\r\nx\r\n0\r\n\r\n")),
    "chunk extension without name": (400, chunked(b"1;\r\nx\r\n0\r\n\r\n")),
    "chunk extension endless": (400, chunked(b"1;a=" + b"b" * 4096)),
    "chunk trailer malformed": (400, chunked(b"0\r\nx y: z\r\n\r\n")),
    "chunk trailer bare lf": (400, chunked(b"0\r\na: b\n\r\n")),
    "chunk trailer folded": (400, chunked(b"0\r\na: b\r\n c\r\n\r\n")),
    "chunk trailer frames": (400, chunked(b"1\r\nx\r\n0\r\nA: b\r\nContent-Length: 5\r\n\r\n")),
    "chunk trailer codes": (400, chunked(b"0\r\ntransfer-encoding: chunked\r\n\r\n")),
    "chunk trailer routes": (400, chunked(b"0\r\nHOST: b\r\n\r\n")),
    "chunk trailer endless": (431, chunked(b"0\r\na: " + b"b" * 9000)),
    # Header lines
    "blank before colon": (400, get(headers=H + b"A : b\r\n")),
    "tab before colon": (400, get(headers=H + b"A\t: b\r\n")),
    "no colon": (400, get(headers=H + b"A\r\n")),
    "empty name": (400, get(headers=H + b": b\r\n")),
    "name with nul": (400, get(headers=H + b"A\x00: b\r\n")),
    "name not ascii": (400, get(headers=H + b"\xe4: b\r\n")),
    "name with bracket": (400, get(headers=H + b"A[]: b\r\n")),
    "folded with blank": (400, get(headers=H + b"A: b\r\n c\r\n")),
    "folded with tab": (400, get(headers=H + b"A: b\r\n\tc\r\n")),
    "first line folded": (400, get(headers=b" " + H + H)),
    "nul in value": (400, get(headers=H + b"A: b\x00c\r\n")),
    "cr in value": (400, get(headers=H + b"A: b\rc\r\n")),
    "lf in value": (400, get(headers=H + b"A: b\nContent-Length: 5\r\n")),
    "control in value": (400, get(headers=H + b"A: b\x01c\r\n")),
    "del in value": (400, get(headers=H + b"A: b\x7fc\r\n")),
    "all bare lf": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "one bare lf": (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    "last line bare lf": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "request line bare lf": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare cr lines": (400, b"GET / HTTP/1.1\rHost: a\r\r"),
    "cr cr lf": (400, b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    # Host
    "host missing": (400, get(headers=b"A: b\r\n")),
    "host empty": (400, get(headers=b"Host: \r\n")),
    "host twice": (400, get(headers=H + H)),
    "host twice on 1.0": (400, get(headers=H + H, version=b"HTTP/1.0")),
    "host with at": (400, get(headers=b"Host: a@b\r\n")),
    "host with slash": (400, get(headers=b"Host: a/b\r\n")),
    "host with question mark": (400, get(headers=b"Host: a?b\r\n")),
    "host with hash": (400, get(headers=b"Host: a#b\r\n")),
    "host with blank": (400, get(headers=b"Host: a b\r\n")),
    "host list": (400, get(headers=b"Host: a,b\r\n")),
    "host with path and query": (400, get(headers=b"Host: a@b/c?d\r\n")),
    "host with odd port": (400, get(headers=b"Host: a:b\r\n")),
    "host with high port": (400, get(headers=b"Host: a:65536\r\n")),
    "host with bad escape": (400, get(headers=b"Host: a%zz\r\n")),
    "host with bad ipv6": (400, get(headers=b"Host: [::1::]\r\n")),
    "host with open bracket": (400, get(headers=b"Host: [::1\r\n")),
    "origin twice": (400, get(headers=H + b"Origin: http://localhost\r\nOrigin: http://evil\r\n")),
    "host not ascii": (400, get(headers=b"Host: \xe4\r\n")),
    # Target
    "absolute form of another host": (400, get(b"http://evil/")),
    "absolute form of another port": (400, get(b"http://a:81/")),
    "absolute form with userinfo": (400, get(b"http://u@a/")),
    "absolute form without host": (400, get(b"http:///")),
    "absolute form without any host header": (400, get(b"http://a/", headers=b"A: b\r\n")),
    "absolute form of another scheme": (400, get(b"https://a/")),
    "absolute form with fragment": (400, get(b"http://a/#b")),
    "absolute form, bad host on 1.0": (400, get(b"http://a@b/", headers=b"", version=b"HTTP/1.0")),
    "asterisk with get": (400, get(b"*")),
    "authority form": (400, get(b"a:80")),
    "relative": (400, get(b"api/tags")),
    "target empty": (400, b"GET  HTTP/1.1\r\n" + H + b"\r\n"),
    "target missing": (400, b"GET HTTP/1.1\r\n" + H + b"\r\n"),
    "target with fragment": (400, get(b"/a#b")),
    "target with nul": (400, get(b"/a\x00b")),
    "target with control": (400, get(b"/a\x01b")),
    "target with del": (400, get(b"/a\x7fb")),
    "target not ascii": (400, get(b"/\xc3\xa4")),
    "target with tab": (400, get(b"/a\tb")),
    "target with blank": (400, get(b"/a b")),
    # Request line
    "lower-case method": (400, b"get / HTTP/1.1\r\n" + H + b"\r\n"),
    "mixed-case method": (400, b"Get / HTTP/1.1\r\n" + H + b"\r\n"),
    "method with digit": (400, b"G3T / HTTP/1.1\r\n" + H + b"\r\n"),
    "method with quote": (400, b'GE"T / HTTP/1.1\r\n' + H + b"\r\n"),
    "method unknown": (501, b"BREW / HTTP/1.1\r\n" + H + b"\r\n"),
    "blank before method": (400, b" GET / HTTP/1.1\r\n" + H + b"\r\n"),
    "two blanks": (400, b"GET  / HTTP/1.1\r\n" + H + b"\r\n"),
    "tab separates": (400, b"GET\t/\tHTTP/1.1\r\n" + H + b"\r\n"),
    "blank behind version": (400, b"GET / HTTP/1.1 \r\n" + H + b"\r\n"),
    "connect": (501, b"CONNECT a:80 HTTP/1.1\r\n" + H + b"\r\n"),
    "connect with path": (501, b"CONNECT /a HTTP/1.1\r\n" + H + b"\r\n"),
    "http 0.9": (400, b"GET /\r\n\r\n"),
    "http 0.9 version": (505, get(version=b"HTTP/0.9")),
    "http 1.2": (505, get(version=b"HTTP/1.2")),
    "http 2.0": (505, get(version=b"HTTP/2.0")),
    "version lower case": (400, get(version=b"http/1.1")),
    "version short": (400, get(version=b"HTTP/1")),
    "version long": (400, get(version=b"HTTP/1.10")),
    "h2c preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "tls hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)),
    "garbage": (400, b"\x00\xff\xfe\r\n\r\n"),
    "two empty lines before": (400, b"\r\n\r\n" + get()),
    # Coding of the content, expectations
    "gzip body": (415, post(b"Content-Encoding: gzip\r\nContent-Length: 1\r\n", b"x")),
    "zstd body": (415, post(b"Content-Encoding: zstd\r\nContent-Length: 1\r\n", b"x")),
    "unknown expectation": (417, post(b"Expect: 200-ok\r\nContent-Length: 1\r\n", b"x")),
}


@pytest.mark.parametrize("name", BATTERY)
async def test_ambiguous_bytes_are_refused_and_reach_nobody(name: str, serve) -> None:
    status, request = BATTERY[name]
    app = App()
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(request + SMUGGLED)
    answer = await client.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "text/plain"
    assert app.requests == []
    # One answer, then the end: what followed was read by nobody.
    assert await client.rest() == b""
    assert len(app.bad) == 1
    await client.close()


ACCEPTED: dict[str, bytes] = {
    "plain": get(),
    "no blank behind colon": get(headers=b"Host:a\r\n"),
    "host with port": get(headers=b"Host: localhost:11435\r\n"),
    "host ipv6": get(headers=b"Host: [::1]:11435\r\n"),
    "value with obs-text": get(headers=H + b"A: \xe4\r\n"),
    "value empty": get(headers=H + b"A:\r\n"),
    "one empty line before": b"\r\n" + get(),
    "options asterisk": b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n",
    "odd target": get(b"//a/../%2e;x=%00?q=[{}]|\\^"),
    "http 1.0 without host": get(headers=b"", version=b"HTTP/1.0"),
    "identity content": post(b"Content-Encoding: identity\r\nContent-Length: 1\r\n", b"x"),
    "chunked": chunked(b"1\r\nx\r\n0\r\n\r\n"),
    "chunked, size with zeros and upper case": chunked(b"000A\r\n0123456789\r\n0\r\n\r\n"),
    "chunk extensions": chunked(b'1;a;b=c;d="e f"\r\nx\r\n0;z\r\n\r\n'),
    "trailers": chunked(b"1\r\nx\r\n0\r\nAuthorization: x\r\nA: b\r\n\r\n"),
    "absolute form": get(b"http://a/x?y"),
    "absolute form, upper case and no path": get(b"HTTP://A"),
    "absolute form on 1.0 without host": get(b"http://a/", headers=b"", version=b"HTTP/1.0"),
    "highest port": get(headers=b"Host: a:65535\r\n"),
    "upgrade websocket": get(headers=H + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "upgrade h2c with body": post(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 5\r\n", b"GET /"
    ),
    "upgrade with chunked body": post(
        b"Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n", b"3\r\nGET\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_legal_bytes_are_served_once_and_the_next_request_is_the_next_request(name: str, serve) -> None:
    app = App()
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(ACCEPTED[name] + get(b"/next"))
    assert (await client.answer()).status == 200
    if "1.0" not in name:
        assert (await client.answer()).headers["x-path"] == "/next"
        assert [request.path for request in app.requests][1:] == ["/next"]
    assert app.bad == []
    await client.close()


async def test_a_chunked_body_is_decoded_and_its_trailers_dropped(serve) -> None:
    app = App()
    server = await serve(app)
    client = await RawClient.open(server.port)
    client.send(chunked(b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nAuthorization: x\r\n\r\n"))
    assert (await client.answer()).body == b"abcde"
    assert app.requests[0].header(b"authorization") is None
    await client.close()


EARLY = {
    "no method": (400, b"Get"),
    "long method": (400, b"A" * 33),
    "http 0.9": (400, b"GET /\r\n"),
    "version": (505, b"GET / HTTP/3.0\r\nHost"),
    "second line": (400, b"GET / HTTP/1.1\r\nHost : a\r\nA"),
    "fold": (400, b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n"),
    "binary": (400, b"GET\xff\xff"),
}


@pytest.mark.parametrize("name", EARLY)
async def test_a_head_that_can_never_be_one_is_refused_before_its_end(name: str, serve) -> None:
    status, begun = EARLY[name]
    server = await serve(App())
    client = await RawClient.open(server.port)
    client.send(begun)
    assert (await client.answer()).status == status
    assert await client.rest() == b""
    await client.close()


async def test_every_begin_of_a_legal_head_may_be_one(serve) -> None:
    app = App()
    server = await serve(app)
    for legal in (*ACCEPTED.values(), b"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n"):
        client = await RawClient.open(server.port)
        for byte in legal:
            client.send(bytes((byte,)))
            await client.writer.drain()
        assert (await client.answer()).status == 200
        await client.close()
    assert app.bad == []


@pytest.mark.parametrize(
    "request_bytes",
    [b"HEAD / HTTP/1.1\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n"],
)
async def test_a_refused_head_request_gets_no_body_either(request_bytes: bytes, serve) -> None:
    server = await serve(App())
    client = await RawClient.open(server.port)
    client.send(request_bytes)
    assert (await client.rest()).endswith(b"\r\n\r\n")
    await client.close()
