"""The baseline: the same requests straight to stock Ollamas, behind a load balancer that knows nothing of models."""

from bellmare.sim.drive import PROGRESS_EVERY, Progress
from bellmare.sim.fleet import SimFleet
from bellmare.sim.tally import Tally
from bellmare.sim.twins import generate, twin_config, twin_models
from bellmare.sim.world import FOREVER_US
from bellmare.twin.messages import (
    Effect,
    Failed,
    Finished,
    Input,
    LoadStarted,
    RunnerGone,
    RunnerLoaded,
    Tick,
)
from bellmare.twin.server import Twin


class Backend:
    """One stock Ollama as the balancer sees it, and what is loaded there."""

    __slots__ = ("due_us", "in_flight", "loaded", "twin")

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.in_flight = 0
        self.loaded: dict[str, None] = {}
        self.due_us = FOREVER_US


class Stock:
    """Least connections, ties to the first. ``pinned``: keep_alive -1 and no limit of models.

    Ties in turn, as nginx has it, spread the models of a quiet fleet over all workers: stock would look worse still (on
    GenTD26 and 4x24 GB 67.6 % cold instead of 58.7).
    """

    def __init__(self, tally: Tally, fleet: SimFleet, *, pinned: bool = False) -> None:
        workload = tally.workload
        models = twin_models(workload)
        configs = (
            twin_config(machine, slots=workload.slots, pinned=pinned, unlimited=pinned) for machine in fleet.machines
        )
        self.tally = tally
        self.backends = [Backend(Twin(config, models)) for config in configs]

    def run(self, progress: Progress | None = None) -> None:
        """Until every request has ended, or nothing can happen any more: stock Ollama can stall for ever."""
        arrivals, tally = self.tally.workload.arrivals, self.tally
        models = tally.workload.models
        count, number = len(arrivals), 0
        while number < count or tally.open:
            arrival_us = arrivals[number].at_us if number < count else FOREVER_US
            backend = min(self.backends, key=lambda b: b.due_us)
            if backend.due_us <= arrival_us:
                if backend.due_us == FOREVER_US:
                    return
                self._step(backend, backend.due_us, given=Tick())
                continue
            arrival = arrivals[number]
            backend, model = self._pick(), models[arrival.model]
            tally.arrived(number, cold=model.blob not in backend.loaded)
            backend.in_flight += 1
            self._step(backend, arrival_us, given=generate(str(number), model, service_us=arrival.service_us))
            number += 1
            if progress is not None and number % PROGRESS_EVERY == 0:
                progress(number)

    def _pick(self) -> Backend:
        return min(self.backends, key=lambda backend: backend.in_flight)

    def _step(self, backend: Backend, now_us: int, *, given: Input) -> None:
        for effect in backend.twin.step(now_us, given):
            self._note(backend, effect)
        due_us = backend.twin.next_deadline_us()
        backend.due_us = FOREVER_US if due_us is None else due_us

    def _note(self, backend: Backend, effect: Effect) -> None:
        tally = self.tally
        if isinstance(effect, Finished):
            request = int(effect.request)
            backend.in_flight -= 1
            tally.started(request, effect.at_us - effect.prompt_us - effect.output_us)
            tally.ended(request, effect.at_us)
        else:
            book(tally, backend, effect)


def book(tally: Tally, backend: Backend, effect: Effect) -> None:
    """Write down whatever a server did but serving a request to its end."""
    if isinstance(effect, Failed):
        backend.in_flight -= 1
        tally.refuse(int(effect.request), effect.at_us, reason=f"status_{effect.status}")
    elif isinstance(effect, LoadStarted):
        tally.load_began(effect.blob, effect.at_us)
        tally.load_took(effect.expected_us)
    elif isinstance(effect, RunnerLoaded):
        backend.loaded[effect.blob] = None
    elif isinstance(effect, RunnerGone):
        del backend.loaded[effect.blob]
        tally.evicted(effect.blob, effect.at_us)
