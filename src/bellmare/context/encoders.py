"""Counts the tokens of a text exactly as llama.cpp would make them: byte pairs, SentencePiece merges, WordPiece.

In small steps, so that a long text keeps nobody waiting. No ids are made: a number is all that is needed. Why not the
package ``tokenizers``: docs/decisions/0013-token-counting.md.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from bellmare.context.characters import FOREIGN_SPACES, any_of, compiled, learn_categories
from bellmare.context.splits import SPLITS
from bellmare.context.vocabulary import Vocabulary

STEP_CHARS = 2_048
"""A step is the shortest piece of at least so many characters that can be counted alone: about 1 ms (measured)."""
STEP_CHARS_MAX = 65_536
"""A longer run without a place where it can be cut is cut all the same: at most 2 tokens are then counted too many."""
WORDS_MAX = 50_000
"""Words whose counts are remembered, of each vocabulary: about 6 MB."""
WORD_CHARS_MAX = 32
"""Of a word that is remembered."""
SHORT_WORD = 24
"""Up to so many symbols it is quicker to look for the best pair each time than to keep a heap."""
SLICE = 2_048
"""Entries of a table that are added at once: 1 ms."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPECIAL = frozenset({UNKNOWN, CONTROL, USER_DEFINED})


def _texts(line: str) -> frozenset[str]:
    return frozenset(line.split())


_ENDINGS = _texts(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> "
    "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~["
)
"""Tokens of these texts are control tokens whatever the file says."""
_FIRST_OF = (
    "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
    "<|code_prefix|> <|prefix|>",
    "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> <|code_suffix|> <|suffix|>",
    "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> <|code_middle|> <|middle|>",
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "<|file_sep|>",
)
"""One of each line is made a control token, if the file names none: which, where there are several, is not defined."""
_SPACE = "\u2581"
Pause = Callable[[], object]
"""Called between steps: lets others have the interpreter."""


