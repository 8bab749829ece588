"""What names mean: which blob serves a name, with which contexts, and who holds it. Changes only ``configured``."""

from collections.abc import Iterator

from bellmare.core.config import CoreConfig, ModelConfig
from bellmare.core.state import Model, Request, Runner, State, Worker
from bellmare.core.units import ModelId

NO_CONFIG = ModelConfig()
CLASS_MARK = "#"
"""Between a model's name, or its blob, and the context of a class; in no valid name."""


class Naming:
    """The state as far as names go. ``fleet.Fleet`` adds all that changes."""

    __slots__ = ("config", "configured", "state")

    def __init__(self, config: CoreConfig, state: State) -> None:
        self.config = config
        self.state = state
        self.configured: dict[ModelId, ModelConfig] = {}
        """What the operator says about a blob, under whichever of its names."""

    # ------------------------------------------------------------------ names

    def model_config(self, model: Model) -> ModelConfig:
        return self.configured.get(model.model, NO_CONFIG)

    def resolve(self, name: str) -> Model | None:
        """The blob that serves ``name``: what most workers bind it to; of equals, the one seen first.

        ``name#32768`` is the class of that context; None if the model has none such.
        """
        votes = self.state.votes.get(name)
        if votes:
            return self.state.models[max(votes, key=votes.__getitem__)]
        plain, mark, context = name.partition(CLASS_MARK)
        model = self.resolve(plain) if mark else None
        found = self.state.models.get(ModelId(f"{model.model}{CLASS_MARK}{context}")) if model is not None else None
        return found if found is not None and found.holders else None

    def name_on(self, worker: Worker, model: ModelId, *, prefer: str) -> str | None:
        """A name that reaches the model's blob on that worker; None if none does any more (ollama.md 2.3)."""
        stored = worker.stored.get(prefer)
        if stored is not None and stored.model == model:
            return prefer
        blob = self.state.models[model].blob
        if stored is not None and stored.model == blob:
            return prefer
        return next((name for name, stored in worker.stored.items() if stored.model == blob), None)

    def holds(self, worker: Worker, request: Request) -> bool:
        """Whether ``worker`` binds the very name that was asked for to the request's blob."""
        stored = worker.stored.get(request.name)
        if stored is None:
            return False
        return stored.model == request.model or stored.model == self.state.models[request.model].blob

    def rebind(self) -> None:
        """Find again which blobs the configured names mean. Of two names over one blob, both are heeded."""
        self.configured = {}
        for name, said in self.config.models.items():
            model = self.resolve(name)
            if model is None:
                continue
            other = self.configured.get(model.model, NO_CONFIG)
            self.configured[model.model] = ModelConfig(
                num_ctx=max(said.num_ctx, other.num_ctx),
                pinned=said.pinned or other.pinned,
                context_classes=(*other.context_classes, *said.context_classes),
            )

    # ------------------------------------------------------------------ contexts

    def context_of(self, model: Model) -> int:
        """Context per slot: a class's own; else configured, the Modelfile's, or the default, capped to training."""
        if model.context:
            return model.context
        wanted = self.model_config(model).num_ctx or model.stored.num_ctx or self.config.default_num_ctx
        return min(wanted, model.stored.context_max) if model.stored.context_max else wanted

    def contexts(self, name: str) -> tuple[int, ...]:
        """Contexts per slot in which ``name``, without a class, is served, ascending; empty if no worker stores it."""
        model = self.resolve(name)
        if model is None:
            return ()
        if not model.classes:
            return (self.context_of(model),)
        return tuple(sorted(self.context_of(one) for one in self.family(model) if one.holders))

    def class_for(self, name: str, tokens: int) -> str | None:
        """The name by which to ask the core for ``name`` with room for so many tokens; None if no context has it.

        The canonical context if that has it, else the smallest that has. ``name`` is canonical, without a class.
        """
        model = self.resolve(name)
        if model is None:
            return None
        if tokens <= self.context_of(model):
            return name
        larger = [one.context for one in self.family(model) if one.context >= tokens and one.holders]
        return f"{name}{CLASS_MARK}{min(larger)}" if larger else None

    def class_asked(self, name: str, num_ctx: int) -> str | None:
        """The name by which to ask the core for ``name`` when a client says ``num_ctx``; None if no worker stores it.

        The smallest context that is not less, else the largest.
        """
        model = self.resolve(name)
        if model is None:
            return None
        if not model.classes:
            return name
        known = sorted((self.context_of(one), one.model != model.model) for one in self.family(model) if one.holders)
        context, is_class = next((one for one in known if one[0] >= num_ctx), known[-1])
        return f"{name}{CLASS_MARK}{context}" if is_class else name

    def family(self, model: Model) -> Iterator[Model]:
        """All models over its blob: the canonical one first, then its classes. They exclude each other on a worker."""
        models = self.state.models
        base = model if model.blob == model.model else models[model.blob]
        yield base
        for class_id in base.classes:
            yield models[class_id]

    def meant(self, model: Model) -> Iterator[Model]:
        """What who names it without saying more means: a class that one alone, the canonical one with all classes."""
        if model.context:
            yield model
        else:
            yield from self.family(model)

    def held_on(self, worker: Worker, model: Model) -> Runner | None:
        """The runner of the model's blob on that worker, in whichever class and residency; there is one at most."""
        if not model.context and not model.classes:
            return worker.runners.get(model.model)
        for one in self.family(model):
            runner = worker.runners.get(one.model)
            if runner is not None:
                return runner
        return None
