"""Takes in what a worker shows. Level-triggered: whatever was missed, lost or done behind our back is put right here.

An observation cannot know what happened after it was asked for, so it never contradicts a change younger than its
start.
"""

from bellmare.core import classes
from bellmare.core.costs import (
    book_bytes,
    canonical_num_ctx,
    learn_bytes,
    learn_least,
    load_estimate_us,
    need_bytes,
    slots_of,
)
from bellmare.core.decisions import UnloadCause
from bellmare.core.events import LoadedModel, StoredModel, WorkerObserved
from bellmare.core.fleet import Fleet
from bellmare.core.health import bring_in
from bellmare.core.residency import Cue, Residency
from bellmare.core.scheduler import ask_to_leave
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import Bytes, InstantUs, ModelId


def observed(fleet: Fleet, event: WorkerObserved) -> None:
    """Bring our picture of one worker to what it showed."""
    worker = fleet.state.workers.get(event.worker)
    if worker is None or event.started_us < worker.observed_us:
        return
    if not worker.healthy and event.started_us <= worker.distrust_us:
        return  # asked before the worker was lost, or in an earlier life under the same id
    worker.observed_us = event.started_us
    worker.version = event.version or worker.version
    if event.stored is not None:
        _take_stored(fleet, worker, event.stored)
    _take_loaded(fleet, worker, event)
    if event.stored is not None:
        for runner in list(worker.runners.values()):
            _check_name(fleet, worker, runner)
    _learn_capacity(worker, event)
    bring_in(fleet, worker)
    fleet.refresh_room(worker)
    fleet.touch_worker(worker.worker)


def forget_stored(fleet: Fleet, worker: Worker) -> None:
    """The worker stores nothing as far as routing goes: it left the fleet."""
    _take_stored(fleet, worker, ())


def _take_stored(fleet: Fleet, worker: Worker, stored: tuple[StoredModel, ...]) -> None:
    """Update names, votes and holders by what changed; ``stored`` itself first, since holders are looked at by name."""
    new = {entry.name: entry for entry in stored}
    before, worker.stored = worker.stored, new
    moved = False
    described: dict[ModelId, None] = {}
    for name, entry in before.items():
        if name not in new or new[name].model != entry.model:
            _unvote(fleet, worker, entry)
            moved = True
    for name, entry in new.items():
        old = before.get(name)
        if old is None or old.model != entry.model:
            _vote(fleet, worker, entry)
            moved = True
        elif old != entry:
            model = fleet.state.models[entry.model]
            model.stored = entry
            classes.describe(fleet, model)
            described[model.model] = None
    if moved and fleet.config.models:
        _heed_config(fleet)
    elif described:
        classes.derive_all(fleet)


def _heed_config(fleet: Fleet) -> None:
    """Names changed hands: what the operator says about a name now concerns another blob."""
    before = fleet.configured
    fleet.rebind()
    for model_id in before | fleet.configured:
        if before.get(model_id) != fleet.configured.get(model_id):
            learn_least(fleet, fleet.state.models[model_id])
            fleet.touch(model_id)
    classes.derive_all(fleet, *before)


