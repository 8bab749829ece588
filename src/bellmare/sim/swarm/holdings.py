"""What the oracle knows of names and sizes: which blob a name means, and what a runner of it takes."""

from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.units import ModelId, WorkerId
from bellmare.sim.swarm.books import RequestBook, WorkerBook

CLASS = "#"
"""Stands before the context of a class: in the names by which it is asked for, and in what the core calls it."""
Shape = tuple[ModelId, str, int, int]
"""What a measurement of a runner is valid for: blob, kind of worker, context, slots."""


def weights(blob: ModelId) -> ModelId:
    """What a worker knows of it: the blob without the context class."""
    return ModelId(blob.partition(CLASS)[0])


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
        """What it means; with a class, the class of what the plain name means, if that has it."""
        plain, mark, context = name.partition(CLASS)
        votes = self.votes.get(plain)
        blob = max(votes, key=votes.__getitem__) if votes else None
        if blob is None or not mark:
            return blob
        found = ModelId(f"{blob}{CLASS}{context}")
        return found if found in self.class_ids(blob) else None

    def class_ids(self, blob: ModelId) -> list[ModelId]:
        """Its context classes by the settings, capped to training; the canonical context is none of them."""
        if not any(said.context_classes for said in self.config.models.values()):
            return []
        said = [m.context_classes for name, m in self.config.models.items() if self.resolve(name) == blob]
        most = self.blobs[blob].context_max
        contexts = {min(one, most) if most else one for some in said for one in some}
        return [ModelId(f"{blob}{CLASS}{one}") for one in sorted(contexts) if one != self.canonical(blob)]

    def stores(self, worker: WorkerBook, blob: ModelId) -> bool:
        """Whether it can serve it: it stores the weights, and a class is configured still."""
        plain = weights(blob)
        there = any(entry.model == plain for entry in worker.stored.values())
        return there and (blob == plain or blob in self.class_ids(plain))

    def binds(self, worker: WorkerBook, request: RequestBook) -> bool:
        entry = worker.stored.get(request.event.name.partition(CLASS)[0])
        return entry is not None and entry.model == weights(request.blob)

    def sibling(self, worker: WorkerBook, blob: ModelId) -> ModelId | None:
        """The same blob with another context, if the worker runs that."""
        return next((held for held in worker.runners if held != blob and weights(held) == weights(blob)), None)

    def entry(self, blob: ModelId) -> e.StoredModel:
        return self.blobs[weights(blob)]

    def canonical(self, blob: ModelId) -> int:
        """The one context of a model: a class's own; else configured, the Modelfile's or the default, capped."""
        if CLASS in blob:
            return int(blob.partition(CLASS)[2])
        entry = self.blobs[blob]
        said = [m.num_ctx for name, m in self.config.models.items() if m.num_ctx and self.resolve(name) == blob]
        wanted = max(said, default=0) or entry.num_ctx or self.config.default_num_ctx
        return min(wanted, entry.context_max) if entry.context_max else wanted

    def pinned(self, blob: ModelId) -> bool:
        return any(said.pinned and self.resolve(name) == blob for name, said in self.config.models.items())

    def need(self, worker: WorkerBook, blob: ModelId, num_ctx: int) -> int:
        """What a runner will take: as measured in this shape, else by the documented formula."""
        entry = self.entry(blob)
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
        entry = self.entry(blob)
        cache = entry.predicted_kv_bytes_per_token or entry.kv_bytes_per_token
        return entry.weights_bytes + cache * num_ctx * worker.slots(entry)
