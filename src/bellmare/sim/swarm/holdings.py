"""What the oracle knows of names and sizes: which blob a name means, and what a runner of it takes."""

from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.units import ModelId, WorkerId
from bellmare.sim.swarm.books import RequestBook, WorkerBook

Shape = tuple[ModelId, str, int, int]
"""What a measurement of a runner is valid for: blob, kind of worker, context, slots."""


class Holdings:
    """Workers, what they store, and what was measured. ``Ledger`` writes it down."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.workers: dict[WorkerId, WorkerBook] = {}
        self.blobs: dict[ModelId, e.StoredModel] = {}
        self.votes: dict[str, dict[ModelId, int]] = {}
        self.measured: dict[Shape, int] = {}
        self.ever_pinned: dict[ModelId, None] = {}

    def count_votes(self) -> None:
        """How many workers bind each name to which blob; of equals the one bound first wins."""
        counts: dict[str, dict[ModelId, int]] = {}
        for worker in self.workers.values():
            for name, entry in worker.stored.items():
                blobs = counts.setdefault(name, {})
                blobs[entry.model] = blobs.get(entry.model, 0) + 1
        kept: dict[str, dict[ModelId, int]] = {}
        for name, blobs in counts.items():
            before = self.votes.get(name, {})
            order = [blob for blob in before if blob in blobs] + [blob for blob in blobs if blob not in before]
            kept[name] = {blob: blobs[blob] for blob in order}
        self.votes = kept
        for name, said in self.config.models.items():
            blob = self.resolve(name) if said.pinned else None
            if blob is not None:
                self.ever_pinned[blob] = None

    def resolve(self, name: str) -> ModelId | None:
        votes = self.votes.get(name)
        return max(votes, key=votes.__getitem__) if votes else None

    def binds(self, worker: WorkerBook, request: RequestBook) -> bool:
        entry = worker.stored.get(request.event.name)
        return entry is not None and entry.model == request.blob

    def canonical(self, blob: ModelId) -> int:
        """The one context of a model: configured, the Modelfile's or the default, capped to training."""
        entry = self.blobs[blob]
        said = [m.num_ctx for name, m in self.config.models.items() if m.num_ctx and self.resolve(name) == blob]
        wanted = max(said, default=0) or entry.num_ctx or self.config.default_num_ctx
        return min(wanted, entry.context_max) if entry.context_max else wanted

    def pinned(self, blob: ModelId) -> bool:
        return any(said.pinned and self.resolve(name) == blob for name, said in self.config.models.items())

    def need(self, worker: WorkerBook, blob: ModelId, num_ctx: int) -> int:
        """What a runner will take: as measured in this shape, else by the documented formula."""
        entry = self.blobs[blob]
        slots = worker.slots(entry)
        measured = self.measured.get((blob, str(worker.spec.kind), num_ctx, slots))
        if measured is not None:
            return measured + worker.unshown
        if not entry.kv_bytes_per_token and not entry.recurrent_bytes_per_slot:
            return entry.weights_bytes * 108 // 100 + (512 << 20) + worker.spec.overhead_bytes
        cache = (entry.kv_bytes_per_token * num_ctx + entry.recurrent_bytes_per_slot) * slots
        return entry.weights_bytes + cache + entry.compute_bytes + 1024 * num_ctx + worker.spec.overhead_bytes

    def predicted(self, worker: WorkerBook, blob: ModelId, num_ctx: int) -> int:
        """What Ollama's own fit test is about: the file, and the cache for all slots."""
        entry = self.blobs[blob]
        cache = entry.predicted_kv_bytes_per_token or entry.kv_bytes_per_token
        return entry.weights_bytes + cache * num_ctx * worker.slots(entry)
