"""tidy: one table of raw requests, by the faults of part B of the catalogue that they try, with what is a right answer.

Sources: RFC 9110 and 9112, and the published lists of request smuggling and of malformed requests.
"""

from __future__ import annotations

from dataclasses import dataclass

HOST = b"127.0.0.1"
H = b"Host: " + HOST + b"\r\n"
BODY = b'{"model":"a:1","messages":[{"role":"user","content":"hi"}],"stream":false,"options":{"num_predict":1}}'
MARK = b"smuggled"
"""In every request that hides in another; no worker may ever read it."""
HIDDEN = b"POST /api/chat?" + MARK + b" HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}"
NEXT = b"GET /api/version?" + MARK + b" HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n"
"""Sent behind every request: it is answered only if the end of the one before it is beyond doubt."""


@dataclass(frozen=True)
class Case:
    """Bytes of one request (or what pretends to be one), followed by NEXT."""

    data: bytes
    statuses: tuple[int, ...]
    """Any of these is right."""
    ends: bool
    """The connection must end with this answer; else NEXT must be answered, too."""
    head_only: bool = False
    answers: int = 1
    """Requests in ``data``."""


def refuse(data: bytes, *statuses: int) -> Case:
    return Case(data, statuses or (400,), ends=True, head_only=data.startswith(b"HEAD "))


def serve(data: bytes, *statuses: int, ends: bool = False, answers: int = 1) -> Case:
    return Case(data, statuses or (200,), ends=ends, head_only=data.startswith(b"HEAD "), answers=answers)


