"""Where the counter of tokens learns how models read prompts: from the workers that store them, by /api/show."""

from bellmare.context.library import Identity, Unavailable
from bellmare.gateway.shelf import Shelf
from bellmare.http.client import UpstreamError
from bellmare.protocols import ollama
from bellmare.protocols.errors import upstream_error_text
from bellmare.workers.ollama import ANSWER_BYTES_MAX


class FleetSource:
    """A ``library.Source``."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def identity(self, name: str) -> Identity | None:
        """By the worker that serves the name."""
        model = self._shelf.driver.engine.fleet.resolve(name)
        port = self._shelf.holder(name)
        return Identity(model.blob, port.tags[name].digest) if model is not None and port is not None else None

    async def show(self, name: str, *, verbose: bool, timeout_s: float) -> bytes:
        port = self._shelf.holder(name)
        if port is None:
            raise Unavailable("no worker that stores it is reachable")
        asked = port.tags[name].name
        body = ollama.encode_show(ollama.ShowRequest(model=asked, verbose=verbose), model=asked)
        try:
            answer = await port.upstream.fetch(
                "POST", "/api/show", body=body, timeout_s=timeout_s, body_max_bytes=ANSWER_BYTES_MAX
            )
        except UpstreamError as error:
            raise Unavailable(f"{port.worker}: {error.failure.detail}") from error
        if answer.status != 200:
            raise Unavailable(f"{port.worker}: {upstream_error_text(answer.body)}")
        return answer.body
