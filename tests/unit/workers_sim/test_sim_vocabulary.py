"""The simulated vocabularies count as independent implementations of the same tokenisers do."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_client import Worker

from bellmare.workers.sim import SimModel
from bellmare.workers.sim.vocabulary import SPECIAL, vocabulary

TEXTS = [
    "the mare leads and the train follows",
    "Hello, World!  It's   2026 -- isn't it?\n\n\tdef f(x): return x ** 2",
    "naïve café 你好世界 🙂👍🏽 Ωμέγα",
    "<|im_start|>user\nwhat is the weather<|im_end|>\n<|im_start|>assistant\n",
    " leading and trailing  ",
    "",
]


def byte_level() -> Any:
    info = vocabulary("gpt2").info
    tokens = {token: number for number, token in enumerate(info["tokenizer.ggml.tokens"])}
    merges = [tuple(line.split(" ")) for line in info["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(tokens, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.add_special_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    return made


def word_piece() -> Any:
    info = vocabulary("bert").info
    tokens = {}
    for number, token in enumerate(info["tokenizer.ggml.tokens"]):
        bare = token if token.startswith("[") and len(token) > 2 else token.removeprefix("\u2581")
        tokens[bare if (bare is token and token.startswith("[")) or bare is not token else f"##{token}"] = number
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(tokens, unk_token="[UNK]", max_input_chars_per_word=10_000))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return made


_words = st.lists(
    st.sampled_from(
        ["the", "mare", "loading", "x9", "café", "你", "🙂", "'s", "don't", ".", "  ", "\n", "A1b2", "²", "--"]
    ),
    max_size=20,
).map(" ".join)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_counts_are_those_of_the_tokenizers_package(text: str) -> None:
    assert vocabulary("gpt2").count(text) == len(byte_level().encode(text).ids)


@settings(max_examples=50)
@given(_words)
def test_byte_level_counts_agree_on_any_text(text: str) -> None:
    assert vocabulary("gpt2").count(text) == len(byte_level().encode(text).ids)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_word_piece_counts_are_those_of_the_tokenizers_package(text: str) -> None:
    assert vocabulary("bert").count(text) == len(word_piece().encode(text).ids) + 2


def test_sentence_piece_falls_back_to_bytes_and_puts_a_blank_first() -> None:
    count = vocabulary("llama").count
    assert count("") == 1, "BOS"
    assert count("the") == count(" the") - 1 == 2
    assert count("é") == 1 + 1 + 2
    assert count("🙂") == 1 + 1 + 4
    info = vocabulary("llama").info
    sizes = {len(info[f"tokenizer.ggml.{key}"]) for key in ("tokens", "scores", "token_type")}
    assert len(sizes) == 1


async def test_a_model_with_a_vocabulary_shows_it_and_counts_by_it(start_worker: Any) -> None:
    models = (
        SimModel("g:1", tokenizer="gpt2"),
        SimModel("l:1", tokenizer="llama"),
        SimModel("e:1", "bert", 12, 12, 12, 0, 768, 3072, 30_522, 512, tokenizer="bert", capabilities=("embedding",)),
    )
    worker: Worker = await start_worker(models=models)
    for name, kind in (("g:1", "gpt2"), ("l:1", "llama")):
        shown = (await worker.post("/api/show", {"model": name})).json["model_info"]
        assert shown["tokenizer.ggml.model"] == kind and shown["tokenizer.ggml.tokens"] is None
        verbose = (await worker.post("/api/show", {"model": name, "verbose": True})).json["model_info"]
        assert verbose["tokenizer.ggml.tokens"] == vocabulary(kind).info["tokenizer.ggml.tokens"]
        body = {"model": name, "messages": [{"role": "user", "content": "what is the weather"}], "stream": False}
        prompt = (await worker.post("/api/chat", body | {"_debug_render_only": True})).json["_debug_info"]
        answer = (await worker.post("/api/chat", body)).json
        assert answer["prompt_eval_count"] == vocabulary(kind).count(prompt["rendered_template"])
        raw = {"model": name, "prompt": "the mare", "raw": True, "stream": False}
        assert (await worker.post("/api/generate", raw)).json["prompt_eval_count"] == vocabulary(kind).count("the mare")
    embedded = (await worker.post("/api/embed", {"model": "e:1", "input": ["the mare", "the"]})).json
    assert embedded["prompt_eval_count"] == 4 + 3
