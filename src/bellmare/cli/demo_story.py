"""What the core decides, in plain words for people who look on: the latest decisions, who waits, what loaders do.

Reads the core's state and never changes it.
"""

from collections import deque

import msgspec

from bellmare.core.decisions import Decision, Drain, HealthChange, Load, LoadCause, Refusal, Reject, Unload, UnloadCause
from bellmare.core.events import Event, OperationEnded, OperationOutcome, RequestArrived
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.state import Model, OperationKind, Worker
from bellmare.core.units import InstantUs, ModelId, OperationId

TOLD_MAX = 64
"""Decisions remembered; the largest table shows fewer."""


class Told(msgspec.Struct):
    """One decision. ``ending`` comes when its operation has ended."""

    at_s: float
    worker: str
    verb: str
    model: str
    reason: str
    ending: str = ""
    broke: bool = False
    times: int = 1
    """Equal refusals in a row are told once."""


class Waiting(msgspec.Struct, frozen=True):
    """Requests that wait for one model, and what for."""

    model: str
    count: int
    reason: str


def short(model: str) -> str:
    """A name as people say it."""
    return model.removesuffix(":latest")


def span(milliseconds: float) -> str:
    """``43 ms``, ``1.2 s``."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


class Chronicle:
    """The latest decisions in plain words; a watcher of the driver."""

    def __init__(self, fleet: Fleet, *, began_us: InstantUs) -> None:
        self.told: deque[Told] = deque(maxlen=TOLD_MAX)
        self._fleet = fleet
        self._began_us = began_us
        self._under_way: dict[OperationId, tuple[Told, InstantUs]] = {}
        """One at most for each worker."""

    def step(  # tidy: the driver calls its watchers so
        self, now_us: InstantUs, event: Event, decisions: list[Decision]
    ) -> None:
        if isinstance(event, OperationEnded):
            self._ended(event, now_us)
        for decision in decisions:
            at_s = (now_us - self._began_us) / 1e6
            if isinstance(decision, Load) and decision.cause is not LoadCause.adopt:
                told = Told(at_s, decision.worker, "load", decision.name, self._why_load(decision))
                self._under_way[decision.operation] = (told, now_us)
                self.told.append(told)
            elif isinstance(decision, Unload):
                told = Told(at_s, decision.worker, "unload", decision.name, self._why_unload(decision))
                self._under_way[decision.operation] = (told, now_us)
                self.told.append(told)
            elif isinstance(decision, Drain):
                self._drain(decision, at_s)
            elif isinstance(decision, HealthChange):
                verb = "back" if decision.healthy else "lost"
                self.told.append(Told(at_s, decision.worker, verb, "", decision.reason, broke=not decision.healthy))
            elif isinstance(decision, Reject):
                name = event.name if isinstance(event, RequestArrived) else ""
                self._refuse(decision, name, at_s=at_s)

    def _name(self, model: ModelId | None) -> str:
        found = self._fleet.state.models.get(model) if model is not None else None
        return short(found.stored.name) if found is not None else "another model"

    def _why_load(self, decision: Load) -> str:
        waiting = self._fleet.state.models[decision.model].waiting
        who = f"{waiting} {'waits' if waiting == 1 else 'wait'}"
        if decision.cause is LoadCause.replica:
            return f"second copy, {who}"
        return f"{who} for it" if decision.cause is LoadCause.demand else f"{decision.cause} asked for it"

    def _why_unload(self, decision: Unload) -> str:
        if decision.cause is UnloadCause.replica:
            return f"second copy, its room is for {self._name(decision.wanted_by)}"
        if decision.cause is UnloadCause.context:
            found = self._fleet.state.models.get(decision.wanted_by) if decision.wanted_by is not None else None
            return f"wanted with {found.context or 'its usual'} tokens" if found is not None else "wanted otherwise"
        if decision.cause is UnloadCause.room:
            return f"room for {self._name(decision.wanted_by)}"
        return str(decision.cause).replace("_", " ")

    def _drain(self, decision: Drain, at_s: float) -> None:
        """Told of a busy one only: an idle one is unloaded in the same breath."""
        runner = self._fleet.state.workers[decision.worker].runners.get(decision.model)
        if runner is None or not runner.in_flight:
            return
        busy = len(runner.in_flight)
        reason = f"for {self._name(decision.wanted_by)}, {busy} answer{'' if busy == 1 else 's'} to finish"
        self.told.append(Told(at_s, decision.worker, "drain", self._name(decision.model), reason))

    def _refuse(self, decision: Reject, name: str, *, at_s: float) -> None:
        reason = _REFUSALS.get(decision.refusal, str(decision.refusal).replace("_", " "))
        last = self.told[-1] if self.told else None
        if last is not None and (last.verb, last.model, last.reason) == ("refuse", name, reason):
            last.times += 1
        else:
            last = Told(at_s, "", "refuse", name, reason)
            self.told.append(last)
        times = f"{last.times} times, " if last.times > 1 else ""
        last.ending = f"{times}again in {max(1, round(decision.retry_after_us / 1e6))} s"

    def _ended(self, event: OperationEnded, now_us: InstantUs) -> None:
        found = self._under_way.pop(event.operation, None)
        if found is None:
            return
        told, began_us = found
        if event.outcome is OperationOutcome.done:
            told.ending = f"{'ready' if told.verb == 'load' else 'gone'} in {span((now_us - began_us) / 1000)}"
        else:
            told.ending, told.broke = f"{event.outcome}: {event.detail}", True


_REFUSALS = {
    Refusal.unknown_model: "no such model",
    Refusal.queue_full: "its queue is full",
    Refusal.wait_too_long: "it would wait too long",
    Refusal.no_healthy_worker: "no GPU that stores it is up",
    Refusal.model_does_not_fit: "larger than any GPU",
    Refusal.load_failed: "it could not be loaded",
    Refusal.deadline_passed: "it waited too long",
    Refusal.worker_failed: "its GPUs failed",
    Refusal.worker_timed_out: "its GPUs did not answer in time",
    Refusal.retries_spent: "too much fails at the moment",
    Refusal.poison_suspected: "it took down two GPUs",
}


# ---------------------------------------------------------------------- what the core's state says, in words


def doing(fleet: Fleet, worker: Worker, *, now_us: InstantUs) -> str:
    """What a worker's loader does now."""
    models = fleet.state.models
    operation = fleet.state.operations.get(worker.operation) if worker.operation is not None else None
    if operation is not None:
        name = short(models[operation.model].stored.name)
        if operation.kind is OperationKind.load:
            spent_s = (now_us - operation.started_us) / 1e6
            return f"loading {name}, {spent_s:.1f} of ~{operation.expected_us / 1e6:.1f} s"
        return f"unloading {name}" + _for_whom(fleet, worker)
    if worker.placement is not None:
        victims = [short(models[victim].stored.name) for victim in worker.placement.victims]
        return f"draining {' and '.join(victims)}" + _for_whom(fleet, worker)
    return ""


def _for_whom(fleet: Fleet, worker: Worker) -> str:
    placement = worker.placement
    return f" for {short(fleet.state.models[placement.model].stored.name)}" if placement is not None else ""


def waiting_rows(fleet: Fleet) -> list[Waiting]:
    """Models that requests wait for, the longest queue first, each with what they wait for."""
    rows = [
        Waiting(model=model.stored.name, count=model.waiting, reason=_reason(fleet, model))
        for model in fleet.state.models.values()
        if model.waiting
    ]
    return sorted(rows, key=lambda row: (-row.count, row.model))


def _reason(fleet: Fleet, model: Model) -> str:
    copies = [(worker.worker, runner) for worker, runner in fleet.copies(model)]
    slots = sum(runner.slots for _, runner in copies if runner.residency is Residency.resident)
    if slots:
        return f"all {slots} slots are busy"
    loading = [worker for worker, runner in copies if runner.residency is Residency.loading]
    if loading:
        return f"{', '.join(loading)} is loading it"
    if model.placements:
        return f"{', '.join(model.placements)} makes room for it"
    return "no room yet: what could leave is busy or just came"
