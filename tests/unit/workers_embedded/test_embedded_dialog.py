"""Tools, overlong prompts, context shift, embeddings and the vocabulary, over the real engine."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import gguf
import pytest
from embedded_worker import Worker, lines_of
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.ollama import Message, Tool, ToolCall, ToolCallFunction, ToolFunction
from bellmare.workers.embedded.toolcalls import CALL_CHARS_MAX, ToolReader, told_in_text

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


def read(text: str, cuts: list[int]) -> tuple[str, list[dict[str, Any]]]:
    reader, content, calls = ToolReader(), "", []
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        said, found = reader.feed(text[start:end])
        content, calls = content + said, calls + found
    said, found = reader.finish()
    return content + said, calls + found


_pieces = st.sampled_from([CALL, "<tool_call>", "</tool_call>", "<tool", "{", '{"name":"g"}', "text ", "<", ">", "\n"])


@given(st.lists(_pieces, max_size=8).map("".join), st.lists(st.integers(0, 400), max_size=12))
def test_any_cutting_gives_the_same_calls(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == read(text, [])


def test_calls_are_read_and_what_is_none_stays_text() -> None:
    assert read(f"so {CALL} and {CALL}", []) == ("so  and ", [{"name": "f", "arguments": {"a": "é"}}] * 2)
    assert read('<tool_call>{"name": "f", "parameters": {}}', []) == ("", [{"name": "f", "arguments": {}}])
    for text in ("<tool_call>{broken</tool_call>", "<tool_call>[1]</tool_call>", "a < b <tool", "<tool_call>open"):
        assert read(text, []) == (text, [])


def test_a_call_that_never_closes_is_text_within_a_bound() -> None:
    reader = ToolReader()
    reader.feed("<tool_call>")
    said, calls = reader.feed("x" * (CALL_CHARS_MAX + 1))
    assert (len(said), calls) == (len("<tool_call>") + CALL_CHARS_MAX + 1, [])


def test_a_conversation_with_tools_is_told_in_words() -> None:
    tool = Tool(function=ToolFunction(name="f"))
    call = ToolCall(function=ToolCallFunction(name="f", arguments={"a": 1}))
    told = told_in_text(
        [
            Message(role="system", content="Be brief."),
            Message(role="user", content="q"),
            Message(role="assistant", content="", tool_calls=[call]),
            Message(role="tool", content="r"),
        ],
        [tool],
    )
    assert [message.role for message in told] == ["system", "user", "assistant", "user"]
    assert told[0].content is not None and told[0].content.startswith("Be brief.") and '"name":"f"' in told[0].content
    assert told[2].content == '<tool_call>\n{"name":"f","arguments":{"a":1}}\n</tool_call>'
    assert told[3].content == "<tool_response>\nr\n</tool_response>"
    assert told_in_text([Message(role="user", content="q")], [tool])[0].role == "system"


pytestmark = pytest.mark.engine


async def test_tools_reach_the_prompt_and_the_answer_is_read_for_calls(worker: Worker) -> None:
    body = {
        "model": "a",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "get_weather"}}],
    }
    shown = (await worker.post("/api/chat", **body, _debug_render_only=True)).json()
    prompt = shown["_debug_info"]["rendered_template"]
    assert prompt.startswith("[system]") and '"name":"get_weather"' in prompt
    options = {"temperature": 0, "seed": 1, "num_predict": 30, "num_ctx": 2048}
    whole = (await worker.post("/api/chat", **body, stream=False, options=options)).json()
    lines = lines_of((await worker.post("/api/chat", **body, options=options)).text)
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    bare = (await worker.post("/api/chat", **body | {"tools": []}, stream=False, options=options)).json()
    assert whole["prompt_eval_count"] > bare["prompt_eval_count"] + 300


async def test_the_oldest_messages_go_first_and_system_and_last_stay(worker: Worker) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " + "x" * 80} for i in range(20)]
    messages = [{"role": "system", "content": "SYS"}, *turns, {"role": "user", "content": "LAST"}]
    options = {"num_predict": 1, "temperature": 0}
    cut = await worker.post("/api/chat", model="a", messages=messages, stream=False, options=options)
    assert cut.status_code == 200
    count = cut.json()["prompt_eval_count"]
    assert 512 - 110 < count <= 512, "as many messages as fit: one has about a hundred tokens"
    refused = await worker.post("/api/chat", model="a", messages=messages, stream=False, truncate=False)
    assert refused.status_code == 400
    inner = json.loads(refused.json()["error"])["error"]
    assert (inner["type"], inner["n_ctx"]) == ("exceed_context_size_error", 512)


async def test_one_message_that_is_too_long_loses_its_middle(worker: Worker) -> None:
    """ollama.md 12: from 15018 to 2051 tokens at 4096, which is num_keep, BOS and the newest half."""
    answer = await worker.generate("a", prompt="x" * 5_000, options={"num_predict": 1})
    assert answer["prompt_eval_count"] == 512 - (512 - 5) // 2
    raw = await worker.generate("a", prompt="x" * 5_000, raw=True, options={"num_predict": 1, "num_keep": 10})
    assert raw["prompt_eval_count"] == 512 - (512 - 11) // 2


async def test_a_blank_may_be_three_tokens(worker: Worker) -> None:
    """SentencePiece writes it as U+2581, which a vocabulary of bytes spells out."""
    answer = await worker.generate("a", prompt="a " * 200, options={"num_predict": 1})
    assert answer["prompt_eval_count"] == 512 - (512 - 5) // 2


async def test_cached_tokens_count_in_the_prompt(worker: Worker) -> None:
    first = await worker.generate("a", prompt="hello " * 20, options={"num_predict": 1})
    again = await worker.generate("a", prompt="hello " * 20, options={"num_predict": 1})
    assert first["prompt_eval_count"] == again["prompt_eval_count"] > 100


async def test_a_shifting_context_goes_on_and_another_ends(worker: Worker) -> None:
    options = {"num_predict": 700, "temperature": 0}
    on = await worker.generate("endless", prompt="hi", options=options)
    assert (on["eval_count"], on["done_reason"]) == (700, "length")
    off = await worker.generate("endless", prompt="hi", options=options, shift=False)
    assert off["done_reason"] == "length" and off["eval_count"] <= 512
    assert (await worker.counters())["reloads"] == 1


async def test_an_embedding_model_embeds_and_does_not_talk(worker: Worker) -> None:
    assert (await worker.post("/api/embed", model="e")).json() == {"model": "e", "embeddings": []}
    answer = (await worker.post("/api/embed", model="e", input=["one", "two", "one"])).json()
    one, two, again = answer["embeddings"]
    assert len(one) == 64 and one == pytest.approx(again, abs=1e-5) and one != pytest.approx(two, abs=1e-2)
    assert math.fsum(value * value for value in one) == pytest.approx(1, abs=1e-4)
    assert answer["prompt_eval_count"] == 3 * 4, "three bytes and BOS"
    assert answer["total_duration"] >= answer["load_duration"] > 0
    short = (await worker.post("/api/embed", model="e", input="one", dimensions=8)).json()["embeddings"][0]
    assert len(short) == 8 and math.fsum(value * value for value in short) == pytest.approx(1, abs=1e-4)
    single = (await worker.post("/api/embeddings", model="e", prompt="one")).json()["embedding"]
    assert single == pytest.approx(one, abs=1e-5)
    talk = await worker.post("/api/generate", model="e", prompt="x")
    assert (talk.status_code, talk.json()["error"]) == (400, '"e" does not support generate')


async def test_an_input_past_the_context_is_cut_or_refused(worker: Worker) -> None:
    cut = (await worker.post("/api/embed", model="e", input="x" * 2_000)).json()
    assert cut["prompt_eval_count"] == 512
    refused = await worker.post("/api/embed", model="e", input="x" * 2_000, truncate=False)
    assert (refused.status_code, refused.json()["error"]) == (400, "the input length exceeds the context length")


async def test_verbose_show_has_the_whole_vocabulary(worker: Worker) -> None:
    info = (await worker.post("/api/show", model="a", verbose=True)).json()["model_info"]
    assert len(info["tokenizer.ggml.tokens"]) == len(info["tokenizer.ggml.scores"]) == 259
    assert info["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert info["tokenizer.ggml.token_type"][3] == gguf.TokenType.BYTE
    assert info["tokenizer.ggml.model"] == "llama"
    assert (await worker.post("/api/show", model="a")).json()["model_info"]["tokenizer.ggml.tokens"] is None
