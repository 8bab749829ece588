"""Context classes: one blob served with several contexts, each a model of its own with queue, demand and copies.

What makes them more than different models is their common blob: a worker runs it once, and another context there would
be a reload by Ollama itself (ollama.md 3.1, 3.4). So runners of one blob exclude each other on a worker: ``placement``
makes the one that is there a victim of the next, and ``seen_as`` tells by its context of which class a runner is.
"""

from bellmare.core.costs import learn_least
from bellmare.core.events import LoadedModel
from bellmare.core.fleet import CLASS_MARK, NO_CONFIG, Fleet
from bellmare.core.state import Model, Worker
from bellmare.core.units import InstantUs, ModelId


def derive(fleet: Fleet, base: Model) -> None:
    """Let the blob have the classes that the settings name: new ones begin, others are stored nowhere from now on.

    Contexts are capped to training; equal ones are one, and the canonical one is no class.
    """
    models = fleet.state.models
    wanted = wanted_contexts(fleet, base)
    for class_id in base.classes:
        if models[class_id].context not in wanted:
            _retire(fleet, models[class_id])
    for context in wanted:
        class_id = ModelId(f"{base.model}{CLASS_MARK}{context}")
        found = models.get(class_id)
        if found is None:
            found = models[class_id] = Model(model=class_id, stored=base.stored, blob=base.model, context=context)
            base.classes[class_id] = None
            fleet.know(found)
            fleet.recall(found)
            learn_least(fleet, found)
        if not found.holders:
            _let_hold(fleet, found, base)
    if len(base.classes) > 1:
        base.classes = dict.fromkeys(sorted(base.classes, key=lambda one: models[one].context))


def wanted_contexts(fleet: Fleet, base: Model) -> list[int]:
    """The contexts of the classes that the settings give it, ascending."""
    said = fleet.configured.get(base.model, NO_CONFIG).context_classes
    if not said:
        return []
    most = base.stored.context_max
    capped = {min(context, most) if most else context for context in said}
    return sorted(capped - {fleet.context_of(base)})


def derive_all(fleet: Fleet, *also: ModelId) -> None:
    """As ``derive``, for every blob that is configured, and for those of ``also`` that are known."""
    for model_id in dict.fromkeys((*also, *fleet.configured)):
        model = fleet.state.models.get(model_id)
        if model is not None and (model.classes or fleet.model_config(model).context_classes):
            derive(fleet, model)


def _let_hold(fleet: Fleet, found: Model, base: Model) -> None:
    """Whoever stores the blob can serve the class."""
    found.holders = dict(base.holders)
    fleet.holders_changed(found)
    found.stranded_us = base.stranded_us
    if base.healthy_holders:
        fleet.change_holders(found, base.healthy_holders)
    fleet.touch(found.model)


def _retire(fleet: Fleet, found: Model) -> None:
    """It is configured no more: who waits is told so as if its last worker were lost, a runner stays until its room, or
    its blob with another context, is wanted."""
    if not found.holders:
        return
    found.holders = {}
    fleet.holders_changed(found)
    if found.healthy_holders:
        fleet.change_holders(found, -found.healthy_holders)
    fleet.doubt(found.model)


def describe(fleet: Fleet, base: Model) -> None:
    """The blob's description has changed: so has that of its classes."""
    for one in fleet.family(base):
        one.stored = base.stored
        learn_least(fleet, one)


def seen_as(fleet: Fleet, worker: Worker, base: Model, *, loaded: LoadedModel, younger: bool) -> Model:
    """Of which class a runner is that an observation shows: the one that has just its context.

    A context that is no class's says nothing about that: it is taken for what we hold there of the blob (``younger``:
    that is later news than the observation), else for the canonical one. Whether it is too small then, is for the shape
    check to say.
    """
    held = fleet.held_on(worker, base)
    if held is not None and (younger or loaded.num_ctx in (0, held.num_ctx)):
        return fleet.state.models[held.model]
    for one in fleet.family(base):
        if one.holders and fleet.context_of(one) == loaded.num_ctx:
            return one
    return base if held is None else fleet.state.models[held.model]


def stand_in(fleet: Fleet, model: Model, name: str) -> Model:
    """Who serves a request for ``model`` that comes now: itself; without any copy, a larger context with a free slot.

    Only where it runs at once on at least as much context, and nobody waits for either: it saves the load, and on a
    worker of their own two contexts would throw each other out.
    """
    if (not model.context and not model.classes) or model.copies or model.placements or model.waiting:
        return model
    need = fleet.context_of(model)
    plain = name.partition(CLASS_MARK)[0]
    larger = [one for one in fleet.family(model) if fleet.context_of(one) > need and one.holders and not one.waiting]
    for one in sorted(larger, key=fleet.context_of):
        for _, index in fleet.open[one.model]:
            worker = fleet.at(index)
            stored = worker.stored.get(plain)
            if stored is not None and stored.model == one.blob:
                if worker.runners[one.model].num_ctx >= need:
                    return one
                break
    return model


def larger_there(fleet: Fleet, model: Model) -> bool:
    """Whether some worker has, or will have, the blob with a larger context: then a load of this one saves little."""
    if not model.context and not model.classes:
        return False
    need = fleet.context_of(model)
    return any((one.copies or one.placements) and fleet.context_of(one) > need for one in fleet.family(model))


def left_us(fleet: Fleet, worker: Worker, model: Model) -> InstantUs:
    """When a runner of the model's blob, in whichever class, was last gone from the worker; -1: not lately."""
    never = InstantUs(-1)
    if not model.context and not model.classes:
        return worker.left.get(model.model, never)
    return max(worker.left.get(one.model, never) for one in fleet.family(model))
