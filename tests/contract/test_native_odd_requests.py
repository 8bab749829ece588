"""Requests that are odd, or not quite valid: bellmare takes what Ollama takes, and refuses the rest with its status.

The same bytes go to a simulated worker and to the gateway over it. An error's text may be a better one than Ollama's,
but begins with it; only of JSON that Go's decoder refuses the words are ours.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_cases import HELLO, PIXEL, WEATHER
from rig import Gateway, Reply, ask, start_gateway, start_sim
from test_native_equality import NUM_CTX, SIM_MODELS, timeless

GENERATE, CHAT, EMBED, EMBEDDINGS, SHOW = "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show"
VALID: dict[str, dict[str, Any]] = {
    GENERATE: {"model": "talker:1", "prompt": "Say hello.", "stream": False},
    CHAT: {"model": "talker:1", "messages": HELLO, "stream": False},
    EMBED: {"model": "embedder:1", "input": "x"},
    EMBEDDINGS: {"model": "embedder:1", "prompt": "x"},
    SHOW: {"model": "talker:1"},
}
DECODER = ("json: ", "Input data was", "JSON is malformed", "invalid character")
"""How the simulated worker's words for JSON that Go does not take begin."""

NAMES = [
    "", "  ", " talker:1 ", "Talker:1", "talker:1:local", "registry.ollama.ai/library/talker:1", "library/talker:1",
    "a/b/c/d/e", "bad name", "@x", "nobody", "nobody:local", None, 5, "talker",
]  # fmt: skip
OPTIONS: list[Any] = [
    {"num_predict": 10.0}, {"num_predict": 0}, {"num_predict": -1}, {"num_predict": -2}, {"num_predict": 1e30},
    {"num_predict": 10**30}, {"num_predict": "x"}, {"seed": 2**64 - 1}, {"seed": -(2**63)}, {"seed": None},
    {"temperature": "x"}, {"temperature": None}, {"top_p": True}, {"stop": "x"}, {"stop": []}, {"stop": [""]},
    {"stop": [1]}, {"stop": None}, {"use_mmap": 1}, {"x": 10**30}, {"num_ctx": "a"}, [], "x", None, {},
]  # fmt: skip
FORMATS: list[Any] = ["", "xml", "JSON", " json", None, [], 5, True, {}, {"type": "object"}]
KEEP_ALIVES: list[Any] = [
    "5m", "5m0s", 300, -1, "-1", "-1m", "0", "0s", 0, "", "5", 1.5, None, True, [], {}, "1h30m", "abc", "9999999h",
]  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    *((path, {"model": name}) for path in VALID for name in NAMES),
    *((path, {"options": one} | more) for path in VALID if path != SHOW for one in OPTIONS
      for more in ({}, {"model": "nobody"})),
    *((GENERATE, {"format": one} | more) for one in FORMATS for more in ({}, {"model": "nobody"}, {"prompt": ""})),
    *((CHAT, {"format": one} | more) for one in FORMATS for more in ({}, {"model": "nobody"}, {"messages": []})),
    *((path, {"keep_alive": one}) for path in VALID if path != SHOW for one in KEEP_ALIVES),
    *((GENERATE, {"keep_alive": one, "prompt": ""}) for one in KEEP_ALIVES),
    (GENERATE, {"model": "nobody", "raw": True, "system": "x"}),
    (GENERATE, {"prompt": "", "raw": True, "system": "x"}),
    (GENERATE, {"prompt": "", "raw": True, "system": "x", "keep_alive": 0}),
    (GENERATE, {"model": "nobody", "think": "x"}),
    (GENERATE, {"model": "embedder:1", "think": True}),
    (GENERATE, {"images": ["data:image/png;base64,AAAA"]}),
    (GENERATE, {"images": ["AAA"]}),
    (GENERATE, {"images": None}),
    (GENERATE, {"prompt": "", "images": [PIXEL]}),
    (GENERATE, {"model": "seer:1", "raw": True, "images": [PIXEL]}),
    (GENERATE, {"stream": "x"}),
    (GENERATE, {"prompt": 5}),
    (GENERATE, {"prompt": None}),
    (GENERATE, {"context": []}),
    (GENERATE, {"context": ["a"]}),
    (GENERATE, {"context": [1.5]}),
    (GENERATE, {"top_logprobs": 3.0}),
    (GENERATE, {"top_logprobs": 20, "logprobs": True, "options": {"num_predict": 2}}),
    (GENERATE, {"name": "nobody"}),
    (GENERATE, {"future": 10**30}),
    (CHAT, {"messages": None}),
    (CHAT, {"messages": [None]}),
    (CHAT, {"messages": {}}),
    (CHAT, {"messages": [{"role": "user", "content": None}]}),
    (CHAT, {"messages": [{"content": "x"}]}),
    (CHAT, {"messages": [{"role": "alien", "content": "x"}]}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": "Hel"}]}),
    (CHAT, {"model": "seer:1", "messages": [{"role": "user", "images": [PIXEL]}]}),
    (CHAT, {"tools": []}),
    (CHAT, {"tools": None}),
    (CHAT, {"tools": [{}]}),
    (CHAT, {"tools": [{"type": "function", "function": None}]}),
    (CHAT, {"model": "seer:1", "tools": [WEATHER]}),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}]}),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": None}}]}]}),
    (EMBED, {"stream": True}),
    (EMBED, {"input": None}),
    (EMBED, {"input": ["x", ""]}),
    (EMBED, {"input": {}}),
    (EMBED, {"input": [None]}),
    (EMBED, {"model": "nobody", "input": [5]}),
    (EMBED, {"dimensions": 10**6}),
    (SHOW, {"model": "", "name": "nobody"}),
    (SHOW, {"model": "", "name": "talker:1"}),
    (SHOW, {"verbose": None}),
]  # fmt: skip
RAW: list[tuple[str, str, bytes | None]] = [
    *(("POST", path, data) for path in VALID
      for data in (b"", b"  \n", b"[]", b"{", b'"x"', b'\xef\xbb\xbf{"model":"talker:1"}', b"\x1f\x8b\x08")),
    *(("POST", path, json.dumps(body).encode() + b"\r\n") for path, body in VALID.items()),
    *((method, path, None) for method in ("GET", "PUT", "DELETE", "HEAD", "PATCH") for path in VALID),
    *((method, path, None) for method in ("GET", "HEAD", "POST", "DELETE")
      for path in ("/", "/api/version", "/api/tags", "/api/nope", "/nope", "/v1/nope", "/api", "/api/")),
    ("HEAD", "/api/ps", None),
    ("GET", "/api/tags?x=1", None),
    ("OPTIONS", CHAT, None),
]  # fmt: skip


