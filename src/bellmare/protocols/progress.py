"""The progress of one change on several workers, told as if it were on one (ollama.md 6.3). Pure.

A layer's figures are those of one copy: its size, and how much of it an average worker has. Every line is said once.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from bellmare.protocols.errors import upstream_error_text

STEPS = 500
"""Of a layer at most so many lines are told: sixty workers report a thousand a second."""
LAYERS_MAX = 1_000
"""Digests of one change: a model has some ten, one in shards some hundred. More are not told of."""
STATUSES_MAX = 1_000
"""Other lines of one change, each told once."""
STATUS_CHARS_MAX = 1_000
SUCCESS = {"status": "success"}
_UNREADABLE = "the worker's progress could not be read"


class _Line(msgspec.Struct, frozen=True):
    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: Any = None


class _Layer:
    """One digest."""

    __slots__ = ("completed", "status", "told", "total", "under_way")

    def __init__(self, status: str) -> None:
        self.status = status
        self.total = 0
        self.completed: dict[str, int] = {}
        """By worker, of those that have not ended."""
        self.under_way = 0
        """Their sum: a line costs the same however many workers there are."""
        self.told = -1

    def heard(self, worker: str, total: int, completed: int) -> None:
        """A worker's figures; none of them ever falls."""
        self.total = max(self.total, total)
        before = self.completed.get(worker, 0)
        if completed > before:
            self.completed[worker] = completed
            self.under_way += completed - before

    def ended(self, worker: str) -> None:
        """Its figures count no more: it has all of it, or takes no part."""
        self.under_way -= self.completed.pop(worker, 0)


_decoder = msgspec.json.Decoder(_Line)


class MergedProgress:
    """Takes the lines of every worker and gives those for the client."""

    def __init__(self, workers: Iterable[str]) -> None:
        self.failures: dict[str, str] = {}
        """By worker, why."""
        self.done: set[str] = set()
        self._workers = tuple(workers)
        assert self._workers, "somebody has to do it"
        self._said: set[str] = set()
        self._layers: dict[str, _Layer] = {}

    @property
    def over(self) -> bool:
        """Whether every worker has ended."""
        return len(self.done) + len(self.failures) == len(self._workers)

    def take(self, worker: str, line: bytes) -> list[dict[str, Any]]:
        """The lines that are to be told now. A worker's lines after its end are ignored."""
        if worker in self.done or worker in self.failures or not line.strip():
            return []
        try:
            said = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.fail(worker, _UNREADABLE)
        if said.error is not None:
            return self.fail(worker, upstream_error_text(line))
        if said.status == "success":
            self.done.add(worker)
            return self._layers_told(worker)
        status = said.status[:STATUS_CHARS_MAX]
        if said.digest:
            layer = self._layers.get(said.digest)
            if layer is None:
                if len(self._layers) >= LAYERS_MAX:
                    return []
                layer = self._layers[said.digest] = _Layer(status)
            layer.heard(worker, said.total, said.completed)
            return self._tell(said.digest, layer)
        if status in self._said or len(self._said) >= STATUSES_MAX:
            return []
        self._said.add(status)
        return [{"status": status}]

    def fail(self, worker: str, text: str) -> list[dict[str, Any]]:
        """The worker will not do it; the others go on."""
        if worker not in self.done and worker not in self.failures:
            self.failures[worker] = text
            return self._layers_told(worker)
        return []

    def end(self) -> dict[str, Any]:
        """The last line: success, or what has failed."""
        assert self.over, "the end comes last"
        return {"error": self.error} if self.failures else SUCCESS

    @property
    def error(self) -> str:
        """In the worker's own words if all say the same, else by worker; empty if none has failed."""
        texts = set(self.failures.values())
        if len(texts) == 1 and not self.done:
            return texts.pop()
        said = "; ".join(f"{worker}: {text}" for worker, text in self.failures.items())
        return f"done on {len(self.done)} of {len(self._workers)} workers; {said}" if self.failures else ""

    def _layers_told(self, ended: str) -> list[dict[str, Any]]:
        """A worker that has ended counts in every layer, or in none."""
        lines = []
        for digest, layer in self._layers.items():
            layer.ended(ended)
            lines += self._tell(digest, layer)
        return lines

    def _tell(self, digest: str, layer: _Layer) -> list[dict[str, Any]]:
        taking_part = len(self._workers) - len(self.failures)
        if not taking_part:
            return []
        have = layer.under_way + layer.total * len(self.done)
        completed = min(layer.total, have // taking_part)
        step = 1 if completed == layer.total else max(1, layer.total // STEPS)
        if layer.told >= 0 and completed - layer.told < step:
            return []
        layer.told = completed
        line: dict[str, Any] = {"status": layer.status, "digest": digest, "total": layer.total}
        if completed:  # Ollama leaves out a zero
            line["completed"] = completed
        return [line]
