"""C1 to C15: what a body may try is refused without a word to a worker, or written anew so that it does as checked."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
import zlib

import pytest
from recording_worker import RecordingWorker
from rig import Gateway

from bellmare.protocols.images import IMAGES_MAX, PIXELS_MAX, pixels
from bellmare.protocols.ollama_requests import EMBED_INPUTS_MAX

pytestmark = pytest.mark.slow

NATIVE = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")
CHAT = "/v1/chat/completions"
ALL = (*NATIVE, CHAT)
HI = [{"role": "user", "content": "hi"}]


def said(path: str, **more: object) -> bytes:
    fields: dict[str, object] = {"messages": HI} if "chat" in path else {"input": "x"}
    if path in ("/api/generate", "/api/embeddings"):
        fields = {"prompt": "x"}
    return json.dumps({"model": "a:1", **fields} | more).encode()


def asked(worker: RecordingWorker) -> list[dict]:
    """Bodies of what the worker was asked to compute; loads have no content."""
    bodies = [json.loads(body) for head, body in worker.requests() if body and not head.startswith(b"POST /api/show")]
    return [body for body in bodies if body.get("messages") or body.get("prompt") or body.get("input")]


async def refused(running: Gateway, path: str, data: bytes, *statuses: int) -> str:
    start = time.monotonic()
    reply = await running.post(path, data)
    assert reply.status in (statuses or (400,)), (path, data[:100], reply.status, reply.body[:200])
    assert time.monotonic() - start < 10
    return reply.error


@pytest.fixture
async def fleet(recorded, gateway):
    """A gateway whose worker holds a:1, and that worker."""
    worker = await recorded()
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    before = len(asked(worker))
    return running, worker, before


@pytest.mark.parametrize("path", ALL)
async def test_c01_a_key_twice_in_any_case_is_refused(path, fleet):
    running, worker, before = fleet
    whole = said(path)
    for extra in (
        '"model":"b:1"',
        '"Model":"b:1"',
        '"MODEL":"b:1"',
        '"mod\\u0065l":"b:1"',
        '"x":1,"x":2',
        '"x":1,"X":2',
    ):
        await refused(running, path, whole[:-1] + b"," + extra.encode() + b"}")
    if path != CHAT:
        for key in ("\u212aeep_alive", "\\u212aeep_alive", "KEEP_ALIVE", "option\u017f", "Options"):
            await refused(running, path, whole[:-1] + f',"{key}":0}}'.encode())
    assert len(asked(worker)) == before


@pytest.mark.parametrize("path", NATIVE)
async def test_c02_numbers_that_are_none_are_refused(path, fleet):
    running, worker, before = fleet
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "+1", "0x1", ".5", "1.", "9" * 100_000):
        for option in ("temperature", "num_ctx"):
            data = said(path)[:-1] + f',"options":{{"{option}":{number}}}}}'.encode()
            await refused(running, path, data, 413 if len(number) > 1000 else 400)
    for value in (True, "1", [], {}, 10**30):
        await refused(running, path, said(path, options={"num_ctx": value}), 500)  # Ollama's status (ollama.md 1.4)
    assert len(asked(worker)) == before


@pytest.mark.parametrize("path", ALL)
async def test_c03_bombs_of_depth_and_number_are_refused_quickly(path, fleet):
    running, worker, before = fleet
    bombs = {
        "depth": b"[" * 100_000 + b"]" * 100_000,
        "open depth": b"[" * 100_000,
        "objects in depth": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    }
    for bomb in bombs.values():
        await refused(running, path, said(path)[:-1] + b',"options":' + bomb + b"}")
    keys = ",".join(f'"k{number}":1' for number in range(1_000_000))
    await refused(running, path, said(path)[:-1] + f",{keys}}}".encode())
    messages = '{"role":"user","content":"x"},' * 300_000
    await refused(running, path, f'{{"model":"a:1","messages":[{messages[:-1]}]}}'.encode(), 400, 413)
    assert len(asked(worker)) == before


@pytest.mark.parametrize("path", ALL)
async def test_c04_what_is_no_utf8_json_is_refused(path, fleet):
    running, worker, before = fleet
    text = said(path).decode()
    for data in (
        b"\xef\xbb\xbf" + text.encode(),
        text.encode("utf-16"),
        text.encode("utf-16-be"),
        text.encode("utf-32"),
        text.replace("a:1", "a:1\\u0000").encode(),
        text.replace("a:1", "\\ud800").encode(),
        text.encode()[:-1] + b',"x":"\xc0\xaf"}',
        text.encode()[:-1] + b',"x":"\xed\xa0\x80"}',
        text.encode()[:-1] + b',"x":"\xff"}',
        text.encode()[:-1] + b',"x":"\x00"}',
        text.encode()[:-1] + b',"x":"a\nb"}',
    ):
        await refused(running, path, data)
    assert len(asked(worker)) == before


@pytest.mark.parametrize("path", ALL)
async def test_c05_anything_but_one_object_is_refused_whatever_its_content_type(path, fleet):
    running, worker, before = fleet
    for data in (b"", b" ", b"null", b"[]", b'"x"', b"1", b"{}{}", said(path) + b"x", said(path) * 2, b"{", b"a=b&c=d"):
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            reply = await running.post(path, data, content_type=kind)
            assert reply.status == 400
            assert reply.error
    assert len(asked(worker)) == before


async def test_c06_all_spellings_of_a_model_are_one_and_foreign_ones_are_none(fleet):
    running, worker, before = fleet
    same = ("a:1", "A:1", "library/a:1", "registry.ollama.ai/library/a:1", "https://registry.ollama.ai/library/a:1")
    for name in same:
        reply = await running.post("/api/chat", said("/api/chat", model=name, stream=False))
        assert (reply.status, reply.headers["x-bellmare-cache"]) == (200, "hit"), name
    assert len(asked(worker)) == before + len(same)
    for name in (
        "../a:1",
        "a:1@sha256:0",
        "x" * 351 + ":1",
        "a:1:1",
        "a b:1",
        "./a:1",
        "evil.example/x/a:1",
        "a:1\x00",
    ):
        await refused(running, "/api/chat", said("/api/chat", model=name), 400, 404)
    assert len(asked(worker)) == before + len(same)


@pytest.mark.parametrize("path", ALL)
async def test_c07_models_that_leave_the_premises_are_forbidden(path, fleet):
    running, worker, before = fleet
    for name in ("a:cloud", "a:120b-cloud", "A:CLOUD", "library/a:1-cloud"):
        await refused(running, path, said(path, model=name), 403)
    assert len(asked(worker)) == before


async def test_c08_routes_that_manage_models_or_identity_reach_no_worker(fleet):
    running, worker, _ = fleet
    before = len([head for head, _ in worker.requests() if head.startswith(b"POST")])
    managing = ("create", "push", "pull", "copy", "delete", "blobs/sha256:0")
    others = ("me", "signout", "user/keys/x", "experimental/web_fetch", "experimental/web_search", "abort")
    for route in (*managing, *others):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
            reply = await running.ask(method, f"/api/{route}", None if method in ("GET", "HEAD") else {"model": "a:1"})
            # Nobody may manage unless the operator names him; and nobody's identity is known here.
            assert reply.status in ((403, 405) if route in managing else (404,)), (method, route)
    assert len([head for head, _ in worker.requests() if head.startswith(b"POST")]) == before


@pytest.mark.parametrize("path", ALL)
async def test_c09_what_would_reload_or_unload_a_model_is_pinned(path, fleet):
    running, worker, before = fleet
    evil = {"num_ctx": 1, "num_batch": 1, "num_gpu": 0, "main_gpu": 1, "use_mmap": False, "num_thread": 1}
    model = "e:1" if "embed" in path else "a:1"
    more: dict[str, object] = {"options": evil, "keep_alive": 0, "stream": False, "model": model}
    reply = await running.post(path, said(path, **more))
    assert reply.status == 200
    sent = asked(worker)[-1]
    assert len(asked(worker)) == before + 1
    assert set(evil) & set(sent["options"]) == {"num_ctx"}
    assert sent["options"]["num_ctx"] > 1
    assert "keep_alive" not in sent and "shift" not in sent
    await running.settled()
    assert worker.sim.twin.counters.unloads_asked == 0


def png(width: int, height: int) -> bytes:
    """A whole PNG of one colour, whatever it takes when decoded."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width: int, height: int) -> bytes:
    exif = b"\xff\xe1\x40\x00" + bytes(0x3FFE)
    return b"\xff\xd8" + exif + b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(12)


