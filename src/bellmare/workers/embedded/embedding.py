"""Embeddings over the engine (ollama.md 1.4, 2.1, 5): vectors of length 1, inputs cut to the context or refused."""

from __future__ import annotations

from typing import Any

import msgspec

from bellmare.http.client import Upstream, UpstreamError
from bellmare.workers.embedded.prompting import Prompter
from bellmare.workers.embedded.refusals import OllamaError
from bellmare.workers.embedded.relay import RUNNER_DIED

NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
INPUT_TOO_LONG = "the input length exceeds the context length"
EMBED_TIMEOUT_S = 600.0


class Embedded(msgspec.Struct, frozen=True):
    """``vectors`` in the order of the inputs; ``tokens`` of all of them together."""

    vectors: list[list[float]]
    tokens: int


async def embed(upstream: Upstream, prompter: Prompter, *, texts: list[str], num_ctx: int, truncate: bool) -> Embedded:
    """Raises :class:`OllamaError`: 400 for an input that is too long and may not be cut."""
    inputs: list[list[int]] = []
    for text in texts:
        tokens = await prompter.tokens(text)
        if len(tokens) > num_ctx:
            if not truncate:
                raise OllamaError(400, INPUT_TOO_LONG)
            tokens = tokens[:num_ctx]
        inputs.append(tokens)
    body = msgspec.json.encode({"input": inputs, "encoding_format": "float"})
    try:
        answer = await upstream.fetch("POST", "/v1/embeddings", body=body, timeout_s=EMBED_TIMEOUT_S)
    except UpstreamError:
        raise OllamaError(400, RUNNER_DIED) from None
    if answer.status != 200:
        raise OllamaError(answer.status, answer.body.decode("utf-8", "replace")[:65_536])
    rows: list[dict[str, Any]] = msgspec.json.decode(answer.body)["data"]
    vectors = [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]
    return Embedded(vectors, sum(map(len, inputs)))


def shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first ``dimensions`` of a vector, at length 1 again."""
    if not dimensions or dimensions >= len(vector):
        return vector
    part = vector[:dimensions]
    norm = sum(value * value for value in part) ** 0.5 or 1.0
    return [value / norm for value in part]
