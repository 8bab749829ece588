"""What an operator changes while the fleet runs: the settings, and whether this process decides what is resident.

Neither makes anything leave: residents keep the context they have until they are loaded anew for another reason.
"""

from bellmare.core.classes import derive_all
from bellmare.core.config import CoreConfig
from bellmare.core.costs import canonical_num_ctx, learn_least
from bellmare.core.decisions import UnloadCause
from bellmare.core.fairness import Turns
from bellmare.core.fleet import Fleet, Timer
from bellmare.core.residency import Residency
from bellmare.core.scheduler import cancel_placement, let_stay
from bellmare.core.starvation import patience_us
from bellmare.core.state import Model, Want

KEPT = (Residency.resident, Residency.draining)


def heed(fleet: Fleet, config: CoreConfig) -> None:
    """Let ``config`` hold from now on. Costs a walk over all models and workers if anything has changed."""
    before = fleet.config
    if config == before:
        return
    models = fleet.state.models
    contexts = {model_id: canonical_num_ctx(fleet, model) for model_id, model in models.items()}
    said = fleet.configured
    fleet.config = config
    fleet.rebind()
    derive_all(fleet, *said)
    if config.tenants != before.tenants:
        _weigh_anew(fleet)
    for model_id, model in models.items():
        now = canonical_num_ctx(fleet, model)
        was = contexts.get(model_id, now)  # a class that has just begun has nothing to keep
        if now != was:
            _keep_contexts(fleet, model, was=was, now=now)
            learn_least(fleet, model)
        if model.waiting or model.want is not Want.nothing or said.get(model_id) != fleet.configured.get(model_id):
            fleet.touch(model_id)
    for worker in fleet.state.workers.values():
        for model_id, cause in list(worker.leaving.items()):
            runner = worker.runners[model_id]
            going = cause is UnloadCause.ahead and runner.residency is Residency.draining
            if going and fleet.model_config(models[model_id]).pinned:
                let_stay(fleet, worker, runner)
    _set_timers(fleet)


def _weigh_anew(fleet: Fleet) -> None:
    fleet.weights = {name: tenant.weight for name, tenant in fleet.config.tenants.items()}
    for model_id, model in fleet.state.models.items():
        turns = fleet.turns[model_id] = Turns(model, fleet.weights)
        for _, request in fleet.queues[model_id]:
            turns.file(request)


def _keep_contexts(fleet: Fleet, model: Model, *, was: int, now: int) -> None:
    """A context that was right so far is taken as granted: else all residents would leave at their next sight."""
    for _, runner in fleet.copies(model):
        if runner.residency in KEPT and was <= runner.num_ctx < now:
            runner.granted_num_ctx = runner.num_ctx


def _set_timers(fleet: Fleet) -> None:
    """Timers were set by the old spans: what may be due by the new ones is looked at then."""
    config, state = fleet.config, fleet.state
    for model in state.models.values():
        drain_us = model.blocked_us + config.drain_after_us
        if model.want is not Want.nothing and (model.want is Want.blocked or model.may_drain):
            model.may_drain = model.may_drain and drain_us <= fleet.now_us
            if not model.may_drain:
                fleet.set_timer(max(drain_us, fleet.now_us), Timer.may_drain, model.model)
        if model.stranded_us >= 0:
            fleet.set_timer(model.stranded_us + config.worker_lost_grace_us, Timer.stranded, model.model)
    for request in state.requests.values():
        if request.excluded:
            fleet.set_timer(request.excluded_us + config.exclusion_us, Timer.forgive, request.request)
    for worker in state.workers.values():
        fleet.touch_worker(worker.worker)
        if worker.placement is not None:
            ends_us = worker.placement.started_us + patience_us(fleet, state.models[worker.placement.model])
            fleet.set_timer(ends_us, Timer.look_again, worker.worker)
        for runner in worker.runners.values():
            if runner.batch_seq:
                fleet.set_timer(runner.ready_us + config.batch_max_us, Timer.look_again, worker.worker)


def stand_by(fleet: Fleet, standby: bool) -> None:
    """Leave what is resident to another process, or take it back. Operations under way end as they would."""
    state = fleet.state
    if standby == state.standby:
        return
    state.standby = standby
    for worker in state.workers.values():
        if standby:
            cancel_placement(fleet, worker)
        fleet.touch_worker(worker.worker)
    if not standby:
        state.look_ahead = True