class Unclaimed(Exception):  # noqa: N818 - a finding, not an error
    """This vocabulary's counts would not be exact. ``reason`` is for operators."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


WORD_END = re.compile("[A-Za-z](?=[ \n])")
LINE_END = re.compile("[^\n](?=\n)")
LETTER_LINE_END = re.compile("[A-Za-z](?=\n)")
NOWHERE = re.compile(r"(?!)")


class Encoder:
    """Counts tokens by one vocabulary. What a kind of tokeniser adds is in its subclass."""

    begins_spaced = False
    """Whether a space is put before each text that follows a special token."""
    boundary = WORD_END
    """Where a text may be cut, since no token reaches over it."""

    def __init__(self, vocabulary: Vocabulary, pause: Pause) -> None:
        self.bos = 0
        """Tokens that are put before every prompt."""
        self.eos = 0
        """And behind it."""
        self.size_bytes = 0
        """About what it keeps in memory, once all words are known."""
        self._tokens: dict[str, int] = {}
        tokens = vocabulary.tokens
        for start in range(0, len(tokens), SLICE):
            part = tokens[start : start + SLICE]
            self._tokens.update(zip(part, range(start, start + len(part)), strict=True))
            pause()
        self._kinds = vocabulary.kinds if len(vocabulary.kinds) == len(tokens) else []
        self._special = any_of(self._specials(tokens))
        self._words: dict[str, int] = {}
        self.size_bytes = 140 * len(tokens) + 120 * WORDS_MAX

    def _specials(self, tokens: list[str]) -> list[str]:
        found = [token for token, kind in zip(tokens, self._kinds, strict=False) if kind in _SPECIAL and token]
        found += _ENDINGS.intersection(self._tokens)
        for line in _FIRST_OF:
            present = [token for token in line.split() if token in self._tokens]
            if len(present) == 1:
                found += present
        if any("\n" in token or re.search("[a-z] ", token) for token in found):
            raise Unclaimed("a special token that reaches over the end of a word")
        return list(dict.fromkeys(found))

    def _demand(self, tokens: list[str]) -> None:
        """Without these it is no whole vocabulary, whatever it says."""
        if not self._tokens.keys() >= set(tokens):
            raise Unclaimed("a vocabulary that lacks single bytes")

    def kind(self, token: str) -> int:
        """Of a token of the vocabulary."""
        index = self._tokens[token]
        return self._kinds[index] if self._kinds else NORMAL

    def count(self, text: str) -> int:
        """Tokens of ``text`` as part of a prompt: without those that begin and end one."""
        return sum(self.counting(text))

    def counting(self, text: str) -> Iterator[int]:
        """As :func:`count`, in steps, whose results are to be added up."""
        first = True
        for piece in self._pieces(text):
            if self._special is None:
                yield self._text(piece, spaced=first and self.begins_spaced)
                first = False
                continue
            total = 0
            for index, part in enumerate(self._special.split(piece)):
                if index % 2:
                    total += 1
                    first = True
                elif part:
                    total += self._text(part, spaced=first and self.begins_spaced)
                    first = False
            yield total

    def _pieces(self, text: str) -> Iterator[str]:
        """``text`` cut at boundaries."""
        if len(text) <= STEP_CHARS:
            if text:
                yield text
            return
        at = 0
        while len(text) - at > STEP_CHARS:
            found = self.boundary.search(text, at + STEP_CHARS, at + STEP_CHARS_MAX)
            end = found.end() if found is not None else at + STEP_CHARS_MAX
            yield text[at:end]
            at = end
        if at < len(text):
            yield text[at:]

    def _text(self, text: str, *, spaced: bool) -> int:
        """Tokens of a text without special tokens."""
        raise NotImplementedError

    def _remember(self, word: str, count: int) -> int:
        if len(word) <= WORD_CHARS_MAX:
            if len(self._words) >= WORDS_MAX:
                self._words.clear()
            self._words[word] = count
        return count


class BytePairs(Encoder):
    """``gpt2``: texts are split by a pattern, each word's bytes are merged in the order of the merges."""

    def __init__(self, vocabulary: Vocabulary, pause: Pause) -> None:
        split = SPLITS["gemma4"] if vocabulary.model == "gemma4" else SPLITS.get(vocabulary.pre)
        if split is None:
            raise Unclaimed(f"texts are split in a way that is not known: '{vocabulary.pre[:40]}'")
        super().__init__(vocabulary, pause)
        letters = [f"<0x{code:02X}>" if split.spaced else chr(code) for code in range(0x21, 0x7F)]
        self._demand(letters)
        self._spaced = split.spaced
        if split.spaced:
            self.boundary = LINE_END
        self._whole_words = split.whole_words
        learn_categories(pause)
        self._patterns = [(compiled(pattern), "\\p" not in pattern) for pattern in split.patterns]
        self._ranks: dict[str, int] = {}
        merges = vocabulary.merges
        for end in range(len(merges), 0, -SLICE):  # of equal pairs the first counts, so it is written last
            start = max(0, end - SLICE)
            self._ranks.update(zip(reversed(merges[start:end]), range(end - 1, start - 1, -1), strict=True))
            pause()
        add_bos = split.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        self.bos = int((add_bos or split.spaced) and vocabulary.bos is not None)
        self.eos = int(bool(vocabulary.add_eos))
        self.size_bytes += 160 * len(merges)

    def _text(self, text: str, *, spaced: bool) -> int:
        words = self._words.get
        total = 0
        for word in self._split(text.replace(" ", _SPACE) if self._spaced else text):
            count = words(word)
            total += count if count is not None else self._remember(word, self._word(word))
        return total

    def _split(self, text: str) -> list[str]:
        pieces = [text]
        for pattern, plain in self._patterns:
            found: list[str] = []
            for piece in pieces:
                if plain and not piece.isascii():
                    found += _split_alike(pattern, piece)
                else:
                    found += pattern.split(piece)
            pieces = [piece for piece in found if piece]
        return pieces

    def _word(self, word: str) -> int:
        if not self._spaced:
            word = word.encode("utf-8", "replace").decode("latin-1").translate(_BYTE_CHARACTERS)
        if word in self._tokens and (self._whole_words or (self._spaced and not word.strip("\n"))):
            return 1
        symbols = merged(word, self._rank)
        tokens = self._tokens
        return sum(1 if symbol in tokens else self._lost(symbol) for symbol in symbols)

    def _rank(self, left: str, right: str) -> float | None:
        return self._ranks.get(f"{left} {right}")

    def _lost(self, symbol: str) -> int:
        """Of what is no token, those bytes that are."""
        if self._spaced:
            return sum(f"<0x{byte:02X}>" in self._tokens for byte in symbol.encode("utf-8", "replace"))
        return sum(character in self._tokens for character in symbol if character < "\x80")


