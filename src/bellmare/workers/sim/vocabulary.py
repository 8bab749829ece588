"""Small but real vocabularies of the three kinds that GGUF files hold, and how many tokens they make of a text.

``gpt2``: byte-level BPE with merges; ``llama``: SentencePiece with scores and byte tokens; ``bert``: WordPiece, whose
words begin with U+2581 as llama.cpp writes them. Learned from a few lines of our own; every count is exact.
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

KINDS = ("gpt2", "llama", "bert")
MERGES = 320
COUNTED_CHARS_MAX = 200_000
"""Longer prompts are counted by their first part: half a second of one core, and no test needs more."""
SPECIAL = ("<|im_start|>", "<|im_end|>")
_LOWER = "\u2581"
_TRAINING = (
    "the mare leads and the train follows over stone and river at an even pace each load finds its place by weight and "
    "balance while the bell rings slow and clear no rope is needed where trust goes first so memory keeps what will be "
    "asked again system user assistant you are a helpful assistant what is the weather in this is that with from they "
    "have been there their would about which when into some could other than then them these people may water long "
    "little very after words called just where most know get through back much before go good new write our used me "
    "man too any day same right look think also around another came come work three word must because does part"
)
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


class Vocabulary:
    """``info`` are the ``tokenizer.ggml.*`` keys of /api/show, arrays included."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.arrays = tuple(key for key, value in info.items() if isinstance(value, list))

    def count(self, text: str) -> int:
        """Tokens of ``text`` as a prompt, with what the model puts around it."""
        raise NotImplementedError


@functools.cache
def vocabulary(kind: str) -> Vocabulary:
    """One of ``KINDS``; made once, in some milliseconds."""
    return {"gpt2": _ByteLevel, "llama": _SentencePiece, "bert": _WordPiece}[kind]()


def _learned(words: Counter[tuple[str, ...]], merges: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, again and again; of equals the first in the alphabet."""
    found: list[tuple[str, str]] = []
    while len(found) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for left, right in itertools.pairwise(word):
                pairs[left, right] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        words = Counter({_merged(word, best): times for word, times in words.items()})
    return found


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for symbol in word:
        if made and (made[-1], symbol) == pair:
            made[-1] += symbol
        else:
            made.append(symbol)
    return tuple(made)


def _encoded(word: tuple[str, ...], ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """Merge the pair of the lowest rank until none is left."""
    while len(word) > 1:
        best = min(itertools.pairwise(word), key=lambda pair: ranks.get(pair, MERGES))
        if best not in ranks:
            break
        word = _merged(word, best)
    return word


def _fragments(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces between special tokens, and those themselves (True)."""
    for piece in re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
        if piece:
            yield piece, piece in SPECIAL


def _bytes_to_letters() -> dict[int, str]:
    """GPT-2's way to write each byte as a printable letter."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(plain))
    return letters


class _ByteLevel(Vocabulary):
    def __init__(self) -> None:
        letters = _bytes_to_letters()
        self._letters = letters
        words = Counter(tuple(letters[byte] for byte in f" {word}".encode()) for word in _TRAINING.split())
        merges = _learned(words, MERGES)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        tokens = ["<|endoftext|>", *SPECIAL, *(letters[byte] for byte in range(256)), *map("".join, merges)]
        super().__init__(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [_CONTROL] * 3 + [_NORMAL] * (len(tokens) - 3),
                "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
                "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.add_bos_token": False,
            }
        )
        self._word = functools.lru_cache(maxsize=8_192)(self._word_tokens)

    def count(self, text: str) -> int:
        return sum(
            1 if special else sum(self._word(word) for word in _gpt2_words(piece))
            for piece, special in _fragments(text)
        )

    def _word_tokens(self, word: str) -> int:
        return len(_encoded(tuple(self._letters[byte] for byte in word.encode("utf-8", "replace")), self._ranks))


def _gpt2_words(text: str) -> Iterator[str]:
    """GPT-2's splitting: contractions, letters, numbers and the rest each with one blank before, and white space."""
    position, end = 0, len(text)
    while position < end:
        contraction = re.compile("'(?:s|t|re|ve|m|ll|d)").match(text, position)
        if contraction is not None:
            stop = contraction.end()
        else:
            first = position + (text[position] == " " and position + 1 < end and not text[position + 1].isspace())
            kind = _class(text[first])
            stop = first + 1
            while stop < end and _class(text[stop]) == kind:
                stop += 1
            if kind == "space" and stop < end and stop - first > 1:
                stop -= 1  # the last blank belongs to the word that follows
        yield text[position:stop]
        position = stop


def _class(char: str) -> str:
    if char.isspace():
        return "space"
    major = unicodedata.category(char)[0]
    return {"L": "letter", "N": "number"}.get(major, "other")


class _SentencePiece(Vocabulary):
    def __init__(self) -> None:
        words = Counter(tuple(_LOWER + word) for word in _TRAINING.split())
        merges = _learned(words, MERGES)
        letters = [_LOWER, *(chr(code) for code in range(0x21, 0x7F))]
        pieces = list(dict.fromkeys(["".join(pair) for pair in merges]))
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPECIAL, *pieces, *letters]
        kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, _CONTROL, _CONTROL]
        scores = [0.0] * (len(kinds)) + [-float(rank) for rank in range(len(pieces) + len(letters))]
        self._scores = {piece: float(rank) for rank, piece in enumerate(pieces)}
        self._letters = frozenset(letters)
        super().__init__(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.pre": "default",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.scores": scores,
                "tokenizer.ggml.token_type": kinds + [_NORMAL] * (len(tokens) - len(kinds)),
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.unknown_token_id": 0,
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.add_eos_token": False,
                "tokenizer.ggml.add_space_prefix": True,
            }
        )
        self._word = functools.lru_cache(maxsize=8_192)(self._word_tokens)

    def count(self, text: str) -> int:
        found = 1
        for piece, special in _fragments(text):
            if special:
                found += 1
                continue
            spaced = (" " + piece).replace(" ", _LOWER)
            found += sum(self._word(word) for word in re.findall(f"{_LOWER}[^{_LOWER}]*", spaced))
        return found

    def _word_tokens(self, word: str) -> int:
        """The best-scored pair first, the leftmost of equals; letters that are none of ours by their bytes."""
        symbols = list(word)
        while True:
            pairs = [
                (self._scores[left + right], index)
                for index, (left, right) in enumerate(itertools.pairwise(symbols))
                if left + right in self._scores
            ]
            if not pairs:
                break
            _, index = min(pairs)
            symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
        return sum(
            1 if len(symbol) > 1 or symbol in self._letters else len(symbol.encode("utf-8", "replace"))
            for symbol in symbols
        )