def test_c10_the_size_of_a_picture_is_read_from_its_first_bytes():
    size = struct.pack("<HH", 300, 200)
    pictures = {
        "png": png(300, 200),
        "jpeg": jpeg(300, 200),
        "gif": b"GIF89a" + size,
        "bmp": b"BM" + bytes(16) + struct.pack("<II", 300, 200),
        "webp lossy": b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(10) + size,
        "webp lossless": b"RIFF\x00\x00\x00\x00WEBPVP8L" + bytes(5) + struct.pack("<I", 299 | 199 << 14),
        "webp extended": b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(8) + b"\x2b\x01\x00\xc7\x00\x00",
    }
    for kind, picture in pictures.items():
        assert pixels(base64.b64encode(picture).decode()) == 60_000, kind
        assert pixels(base64.encodebytes(picture).decode()) == 60_000, kind
    for other in ("", "!", "AAAA", "QUJD" * 10, base64.b64encode(b"\xff\xd8\xff" * 20).decode()):
        assert pixels(other) == 0


async def test_c10_pictures_are_bounded_in_size_number_and_pixels(fleet):
    running, worker, before = fleet

    def messages(*pictures: str) -> list[dict[str, object]]:
        return [{"role": "user", "content": "x", "images": list(pictures)}]

    small = base64.b64encode(png(10, 10)).decode()
    side = int(PIXELS_MAX**0.5) + 1
    for bomb in (png(side, side), png(50_000, 50_000), jpeg(50_000, 50_000)):
        picture = base64.b64encode(bomb).decode()
        assert "megapixels" in await refused(running, "/api/chat", said("/api/chat", messages=messages(picture)), 413)
        assert "megapixels" in await refused(running, "/api/generate", said("/api/generate", images=[picture]), 413)
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
        assert "megapixels" in await refused(
            running, CHAT, said(CHAT, messages=[{"role": "user", "content": parts}]), 413
        )
    many = messages(small) * (IMAGES_MAX + 1)
    assert "images" in await refused(running, "/api/chat", said("/api/chat", messages=many), 413)
    for wrong in ("not base64!", "QUJD=", "QUI", "data:image/png;base64," + small):
        await refused(running, "/api/chat", said("/api/chat", messages=messages(wrong)))
    url = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    await refused(running, CHAT, said(CHAT, messages=[{"role": "user", "content": url}]))
    assert len(asked(worker)) == before
    reply = await running.post("/api/chat", said("/api/chat", messages=messages(small), stream=False))
    assert reply.status == 200
    assert asked(worker)[-1]["messages"][0]["images"] == [small]


