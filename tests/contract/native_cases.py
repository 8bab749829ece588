"""Requests of the native API for which bellmare's answer must be the worker's own, and where it is not and why."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A picture of one point."""
LONG = "word " * 4_000
"""More than the context of 4,096 by any count."""
HELLO = [{"role": "user", "content": "Say hello."}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city"],
        },
    },
}
ADDER = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
CALLED = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_1", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}}
        ],
    },
    {"role": "tool", "content": "rain", "tool_name": "get_weather", "tool_call_id": "call_1"},
]


class Case(NamedTuple):
    """One request. ``model`` is a part: talker, thinker, seer, embedder, nobody."""

    name: str
    path: str
    model: str
    body: dict[str, Any]


def chat(name: str, model: str = "talker", **body: Any) -> Case:
    return Case(f"chat {name}", "/api/chat", model, {"messages": HELLO} | body)


def generate(name: str, model: str = "talker", **body: Any) -> Case:
    return Case(f"generate {name}", "/api/generate", model, {"prompt": "Say hello."} | body)


def embed(name: str, model: str = "embedder", **body: Any) -> Case:
    return Case(f"embed {name}", "/api/embed", model, body)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("limit", {"num_predict": 5}),
    ("seed", {"seed": 7, "num_predict": 8, "temperature": 0.5}),
    ("stop", {"stop": ["e", "the"], "num_predict": 30}),
    ("all sampling", {
        "num_keep": 2, "top_k": 20, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "repeat_last_n": 33,
        "repeat_penalty": 1.2, "presence_penalty": 1.5, "frequency_penalty": 1.0, "num_predict": 4, "seed": 1,
    }),
    ("nulls", {"top_k": None, "stop": None, "seed": 3, "temperature": 0}),
    ("unknown", {"mirostat": 1, "no_such_option": [1, {"a": None}], "num_predict": 3, "seed": 3}),
]  # fmt: skip

TALK = [
    *itertools.chain.from_iterable(
        (chat(f"with {name}", options=options), generate(f"with {name}", options=options)) for name, options in OPTIONS
    ),
    chat("plain"),
    chat("with a system message", messages=SYSTEM + HELLO),
    chat("with turns", messages=[*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO]),
    chat("with truncate", truncate=True),
    chat("with unknown fields", future={"a": [1, None]}, messages=[HELLO[0] | {"future": {"b": True}}]),
    chat("with keep_alive", keep_alive="10m"),
    chat("with format json", format="json", options={"num_predict": 40}),
    chat("with a schema", format=SCHEMA, options={"num_predict": 60}),
    chat("with a schema that is cut", format=SCHEMA, options={"num_predict": 2}),
    chat("with log probabilities", logprobs=True, options={"num_predict": 4}),
    chat("with alternatives", logprobs=True, top_logprobs=3, options={"num_predict": 4}),
    chat("with think false", think=False),
    chat("rendered only", _debug_render_only=True),
    generate("plain"),
    generate("with a system", system="Be brief."),
    generate("raw", raw=True),
    generate("with truncate", truncate=True),
    generate("with format json", format="json", options={"num_predict": 40}),
    generate("with a schema", format=SCHEMA, options={"num_predict": 60}),
    generate("with log probabilities", logprobs=True, top_logprobs=2, options={"num_predict": 4}),
    generate("rendered only", _debug_render_only=True),
    generate("with unicode", prompt='Sag 你好 🙂 \u0000 \\ " \n\t'),
    generate("with empty strings", system="", suffix="", format="", images=[]),
]
"""What every completion model can do."""

TOOLS = [
    chat("with a tool", messages=[{"role": "user", "content": "weather in Oslo"}], tools=[WEATHER]),
    chat(
        "with two calls",
        messages=[{"role": "user", "content": "get_weather for Oslo, add 1 and 2"}],
        tools=[WEATHER, ADDER],
    ),
    chat("with a tool that is not used", tools=[WEATHER]),
    chat("with a tool's result", messages=CALLED, tools=[WEATHER]),
    chat("with tools and probabilities", messages=CALLED[:1], tools=[WEATHER], logprobs=True),
]

SIMULATED = [
    chat("thinking", "thinker"),
    chat("thinking when asked", "thinker", think=True, options={"num_predict": 20}),
    chat("thinking a little", "thinker", think="low"),
    chat("not thinking", "thinker", think=False),
    chat("thinking before a tool", "thinker", messages=CALLED[:1], tools=[WEATHER]),
    chat("thinking before a schema", "thinker", format=SCHEMA),
    chat(
        "with its thoughts",
        "thinker",
        messages=[*HELLO, {"role": "assistant", "content": "x", "thinking": "y"}, *HELLO],
    ),
    generate("thinking", "thinker"),
    generate("thinking with probabilities", "thinker", logprobs=True),
    chat("of a picture", "seer", messages=[{"role": "user", "content": "What is it?", "images": [PIXEL]}]),
    generate("of a picture", "seer", images=[PIXEL]),
    generate("of two pictures", "seer", images=[PIXEL, PIXEL]),
    generate("between", "seer", suffix="the end"),
    generate("with a template", template="{{ .Prompt }}"),
    generate("with a context", context=[1, 2, 3]),
]
"""What needs a capability that only simulated models have."""

EMBEDDINGS = [
    embed("one", input="one"),
    embed("some", input=["one", "two", "one"]),
    embed("shorter", input="one", dimensions=8),
    embed("too long, cut", input=LONG),
    embed("nothing", input=""),
    embed("an empty list", input=[]),
    embed("with options", input="one", options={"seed": 1}, truncate=True),
    Case("embeddings one", "/api/embeddings", "embedder", {"prompt": "one"}),
    Case("embeddings nothing", "/api/embeddings", "embedder", {"prompt": ""}),
]

ERRORS = [
    chat("of nobody", "nobody"),
    generate("of nobody", "nobody"),
    embed("of nobody", "nobody", input="x"),
    Case("embeddings of nobody", "/api/embeddings", "nobody", {"prompt": "x"}),
    Case("show of nobody", "/api/show", "nobody", {}),
    chat("by an embedding model", "embedder"),
    generate("by an embedding model", "embedder"),
    embed("by a talker", "talker", input="x"),
    embed("of a number", input=5),
    embed("of numbers", input=[5]),
    embed("too long, refused", input=LONG, truncate=False),
    chat("that cannot think", think=True),
    chat("with an odd think", think="maybe"),
    generate("that cannot think", think="high"),
    chat("of a picture it cannot see", messages=[{"role": "user", "content": "?", "images": [PIXEL]}]),
    generate("of a picture it cannot see", images=[PIXEL]),
    generate("between, which it cannot", suffix="end"),
    generate("raw with a system", raw=True, system="x"),
    generate("raw with a template", raw=True, template="x"),
    generate("raw with a context", raw=True, context=[1]),
    chat("with too many alternatives", logprobs=True, top_logprobs=21),
    chat("with negative alternatives", logprobs=True, top_logprobs=-1),
    chat("with an odd format", format="xml"),
    chat("with an odd keep_alive", keep_alive="300"),
    chat("with an odder keep_alive", keep_alive=True),
    chat("with an odd option", options={"num_predict": "many"}),
    chat("too long, refused", messages=[{"role": "user", "content": LONG}], truncate=False),
    generate("too long, refused", prompt=LONG, truncate=False),
]

EMPTY = [
    chat("of nothing", messages=[]),
    generate("of nothing", prompt=""),
    generate("of nothing, pinned", prompt="", keep_alive=-1),
]
"""Requests that only load; those that unload are bellmare's to answer, and it unloads nothing."""
