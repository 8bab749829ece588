"""Made-up answers: the same prompt, seed and model always say the same, at no cost per token."""

import zlib
from collections.abc import Sequence

_LINES = (
    "the mare leads and the train follows over stone and river at an even pace "
    "each load finds its place by weight and balance while the bell rings slow and clear "
    "no rope is needed where trust goes first so memory keeps what will be asked again"
)
_WORDS = _LINES.split()
_STEP = 2_654_435_761  # Knuth's multiplicative hash: neighbours are spread


class Story:
    """One answer of ``length`` tokens. Token k is a function of k alone, so nothing is stored."""

    __slots__ = ("_prefix", "_seed", "_suffix", "length")

    def __init__(self, seed: int, length: int, *, as_json: bool = False) -> None:
        self._seed = seed
        self.length = length
        self._prefix, self._suffix = ('{"answer": "', '"}') if as_json else ("", "")

    def token(self, index: int) -> str:
        """Words with a leading blank; plain ASCII that needs no escaping unless ``as_json`` was asked for."""
        word = _WORDS[((self._seed + index) * _STEP >> 7) % len(_WORDS)]
        text = self._prefix + word if index == 0 else " " + word
        return text + self._suffix if index == self.length - 1 else text

    def text(self, length: int) -> str:
        """The first ``length`` tokens."""
        return "".join(self.token(index) for index in range(length))


def seed_of(*parts: object) -> int:
    """A number that depends on the parts' text only."""
    return zlib.crc32("\0".join(map(str, parts)).encode())


def natural_length(seed: int) -> int:
    """Tokens of an answer that nobody limits: 20 to 60."""
    return 20 + seed % 41


def count_tokens(text: str) -> int:
    """About four bytes each; never zero."""
    return len(text.encode()) // 4 + 1


def embedding(seed: int, dimensions: int) -> list[float]:
    """A vector of length 1 (ollama.md 1.4: L2-normalised)."""
    state, values = seed, []
    for _ in range(dimensions):
        state = (state * 1_664_525 + 1_013_904_223) & 0xFFFF_FFFF
        values.append(state / 0x8000_0000 - 1.0)
    return normalised(values)


def normalised(values: Sequence[float]) -> list[float]:
    """The same direction at length 1."""
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / norm for value in values]
