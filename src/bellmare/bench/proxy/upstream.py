"""A fake Ollama that costs next to nothing: one thread, raw epoll, answers made beforehand. Computes nothing.

To a gateway it is a stock server (/api/version, /api/tags, /api/ps, /api/show, loads and unloads) whose models are
resident from the start. Its own port also answers ``/bench``: what it has accepted, and when streams were left.
Prints its port; ends when its standard input does, so that it never outlives the benchmark.
"""

import contextlib
import gc
import json
import select
import socket
import sys
import time
from collections import deque
from typing import Any

from bellmare.bench.proxy import wire

RECEIVE_BYTES = 65536
EVENTS_MAX = 1024
BACKLOG = 4096
HEADS_MAX = 1000
"""Request heads remembered; those of a proxy are mostly the same."""
GONE_MAX = 10_000
FINE_WAIT_S = 0.002
"""epoll waits whole milliseconds, which would send chunks in heaps; below this, select on the epoll waits finer."""
FLOOD_LINES = 256
FOR_EVER = "2318-03-05T00:00:00Z"
WEIGHTS_BYTES = 1 << 30
DEFAULT_CHUNKS = 16
DEFAULT_CONTEXT = 8192
"""bellmare's own default, so that nothing is loaded again."""
DEFAULT_INTERVAL_US = 20_000
_READ = select.EPOLLIN
_BOTH = select.EPOLLIN | select.EPOLLOUT


class Stream:
    """An answer under way."""

    __slots__ = ("chunks", "connection", "due_ns", "flood", "interval_ns", "number", "path", "sent")

    def __init__(self, connection: "Connection", path: str, *, chunks: int, interval_us: int, number: int) -> None:
        self.connection = connection
        self.path = path
        self.chunks = chunks
        self.interval_ns = interval_us * 1000
        self.number = number
        self.flood = interval_us == 0
        self.sent = 0
        self.due_ns = 0


class Connection:
    """One accepted socket."""

    __slots__ = ("held", "out", "sock", "stream")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.held = b""
        """The beginning of a request."""
        self.out = b""
        """What the socket did not take yet."""
        self.stream: Stream | None = None