class _WordPiece(Vocabulary):
    def __init__(self) -> None:
        words = dict.fromkeys(_TRAINING.split())
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        marks = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isalnum()]
        endings = ["ing", "ed", "er", "ly", "tion", "es", "al", "th", "in", "on", "an", "at", "re", "st", "en"]
        starts = [_LOWER + start for start in [*words, *letters, *marks]]
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(starts), *letters, *endings]
        self._tokens = frozenset(tokens)
        super().__init__(
            {
                "tokenizer.ggml.model": "bert",
                "tokenizer.ggml.pre": "jina-v2-en",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [_CONTROL] * 5 + [_NORMAL] * (len(tokens) - 5),
                "tokenizer.ggml.token_type_count": 2,
                "tokenizer.ggml.bos_token_id": 2,
                "tokenizer.ggml.cls_token_id": 2,
                "tokenizer.ggml.eos_token_id": 3,
                "tokenizer.ggml.seperator_token_id": 3,
                "tokenizer.ggml.unknown_token_id": 1,
                "tokenizer.ggml.padding_token_id": 0,
                "tokenizer.ggml.mask_token_id": 4,
            }
        )
        self._word = functools.lru_cache(maxsize=8_192)(self._word_tokens)

    def count(self, text: str) -> int:
        return 2 + sum(self._word(word) for word in _bert_words(text))

    def _word_tokens(self, word: str) -> int:
        """The longest piece first; one unknown token for a word that does not come out even."""
        rest, found = _LOWER + word, 0
        while rest:
            length = next((size for size in range(len(rest), 0, -1) if rest[:size] in self._tokens), 0)
            if not length or (not found and length == 1):
                return 1
            rest, found = rest[length:], found + 1
        return found


def _bert_words(text: str) -> list[str]:
    """BERT's: lower case, without accents, each mark and each CJK letter a word of its own."""
    plain = "".join(char for char in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(char) != "Mn")
    spaced = "".join(f" {char} " if _stands_alone(char) else char for char in plain)
    return spaced.split()


def _stands_alone(char: str) -> bool:
    code = ord(char)
    if 0x21 <= code < 0x7F and not char.isalnum():
        return True
    return unicodedata.category(char)[0] == "P" or 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF
