"""Byte pairs against the package tokenizers, which knows nothing of llama.cpp: where no engine is at hand."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from bellmare.context.encoders import NORMAL, encoder_of
from bellmare.context.vocabulary import Vocabulary
from engine_vocabularies import CORPUS, byte_pairs

LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt-2": "", "llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}
TEXTS = st.lists(
    st.sampled_from(
        [*"aeT1'.,_~ \n\t", "  ", "dog", " the", "'ll", "\u65e5\u672c", "\u00e9", "\u0441\u043b", "\U0001f600"]
    )
    | st.text(
        st.characters(max_codepoint=0x2FFF, exclude_characters="\x04", exclude_categories=["Cn", "Cs"]), max_size=4
    ),
    max_size=60,
).map("".join)


def plain(pre: str) -> Vocabulary:
    """Without tokens that are looked for before words are split."""
    vocabulary = byte_pairs(pre)
    return msgspec.structs.replace(vocabulary, kinds=[NORMAL] * len(vocabulary.tokens))


def other(vocabulary: Vocabulary) -> Tokenizer:
    pattern = PATTERNS[vocabulary.pre]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    tokens = {token: index for index, token in enumerate(vocabulary.tokens)}
    whole = vocabulary.pre == "llama-bpe"
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=pairs, ignore_merges=whole))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_])
    return tokenizer


BOTH = {pre: (encoder_of(plain(pre)), other(plain(pre))) for pre in PATTERNS}


@pytest.mark.slow
@pytest.mark.parametrize("pre", PATTERNS)
@given(text=TEXTS)
def test_any_text_has_the_same_number_of_tokens(pre, text):
    ours, theirs = BOTH[pre]
    assert ours.count(text) == len(theirs.encode(text).ids)


@pytest.mark.parametrize("pre", PATTERNS)
def test_a_long_text_too(pre):
    ours, theirs = BOTH[pre]
    assert ours.count(CORPUS * 20) == len(theirs.encode(CORPUS * 20).ids)