async def test_c11_what_multiplies_or_never_ends_is_bounded(fleet):
    running, worker, before = fleet
    await refused(running, CHAT, said(CHAT, n=2))
    await refused(running, CHAT, said(CHAT, max_tokens=-5))
    await refused(running, CHAT, said(CHAT, stop=["x"] * 100))
    await refused(running, "/api/chat", said("/api/chat", top_logprobs=1000, logprobs=True))
    giant = {"type": "object", "properties": {f"p{n}": {"type": "string", "pattern": "x" * 20} for n in range(30_000)}}
    await refused(running, "/api/chat", said("/api/chat", format=giant), 413)
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"properties": deep}
    await refused(running, "/api/chat", said("/api/chat", format=deep))
    await refused(running, CHAT, said(CHAT, response_format={"type": "json_schema", "json_schema": {"schema": deep}}))
    assert len(asked(worker)) == before
    endless = await running.open_chat(options={"num_predict": -1})
    assert await endless.head() == 200
    endless.leave()


async def test_c12_an_answer_in_one_piece_and_raw_fields_pass_as_they_are(fleet):
    running, worker, _ = fleet
    fields = {"system": "s", "template": "{{ .Prompt }}", "stream": False}
    reply = await running.post("/api/generate", said("/api/generate", **fields))
    assert (reply.status, reply.json["done"]) == (200, True)
    assert {name: asked(worker)[-1][name] for name in fields} == fields
    reply = await running.post("/api/generate", said("/api/generate", raw=True, stream=False))
    assert reply.status == 200 and asked(worker)[-1]["raw"] is True
    await refused(running, "/api/generate", said("/api/generate", raw=True, template="x"))
    await refused(running, "/api/generate", said("/api/generate", suffix="end"))  # the model cannot insert