def _split_alike(pattern: re.Pattern[str], text: str) -> list[str]:
    """By a pattern without categories, which takes foreign spaces for vertical tabs."""
    pieces, at = [], 0
    for piece in pattern.split(text.translate(FOREIGN_SPACES)):
        pieces.append(text[at : at + len(piece)])
        at += len(piece)
    return pieces


def _byte_characters() -> dict[int, str]:
    """The printable characters that stand for bytes in vocabularies of GPT-2's kind."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


_BYTE_CHARACTERS = _byte_characters()


def merged(word: str, rank: Callable[[str, str], float | None]) -> list[str]:
    """The symbols of ``word`` once no pair has a rank: always the lowest first, of equals the one furthest left."""
    symbols = list(word)
    if len(symbols) > SHORT_WORD:
        return _merged_long(symbols, rank)
    while len(symbols) > 1:
        best: float | None = None
        at = 0
        left = symbols[0]
        for index in range(1, len(symbols)):
            right = symbols[index]
            found = rank(left, right)
            if found is not None and (best is None or found < best):
                best, at = found, index
            left = right
        if best is None:
            break
        symbols[at - 1 : at + 1] = [symbols[at - 1] + symbols[at]]
    return symbols


def _merged_long(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """As :func:`merged`, in the time of a heap."""
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[float, int, str]] = []
    for index in range(len(symbols) - 1):
        found = rank(symbols[index], symbols[index + 1])
        if found is not None:
            heap.append((found, index, symbols[index] + symbols[index + 1]))
    heapify(heap)
    while heap:
        _, index, text = heappop(heap)
        right = after[index]
        if not symbols[index] or right < 0 or symbols[index] + symbols[right] != text:
            continue  # one of both has been merged meanwhile
        symbols[index], symbols[right] = text, ""
        following = after[index] = after[right]
        if following >= 0:
            before[following] = index
            found = rank(text, symbols[following])
            if found is not None:
                heappush(heap, (found, index, text + symbols[following]))
        previous = before[index]
        if previous >= 0:
            found = rank(symbols[previous], text)
            if found is not None:
                heappush(heap, (found, previous, symbols[previous] + text))
    return [symbol for symbol in symbols if symbol]


class SentencePieces(Encoder):
    """``llama``: any two neighbours that are a token together are merged, by score; what is no token becomes bytes."""

    def __init__(self, vocabulary: Vocabulary, pause: Pause) -> None:
        if vocabulary.architecture == "phi3":
            raise Unclaimed("phi3 drops spaces behind special tokens, and not all its files say that they are phi3")
        super().__init__(vocabulary, pause)
        self._demand([f"<0x{byte:02X}>" for byte in range(256)])
        if len(vocabulary.scores) != len(vocabulary.tokens):
            raise Unclaimed("a vocabulary without scores")
        self._scores = vocabulary.scores
        self.begins_spaced = vocabulary.add_space_prefix is not False
        self.bos = int(vocabulary.add_bos is not False)
        self.eos = int(bool(vocabulary.add_eos))
        crossing = re.compile(f"[^{_SPACE}]{_SPACE}").search
        normal = [token for token in vocabulary.tokens if self.kind(token) in (NORMAL, UNUSED)]
        pause()
        self._joined = any(crossing(token) for token in normal)
        if any(re.search("[A-Za-z]\n", token) for token in normal):
            self.boundary = NOWHERE
        elif self._joined:
            self.boundary = LETTER_LINE_END
        pause()
        self._words_of = re.compile(f"{_SPACE}+[^{_SPACE}]*|[^{_SPACE}]+").findall
        self.size_bytes += 32 * len(vocabulary.scores)

    def _text(self, text: str, *, spaced: bool) -> int:
        text = text.replace(" ", _SPACE)
        if spaced:
            text = _SPACE + text
        words = self._words.get
        total = 0
        for word in [text] if self._joined else self._words_of(text):
            count = words(word)
            total += count if count is not None else self._remember(word, self._word(word))
        return total

    def _word(self, word: str) -> int:
        tokens = self._tokens
        return sum(
            1 if symbol in tokens else len(symbol.encode("utf-8", "replace")) for symbol in merged(word, self._rank)
        )

    def _rank(self, left: str, right: str) -> float | None:
        index = self._tokens.get(left + right)
        return None if index is None else -self._scores[index]


class WordPieces(Encoder):
    """``bert``: words in lower case without accents, then always the longest piece; a word without pieces is one token.

    llama.cpp marks where a word begins, not where it goes on.
    """

    def __init__(self, vocabulary: Vocabulary, pause: Pause) -> None:
        super().__init__(vocabulary, pause)
        self._demand([_SPACE + letter for letter in "aeiou"])
        self._lowercase = vocabulary.lowercase is not False
        self._strip = self._lowercase if vocabulary.strip_accents is None else vocabulary.strip_accents
        self._longest = max((len(token.encode()) for token in vocabulary.tokens), default=0)
        self.bos = self.eos = 1

    def _text(self, text: str, *, spaced: bool) -> int:
        words = self._words.get
        total = 0
        for word in self._prepared(text):
            count = words(word)
            total += count if count is not None else self._remember(word, self._word(word))
        return total

    def _prepared(self, text: str) -> list[str]:
        words: list[str] = []
        word: list[str] = []
        for given in text:
            character = unicodedata.normalize("NFD", given)[0] if self._strip and given > "\x7f" else given
            if character in _WHITE:
                words.append("".join(word))
                word = []
                continue
            category = unicodedata.category(character)
            if character == "\ufffd" or category in _CONTROLS or (self._strip and category[0] == "M"):
                continue
            alone = category[0] == "P" or (category[0] == "S" and character < "\x7f") or _is_chinese(ord(character))
            if self._lowercase:
                character = character.lower()[0]
            if alone:
                words += ("".join(word), character)
                word = []
            else:
                word.append(character)
        words.append("".join(word))
        return [one for one in words if one]

    def _word(self, word: str) -> int:
        text, tokens = _SPACE + word, self._tokens
        at = found = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest + 1), at, -1):
                if text[at:end] in tokens:
                    break
            else:
                return 1
            at = end
            found += 1
        return found


_WHITE = frozenset(chr(code) for code in (*range(9, 14), 0x20, *FOREIGN_SPACES))
_CONTROLS = ("Cc", "Cf", "Co", "Cs")
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _is_chinese(code: int) -> bool:
    return code >= 0x3400 and any(first <= code <= last for first, last in _CHINESE)


_KINDS: dict[str, type[Encoder]] = {
    "gpt2": BytePairs,
    "gemma4": BytePairs,
    "llama": SentencePieces,
    "bert": WordPieces,
}


def encoder_of(vocabulary: Vocabulary, pause: Pause = lambda: None) -> Encoder:
    """Raises Unclaimed for a vocabulary whose counts would not be exact."""
    kind = _KINDS.get(vocabulary.model)
    if kind is None:
        raise Unclaimed(f"a kind of tokeniser that is not known: '{vocabulary.model[:40]}'")
    return kind(vocabulary, pause)
