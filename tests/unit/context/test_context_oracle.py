"""Every kind of vocabulary that is claimed, against the engine itself: the same number of tokens for any text."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bellmare.context.encoders import encoder_of
from bellmare.context.splits import SPLITS
from bellmare.context.vocabulary import Vocabulary
from bellmare.http.client import Upstream
from bellmare.workers.embedded.process import EngineArguments, EngineProcess
from engine_vocabularies import CORPUS, byte_pairs, sentence_pieces, spaced_pairs, word_pieces, write_vocabulary

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PIECES = (
    "a", "b ", " the", "\n", "  ", "\t", "1", "23", "4567", " 4", "\u00e9", "\u00c9", "\u65e5", "\u672c\u8a9e",
    "\u3002", "\uff0c", "\U0001f600", "~", ".", "'s", "'S", "'LL", "'", '"', "<|im_end|>", "<tool_call>",
    "<tool", "\u00a0", "\u0301", "\u03a9", "\u0441", "<", "_", "#", " (", ")\n", "\x00", "\u2028", "\u3000",
    "\r\n", "\ud55c\uae00", "\uff54", "\uff01", "/", "$", "\u00c0B", "\u017f", "\u00df", "\u0378", "\u0663",
    "\u00bd", "def count(", " return", "dog", "Dogs", " quick", " brown", "\u2581", "x\u2581y", "\x85", "\x1c",
    "</s>", "\u20ac", "\u0e01\u0e33",
)  # fmt: skip
TEXTS_MAX = 120
KINDS: dict[str, Callable[[], Vocabulary]] = {
    "gemma4": spaced_pairs,
    "pieces": sentence_pieces,
    "pieces over spaces": lambda: sentence_pieces(crossing=True),
    "pieces without a first space": lambda: sentence_pieces(prefix=False),
    "pieces of equal scores": lambda: sentence_pieces(ties=True),
    "words": word_pieces,
    "words in their case": lambda: word_pieces(lowercase=False),
    **{f"pairs {pre}": (lambda pre=pre: byte_pairs(pre)) for pre in SPLITS if pre != "gemma4"},
}


def texts(seed: str) -> list[str]:
    rng = random.Random(seed)
    made = ["".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 60))) for _ in range(TEXTS_MAX)]
    return ["", "a", CORPUS, " " * 100, "\n \n" * 30, "\u65e5" * 200, "dog" * 100, *made]


@pytest.mark.parametrize("kind", KINDS)
async def test_counts_equal_the_engines(kind: str, tmp_path: Path):
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    vocabulary = KINDS[kind]()
    path = write_vocabulary(tmp_path / "v.gguf", vocabulary)
    encoder = encoder_of(vocabulary)
    engine = await EngineProcess.start(EngineArguments(path, 128, parallel=1, threads=1), timeout_s=60)
    upstream = Upstream(engine.host, engine.port, base_path=engine.base_path)

    async def tokens(text: str, *, add_special: bool = False) -> int:
        body = msgspec.json.encode({"content": text, "add_special": add_special, "parse_special": True})
        answer = await upstream.fetch("POST", "/tokenize", body=body, timeout_s=20)
        return len(msgspec.json.decode(answer.body)["tokens"])

    try:
        wrong = [
            (text, ours, theirs)
            for text in texts(kind)
            if (ours := encoder.count(text)) != (theirs := await tokens(text))
        ]
        whole = await tokens("dog", add_special=True)
    finally:
        await upstream.close()
        await engine.stop(grace_s=1)
        await asyncio.sleep(0)
    assert wrong == []
    assert encoder.bos + encoder.eos + encoder.count("dog") == whole
