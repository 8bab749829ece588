"""Where a request's head and body end, decided in one place and strictly.

What llhttp lets pass (odd hosts, Upgrade with a body, lists of codings) is refused here first; then llhttp parses the
head as a second opinion. The body never goes through a parser that could find another end for it.
"""

import ipaddress
import re
from enum import Enum

import httptools

from bellmare.http.messages import Limits, find_header

CHUNKED = -1
"""Length of a body that comes in chunks."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADERS = rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*"
_METHOD = rb"[A-Z][A-Z-]{0,31}"
_HEAD = re.compile(rb"(" + _METHOD + rb") (/[!\"$-~]*|\*) HTTP/1\.([01])\r\n" + _HEADERS + rb"\r\n")
_ABSOLUTE = re.compile(
    rb"("
    + _METHOD
    + rb") ([Hh][Tt][Tt][Pp]://([^/?#\s]*)((?:[/?][!\"$-~]*)?)) HTTP/1\.([01])\r\n"
    + _HEADERS
    + rb"\r\n"
)
"""The form that clients use towards proxies; every server must take it (RFC 9112 3.2.2)."""
_REQUEST_LINE = re.compile(rb"(" + _METHOD + rb") (\S*) HTTP/([0-9]\.[0-9])\r\n")
_METHOD_BEGUN = re.compile(_METHOD + rb"(?: |\Z)")
_PORT = rb"[0-9]{0,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[0-9A-Za-z._~-]|%[0-9A-Fa-f]{2})+)(?::(?:" + _PORT + rb"))?")
_CODING = re.compile(_TOKEN)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"[\t !#-\[\]-~]*"))?)*\r\n')
_TRAILERS = re.compile(_HEADERS + rb"\r\n")

_CHUNK_LINE_BYTES_MAX = 256
"""Size and extensions of one chunk; nobody sends extensions, and 1 MB of them is an attack."""
_TRAILER_BYTES_MAX = 8192
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
"""Below 2^63, so that nobody wraps around; without leading zeros, which some read as octal and no client sends."""
_SPECIAL = frozenset(
    (
        b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"content-encoding", b"origin",
        # Some servers take _ for -: who reads these and who does not disagree about where the body ends.
        b"content_length", b"transfer_encoding",
    ),
)  # fmt: skip
_FRAMING_TRAILER = re.compile(rb"(?:\A|\n)(?:content-length|transfer-encoding|host|trailer):", re.IGNORECASE)


class Malformed(Exception):  # noqa: N818  # a verdict on the client's bytes, not an error of ours
    """The client's bytes break a rule: answer ``status`` and close."""

    def __init__(self, status: int, reason: str, target: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.target = target


class Head:
    """A request's head as llhttp read it, and what it says about the body and the connection."""

    __slots__ = ("continues", "headers", "keep_alive", "length", "minor", "url")

    def __init__(self, minor: int) -> None:
        self.url = b""
        self.minor = minor
        """HTTP/1.x."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.length = 0
        """Bytes of the body, or ``CHUNKED``."""
        self.keep_alive = minor == 1
        self.continues = False
        """The client waits for 100 before it sends the body."""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def check_partial(data: bytes, limits: Limits) -> None:
    """Refuse as early as possible a head whose end has not come: too large, or never going to be one."""
    first = data[0]
    if not 0x41 <= first <= 0x5A:
        raise Malformed(400, "not an HTTP request")
    if _BARE.search(data):
        raise Malformed(400, "bare CR, bare LF or NUL in the head")
    line = data.find(b"\r\n")
    if (line if line >= 0 else len(data)) > limits.line_bytes_max:
        raise Malformed(414, "request line too long")
    if len(data) > limits.head_bytes_max:
        raise Malformed(431, "request head too large")
    if line < 0:
        if _METHOD_BEGUN.match(data) is None:
            raise Malformed(400, "bad request line")
        return
    lines = data[: data.rfind(b"\r\n") + 2] + b"\r\n"
    if _HEAD.fullmatch(lines) is None and _ABSOLUTE.fullmatch(lines) is None:
        raise _diagnose(lines)


def parse_head(data: bytes, limits: Limits) -> tuple[Head, str, str]:
    """Parse a complete head, its empty line included: head, method and target. Raises Malformed."""
    if len(data) > limits.line_bytes_max:
        _check_lines(data, limits)
    match = _HEAD.fullmatch(data)
    authority = None
    if match is not None:
        method, url, minor = match.groups()
        target = url.decode("ascii")
    else:
        match = _ABSOLUTE.fullmatch(data)
        if match is None:
            raise _diagnose(data)
        method, url, authority, path, minor = match.groups()
        target = ("" if path.startswith(b"/") else "/") + path.decode("ascii")
    if url == b"*" and method != b"OPTIONS":
        raise Malformed(400, "bad request target", target)
    if method == b"CONNECT":
        raise Malformed(501, "CONNECT is not served", target)
    head = Head(1 if minor == b"1" else 0)
    error = _feed(head, data)
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        raise Malformed(501, "unknown method", target)
    if len(head.headers) > limits.headers_max:
        raise Malformed(431, "too many headers", target)
    try:
        _apply_headers(head, data)  # before llhttp's verdict: it calls an unknown transfer-encoding just invalid
        if authority is not None:
            _apply_authority(head, authority)
    except Malformed as verdict:
        verdict.target = target
        raise
    if error is not None:
        raise Malformed(400, str(error), target)
    assert head.url == url, "llhttp and the grammar disagree about the target"
    return head, method.decode("ascii"), target


def _feed(head: Head, data: bytes) -> httptools.HttpParserError | None:
    """Let llhttp read the head; its complaint, if it has one."""
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # Upgrade is ignored: the body is framed by us, so nothing is skipped
    except httptools.HttpParserError as error:
        return error
    return None


def _apply_authority(head: Head, authority: bytes) -> None:
    """A target in absolute form: it names the host, and a Host header that says something else is a trick."""
    host = find_header(head.headers, b"host")
    if host is None:
        head.headers.append((b"host", authority))
        if not _is_host(authority):
            raise Malformed(400, "bad request target")
    elif host.lower() != authority.lower():
        raise Malformed(400, "the request target and the host header name different hosts")


def _is_host(host: bytes) -> bool:
    """Whether it is a host with or without a port (RFC 9110 7.2), and nothing beside it."""
    match = _HOST.fullmatch(host)
    if match is None or match[1] is None:
        return match is not None
    try:
        ipaddress.IPv6Address(match[1].decode("ascii"))
    except ValueError:
        return False
    return True


def _apply_headers(head: Head, data: bytes) -> None:
    """Set length, keep_alive and continues from the headers that decide framing."""
    if b" \r\n" in data or b"\t\r\n" in data:
        # llhttp leaves trailing blanks on a value.
        head.headers = [(name, value.strip(b" \t")) for name, value in head.headers]
    special: dict[bytes, bytes] = {}
    for item in head.headers:
        name = item[0]
        if name in _SPECIAL:
            if name not in special:
                special[name] = item[1]
            elif name == b"connection":
                special[name] += b"," + item[1]
            else:
                raise Malformed(400, "a header that may come once came twice")
    host = special.pop(b"host", None)
    if host is None:
        if head.minor:
            raise Malformed(400, "missing host header")
    elif not _is_host(host):
        raise Malformed(400, "bad host header")
    if not special:
        return
    _apply_length(head, special)
    connection = special.get(b"connection")
    if connection is not None:
        options = [option.strip(b" \t") for option in connection.lower().split(b",")]
        head.keep_alive = b"close" not in options and (head.minor == 1 or b"keep-alive" in options)
    if special.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Malformed(415, "content-encoding is not supported")
    expect = special.get(b"expect")
    if expect is not None and head.minor:
        if expect.lower() != b"100-continue":
            raise Malformed(417, "unknown expectation")
        head.continues = head.length != 0


def _apply_length(head: Head, special: dict[bytes, bytes]) -> None:
    length = special.get(b"content-length")
    coding = special.get(b"transfer-encoding")
    if b"content_length" in special or b"transfer_encoding" in special:
        raise Malformed(400, "a header that only looks like one that frames the body")
    if length is not None:
        if coding is not None:
            raise Malformed(400, "content-length together with transfer-encoding")
        if _LENGTH.fullmatch(length) is None:
            raise Malformed(400, "bad content-length")
        head.length = int(length)
    elif coding is not None:
        if not head.minor:
            raise Malformed(400, "transfer-encoding with HTTP/1.0")
        if coding != b"chunked":
            # A clean name of another coding is 501 (RFC 9112 6.1); lists, case games and the like are attacks.
            unknown = _CODING.fullmatch(coding) is not None and coding.lower() != b"chunked"
            raise Malformed(501 if unknown else 400, "unsupported transfer-encoding")
        head.length = CHUNKED


def _check_lines(data: bytes, limits: Limits) -> None:
    request_line, *lines = data.split(b"\r\n")
    if len(request_line) > limits.line_bytes_max:
        raise Malformed(414, "request line too long")
    if len(data) > limits.head_bytes_max or max(map(len, lines)) > limits.line_bytes_max:
        raise Malformed(431, "request head too large")


def _diagnose(data: bytes) -> Malformed:
    """Say what is wrong with a head that is not in the grammar."""
    line = _REQUEST_LINE.match(data)
    if line is None:
        return Malformed(400, "bad request line")
    method, target, version = line.groups()
    if version not in (b"1.0", b"1.1"):
        return Malformed(505, "HTTP version not supported")
    if method == b"CONNECT":
        return Malformed(501, "CONNECT is not served")
    request_line = data[: line.end()] + b"\r\n"
    if _HEAD.fullmatch(request_line) is None and _ABSOLUTE.fullmatch(request_line) is None:
        return Malformed(400, "bad request target")
    return Malformed(400, "bad header line", target.decode("latin-1"))


class _Stage(Enum):
    size = "size"
    content = "content"
    separator = "separator"
    trailers = "trailers"


_SIZE = _Stage.size
SIZE_LINES: dict[bytes, int] = {}
"""Size lines as Go and most others write them, for chunks of one token to some hundred."""
for _size in range(1, 8192):
    SIZE_LINES[b"%x\r\n" % _size] = _size


class ChunkedBody:
    """Decodes one chunked body and finds its exact end, which llhttp does not tell. Trailers are checked and dropped.

    llhttp would go on into the next pipelined request, and httptools offers no way to stop it there.
    """

    __slots__ = ("_body_bytes_max", "_chunks", "_left", "_limits", "_of_request", "_partial", "_stage", "parts", "size")

    def __init__(self, body_bytes_max: int, limits: Limits, *, of_request: bool = True) -> None:
        """``of_request``: a trailer that could frame or route is an attack; of an answer it is only dropped."""
        self._of_request = of_request
        self._body_bytes_max = body_bytes_max
        self._limits = limits
        self._stage = _Stage.size
        self._left = 0
        self._chunks = 0
        self._partial = b""
        """The begun size line, separator or trailers; never content, so it is bounded."""
        self.parts: list[bytes] = []
        self.size = 0
        """Bytes announced so far by the chunk sizes."""

    @property
    def between(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._stage is _SIZE and not self._partial

    def take(self) -> list[bytes]:
        """The content since the last time, in the parts in which it came."""
        parts, self.parts = self.parts, []
        return parts

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return those behind the end of the body, or None while it goes on. Raises Malformed."""
        data = self._partial + data if self._partial else data
        self._partial = b""
        position = 0
        while True:
            if self._stage is _Stage.content:
                part = data[position : position + self._left]
                if part:
                    self.parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    return None
                self._stage = _Stage.separator
            if self._stage is _Stage.separator:
                separator = data[position : position + 2]
                if not b"\r\n".startswith(separator):
                    raise Malformed(400, "chunk longer than its size")
                if len(separator) < 2:
                    self._partial = separator
                    return None
                position += 2
                self._stage = _Stage.size
            if self._stage is _Stage.trailers:
                return self._end(data, position)
            end = self._size_line(data, position)
            if end is None:
                return None
            position = end

    def _size_line(self, data: bytes, position: int) -> int | None:
        """Read one size line at ``position`` and return where it ends, or None if it is not complete."""
        match = _CHUNK_LINE.match(data, position)
        if match is None:
            rest = data[position : position + _CHUNK_LINE_BYTES_MAX]
            if b"\n" in rest or b"\r" in rest[:-1] or len(rest) == _CHUNK_LINE_BYTES_MAX:
                raise Malformed(400, "bad chunk size")
            if rest and rest[0] not in b"0123456789abcdefABCDEF":
                raise Malformed(400, "bad chunk size")
            self._partial = rest
            return None
        if match.end() - position > _CHUNK_LINE_BYTES_MAX:
            raise Malformed(400, "bad chunk size")
        self._left = int(match[1], 16)
        self.size += self._left
        self._chunks += 1
        if self.size > self._body_bytes_max:
            raise Malformed(413, "request body too large")
        limits = self._limits
        if self._chunks > limits.chunks_free + self.size // limits.chunk_bytes_average_min:
            raise Malformed(400, "too many small chunks")
        self._stage = _Stage.content if self._left else _Stage.trailers
        return match.end()

    def _end(self, data: bytes, position: int) -> bytes | None:
        """Skip the trailers; the bytes behind them, or None if they are not complete."""
        match = _TRAILERS.match(data, position)
        if match is not None and match.end() - position <= _TRAILER_BYTES_MAX:
            if self._of_request and _FRAMING_TRAILER.search(match[0]):
                raise Malformed(400, "a trailer that would frame or route the request")
            return data[match.end() :]
        rest = data[position:]
        end = rest.find(b"\r\n\r\n")
        if (end if end >= 0 else len(rest)) > _TRAILER_BYTES_MAX:
            raise Malformed(431, "trailers too large")
        if end >= 0 or rest.startswith(b"\r\n") or _BARE.search(rest):
            raise Malformed(400, "bad trailers")
        self._partial = rest
        return None
