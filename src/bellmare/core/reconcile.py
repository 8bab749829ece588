"""Takes in what a worker shows. Level-triggered: whatever was missed, lost or done behind our back is put right here.

An observation cannot know what happened after it was asked for, so it never contradicts a change younger than its
start.
"""

from bellmare.core.costs import canonical_num_ctx, learn_bytes, load_estimate_us, need_bytes, slots_of
from bellmare.core.decisions import UnloadCause
from bellmare.core.events import LoadedModel, StoredModel, WorkerObserved
from bellmare.core.fleet import Fleet
from bellmare.core.health import bring_in, change_holders
from bellmare.core.residency import Cue, Residency
from bellmare.core.scheduler import ask_to_leave
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import Bytes, InstantUs, ModelId


def observed(fleet: Fleet, event: WorkerObserved) -> None:
    """Bring our picture of one worker to what it showed."""
    worker = fleet.state.workers.get(event.worker)
    if worker is None or event.started_us < worker.observed_us:
        return
    worker.observed_us = event.started_us
    worker.version = event.version or worker.version
    if event.stored is not None:
        _take_stored(fleet, worker, event.stored)
    _take_loaded(fleet, worker, event)
    _learn_capacity(worker, event)
    bring_in(fleet, worker)
    fleet.refresh_room(worker)
    fleet.touch_worker(worker.worker)


def forget_stored(fleet: Fleet, worker: Worker) -> None:
    """The worker stores nothing as far as routing goes: it left the fleet."""
    _take_stored(fleet, worker, ())


def _take_stored(fleet: Fleet, worker: Worker, stored: tuple[StoredModel, ...]) -> None:
    """Update names, votes and holders by what changed."""
    new = {entry.name: entry for entry in stored}
    for name, entry in worker.stored.items():
        if name not in new or new[name].model != entry.model:
            _unvote(fleet, worker, entry)
    for name, entry in new.items():
        old = worker.stored.get(name)
        if old is None or old.model != entry.model:
            _vote(fleet, worker, entry)
        elif old != entry:
            fleet.state.models[entry.model].stored = entry
    worker.stored = new
    for runner in worker.runners.values():
        if fleet.name_on(worker, runner.model, prefer=runner.name) is None:
            fleet.count("unreachable_runner")


def _vote(fleet: Fleet, worker: Worker, entry: StoredModel) -> None:
    state = fleet.state
    model = state.models.get(entry.model)
    if model is None:
        model = state.models[entry.model] = Model(model=entry.model, stored=entry)
        fleet.know(model)
    votes = state.votes.setdefault(entry.name, {})
    votes[entry.model] = votes.get(entry.model, 0) + 1
    names = model.holders.get(worker.worker, 0)
    model.holders[worker.worker] = names + 1
    if names == 0:
        fleet.holders_changed(model)
        if worker.healthy:
            change_holders(fleet, model, 1)


def _unvote(fleet: Fleet, worker: Worker, entry: StoredModel) -> None:
    state = fleet.state
    model = state.models[entry.model]
    votes = state.votes[entry.name]
    votes[entry.model] -= 1
    if not votes[entry.model]:
        del votes[entry.model]
    if not votes:
        del state.votes[entry.name]
    model.holders[worker.worker] -= 1
    if not model.holders[worker.worker]:
        del model.holders[worker.worker]
        fleet.holders_changed(model)
        if worker.healthy:
            change_holders(fleet, model, -1)


def _take_loaded(fleet: Fleet, worker: Worker, event: WorkerObserved) -> None:
    seen: dict[ModelId, None] = {}
    foreign = int(event.foreign_bytes)
    for loaded in event.loaded:
        model = fleet.state.models.get(loaded.model) if loaded.model is not None else None
        if model is None:
            foreign += loaded.bytes
            continue
        seen[model.model] = None
        _take_one(fleet, worker, model, (loaded, event.started_us))
    worker.foreign_bytes = Bytes(foreign)
    for runner in list(worker.runners.values()):
        if runner.model not in seen and not _newer(worker, runner, event.started_us):
            fleet.count("found_gone")
            fleet.move(worker, runner, Cue.gone)


def _newer(worker: Worker, runner: Runner, started_us: InstantUs) -> bool:
    """Whether the runner's state is younger than the observation, or an operation is about to settle it."""
    under_way = runner.residency in (Residency.loading, Residency.unloading) and worker.operation is not None
    return runner.since_us >= started_us or under_way


def _take_one(fleet: Fleet, worker: Worker, model: Model, sight: tuple[LoadedModel, InstantUs]) -> None:
    loaded, started_us = sight
    runner = worker.runners.get(model.model)
    if runner is None:
        if worker.left.get(model.model, InstantUs(-1)) < started_us:
            _adopt(fleet, worker, model, loaded)
        return
    if runner.residency is Residency.loading or _newer(worker, runner, started_us):
        return
    if runner.residency is Residency.unloading:
        if not loaded.expired:
            fleet.move(worker, runner, Cue.adopted)
        return
    runner.pinned = loaded.pinned
    if loaded.num_ctx:
        runner.num_ctx = loaded.num_ctx
    fleet.set_bytes(worker, runner, learn_bytes(worker, model, runner, loaded.bytes))
    _check_shape(fleet, worker, model, runner)


def _adopt(fleet: Fleet, worker: Worker, model: Model, loaded: LoadedModel) -> None:
    """A resident that we did not load, or loaded in an earlier life: it stays, with the context that it has."""
    num_ctx = loaded.num_ctx or canonical_num_ctx(fleet, model)
    runner = Runner(
        worker=worker.worker,
        model=model.model,
        name=loaded.name,
        residency=Residency.absent,
        num_ctx=num_ctx,
        slots=slots_of(worker, model),
        bytes=need_bytes(worker, model, num_ctx),
        since_us=fleet.now_us,
        load_us=load_estimate_us(worker, model),
        pinned=loaded.pinned,
    )
    runner.bytes = learn_bytes(worker, model, runner, loaded.bytes)
    runner.residency = Residency.resident
    fleet.add_runner(worker, runner)
    fleet.count("adopted")
    fleet.touch(model.model)
    _check_shape(fleet, worker, model, runner)


def _check_shape(fleet: Fleet, worker: Worker, model: Model, runner: Runner) -> None:
    """A context below the canonical one would cut prompts without a word: such a runner leaves, to be loaded anew."""
    if runner.num_ctx < canonical_num_ctx(fleet, model) and runner.model not in worker.leaving:
        ask_to_leave(fleet, worker, runner, UnloadCause.shape)


def _learn_capacity(worker: Worker, event: WorkerObserved) -> None:
    """A guessed capacity rises to what was seen to fit on the GPU."""
    if worker.capacity_known:
        return
    fitting = sum(int(loaded.bytes) for loaded in event.loaded if not loaded.spilled_bytes)
    needed = fitting + worker.headroom_bytes + worker.overhead_bytes * len(event.loaded)
    if needed > worker.capacity_bytes:
        worker.capacity_bytes = Bytes(needed)