def get(target: bytes = b"/api/version", headers: bytes = H, *, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + headers + b"\r\n"


def line(request_line: bytes, headers: bytes = H) -> bytes:
    return request_line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = BODY, *, version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST /api/chat " + version + b"\r\n" + H + headers + b"\r\n" + body


def cl(value: bytes, body: bytes = BODY) -> bytes:
    return post(b"Content-Length: " + value + b"\r\n", body)


def te(value: bytes, body: bytes | None = None) -> bytes:
    return post(b"Transfer-Encoding: " + value + b"\r\n", whole() if body is None else body)


def whole(body: bytes = BODY) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def chunks(body: bytes) -> bytes:
    return te(b"chunked", body)


N = b"%d" % len(BODY)
X = b"%x" % len(BODY)
CL = b"Content-Length: " + N + b"\r\n"
TE = b"Transfer-Encoding: chunked\r\n"

B14_LENGTHS: dict[str, Case] = {
    "plain": serve(cl(N)),
    "cl then te": refuse(post(CL + TE, whole())),
    "te then cl": refuse(post(TE + CL, whole())),
    "cl, te and hidden request": refuse(post(b"Content-Length: 4\r\n" + TE, b"5c\r\n" + HIDDEN + b"\r\n0\r\n\r\n")),
    "te.cl hidden behind last chunk": refuse(post(TE + b"Content-Length: 6\r\n", b"0\r\n\r\n" + HIDDEN)),
    "te and cl 0": refuse(post(TE + b"Content-Length: 0\r\n", whole())),
    "te, other header, cl": refuse(post(TE + b"X: y\r\n" + CL, whole())),
    "te and empty cl": refuse(post(TE + b"Content-Length:\r\n", whole())),
    "cl twice, equal": refuse(post(CL + CL)),
    "cl twice, different": refuse(post(CL + b"Content-Length: 0\r\n")),
    "cl twice, zero first": refuse(post(b"Content-Length: 0\r\n" + CL, HIDDEN)),
    "cl twice, other case": refuse(post(CL + b"content-LENGTH: 5\r\n")),
    "cl twice, second empty": refuse(post(CL + b"Content-Length:\r\n")),
    "cl list, equal": refuse(cl(N + b", " + N)),
    "cl list, different": refuse(cl(N + b", 0")),
    "cl list with empty end": refuse(cl(N + b",")),
    "cl list with empty begin": refuse(cl(b"," + N)),
    "cl plus": refuse(cl(b"+" + N)),
    "cl minus": refuse(cl(b"-" + N)),
    "cl minus zero": refuse(cl(b"-0")),
    "cl minus one": refuse(cl(b"-1")),
    "cl underscore": refuse(cl(b"1_0")),
    "cl hex": refuse(cl(b"0x" + X)),
    "cl hex digits": refuse(cl(b"a")),
    "cl octal": refuse(cl(b"0o10")),
    "cl exponent": refuse(cl(b"1e2")),
    "cl fraction": refuse(cl(N + b".0")),
    "cl empty": refuse(cl(b"")),
    "cl blank": refuse(cl(b" ")),
    "cl leading zero": refuse(cl(b"0" + N)),
    "cl many zeros": refuse(cl(b"0" * 300 + N)),
    "cl zeros only": refuse(cl(b"00")),
    "cl inner blank": refuse(cl(b"1 0")),
    "cl inner tab": refuse(cl(b"1\t0")),
    "cl quoted": refuse(cl(b'"' + N + b'"')),
    "cl with words": refuse(cl(N + b" bytes")),
    "cl with semicolon": refuse(cl(N + b";")),
    "cl nul": refuse(cl(N + b"\x00")),
    "cl vertical tab": refuse(cl(b"\x0b" + N)),
    "cl form feed": refuse(cl(N + b"\x0c")),
    "cl nbsp": refuse(cl(b"\xa0" + N)),
    "cl full-width digit": refuse(cl("\uff15".encode())),
    "cl arabic digit": refuse(cl("\u0665".encode())),
    "cl folded": refuse(cl(b"\r\n " + N)),
    "cl folded within": refuse(cl(b"1\r\n 0")),
    "cl 2^31": refuse(cl(b"2147483648"), 413),
    "cl 2^32 + n": refuse(cl(b"%d" % (2**32 + len(BODY))), 413),
    "cl 2^63": refuse(cl(b"%d" % 2**63), 400, 413),
    "cl 2^64 + n": refuse(cl(b"%d" % (2**64 + len(BODY))), 400, 413),
    "cl of 100 digits": refuse(cl(b"9" * 100), 400, 413),
    "cl blank before colon": refuse(post(b"Content-Length : " + N + b"\r\n")),
    "cl tab before colon": refuse(post(b"Content-Length\t: " + N + b"\r\n")),
    "cl with underscore": refuse(post(b"Content_Length: " + N + b"\r\n")),
    "cl with nul in name": refuse(post(b"Content-Length\x00: " + N + b"\r\n")),
    "cl with cr before name": refuse(post(b"\rContent-Length: " + N + b"\r\n")),
    "cl blanks around": serve(cl(b" \t" + N + b"\t ")),
    "cl without blank": serve(post(b"Content-Length:" + N + b"\r\n")),
    "cl zero on get": serve(get(headers=H + b"Content-Length: 0\r\n")),
    "cl on get, body is a request": serve(get(headers=H + b"Content-Length: %d\r\n" % len(HIDDEN)) + HIDDEN),
    "cl on head": serve(b"HEAD /api/version HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\nGET /"),
    "no cl on post": serve(post(b"", b""), 400),
    # The surplus begins the next request, which is then none.
    "cl shorter than the body": Case(cl(b"2", b"{}GET "), (400,), ends=False, answers=2),
}

B15_CODINGS: dict[str, Case] = {
    "plain": serve(te(b"chunked")),
    "blanks around": serve(te(b"  chunked  ")),
    "tabs around": refuse(te(b"\tchunked\t")),
    "chunked on get": serve(b"GET /api/version HTTP/1.1\r\n" + H + TE + b"\r\n" + whole(HIDDEN)),
    "xchunked": refuse(te(b"xchunked"), 400, 501),
    "chunked x": refuse(te(b"chunkedx"), 400, 501),
    "chunke": refuse(te(b"chunke"), 400, 501),
    "identity": refuse(te(b"identity"), 400, 501),
    "gzip": refuse(te(b"gzip"), 400, 501),
    "compress": refuse(te(b"compress"), 400, 501),
    "gzip, chunked": refuse(te(b"gzip, chunked"), 400, 501),
    "chunked, gzip": refuse(te(b"chunked, gzip"), 400, 501),
    "chunked, identity": refuse(te(b"chunked, identity"), 400, 501),
    "identity, chunked": refuse(te(b"identity, chunked"), 400, 501),
    "chunked, chunked": refuse(te(b"chunked, chunked")),
    "comma first": refuse(te(b", chunked")),
    "comma last": refuse(te(b"chunked,")),
    "only commas": refuse(te(b",,")),
    "parameter": refuse(te(b"chunked;q=1")),
    "parameter after blank": refuse(te(b"chunked ;q=1")),
    "semicolon": refuse(te(b"chunked;")),
    "quoted": refuse(te(b'"chunked"')),
    "single quotes": refuse(te(b"'chunked'"), 400, 501),
    "empty": refuse(te(b"")),
    "blank": refuse(te(b" ")),
    "vertical tab before": refuse(te(b"\x0bchunked")),
    "vertical tab behind": refuse(te(b"chunked\x0b")),
    "form feed": refuse(te(b"\x0cchunked")),
    "nul": refuse(te(b"chunked\x00")),
    "nbsp": refuse(te(b"\xa0chunked")),
    "utf-8 bom": refuse(te(b"\xef\xbb\xbfchunked")),
    "kelvin sign": refuse(te("chun\u212aed".encode())),
    "inner blank": refuse(te(b"chun ked")),
    "folded": refuse(te(b"\r\n chunked")),
    "folded behind": refuse(te(b"chunked\r\n ")),
    "folded second": refuse(te(b"identity\r\n , chunked")),
    "upper case": refuse(te(b"CHUNKED")),
    "mixed case": refuse(te(b"Chunked")),
    "two headers": refuse(post(TE + TE, whole())),
    "two headers, identity first": refuse(post(b"Transfer-Encoding: identity\r\n" + TE, whole())),
    "two headers, second odd": refuse(post(TE + b"Transfer-encoding: x\r\n", whole())),
    "two headers, second empty": refuse(post(TE + b"Transfer-Encoding:\r\n", whole())),
    "blank before colon": refuse(post(b"Transfer-Encoding : chunked\r\n", whole())),
    "tab before colon": refuse(post(b"Transfer-Encoding\t: chunked\r\n", whole())),
    "underscore": refuse(post(b"Transfer_Encoding: chunked\r\n", whole())),
    "line begins with blank": refuse(post(b"A: b\r\n Transfer-Encoding: chunked\r\n", whole())),
    "behind a bare cr": refuse(post(b"A: b\rTransfer-Encoding: chunked\r\n", whole())),
    "behind a bare lf": refuse(post(b"A: b\nTransfer-Encoding: chunked\r\n", whole())),
    "behind a nul": refuse(post(b"A: b\x00Transfer-Encoding: chunked\r\n", whole())),
    "name with nul": refuse(post(b"Transfer-Encoding\x00: chunked\r\n", whole())),
    "name with 8 bit": refuse(post(b"Transfer-Encoding\xff: chunked\r\n", whole())),
    "name with cr": refuse(post(b"Transfer-Encoding\r: chunked\r\n", whole())),
    "http 1.0": refuse(post(TE, whole(), version=b"HTTP/1.0")),
    "http 1.0 with keep-alive": refuse(post(TE + b"Connection: keep-alive\r\n", whole(), version=b"HTTP/1.0")),
    "http 1.0 with cl": refuse(post(CL + TE, whole(), version=b"HTTP/1.0")),
    "cl with odd te": refuse(post(CL + b"Transfer-Encoding: xchunked\r\n"), 400, 501),
    "cl with te of 1.0": refuse(post(b"Transfer-Encoding: identity\r\n" + CL), 400, 501),
    "te header is another one": serve(post(b"TE: trailers\r\n" + CL)),
    "named by connection": serve(post(b"Connection: Transfer-Encoding\r\n" + TE, whole())),
}

B16_CHUNKS: dict[str, Case] = {
    "two chunks": serve(chunks(b"1\r\n{\r\n" + whole(BODY[1:]))),
    "upper-case size": serve(chunks(whole().replace(X, X.upper(), 1))),
    "leading zeros": serve(chunks(b"000" + whole())),
    "last chunk of many zeros": serve(chunks(whole()[:-5] + b"000\r\n\r\n")),
    "extension": serve(chunks(X + b";a=b\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "extension, quoted": serve(chunks(X + b';a="b c"\r\n' + BODY + b"\r\n0;z\r\n\r\n")),
    "trailer": serve(chunks(whole()[:-2] + b"X: y\r\n\r\n")),
    "size empty": refuse(chunks(b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "size hex prefix": refuse(chunks(b"0x" + whole())),
    "size plus": refuse(chunks(b"+" + whole())),
    "size minus": refuse(chunks(b"-" + whole())),
    "size underscore": refuse(chunks(b"1_" + whole())),
    "size blank before": refuse(chunks(b" " + whole())),
    "size tab before": refuse(chunks(b"\t" + whole())),
    "size blank behind": refuse(chunks(whole().replace(b"\r\n", b" \r\n", 1))),
    "size tab behind": refuse(chunks(whole().replace(b"\r\n", b"\t\r\n", 1))),
    "size blank before extension": refuse(chunks(whole().replace(b"\r\n", b" ;a\r\n", 1))),
    "size no hex": refuse(chunks(b"g\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "size letter at end": refuse(chunks(whole().replace(b"\r\n", b"g\r\n", 1))),
    "size quoted": refuse(chunks(b'"' + X + b'"\r\n' + BODY + b"\r\n0\r\n\r\n")),
    "size nul": refuse(chunks(whole().replace(b"\r\n", b"\x00\r\n", 1))),
    "size fraction": refuse(chunks(whole().replace(b"\r\n", b".0\r\n", 1))),
    "size full-width": refuse(chunks("\uff15".encode() + b"\r\nhello\r\n0\r\n\r\n")),
    "size 2^31": refuse(chunks(b"80000000\r\n" + BODY), 413),
    "size 2^32 + n": refuse(chunks(b"1000000" + b"%02x" % len(BODY) + b"\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, 413),
    "size 2^63": refuse(chunks(b"8000000000000000\r\n" + BODY), 400, 413),
    "size 2^64": refuse(chunks(b"10000000000000000\r\n" + BODY), 400, 413),
    "size 2^64 + n": refuse(chunks(b"100000000000000" + b"%02x" % len(BODY) + b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "size all f": refuse(chunks(b"f" * 16 + b"\r\n" + BODY), 400, 413),
    "size of 1000 digits": refuse(chunks(b"0" * 1000 + whole())),
    "line ends with lf": refuse(chunks(whole().replace(b"\r\n", b"\n", 1))),
    "line ends with cr": refuse(chunks(whole().replace(b"\r\n", b"\r", 1))),
    "line ends with cr cr lf": refuse(chunks(whole().replace(b"\r\n", b"\r\r\n", 1))),
    "line ends with lf cr": refuse(chunks(whole().replace(b"\r\n", b"\n\r", 1))),
    "data ends with lf": refuse(chunks(X + b"\r\n" + BODY + b"\n0\r\n\r\n")),
    "data ends with cr": refuse(chunks(X + b"\r\n" + BODY + b"\r0\r\n\r\n")),
    "data without end": refuse(chunks(X + b"\r\n" + BODY + b"0\r\n\r\n")),
    "data longer than size": refuse(chunks(b"5\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "data ends with two others": refuse(chunks(X + b"\r\n" + BODY + b"XX0\r\n\r\n")),
    "data shorter than size": refuse(chunks(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) + 1, BODY))),
    "last chunk ends with lf": refuse(chunks(whole()[:-4] + b"\n\r\n")),
    "end is lf": refuse(chunks(whole()[:-2] + b"\n")),
    "end is cr": refuse(chunks(whole()[:-2] + b"\rX")),
    "end is missing": refuse(chunks(whole()[:-2])),
    "extension without name": refuse(chunks(whole().replace(b"\r\n", b";\r\n", 1))),
    "extension with lf": refuse(chunks(whole().replace(b"\r\n", b";a\n\r\n", 1))),
    "extension with lf and size": refuse(chunks(b"2;\nxx\r\n4c\r\n0\r\n\r\n" + HIDDEN)),
    "extension with cr": refuse(chunks(whole().replace(b"\r\n", b";a=\rb\r\n", 1))),
    "extension with nul": refuse(chunks(whole().replace(b"\r\n", b";a=\x00\r\n", 1))),
    "extension with 8 bit": refuse(chunks(whole().replace(b"\r\n", b";a=\xff\r\n", 1))),
    "extension with open quote": refuse(chunks(whole().replace(b"\r\n", b';a="b\r\n', 1))),
    "extension with quoted line end": refuse(chunks(whole().replace(b"\r\n", b';a="\r\n"\r\n', 1))),
    "extension of 1 KiB": refuse(chunks(whole().replace(b"\r\n", b";a=" + b"b" * 1024 + b"\r\n", 1))),
    "extension of 1 MiB": refuse(chunks(X + b";a=" + b"b" * (1 << 20) + b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "trailer frames": refuse(chunks(whole()[:-2] + b"Content-Length: 5\r\n\r\n")),
    "trailer codes": refuse(chunks(whole()[:-2] + b"Transfer-Encoding: chunked\r\n\r\n")),
    "trailer routes": refuse(chunks(whole()[:-2] + b"Host: evil\r\n\r\n")),
    "trailer with blank in name": refuse(chunks(whole()[:-2] + b"X y: z\r\n\r\n")),
    "trailer without colon": refuse(chunks(whole()[:-2] + b"X\r\n\r\n")),
    "trailer with bare lf": refuse(chunks(whole()[:-2] + b"X: y\n\r\n")),
    "trailer with bare cr": refuse(chunks(whole()[:-2] + b"X: y\rz\r\n\r\n")),
    "trailer with nul": refuse(chunks(whole()[:-2] + b"X: \x00\r\n\r\n")),
    "trailer folded": refuse(chunks(whole()[:-2] + b"X: y\r\n z\r\n\r\n")),
    "trailer of 9 KiB": refuse(chunks(whole()[:-2] + b"X: " + b"y" * 9216 + b"\r\n\r\n"), 400, 431),
    "trailer is a request": refuse(chunks(whole()[:-2] + HIDDEN)),
    "a million bytes in chunks of one": refuse(chunks(b"1\r\nx\r\n" * 6000 + b"0\r\n\r\n"), 400, 413),
}

B18_HEADERS: dict[str, Case] = {
    "101 headers": refuse(get(headers=H + b"A: b\r\n" * 100), 431),
    "2,000 headers": refuse(get(headers=H + b"A: b\r\n" * 2000), 431),
    "value of 70 kB": refuse(get(headers=H + b"A: " + b"b" * 70_000 + b"\r\n"), 431),
    "value of 1 MB": refuse(get(headers=H + b"A: " + b"b" * 1_000_000 + b"\r\n"), 431),
    "name of 40 kB": refuse(get(headers=H + b"A" * 40_000 + b": b\r\n"), 400, 431),
    "head of 1 MB": refuse(get(headers=H + b"A: 0123456789abcdef\r\n" * 50_000), 431),
    "target of 9 kB": refuse(get(b"/" + b"a" * 9000), 414),
    "target of 1 MB": refuse(get(b"/" + b"a" * 1_000_000), 414),
    "method of 9 kB": refuse(line(b"A" * 9000 + b" / HTTP/1.1"), 400, 414, 501),
    "folded by blank": refuse(get(headers=H + b"A: b\r\n c\r\n")),
    "folded by tab": refuse(get(headers=H + b"A: b\r\n\tc\r\n")),
    "first line folded": refuse(get(headers=b" A: b\r\n" + H)),
    "first line folded by tab": refuse(get(headers=b"\tA: b\r\n" + H)),
    "line of blanks": refuse(get(headers=H + b" \r\n")),
    "host folded": refuse(get(headers=b"Host:\r\n " + HOST + b"\r\n")),
    "blank before colon": refuse(get(headers=H + b"A : b\r\n")),
    "tab before colon": refuse(get(headers=H + b"A\t: b\r\n")),
    "blank in name": refuse(get(headers=H + b"A B: b\r\n")),
    "no colon": refuse(get(headers=H + b"A\r\n")),
    "only a colon": refuse(get(headers=H + b":\r\n")),
    "empty name": refuse(get(headers=H + b": b\r\n")),
    "name with nul": refuse(get(headers=H + b"A\x00: b\r\n")),
    "name with 8 bit": refuse(get(headers=H + b"\xc3\xa4: b\r\n")),
    "name with bracket": refuse(get(headers=H + b"A[]: b\r\n")),
    "name with slash": refuse(get(headers=H + b"A/B: b\r\n")),
    "name with at": refuse(get(headers=H + b"A@: b\r\n")),
    "name quoted": refuse(get(headers=H + b'"A": b\r\n')),
    "nul in value": refuse(get(headers=H + b"A: b\x00c\r\n")),
    "cr in value": refuse(get(headers=H + b"A: b\rc\r\n")),
    "cr before crlf": refuse(get(headers=H + b"A: b\r\r\n")),
    "lf in value": refuse(get(headers=H + b"A: b\nC: d\r\n")),
    "escape in value": refuse(get(headers=H + b"A: \x1b[31m\r\n")),
    "bell in value": refuse(get(headers=H + b"A: \x07\r\n")),
    "del in value": refuse(get(headers=H + b"A: \x7f\r\n")),
    "all lines end with lf": refuse(b"GET /api/version HTTP/1.1\nHost: " + HOST + b"\n\n"),
    "request line ends with lf": refuse(b"GET /api/version HTTP/1.1\n" + H + b"\r\n"),
    "request line ends with cr": refuse(b"GET /api/version HTTP/1.1\r" + H + b"\r\n"),
    "last header ends with lf": refuse(b"GET /api/version HTTP/1.1\r\nHost: " + HOST + b"\n\r\n"),
    "head ends with lf": refuse(b"GET /api/version HTTP/1.1\r\n" + H + b"\n"),
    "head ends with cr": refuse(b"GET /api/version HTTP/1.1\r\n" + H + b"\r"),
    "head ends with cr cr lf": refuse(b"GET /api/version HTTP/1.1\r\n" + H + b"\r\r\n"),
    "lines end with cr": refuse(b"GET /api/version HTTP/1.1\rHost: " + HOST + b"\r\r"),
    "lines end with lf cr": refuse(b"GET /api/version HTTP/1.1\n\rHost: " + HOST + b"\n\r\n\r"),
    "hidden behind lf lf": refuse(get(headers=H + b"A: b\n\n" + HIDDEN)),
    "obs-text in value": serve(get(headers=H + b"A: \xe4\xff\r\n")),
    "tab in value": serve(get(headers=H + b"A: b\tc\r\n")),
    "empty value": serve(get(headers=H + b"A:\r\n")),
    "underscore in name": serve(get(headers=H + b"X_Real_IP: 10.0.0.1\r\n")),
    "100 headers": serve(get(headers=H + b"A: b\r\n" * 99)),
    "header names in odd case": serve(get(headers=b"hOsT: " + HOST + b"\r\n")),
}

B19_HOSTS: dict[str, Case] = {
    "missing": refuse(get(headers=b"A: b\r\n")),
    "missing, no headers": refuse(get(headers=b"")),
    "empty": refuse(get(headers=b"Host:\r\n")),
    "blank": refuse(get(headers=b"Host:  \r\n")),
    "twice, equal": refuse(get(headers=H + H)),
    "twice, different": refuse(get(headers=H + b"Host: evil\r\n")),
    "twice, second empty": refuse(get(headers=H + b"hOST:\r\n")),
    "twice on 1.0": refuse(get(headers=H + H, version=b"HTTP/1.0")),
    "list": refuse(get(headers=b"Host: " + HOST + b", evil\r\n")),
    "userinfo": refuse(get(headers=b"Host: a@" + HOST + b"\r\n")),
    "userinfo, path and query": refuse(get(headers=b"Host: a@b/c?d\r\n")),
    "path": refuse(get(headers=b"Host: " + HOST + b"/\r\n")),
    "query": refuse(get(headers=b"Host: " + HOST + b"?x\r\n")),
    "fragment": refuse(get(headers=b"Host: " + HOST + b"#x\r\n")),
    "scheme": refuse(get(headers=b"Host: http://" + HOST + b"\r\n")),
    "backslash": refuse(get(headers=b"Host: " + HOST + b"\\evil\r\n")),
    "inner blank": refuse(get(headers=b"Host: " + HOST + b" evil\r\n")),
    "inner tab": refuse(get(headers=b"Host: " + HOST + b"\tevil\r\n")),
    "nul": refuse(get(headers=b"Host: " + HOST + b"\x00\r\n")),
    "8 bit": refuse(get(headers=b"Host: \xe4\r\n")),
    "port no number": refuse(get(headers=b"Host: " + HOST + b":x\r\n")),
    "port negative": refuse(get(headers=b"Host: " + HOST + b":-1\r\n")),
    "port too high": refuse(get(headers=b"Host: " + HOST + b":65536\r\n")),
    "port with blank": refuse(get(headers=b"Host: " + HOST + b": 80\r\n")),
    "two ports": refuse(get(headers=b"Host: " + HOST + b":80:80\r\n")),
    "port with userinfo": refuse(get(headers=b"Host: " + HOST + b":80@evil\r\n")),
    "quotes": refuse(get(headers=b'Host: "' + HOST + b'"\r\n')),
    "angle brackets": refuse(get(headers=b"Host: <a>\r\n")),
    "open bracket": refuse(get(headers=b"Host: [::1\r\n")),
    "bad ipv6": refuse(get(headers=b"Host: [1:2]\r\n")),
    "ipv6 with junk": refuse(get(headers=b"Host: [::1]evil\r\n")),
    "bad escape": refuse(get(headers=b"Host: %zz\r\n")),
    "blank before colon": refuse(get(headers=b"Host : " + HOST + b"\r\n")),
    "foreign (dns rebinding)": refuse(get(headers=b"Host: evil.example\r\n"), 403),
    "foreign with our name before": refuse(get(headers=b"Host: localhost.evil.example\r\n"), 403),
    "absolute form, another host": refuse(get(b"http://evil.example/api/version")),
    "absolute form, another port": refuse(get(b"http://127.0.0.1:1/api/version")),
    "absolute form, foreign host in both": refuse(
        get(b"http://evil.example/api/version", b"Host: evil.example\r\n"), 403
    ),
    "absolute form, userinfo": refuse(get(b"http://a@127.0.0.1/api/version")),
    "absolute form, without host header": refuse(get(b"http://127.0.0.1/api/version", b"")),
    "absolute form, empty host": refuse(get(b"http:///api/version")),
    "absolute form, https": refuse(get(b"https://127.0.0.1/api/version")),
    "absolute form, one slash": refuse(get(b"http:/127.0.0.1/api/version")),
    "absolute form, file": refuse(get(b"file:///etc/passwd")),
    "absolute form": serve(get(b"http://127.0.0.1/api/version")),
    "absolute form, upper-case scheme": serve(get(b"HTTP://127.0.0.1/api/version")),
    "absolute form, query without path": serve(get(b"http://127.0.0.1?x")),
    "absolute form on 1.0": serve(get(b"http://127.0.0.1/", b"", version=b"HTTP/1.0"), ends=True),
    "with port": serve(get(headers=b"Host: " + HOST + b":11435\r\n")),
    "empty port": serve(get(headers=b"Host: " + HOST + b":\r\n")),
    "ipv6": serve(get(headers=b"Host: [::1]:11435\r\n")),
    "upper case": serve(get(headers=b"Host: LOCALHOST\r\n")),
    "missing on 1.0": serve(get(headers=b"", version=b"HTTP/1.0"), ends=True),
    "missing on 1.0 with keep-alive": serve(get(headers=b"Connection: keep-alive\r\n", version=b"HTTP/1.0")),
}

B20_TARGETS: dict[str, Case] = {
    name: serve(get(target), 404, 405, 400)
    for name, target in {
        "double slash": b"//api/version",
        "double slash within": b"/api//version",
        "slash behind": b"/api/version/",
        "dot": b"/api/./version",
        "dot dot": b"/api/../api/version",
        "dot dot out": b"/../../etc/passwd",
        "escaped letter": b"/api/%76ersion",
        "escaped dots": b"/api/%2e%2e/version",
        "escaped slash": b"/api%2fversion",
        "escaped nul": b"/api/version%00",
        "escaped line end": b"/api/version%0d%0aX:%20y",
        "bad escape": b"/api/version%zz",
        "open escape": b"/api/version%",
        "upper case": b"/API/version",
        "parameter": b"/api/version;x",
        "backslash": b"/api\\version",
        "another host": b"//evil.example/api/version",
        "management": b"/api/create",
        "pipe": b"/api/version|x",
    }.items()
} | {
    "fragment": refuse(get(b"/api/version#x")),
    "nul": refuse(get(b"/api/version\x00")),
    "control": refuse(get(b"/api/\x01version")),
    "del": refuse(get(b"/api/version\x7f")),
    "8 bit": refuse(get(b"/api/versi\xf6n")),
    "utf-8": refuse(get("/api/versi\u00f6n".encode())),
    "blank within": refuse(get(b"/api/ver sion")),
    "tab within": refuse(get(b"/api/ver\tsion")),
    "relative": refuse(get(b"api/version")),
    "only a query": refuse(get(b"?x")),
    "backslash first": refuse(get(b"\\api\\version")),
    "asterisk": refuse(get(b"*")),
    "authority form": refuse(get(b"127.0.0.1:80")),
    "line end within": refuse(get(b"/api/version\r\nX: y")),
    "query": serve(get(b"/api/version?a=b&c=%00")),
    "query is an address": serve(get(b"/api/version?http://evil.example/")),
    "root": serve(get(b"/")),
}

B21_METHODS: dict[str, Case] = {
    "lower case": refuse(line(b"get /api/version HTTP/1.1"), 400, 501),
    "mixed case": refuse(line(b"Get /api/version HTTP/1.1"), 400, 501),
    "with digit": refuse(line(b"G3T /api/version HTTP/1.1"), 400, 501),
    "with slash": refuse(line(b"GET/ /api/version HTTP/1.1"), 400, 501),
    "quoted": refuse(line(b'"GET" /api/version HTTP/1.1'), 400),
    "with nul": refuse(line(b"GET\x00 /api/version HTTP/1.1"), 400),
    "empty": refuse(line(b" /api/version HTTP/1.1"), 400),
    "unknown": refuse(line(b"BREW /api/version HTTP/1.1"), 501),
    "begins like a known one": refuse(line(b"GETX /api/version HTTP/1.1"), 501),
    "connect, authority": refuse(line(b"CONNECT 127.0.0.1:80 HTTP/1.1"), 501),
    "connect, path": refuse(line(b"CONNECT /api/version HTTP/1.1"), 501),
    "connect, absolute": refuse(line(b"CONNECT http://127.0.0.1/ HTTP/1.1"), 501),
    "trace": serve(line(b"TRACE /api/version HTTP/1.1"), 405),
    "trace with body": refuse(line(b"TRACE /api/version HTTP/1.1", H + b"Content-Length: 5\r\n") + b"hello", 405),
    "track": refuse(line(b"TRACK /api/version HTTP/1.1"), 501),
    "delete": serve(line(b"DELETE /api/version HTTP/1.1"), 405),
    "delete with body": refuse(line(b"DELETE /api/version HTTP/1.1", H + b"Content-Length: 5\r\n") + b"hello", 405),
    "propfind": serve(line(b"PROPFIND /api/version HTTP/1.1"), 405),
    "put": serve(line(b"PUT /api/chat HTTP/1.1"), 405),
    "options": serve(line(b"OPTIONS /api/chat HTTP/1.1"), 405),
    "options with body": refuse(line(b"OPTIONS /api/chat HTTP/1.1", H + b"Content-Length: 5\r\n") + b"hello", 405),
    "options asterisk": serve(line(b"OPTIONS * HTTP/1.1"), 405),
    "override headers": serve(
        get(headers=H + b"X-HTTP-Method-Override: DELETE\r\nX-HTTP-Method: PUT\r\nX-Original-URL: /api/create\r\n")
    ),
    "head": serve(line(b"HEAD /api/version HTTP/1.1")),
    "head of an unknown path": serve(line(b"HEAD /nowhere HTTP/1.1"), 404),
    "head, malformed": refuse(line(b"HEAD /api/version HTTP/1.1", H + H)),
    "two blanks": refuse(line(b"GET  /api/version HTTP/1.1")),
    "two blanks before version": refuse(line(b"GET /api/version  HTTP/1.1")),
    "tab before target": refuse(line(b"GET\t/api/version HTTP/1.1")),
    "tab before version": refuse(line(b"GET /api/version\tHTTP/1.1")),
    "vertical tab": refuse(line(b"GET\x0b/api/version HTTP/1.1")),
    "blank behind version": refuse(line(b"GET /api/version HTTP/1.1 ")),
    "blank before method": refuse(line(b" GET /api/version HTTP/1.1")),
    "tab before method": refuse(line(b"\tGET /api/version HTTP/1.1")),
    "lf before method": refuse(b"\n" + get()),
    "cr before method": refuse(b"\r" + get()),
    "two lines before method": refuse(b"\r\n\r\n" + get()),
    "one line before method": serve(b"\r\n" + get()),
    "nul before method": refuse(b"\x00" + get()),
    "bom before method": refuse(b"\xef\xbb\xbf" + get()),
    "no version": refuse(b"GET /api/version\r\n"),
    "no version, head": refuse(line(b"GET /api/version")),
    "no target": refuse(line(b"GET HTTP/1.1")),
    "version 0.9": refuse(get(version=b"HTTP/0.9"), 400, 505),
    "version 1.2": refuse(get(version=b"HTTP/1.2"), 400, 505),
    "version 1.9": refuse(get(version=b"HTTP/1.9"), 400, 505),
    "version 2.0": refuse(get(version=b"HTTP/2.0"), 400, 505),
    "version 3": refuse(get(version=b"HTTP/3"), 400, 505),
    "version 1": refuse(get(version=b"HTTP/1"), 400, 505),
    "version 1.10": refuse(get(version=b"HTTP/1.10"), 400, 505),
    "version 1.1.1": refuse(get(version=b"HTTP/1.1.1"), 400, 505),
    "version 01.1": refuse(get(version=b"HTTP/01.1"), 400, 505),
    "version +1.1": refuse(get(version=b"HTTP/+1.1"), 400, 505),
    "version 1,1": refuse(get(version=b"HTTP/1,1"), 400, 505),
    "version -1.1": refuse(get(version=b"HTTP/-1.1"), 400, 505),
    "version lower case": refuse(get(version=b"http/1.1"), 400, 505),
    "version of another protocol": refuse(get(version=b"ICY/1.1"), 400, 505),
    "version with blank": refuse(get(version=b"HTTP/ 1.1"), 400, 505),
    "1.0 with keep-alive": serve(get(version=b"HTTP/1.0", headers=H + b"Connection: keep-alive\r\n")),
    "1.0": serve(get(version=b"HTTP/1.0"), ends=True),
}

WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
B22_UPGRADES: dict[str, Case] = {
    "websocket": serve(get(headers=H + WEBSOCKET)),
    "websocket with body": serve(post(WEBSOCKET + CL)),
    "websocket with chunked body": serve(post(WEBSOCKET + TE, whole())),
    "websocket with a request as body": serve(
        get(headers=H + WEBSOCKET + b"Content-Length: %d\r\n" % len(HIDDEN)) + HIDDEN
    ),
    "h2c": serve(get(headers=H + H2C)),
    "h2c with body": serve(post(H2C + CL)),
    "h2c with two settings": serve(get(headers=H + H2C + b"HTTP2-Settings: AA\r\n")),
    "h2c, lower case": serve(get(headers=H + b"connection: upgrade\r\nupgrade: H2C\r\n")),
    "tls": serve(get(headers=H + b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n")),
    "upgrade and close": serve(get(headers=H + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n"), ends=True),
    "upgrade without connection": serve(get(headers=H + b"Upgrade: websocket\r\n")),
}

B23_HOP_BY_HOP: dict[str, Case] = {
    "names host": serve(get(headers=H + b"Connection: host\r\n")),
    "names content-length": serve(post(b"Connection: Content-Length\r\n" + CL)),
    "names authorization": serve(post(b"Connection: Authorization, X-Tenant\r\nAuthorization: x\r\n" + CL)),
    "close and another": serve(get(headers=H + b"Connection: close, x\r\n"), ends=True),
    "close in the second line": serve(get(headers=H + b"Connection: x\r\nConnection: CLOSE\r\n"), ends=True),
    "keep-alive and close": serve(get(headers=H + b"Connection: keep-alive, close\r\n"), ends=True),
    "proxy-connection": serve(get(headers=H + b"Proxy-Connection: close\r\nKeep-Alive: timeout=1\r\n")),
    "forged addresses": serve(
        post(b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nVia: 1.0 x\r\n" + CL)
    ),
    "request id of 7 kB": serve(post(b"X-Request-Id: " + b"x" * 7000 + b"\r\n" + CL)),
    "request id with escape": refuse(post(b"X-Request-Id: a\x1b[0m\r\n" + CL)),
    "request id with line end": serve(post(b"X-Request-Id: a%0d%0aX: y\r\n" + CL)),
}

B27_EXPECT: dict[str, Case] = {
    "with its body": serve(post(b"Expect: 100-continue\r\n" + CL)),
    "in another case": serve(post(b"Expect: 100-Continue\r\n" + CL)),
    "without a body": serve(get(headers=H + b"Expect: 100-continue\r\n")),
    "with chunks": serve(post(b"Expect: 100-continue\r\n" + TE, whole())),
    "on 1.0": serve(post(b"Expect: 100-continue\r\n" + CL, version=b"HTTP/1.0"), ends=True),
    "unknown": refuse(post(b"Expect: 200-ok\r\n" + CL), 417),
    "list": refuse(post(b"Expect: 100-continue, x\r\n" + CL), 417),
    "empty": refuse(post(b"Expect:\r\n" + CL), 417, 400),
    "twice": refuse(post(b"Expect: 100-continue\r\nExpect: 100-continue\r\n" + CL), 400, 417),
    "too large": refuse(post(b"Expect: 100-continue\r\nContent-Length: 9999999999\r\n"), 413),
    "unknown path": refuse(line(b"POST /nowhere HTTP/1.1", H + b"Expect: 100-continue\r\n" + CL) + BODY, 404),
    "gzip": refuse(post(b"Content-Encoding: gzip\r\n" + CL), 415),
    "zstd": refuse(post(b"Content-Encoding: zstd\r\n" + CL), 415),
    "two codings": refuse(post(b"Content-Encoding: identity, gzip\r\n" + CL), 415),
    "coding twice": refuse(post(b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n" + CL), 400, 415),
    "identity": serve(post(b"Content-Encoding: identity\r\n" + CL)),
}

B29_OTHER_PROTOCOLS: dict[str, Case] = {
    "tls 1.0 hello": refuse(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2),
    "ssl 2 hello": refuse(b"\x80\x2e\x01\x00\x02" + bytes(41)),
    "http/2 preface": refuse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 400, 505),
    "proxy protocol 1": refuse(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + get()),
    "proxy protocol 2": refuse(b"\r\n\r\n\x00\r\nQUIT\n\x20\x11\x00\x0c" + bytes(12)),
    "ssh": refuse(b"SSH-2.0-x\r\n"),
    "smtp": refuse(b"EHLO x\r\n"),
    "ftp": refuse(b"USER x\r\n"),
    "redis": refuse(b"*1\r\n$4\r\nPING\r\n"),
    "socks 5": refuse(b"\x05\x01\x00"),
    "dns": refuse(b"\x00\x1d\x00\x00\x01\x00" + bytes(24)),
    "zeros": refuse(bytes(1000)),
    "ones": refuse(b"\xff" * 1000),
    "line ends": refuse(b"\r\n" * 100),
    "a response": refuse(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "json": refuse(BODY),
    "html": refuse(b"<html></html>\r\n\r\n"),
}

GROUPS: dict[str, dict[str, Case]] = {
    "b14": B14_LENGTHS,
    "b15": B15_CODINGS,
    "b16": B16_CHUNKS,
    "b18": B18_HEADERS,
    "b19": B19_HOSTS,
    "b20": B20_TARGETS,
    "b21": B21_METHODS,
    "b22": B22_UPGRADES,
    "b23": B23_HOP_BY_HOP,
    "b27": B27_EXPECT,
    "b29": B29_OTHER_PROTOCOLS,
}
COUNT = sum(len(group) for group in GROUPS.values())