def told(reply: Reply) -> tuple[int, Any]:
    if "ndjson" in reply.headers.get("content-type", ""):
        return reply.status, timeless(reply.lines)
    try:
        return reply.status, timeless(json.loads(reply.body))
    except ValueError:
        return reply.status, reply.body


def difference(direct: Reply, through: Reply, *, words: bool = True) -> str:
    """In words; empty if there is none that counts. Without ``words`` any error will do that has the status."""
    (status, theirs), (ours_status, ours) = told(direct), told(through)
    if status != ours_status:
        return f"{status} {theirs!r:.200} became {ours_status} {ours!r:.200}"
    if status in (404, 405) and not isinstance(theirs, dict):
        return ""  # no such route: plain words there, and the path's dialect here
    if direct.headers.get("content-type") != through.headers.get("content-type"):
        return f"{direct.headers.get('content-type')} became {through.headers.get('content-type')}"
    if isinstance(theirs, dict) and "error" in theirs:
        error = ours.get("error") if isinstance(ours, dict) else None
        if isinstance(error, str) and not words:
            return ""
        if not isinstance(error, str) or not (error.startswith(theirs["error"]) or theirs["error"].startswith(DECODER)):
            return f"{theirs['error']!r:.200} became {ours!r:.200}"
        return ""
    return "" if ours == theirs else f"{theirs!r:.300} became {ours!r:.300}"


@pytest.fixture
async def pair(_gate: None) -> AsyncIterator[tuple[Gateway, int]]:
    sim = await start_sim(models=SIM_MODELS, time_scale=0.001, context_length=NUM_CTX, vram_bytes=48 << 30)
    gateway = await start_gateway(sim.port, num_ctx=NUM_CTX)
    for name in ("talker:1", "thinker:1", "seer:1"):
        assert (await gateway.chat(name, options={"num_predict": 1})).status == 200
    yield gateway, sim.port
    await gateway.close()
    await sim.server.close()


async def test_odd_requests_are_answered_as_by_the_worker(pair: tuple[Gateway, int]) -> None:
    gateway, worker = pair
    wrong = []
    asked = [("POST", path, json.dumps(VALID[path] | odd).encode()) for path, odd in CASES]
    for method, path, data in [*asked, *RAW]:
        through = await ask(gateway.port, method, path, data)
        direct = await ask(worker, method, path, data)
        found = difference(direct, through)
        if found:
            wrong.append(f"{method} {path} {data!r:.200}\n  {found}")
    assert not wrong, "\n" + "\n".join(wrong)


SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.5, 10**12, "", "x", "0", "5m", "json", "low", "talker:1", "nobody", [], {}, [5]]
)
FIELDS = (
    "model", "prompt", "messages", "input", "stream", "raw", "format", "options", "keep_alive", "images", "think",
    "truncate", "suffix", "system", "template", "context", "logprobs", "top_logprobs", "tools", "dimensions", "verbose",
)  # fmt: skip
# not num_ctx: a client's own is not obeyed, on purpose
OPTION_NAMES = ("num_predict", "seed", "temperature", "stop", "use_mmap", "top_k", "min_p", "nonsense")
ODD = st.dictionaries(st.sampled_from(FIELDS), SCALARS, min_size=1, max_size=3)
ODD_OPTIONS = st.dictionaries(st.sampled_from(OPTION_NAMES), SCALARS, max_size=2).map(lambda found: {"options": found})


@pytest.mark.slow
async def test_any_odd_request_is_answered_as_by_the_worker(pair: tuple[Gateway, int]) -> None:
    """Valid requests with up to three fields replaced."""
    gateway, worker = pair
    drawn: list[tuple[str, dict[str, Any]]] = []

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(VALID)), ODD, st.just({}) | ODD_OPTIONS)
    def draw(path: str, odd: dict[str, Any], options: dict[str, Any]) -> None:
        drawn.append((path, VALID[path] | {"stream": False} | odd | options))

    draw()
    wrong = []
    for path, body in drawn:
        through = await gateway.post(path, body)
        found = difference(await ask(worker, "POST", path, body), through, words=False)
        if found:
            wrong.append(f"{path} {body!r:.300}\n  {found}")
    assert not wrong, f"{len(wrong)} differ\n" + "\n".join(wrong[:20])