def _check_name(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """A runner whose name went to another blob leaves while some name still reaches it: later none can unload it."""
    name = fleet.name_on(worker, runner.model, prefer=runner.name)
    if name is None:
        fleet.count("unreachable_runner")
    elif name != runner.name and runner.name in worker.stored:
        runner.name = name
        if runner.residency in (Residency.resident, Residency.draining):
            ask_to_leave(fleet, worker, runner, cause=UnloadCause.replaced)


def _vote(fleet: Fleet, worker: Worker, entry: StoredModel) -> None:
    state = fleet.state
    model = state.models.get(entry.model)
    if model is None:
        model = state.models[entry.model] = Model(model=entry.model, stored=entry)
        fleet.know(model)
        fleet.recall(model)
        learn_least(fleet, model)
    votes = state.votes.setdefault(entry.name, {})
    votes[entry.model] = votes.get(entry.model, 0) + 1
    for one in fleet.family(model):
        if one is model or one.holders:  # a class that nobody holds is configured no more, or begins later
            _hold(fleet, worker, one)


def _unvote(fleet: Fleet, worker: Worker, entry: StoredModel) -> None:
    state = fleet.state
    model = state.models[entry.model]
    votes = state.votes[entry.name]
    votes[entry.model] -= 1
    if not votes[entry.model]:
        del votes[entry.model]
    if not votes:
        del state.votes[entry.name]
    for one in fleet.family(model):
        if worker.worker in one.holders:
            _let_go(fleet, worker, one)


def _hold(fleet: Fleet, worker: Worker, model: Model) -> None:
    """The worker stores it under one name more."""
    names = model.holders.get(worker.worker, 0)
    model.holders[worker.worker] = names + 1
    if model.waiting:
        fleet.touch(model.model)
    if names == 0:
        fleet.holders_changed(model)
        if worker.healthy:
            fleet.change_holders(model, 1)


def _let_go(fleet: Fleet, worker: Worker, model: Model) -> None:
    """The worker stores it under one name less."""
    model.holders[worker.worker] -= 1
    if model.waiting:
        fleet.touch(model.model)
    if not model.holders[worker.worker]:
        del model.holders[worker.worker]
        fleet.holders_changed(model)
        fleet.doubt(model.model)
        if worker.healthy:
            fleet.change_holders(model, -1)


def _take_loaded(fleet: Fleet, worker: Worker, event: WorkerObserved) -> None:
    seen: dict[ModelId, None] = {}
    foreign = int(event.foreign_bytes)
    for loaded in event.loaded:
        model = fleet.state.models.get(loaded.model) if loaded.model is not None else None
        if model is None:
            foreign += loaded.bytes + worker.unshown_bytes  # a runner all the same
            continue
        held = fleet.held_on(worker, model)
        if model.classes:
            younger = held is not None and _newer(fleet, worker, held, started_us=event.started_us)
            model = classes.seen_as(fleet, worker, model, loaded=loaded, younger=younger)
        seen[model.model] = None
        if held is not None and held.model != model.model:  # somebody else has loaded it anew, with another context
            fleet.count("found_gone")
            fleet.move(worker, held, Cue.gone)
            _adopt(fleet, worker, model, loaded=loaded)
            continue
        _take_one(fleet, worker, model, sight=(loaded, event.started_us))
    worker.foreign_bytes = Bytes(foreign)
    for runner in list(worker.runners.values()):
        if runner.model not in seen and not _newer(fleet, worker, runner, started_us=event.started_us):
            fleet.count("found_gone")
            fleet.move(worker, runner, Cue.gone)
    for model_id, left_us in list(worker.left.items()):
        if left_us < event.started_us:
            del worker.left[model_id]
            fleet.doubt(model_id)
    for model_id, until_us in list(worker.resting.items()):
        if until_us <= fleet.now_us:
            del worker.resting[model_id]


def _newer(fleet: Fleet, worker: Worker, runner: Runner, *, started_us: InstantUs) -> bool:
    """Whether the runner's state is younger than the observation, or an operation is about to settle it.

    Of two things in one instant the order is not known, so that an observation must be younger to be believed.
    """
    if runner.residency is Residency.loading:
        return True
    if runner.residency is Residency.unloading:
        operation = fleet.state.operations.get(worker.operation) if worker.operation is not None else None
        if operation is not None and operation.model == runner.model:
            return True
    return runner.since_us >= started_us


def _take_one(fleet: Fleet, worker: Worker, model: Model, *, sight: tuple[LoadedModel, InstantUs]) -> None:
    loaded, started_us = sight
    runner = worker.runners.get(model.model)
    if runner is None:
        if classes.left_us(fleet, worker, model) < started_us:
            _adopt(fleet, worker, model, loaded=loaded)
        return
    if _newer(fleet, worker, runner, started_us=started_us):
        return
    if runner.residency is Residency.unloading:
        if loaded.expired:
            seen_bytes = Bytes(loaded.bytes + worker.unshown_bytes)
            fleet.set_bytes(worker, runner, max(runner.bytes, seen_bytes))
            _check_gone(fleet, worker, runner)
            return
        fleet.move(worker, runner, Cue.adopted)
    runner.pinned = loaded.pinned
    _note_spill(fleet, worker, runner, loaded=loaded)
    if loaded.num_ctx:
        runner.num_ctx = loaded.num_ctx
    fleet.set_bytes(worker, runner, book_bytes(worker, model, runner, measured=loaded.bytes))
    _check_shape(fleet, worker, model, runner=runner)


def _check_gone(fleet: Fleet, worker: Worker, runner: Runner) -> None:
    """It should have gone and is still listed as leaving: after some patience it is unloaded once more."""
    if runner.since_us + fleet.config.load_backoff_us <= fleet.now_us:
        worker.leaving.setdefault(runner.model, UnloadCause.crashed)


def _adopt(fleet: Fleet, worker: Worker, model: Model, *, loaded: LoadedModel) -> None:
    """A resident that we did not load, or loaded in an earlier life: it stays, with the context that it has."""
    num_ctx = loaded.num_ctx or canonical_num_ctx(fleet, model)
    runner = Runner(
        worker=worker.worker,
        model=model.model,
        name=fleet.name_on(worker, model.model, prefer=loaded.name) or loaded.name,
        residency=Residency.absent,
        num_ctx=num_ctx,
        slots=slots_of(worker, model),
        bytes=need_bytes(worker, model, num_ctx),
        since_us=fleet.now_us,
        load_us=load_estimate_us(worker, model),
        used_us=fleet.now_us,  # nobody knows: not older than what we have seen used
        pinned=loaded.pinned,
        spilled=loaded.spilled_bytes > 0,
    )
    runner.bytes = learn_bytes(worker, model, runner, measured=loaded.bytes)
    runner.residency = Residency.resident
    fleet.add_runner(worker, runner)
    fleet.count("adopted")
    fleet.touch(model.model)
    _check_shape(fleet, worker, model, runner=runner)


def _note_spill(fleet: Fleet, worker: Worker, runner: Runner, *, loaded: LoadedModel) -> None:
    """Whether a part of the runner is on the CPU, which no error tells: it is ten times slower and stays so."""
    if runner.spilled is not (loaded.spilled_bytes > 0):
        runner.spilled = not runner.spilled
        fleet.refresh_open(worker, runner)


def _check_shape(fleet: Fleet, worker: Worker, model: Model, *, runner: Runner) -> None:
    """A context below the canonical one would cut prompts without a word: such a runner leaves, to be loaded anew."""
    if runner.num_ctx >= canonical_num_ctx(fleet, model) or runner.num_ctx == runner.granted_num_ctx:
        return
    if runner.model not in worker.leaving:
        ask_to_leave(fleet, worker, runner, cause=UnloadCause.shape)


def _learn_capacity(worker: Worker, event: WorkerObserved) -> None:
    """A guessed capacity rises to what was seen to fit on the GPU."""
    if worker.capacity_known:
        return
    fitting = sum(int(loaded.bytes) for loaded in event.loaded if not loaded.spilled_bytes)
    needed = fitting + worker.headroom_bytes + worker.unshown_bytes * len(event.loaded)
    if needed > worker.capacity_bytes:
        worker.capacity_bytes = Bytes(needed)
