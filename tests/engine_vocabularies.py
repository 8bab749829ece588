"""Small vocabularies of every kind that is claimed, and model files that hold them: the engine itself is the oracle."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bellmare.context.encoders import _BYTE_CHARACTERS, BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from bellmare.context.vocabulary import Vocabulary

CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dogs don't mind: they're asleep. It'S 12345 or 678!\n"
    "def count(self, text: str) -> int:\n        return sum(self.counting(text))\n\n\n    # comment  with   spaces\n"
    'if (a != b && c->d[0] == 0x1F) { printf("%d\\n", a); }\t\tx~y ~~ $+<=>^`|\n'
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u6f22\u5b57\u3002\u4f60\u597d\uff0c\u4e16\u754c\uff01"
    " \uc548\ub155 \u0441\u043b\u043e\u0432\u043e \u0434\u0435\u043b\u043e "
    "\u03b1\u03b2\u03b3 \u0645\u0631\u062d\u0628\u0627 caf\u00e9 na\u00efve \U0001f600\U0001f680\n"
) * 3
CONTROLS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|x|>")
ADDED = ("<tool_call>", "  ", "<tool")
"""Of the user-defined kind; one is the beginning of another."""
SPACE = "\u2581"


def _merges(words: list[list[str]], count: int) -> list[tuple[str, str]]:
    """The pairs that are joined most often, one after the other, as tokenisers are trained."""
    found = []
    for _ in range(count):
        pairs = Counter((left, right) for word in words for left, right in itertools.pairwise(word))
        if not pairs:
            break
        best, times = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if times < 2:
            break
        found.append(best)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [best[0] + best[1]]
                at += 1
    return found


def byte_pairs(pre: str, *, merges: int = 400, controls: tuple[str, ...] = CONTROLS) -> Vocabulary:
    """GPT-2's kind: some bytes have no token, and whole words are tokens that no merge makes."""
    letters = [
        "".join(_BYTE_CHARACTERS[byte] for byte in word.encode()) for word in CORPUS.replace(" ", "\0 ").split("\0")
    ]
    pairs = _merges([list(word) for word in letters], merges)
    missing = {0xC0, 0xC1, 0x04, 0xF1}
    tokens = [*controls, *(character for byte, character in _BYTE_CHARACTERS.items() if byte not in missing)]
    tokens += dict.fromkeys(left + right for left, right in pairs)
    tokens += ["\u0120unmerged", "\u65e5", *ADDED]
    return Vocabulary(
        model="gpt2",
        pre=pre,
        architecture="llama",
        tokens=tokens,
        merges=[f"{left} {right}" for left, right in pairs],
        kinds=[CONTROL if token in controls else kind for token, kind in zip(tokens, _kinds(tokens), strict=True)],
        bos=0,
    )


def spaced_pairs(*, merges: int = 400) -> Vocabulary:
    """Gemma 4's kind."""
    lines = [line.replace(" ", SPACE) for line in CORPUS.split("\n")]
    pairs = _merges([list(line) for line in lines], merges)
    tokens = [*CONTROLS, *_byte_tokens(), "\n", "\n\n", *dict.fromkeys("".join(lines)[:600])]
    tokens += [text for text in dict.fromkeys(left + right for left, right in pairs) if text not in tokens]
    tokens += ["<eos>", "<tool_call>"]
    return Vocabulary(
        model="gemma4",
        architecture="llama",
        tokens=tokens,
        merges=[f"{left} {right}" for left, right in pairs],
        kinds=_kinds(tokens),
        bos=0,
    )


def sentence_pieces(*, crossing: bool = False, prefix: bool | None = None, ties: bool = False) -> Vocabulary:
    """SentencePiece's kind. ``crossing``: with tokens that reach over a space; ``ties``: many have the same score."""
    text = CORPUS.replace(" ", SPACE)
    words = [list(word) for word in text.replace(SPACE, f"\0{SPACE}").split("\0")]
    pairs = _merges([list(text)] if crossing else words, 400)
    pieces = list(dict.fromkeys(left + right for left, right in pairs))
    runs = [SPACE * length for length in (2, 3, 4, 8)]
    characters = [one for one in dict.fromkeys(text) if one not in "\n\u6f22"]
    tokens = ["<unk>", "<s>", "</s>", *_byte_tokens(), *(one for one in [*pieces, *runs] if one not in characters)]
    tokens = list(dict.fromkeys([*tokens, *characters, "<|x|>", "<tool_call>"]))
    scores = [0.0] * 259 + [-float(index // 7 if ties else index) for index in range(len(tokens) - 259)]
    return Vocabulary(
        model="llama",
        architecture="llama",
        tokens=tokens,
        scores=scores,
        kinds=_kinds(tokens),
        bos=1,
        add_space_prefix=prefix,
    )


def word_pieces(*, lowercase: bool | None = None) -> Vocabulary:
    """BERT's kind."""
    words = set("".join(c if c.isalnum() else " " for c in CORPUS.lower()).split())
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [SPACE + word for word in sorted(words) if len(word) % 2]
    tokens += sorted({word[at : at + 2] for word in words for at in range(len(word))})
    tokens += [SPACE + character for character in "abcdefghijklmnopqrstuvwxyz.,!'(-\u65e5\u00e9$"]
    tokens = list(dict.fromkeys([*tokens, *"aeiourstln", "ing", "ed"]))
    return Vocabulary(
        model="bert", architecture="llama", tokens=tokens, kinds=_kinds(tokens), bos=2, lowercase=lowercase
    )


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _kinds(tokens: list[str]) -> list[int]:
    special = {**dict.fromkeys((*CONTROLS, "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<eos>"), CONTROL)}
    special |= {**dict.fromkeys(ADDED, USER_DEFINED), "<unk>": UNKNOWN, "[UNK]": UNKNOWN}
    special |= dict.fromkeys(_byte_tokens(), BYTE)
    return [special.get(token, NORMAL) for token in tokens]


def write_vocabulary(path: Path, vocabulary: Vocabulary, *, chat_template: str = "") -> Path:
    """A model file with one layer of zeros: it loads in no time and tokenises."""
    width, size = 32, len(vocabulary.tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    for key, value in tokenizer_keys(vocabulary).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:
            writer.add_array(key, value)
    if chat_template:
        writer.add_chat_template(chat_template)
    ones = np.ones(width, dtype=np.float32)
    square = np.zeros((width, width), dtype=np.float16)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", ones)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((size, width), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_keys(vocabulary: Vocabulary) -> dict[str, Any]:
    """As they stand in a model file, and in ``model_info`` of /api/show."""
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.bos_token_id": vocabulary.bos,
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer.ggml.normalizer.lowercase": vocabulary.lowercase,
        "tokenizer.ggml.normalizer.strip_accents": vocabulary.strip_accents,
    }
    if vocabulary.pre:
        keys["tokenizer.ggml.pre"] = vocabulary.pre
    if vocabulary.model == "bert":
        keys |= {"tokenizer.ggml.seperator_token_id": 3, "tokenizer.ggml.unknown_token_id": 1}
        keys["tokenizer.ggml.padding_token_id"] = 0
    return {key: value for key, value in keys.items() if value is not None}
