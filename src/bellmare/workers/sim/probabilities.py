"""Log probabilities of made-up tokens (ollama.md 1.4: ``logprobs``, ``top_logprobs`` 0 to 20)."""

from typing import Any

from bellmare.workers.sim.text import Story


class Probabilities:
    """Of the tokens of one answer; the one that was said has the highest."""

    def __init__(self, seed: int, top: int) -> None:
        self._seed = seed
        self._top = top

    def of(self, index: int, text: str) -> dict[str, Any]:
        first = -((self._seed + index * 7919) % 1000) / 1000
        told = _logprob(text, first)
        if self._top:
            others = Story(self._seed + 1, 1 << 30)
            told["top_logprobs"] = [
                _logprob(text if rank == 0 else others.token(index + rank), first - 1.5 * rank)
                for rank in range(self._top)
            ]
        return told


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}