async def test_c13_old_turns_are_left_out_as_a_whole_and_the_rest_arrives_as_it_was(fleet):
    running, worker, _ = fleet
    call = {"function": {"name": "f", "arguments": {"x": "\u00e4\U0001f600"}}, "id": "1"}
    old = {"function": {"name": "g", "arguments": {}}, "id": "0"}
    messages = [
        {"role": "system", "content": "\u65e5\u672c\u8a9e"},
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "", "tool_calls": [old]},
        {"role": "tool", "content": "\u65e5\u672c\u8a9e " * 20_000, "tool_name": "g"},
        {"role": "user", "content": "new"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_name": "f"},
        *HI,
    ]
    reply = await running.post("/api/chat", said("/api/chat", messages=messages, stream=False))
    assert reply.status == 200
    assert "dropped=3" in reply.headers["x-bellmare-context"]
    sent = asked(worker)[-1]["messages"]
    assert [one["content"] for one in sent] == ["\u65e5\u672c\u8a9e", "new", "", "42", "hi"]
    assert sent[2]["tool_calls"][0]["function"] == call["function"]
    assert sent[3]["tool_name"] == "f"


async def test_c13_what_may_not_be_left_out_goes_to_the_worker_whole_and_is_announced(fleet):
    running, worker, before = fleet
    messages = [{"role": "system", "content": "\u65e5\u672c\u8a9e " * 20_000}, *HI]
    for path in ("/api/chat", CHAT):
        reply = await running.post(path, said(path, messages=messages, stream=False))
        assert reply.status == 200
        assert "cut=worker" in reply.headers["x-bellmare-context"]
        assert [one["content"] for one in asked(worker)[-1]["messages"]] == [one["content"] for one in messages]
    before = len(asked(worker))
    text = await refused(running, "/api/chat", said("/api/chat", messages=messages, truncate=False))
    assert "exceeds the available context size (8192 tokens)" in text
    assert len(asked(worker)) == before


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate", "gzip, gzip", "x-gzip", "identity, gzip"])
async def test_c14_compressed_bodies_are_refused_unread(coding, fleet):
    running, worker, before = fleet
    bomb = gzip.compress(b'{"model":"a:1","prompt":"' + b"x" * 10_000_000 + b'"}')
    for path in ALL:
        reply = await running.post(path, bomb, content_encoding=coding)
        assert (reply.status, reply.headers["connection"]) == (415, "close")
    assert len(asked(worker)) == before


async def test_c15_batches_are_bounded_and_keep_their_order(fleet):
    running, worker, before = fleet
    await refused(running, "/api/embed", said("/api/embed", model="e:1", input=["x"] * (EMBED_INPUTS_MAX + 1)))
    await refused(running, "/api/embed", said("/api/embed", model="e:1", input=["x"] * 1_000_000))
    assert len(asked(worker)) == before
    batch = [f"text {number}" for number in range(500)]
    reply = await running.post("/api/embed", said("/api/embed", model="e:1", input=batch))
    assert (reply.status, len(reply.json["embeddings"])) == (200, 500)
    assert asked(worker)[-1]["input"] == batch
