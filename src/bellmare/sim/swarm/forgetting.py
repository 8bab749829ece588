"""What the oracle's books forget, and when: a blob, or a class of it, to which nothing refers any more."""

from bellmare.core.units import ModelId
from bellmare.sim.swarm.holdings import weights
from bellmare.sim.swarm.trust import Trusting


class Forgetting(Trusting):
    """What a ledger drops after a step. ``Oracle`` judges by what is left."""

    def forget_blobs(self) -> None:
        """A blob is known while a disk or a GPU holds it, somebody asked for it, or a sight on its way may show it.

        A class likewise, but that instead of a disk the settings have to know it; its blob is known as long as it is.
        """
        stored = {entry.model for worker in self.workers.values() for entry in worker.stored.values()}
        configured = any(said.context_classes for said in self.config.models.values())
        if configured:
            self.classes |= {one: None for blob in self.blobs if blob in stored for one in self.class_ids(blob)}
        unstored = [blob for blob in self.blobs if blob not in stored]
        if not unstored and not self.classes:
            return
        known = {blob for worker in self.workers.values() for blob in worker.runners}
        known |= {b for worker in self.workers.values() for b, gone in worker.gone.items() if gone >= worker.observed}
        known |= {request.blob for request in self.requests.values()}
        known |= {operation.decision.model for operation in self.operations.values()}
        for one in list(self.classes):
            if one in known or (weights(one) in stored and one in self.class_ids(weights(one))):
                known.add(weights(one))
            else:
                del self.classes[one]
                self._forget(one)
                self.meet("class forgotten")
        for blob in unstored:
            if blob not in known:
                del self.blobs[blob]
                self._forget(blob)
                self.meet("forgotten")

    def _forget(self, blob: ModelId) -> None:
        for shape in [shape for shape in self.measured if shape[0] == blob]:
            del self.measured[shape]
        for memory in (self.largest, self.service, self.ever_pinned, self.asked_in, self.asked_out, self.given_back):
            memory.pop(blob, None)
        for worker in self.workers.values():
            worker.refused_until.pop(blob, None)
            worker.resting_until.pop(blob, None)
            worker.failed_loads.pop(blob, None)
            worker.claims.pop(blob, None)