class Upstream:
    """The server. ``run`` returns when standard input is closed."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(BACKLOG)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), _READ)
        self.connections: dict[int, Connection] = {}
        self.paced: dict[int, deque[Stream]] = {}
        """Streams by interval, next due first: equal intervals keep their order, so no heap is needed."""
        self.accepted = 0
        self.gone: list[tuple[int, int]] = []
        self.loaded = dict.fromkeys(wire.MODELS, DEFAULT_CONTEXT)
        self.heads: dict[bytes, tuple[str, int]] = {}
        paths = ("/api/chat", "/api/generate")
        self.plain = {p: self._whole(p, wire.MODELS[0]) for p in paths}
        self.token = {p: wire.chunk_template(p) for p in paths}
        self.end = {p: wire.stream_end(p) for p in paths}

    @staticmethod
    def _whole(path: str, model: str) -> bytes:
        return wire.plain(200, wire.answer_line(path, model, wire.ANSWER_TEXT, end=wire.COUNTERS))

    # ------------------------------------------------------------------ loop

    def run(self, *, stop_fd: int) -> None:
        """Serve until ``stop_fd`` becomes readable."""
        self.epoll.register(stop_fd, _READ)
        listener, connections = self.listener.fileno(), self.connections
        poll, epoll_fd = self.epoll.poll, self.epoll.fileno()
        while True:
            wait_s = self._send_due()
            if wait_s is None:
                events = poll(-1, EVENTS_MAX)
            elif wait_s > FINE_WAIT_S:
                events = poll(wait_s - 0.001, EVENTS_MAX)
            else:
                if wait_s > 0:
                    select.select([epoll_fd], (), (), wait_s)
                events = poll(0, EVENTS_MAX)
            for fd, event in events:
                connection = connections.get(fd)
                if connection is not None:
                    if event & select.EPOLLOUT:
                        self._writable(fd, connection)
                    if event & ~select.EPOLLOUT:
                        self._readable(fd, connection)
                elif fd == listener:
                    self._accept()
                elif fd == stop_fd:
                    return

    def close(self) -> None:
        for connection in self.connections.values():
            connection.sock.close()
        self.listener.close()
        self.epoll.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self.connections[sock.fileno()] = Connection(sock)
            self.epoll.register(sock.fileno(), _READ)

    def _lost(self, fd: int, connection: Connection) -> None:
        stream = connection.stream
        if stream is not None:
            if len(self.gone) < GONE_MAX:
                self.gone.append((stream.number, time.monotonic_ns()))
            connection.stream = None
        if self.connections.pop(fd, None) is not None:
            self.epoll.unregister(fd)
            connection.sock.close()

    # ------------------------------------------------------------------ streams

    def _send_due(self) -> float | None:
        """Send every chunk that is due; seconds until the next one, None without any."""
        next_ns = 0
        for interval_us, streams in list(self.paced.items()):
            while streams:
                stream = streams[0]
                if stream.connection.stream is not stream:
                    streams.popleft()
                    continue
                now = time.monotonic_ns()
                if stream.due_ns > now:
                    if not next_ns or stream.due_ns < next_ns:
                        next_ns = stream.due_ns
                    break
                streams.popleft()
                if self._next_chunk(stream, now):
                    stream.due_ns += stream.interval_ns
                    streams.append(stream)
            if not streams:
                del self.paced[interval_us]
        return max(0.0, (next_ns - time.monotonic_ns()) / 1e9) if next_ns else None

    def _next_chunk(self, stream: Stream, now_ns: int) -> bool:
        """One more chunk, or the end; whether more will follow."""
        if stream.sent >= stream.chunks:
            stream.connection.stream = None
            self._send(stream.connection, self.end[stream.path])
            return False
        self._send(stream.connection, self.token[stream.path] % (stream.sent % 10_000_000, now_ns))
        stream.sent += 1
        return True

    def _begin(self, stream: Stream) -> None:
        now = time.monotonic_ns()
        first = wire.STREAM_HEAD + self.token[stream.path] % (0, now)
        stream.sent = 1
        stream.connection.stream = stream
        if stream.flood:
            self._send(stream.connection, first)
            self._flood(stream)
            return
        stream.due_ns = now + stream.interval_ns
        self.paced.setdefault(stream.interval_ns, deque()).append(stream)
        self._send(stream.connection, first)

    def _flood(self, stream: Stream) -> None:
        """Chunks until the socket takes no more."""
        token = self.token[stream.path]
        while stream.connection.stream is stream and not stream.connection.out:
            if stream.sent >= stream.chunks:
                stream.connection.stream = None
                self._send(stream.connection, self.end[stream.path])
                return
            lines = min(FLOOD_LINES, stream.chunks - stream.sent)
            now = time.monotonic_ns()
            block = b"".join([token % (number % 10_000_000, now) for number in range(stream.sent, stream.sent + lines)])
            stream.sent += lines
            self._send(stream.connection, block)

    # ------------------------------------------------------------------ bytes

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.out:
            connection.out += data
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(connection.sock.fileno(), connection)
            return
        if sent < len(data):
            connection.out = data[sent:]
            self.epoll.modify(connection.sock.fileno(), _BOTH)

    def _writable(self, fd: int, connection: Connection) -> None:
        out, connection.out = connection.out, b""
        self._send(connection, out)
        if not connection.out and fd in self.connections:
            self.epoll.modify(fd, _READ)
            if connection.stream is not None and connection.stream.flood:
                self._flood(connection.stream)

    def _readable(self, fd: int, connection: Connection) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(fd, connection)
            return
        if connection.held:
            data = connection.held + data
            connection.held = b""
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                connection.held = data
                return
            head = data[:end]
            path, length = self.heads.get(head) or self._learn(head)
            stop = end + 4 + length
            if len(data) < stop:
                connection.held = data
                return
            if data.find(b"bench(", end) < 0:
                self._slow(connection, path, data[end + 4 : stop])
            elif data.find(b'"stream":false', end) >= 0:
                self._send(connection, self.plain[path])
            else:
                self._ordered(connection, path, data)
            data = data[stop:]

    def _learn(self, head: bytes) -> tuple[str, int]:
        """Path and body length of a request; remembered."""
        target = head.split(b" ", 2)[1].decode("latin-1")
        found = wire.LENGTH.search(head)
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        known = self.heads[head] = (target.partition("?")[0], int(found[1]) if found else 0)
        return known

    def _ordered(self, connection: Connection, path: str, data: bytes) -> None:
        found = wire.ORDER.search(data)
        assert found is not None, "an order is whole or absent"
        chunks, interval_us, number = (int(part) for part in found.groups())
        self._begin(Stream(connection, path, chunks=chunks, interval_us=interval_us, number=number))

    # ------------------------------------------------------------------ what a stock server answers

    def _slow(self, connection: Connection, path: str, body: bytes) -> None:
        if path == wire.CONTROL_PATH:
            self.accepted -= 1  # its own connection counts for nobody
            self._send(connection, wire.plain(200, self._report()))
            return
        if path in self.plain:
            self._infer(connection, path, json.loads(body))
            return
        answer = self._about(path, json.loads(body) if body else {})
        status = 404 if answer is None else 200
        self._send(connection, wire.plain(status, json.dumps(answer or {"error": "404 page not found"}).encode()))

    def _report(self) -> bytes:
        gone, self.gone = self.gone, []
        streams = sum(1 for connection in self.connections.values() if connection.stream is not None)
        return json.dumps({"accepted": self.accepted, "streams": streams, "gone": gone}).encode()

    def _about(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/api/version":
            return {"version": "0.17.0"}
        if path == "/api/tags":
            return {"models": [self._entry(name) for name in wire.MODELS]}
        if path == "/api/ps":
            return {"models": [self._runner(name, context) for name, context in self.loaded.items()]}
        if path == "/api/show" and self._known(body):
            name = self._known(body)
            return {
                "modelfile": f"FROM /models/blobs/sha256-{_digest(name, 'a')}",
                "parameters": "",
                "details": _DETAILS,
                "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
                "capabilities": ["completion"],
            }
        return None

    @staticmethod
    def _known(body: dict[str, Any]) -> str:
        """The canonical name that a body asks for; empty if it is not here."""
        name = str(body.get("model") or body.get("name") or "")
        name = name if ":" in name else f"{name}:latest"
        return name if name in wire.MODELS else ""

    @staticmethod
    def _entry(name: str) -> dict[str, Any]:
        when = wire.CREATED
        return {
            "name": name, "model": name, "modified_at": when, "size": WEIGHTS_BYTES, "digest": _digest(name, "d"),
            "details": _DETAILS,
        }  # fmt: skip

    def _runner(self, name: str, context: int) -> dict[str, Any]:
        entry = self._entry(name)
        del entry["modified_at"]
        return entry | {"size_vram": WEIGHTS_BYTES, "context_length": context, "expires_at": FOR_EVER}

    def _infer(self, connection: Connection, path: str, body: dict[str, Any]) -> None:
        """Loads, unloads, and answers to prompts without an order."""
        name = self._known(body)
        if not name:
            text = json.dumps({"error": f"model '{body.get('model')}' not found"}).encode()
            self._send(connection, wire.plain(404, text))
        elif body.get("prompt") or body.get("messages"):
            self.loaded.setdefault(name, DEFAULT_CONTEXT)
            if body.get("stream") is False:
                self._send(connection, self._whole(path, name))
            else:
                self._begin(Stream(connection, path, chunks=DEFAULT_CHUNKS, interval_us=DEFAULT_INTERVAL_US, number=0))
        else:
            leaves = body.get("keep_alive") == 0
            if leaves:
                self.loaded.pop(name, None)
            else:
                self.loaded[name] = int((body.get("options") or {}).get("num_ctx") or DEFAULT_CONTEXT)
            end = f'"done":true,"done_reason":"{"unload" if leaves else "load"}"'
            self._send(connection, wire.plain(200, wire.answer_line(path, name, "", end=end)))


_DETAILS = {
    "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "1B",
    "quantization_level": "Q4_0",
}  # fmt: skip


def _digest(name: str, letter: str) -> str:
    return letter * 63 + str(wire.MODELS.index(name))


def main() -> None:
    gc.disable()  # no cycles are made, and a collection would delay every stream
    upstream = Upstream()
    sys.stdout.write(f"{upstream.port}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        upstream.run(stop_fd=sys.stdin.fileno())
    upstream.close()


if __name__ == "__main__":
    main()
