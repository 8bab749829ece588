"""What travels between load and upstream: requests with an order in their prompt, answers, stamped chunks.

A prompt may begin with ``bench(CHUNKS,INTERVAL_US,ID)``: how many chunks the answer has, how far apart, whose it is.
Proxies carry it unread, gateways that parse and rewrite the body keep it, because it is the user's text.
"""

import json
import re

MODELS = tuple(f"bench{number}:latest" for number in range(4))
"""Several, because a runner has at most 1,024 slots by the settings and 2,000 streams must not wait."""
SLOTS = 1024
ENDLESS = 1_000_000_000
"""Chunks of a stream that only its client ends."""
CREATED = "2026-01-01T00:00:00Z"
CONTROL_PATH = "/bench"
ORDER = re.compile(rb"bench\((\d+),(\d+),(\d+)\)")
STAMP = re.compile(rb"#(\d{7})@(\d{18})")
"""Number of a chunk in its stream, from 0, and CLOCK_MONOTONIC in nanoseconds when it was sent."""
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
DONE = b'"done":true'
COUNTERS = (
    '"done":true,"done_reason":"stop","total_duration":812345678,"load_duration":12345678,'
    '"prompt_eval_count":160,"prompt_eval_duration":23456789,"eval_count":40,"eval_duration":756543210'
)
ANSWER_TEXT = "The sky is blue because air scatters short waves more."


def order(chunks: int, interval_us: int = 0, number: int = 0) -> str:
    """The beginning of a prompt. No chunks: one unstreamed answer. No interval: as fast as it is taken."""
    return f"bench({chunks},{interval_us},{number})"


def request(address: str, *, model: str, prompt: str, stream: bool, body_bytes: int = 1024) -> bytes:
    """A POST /api/chat of ``body_bytes`` bytes, the prompt filled up with words."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
    missing = body_bytes - len(json.dumps(body, separators=(",", ":")))
    if missing > 0:
        body["messages"] = [{"role": "user", "content": prompt + (" why is the sky blue" * body_bytes)[:missing]}]
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST /api/chat HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\naccept: */*\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(payload) + payload


def get(address: str, path: str) -> bytes:
    """A GET without a body."""
    return f"GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\n\r\n".encode()


def plain(status: int, body: bytes) -> bytes:
    """A whole answer of known length."""
    reason = {200: b"OK", 404: b"Not Found", 411: b"Length Required"}[status]
    head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: %d\r\n\r\n"
    return head % (status, reason, len(body)) + body


def answer_line(path: str, model: str, text: str, *, end: str) -> bytes:
    """One object of Ollama's answer at ``path``; ``end`` is ``"done":false`` or the counters."""
    said = f'"response":"{text}"' if path == "/api/generate" else f'"message":{{"role":"assistant","content":"{text}"}}'
    return f'{{"model":"{model}","created_at":"{CREATED}",{said},{end}}}'.encode()


def chunk(payload: bytes) -> bytes:
    """``payload`` in chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk_template(path: str) -> bytes:
    """A chunk of one token line, to be filled with ``% (number, stamp_ns)``; always of the same length."""
    line = answer_line(path, MODELS[0], "#@", end='"done":false').replace(b"%", b"%%") + b"\n"
    filled = len(line) - len(b"#@") + len(b"#0000000@") + 18
    return b"%x\r\n" % filled + line.replace(b"#@", b"#%07d@%018d") + b"\r\n"


def stream_end(path: str) -> bytes:
    """The closing line with the counters, and the end of the body."""
    return chunk(answer_line(path, MODELS[0], "", end=COUNTERS) + b"\n") + LAST_CHUNK
