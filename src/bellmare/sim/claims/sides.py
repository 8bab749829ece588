"""The two sides of a comparison in the closed loop: stock Ollamas behind a plain balancer, and the core before the same
servers. Both stand on the twin with token-level service, and write the same books.
"""

from bellmare.core.decisions import Dispatch, Load
from bellmare.core.engine import Engine
from bellmare.core.events import RequestArrived
from bellmare.core.units import InstantUs
from bellmare.sim.claims.conditions import OPTIONS, fleet, home, stored_models, twin_config, twin_models
from bellmare.sim.claims.loop import Ask, Loop, LoopTally
from bellmare.sim.drive import PATIENCE_US, Drive, Progress, core_config
from bellmare.sim.stock import Backend, book
from bellmare.sim.twin_world import Server, TwinWorld, operation_name
from bellmare.sim.world import FOREVER_US, request_id, request_index
from bellmare.twin.config import FOREVER_US as KEPT_FOREVER_US
from bellmare.twin.messages import (
    Effect,
    Finished,
    Generate,
    Input,
    LoadOnly,
    Tick,
)
from bellmare.twin.server import Twin

POLICY = "hv"
"""What the gateway runs by default."""


def _generate(request: str, ask: Ask, *, name: str) -> Generate:
    return Generate(
        request=request,
        name=name,
        prompt_tokens=ask.prompt_tokens,
        output_tokens=ask.output_tokens,
        options=OPTIONS,
    )


class StockSide:
    """Requests straight to the servers. Least connections, ties to the first, as in ``stock.Stock``; or by model."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.tally = LoopTally(loop.workload())
        models = twin_models(loop.setup, loop.models)
        self.backends = [Backend(Twin(twin_config(loop.setup), models)) for _ in range(loop.setup.gpus)]

    def run(self) -> None:
        """Until the last request has ended, or nothing can happen any more."""
        loop, tally = self.loop, self.tally
        while tally.open or loop.ask_due_us() < FOREVER_US:
            backend, ask_us = min(self.backends, key=lambda b: b.due_us), loop.ask_due_us()
            if backend.due_us <= ask_us:
                if backend.due_us == FOREVER_US:
                    return
                self._step(backend, backend.due_us, given=Tick())
            else:
                ask = loop.take()
                backend, model = self._pick(ask), loop.models[ask.model]
                number = tally.asked(ask, ask_us, cold=model.blob not in backend.loaded)
                backend.in_flight += 1
                self._step(backend, ask_us, given=_generate(str(number), ask, name=model.name))
            loop.settle(tally)

    def _pick(self, ask: Ask) -> Backend:
        if self.loop.setup.assigned:
            return self.backends[home(self.loop.setup, ask.model)]
        return min(self.backends, key=lambda b: b.in_flight)

    def _step(self, backend: Backend, now_us: int, *, given: Input) -> None:
        for effect in backend.twin.step(now_us, given):
            self._note(backend, effect)
        due_us = backend.twin.next_deadline_us()
        backend.due_us = FOREVER_US if due_us is None else due_us

    def _note(self, backend: Backend, effect: Effect) -> None:
        tally = self.tally
        if isinstance(effect, Finished):
            number, first_us = int(effect.request), effect.at_us - effect.output_us
            backend.in_flight -= 1
            tally.started(number, first_us - effect.prompt_us)
            tally.answered(number, first_us)
            tally.ended(number, effect.at_us)
        else:
            book(tally, backend, effect)


class TokenWorld(TwinWorld):
    """Twins of the card in question, asked in tokens instead of in spans."""

    def __init__(self, loop: Loop, tally: LoopTally) -> None:
        machines = fleet(loop.setup)
        super().__init__(loop.workload(), machines, tally)
        models = twin_models(loop.setup, loop.models)
        self.books = tally
        self.servers = {worker: Server(Twin(twin_config(loop.setup), models)) for worker in machines.names()}
        self._stored = stored_models(loop.setup, loop.models)

    def _dispatch(self, now_us: int, decision: Dispatch) -> None:
        ask, server = self.books.asks[request_index(decision.request)], self.servers[decision.worker]
        model = self._workload.models[ask.model]
        if server.ahead.pop(model.blob, "none") is None:
            self.tally.prefetch_used()
        self._step(decision.worker, now_us, given=_generate(decision.request, ask, name=model.name))

    def _load(self, now_us: int, decision: Load) -> None:
        self._begin(decision)
        given = LoadOnly(
            request=operation_name(decision), name=decision.name, keep_alive_us=KEPT_FOREVER_US, options=OPTIONS
        )
        self._step(decision.worker, now_us, given=given)

    def _finished(self, effect: Finished) -> None:
        self.books.answered(request_index(effect.request), effect.at_us - effect.output_us)
        super()._finished(effect)


class GatewaySide(Drive):
    """The core before the same servers, with its defaults but for the bounds of its queues."""

    def __init__(self, loop: Loop, *, policy: str = POLICY) -> None:
        self.loop = loop
        self.books = LoopTally(loop.workload())
        self._users = [f"user-{n}" for n in range(loop.setup.connections)]
        super().__init__(Engine(core_config(policy)), TokenWorld(loop, self.books), self.books)

    def run(self, progress: Progress | None = None) -> None:
        """Until the last request has ended, or nothing can happen any more."""
        del progress
        self._join()
        loop, world, tally = self.loop, self.world, self.books
        while tally.open or loop.ask_due_us() < FOREVER_US:
            world_us, core_us = world.due_us(), self._core_due_us()
            ask_us, hint_us = loop.ask_due_us(), loop.hint_due_us()
            if hint_us < min(world_us, core_us) and hint_us <= ask_us:
                self._step(hint_us, loop.take_hint().hint)
            elif world_us <= core_us and world_us <= ask_us:
                if world_us == FOREVER_US:
                    return
                for event in world.take(world_us):
                    self._step(world_us, event)
            elif core_us <= ask_us:
                self._pass_time(core_us)
            else:
                self._ask(ask_us, loop.take())
            loop.settle(tally)

    def _ask(self, now_us: int, ask: Ask) -> None:
        number = self.books.asked(ask, now_us, cold=not self.world.ready(ask.model))
        event = RequestArrived(
            request=request_id(number),
            name=self.loop.models[ask.model].name,
            deadline_us=InstantUs(now_us + PATIENCE_US),
            tenant=self._users[ask.connection],
        )
        self._step(now_us, event)
