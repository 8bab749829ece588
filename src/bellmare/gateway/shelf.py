"""What the fleet stores, seen as one shelf: for each name the entry of a worker that has the version that serves it."""

from bellmare.protocols import ollama
from bellmare.runtime.driver import Driver
from bellmare.runtime.fleet import WorkerFleet
from bellmare.workers.ollama import OllamaWorker


class Shelf:
    """Reads core and ports; a worker that is away delays nobody."""

    __slots__ = ("driver", "fleet")

    def __init__(self, driver: Driver, fleet: WorkerFleet) -> None:
        self.driver = driver
        self.fleet = fleet

    def names(self) -> list[str]:
        """Canonical names of all models that some worker stores."""
        return list(self.driver.engine.fleet.state.votes)

    def names_of(self, name: str) -> list[str]:
        """All names of the blob that serves a canonical name: who uses one of them uses that model."""
        fleet = self.driver.engine.fleet
        model = fleet.resolve(name)
        return [other for other in self.names() if fleet.resolve(other) is model]

    def holder(self, name: str) -> OllamaWorker | None:
        """A healthy worker that binds a canonical name to the blob that serves it."""
        fleet = self.driver.engine.fleet
        model = fleet.resolve(name)
        if model is None:
            return None
        for worker_id in model.holders:
            worker = fleet.state.workers[worker_id]
            stored = worker.stored.get(name)
            port = self.fleet.ports.get(worker_id)
            if worker.healthy and stored is not None and stored.model == model.model and port is not None:
                return port if name in port.tags else None
        return None

    def healthy(self) -> list[OllamaWorker]:
        """All workers that answer at the moment."""
        workers = self.driver.engine.fleet.state.workers
        return [
            port for worker_id, port in self.fleet.ports.items() if worker_id in workers and workers[worker_id].healthy
        ]

    async def look(self, ports: list[OllamaWorker]) -> None:
        """Have the core see these workers as they are now: who changed them may ask for the model at once."""
        await self.fleet.look(ports)

    def abilities(self, name: str) -> frozenset[str] | None:
        """What the model of a canonical name can do; None if no worker has said."""
        port = self.holder(name)
        return port.abilities.get(name) if port is not None else None

    def in_context(self, name: str, num_ctx: int) -> tuple[str, int] | None:
        """What the core is asked for when a client says ``num_ctx``, and what that holds; None if nobody stores it."""
        fleet = self.driver.engine.fleet
        asked = fleet.class_asked(name, num_ctx)
        model = fleet.resolve(asked) if asked is not None else None
        return (asked, fleet.context_of(model)) if asked is not None and model is not None else None

    def stored(self) -> dict[str, ollama.TagsModel]:
        """Every name of the fleet with the entry of a worker that holds the serving version."""
        found: dict[str, ollama.TagsModel] = {}
        for name in self.names():
            port = self.holder(name)
            if port is not None:
                found[name] = port.tags[name]
        return found
