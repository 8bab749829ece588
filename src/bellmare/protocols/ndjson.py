"""Lines out of arbitrary chunks, bounded. Knows no JSON: any chunking of the same bytes gives the same lines."""

LINE_BYTES_MAX = 1 << 20
"""From a worker; the Go client's own limit is 8 MB (ollama.md 1.5), a token's line is under 1 KiB."""


class LineTooLong(Exception):  # noqa: N818 - a limit that was met, not an error of ours
    """A line passed the bound before its newline came. The stream cannot be continued."""

    def __init__(self, line_bytes_max: int) -> None:
        super().__init__(f"a line is longer than {line_bytes_max} bytes")
        self.line_bytes_max = line_bytes_max


class LineSplitter:
    """Gives whole lines, without their LF or CRLF. A bare CR is part of its line."""

    def __init__(self, *, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        assert line_bytes_max > 0
        self._line_bytes_max = line_bytes_max
        self._pieces: list[bytes] = []
        """The unfinished line, in the pieces in which it came: joined once, so that a long line costs O(n)."""
        self._held_bytes = 0

    @property
    def rest(self) -> bytes:
        """The line that has begun and not ended; at the end of a stream it is a cut line."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes. Raises :class:`LineTooLong`, after which the splitter must not be used.

        The bound counts a line with its CR and without its LF.
        """
        end = data.find(b"\n")
        if end < 0:
            self._hold(data)
            return []
        if end == len(data) - 1 and not self._pieces and end <= self._line_bytes_max:
            return [data[:-2] if data.endswith(b"\r\n") else data[:-1]]  # one line, as a worker's tokens come
        if self._pieces:
            data = b"".join((*self._pieces, data))
            self._pieces.clear()
            self._held_bytes = 0
        *lines, last = data.split(b"\n")
        limit = self._line_bytes_max
        if len(data) > limit and max(map(len, lines)) > limit:
            raise LineTooLong(limit)
        self._hold(last)
        return [line[:-1] if line.endswith(b"\r") else line for line in lines]

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._held_bytes += len(data)
        if self._held_bytes > self._line_bytes_max:
            raise LineTooLong(self._line_bytes_max)
        self._pieces.append(data)


def split_complete(data: bytes) -> tuple[bytes, bytes]:
    """The largest prefix of ``data`` that ends in a newline, and what is left."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


class LineGate:
    """Lets bytes pass up to the last newline only, so that a client never sees half a line of a failed worker.

    Lines are not looked at one by one: many leave in one write. Only the held, unfinished line is bounded.
    """

    def __init__(self, *, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        assert line_bytes_max > 0
        self._line_bytes_max = line_bytes_max
        self._pieces: list[bytes] = []
        self.holds = 0
        """Bytes of a line that has begun and not ended."""

    @property
    def rest(self) -> bytes:
        """What is held back; if the stream ends here it must not be sent."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> bytes:
        """The bytes that may leave now: empty, or ending in a newline. Raises :class:`LineTooLong`."""
        if not self._pieces and data.endswith(b"\n"):
            return data  # whole lines, as a worker's tokens come
        ready, rest = split_complete(data)
        if ready and self._pieces:
            ready = b"".join((*self._pieces, ready))
            self._pieces.clear()
            self.holds = 0
        if rest:
            self.holds += len(rest)
            if self.holds > self._line_bytes_max:
                raise LineTooLong(self._line_bytes_max)
            self._pieces.append(rest)
        return ready
