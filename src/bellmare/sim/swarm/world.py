"""A fleet that knows nothing of the core, whole: machines, requests on their way, operators, and what goes wrong.

Every action takes small integers and does what they pick, or nothing. Each step goes past the oracle.
"""

from dataclasses import dataclass

from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.units import InstantUs, RequestId
from bellmare.sim.swarm.books import SECOND
from bellmare.sim.swarm.draws import PLAIN, Setting
from bellmare.sim.swarm.machines import FAULT_KINDS, Machines
from bellmare.sim.swarm.marks import Fault, Habit

UNHEARD_OF = "unheard-of"


@dataclass(frozen=True)
class Ask:
    """What a client wants."""

    name: str
    wait_us: int = 60 * SECOND
    """From now to its deadline."""
    kind: e.RequestKind = e.RequestKind.generation
    tokens: int = 100
    tenant: str = ""
    priority: e.Priority = e.Priority.normal
    content: str = ""
    """What it says, if that matters: equal for equal requests."""


class World(Machines):
    """All that happens outside the core."""

    next_request = 0

    def __init__(self, setting: Setting = PLAIN, *, check_every: int = 1) -> None:
        super().__init__(setting, check_every=check_every)
        self.contents: dict[RequestId, str] = {}
        """What requests say that may be poison."""

    def _fingerprint(self, request: RequestId, kind: e.FaultKind | None) -> str:
        return self.contents.get(request, "") if kind is e.FaultKind.crashed else ""

    def habit(self, habit: Habit) -> None:
        self.oracle.meet(f"Habit.{habit}")

    def pick_request(self, pick: int, phases: tuple[str, ...], *, healthy: bool = True) -> RequestId | None:
        dead = {request for request, _ in self.dead_requests} if healthy else {}
        live = [k for k, r in self.oracle.requests.items() if r.phase in phases and k not in dead]
        return live[pick % len(live)] if live else None

    # ------------------------------------------------------------------ requests

    def name(self, number: int) -> str:
        """The name of that number; beyond the last, one that nobody stores."""
        return self.names[number] if 0 <= number < len(self.names) else UNHEARD_OF

    def classes_of(self, name: str) -> list[str]:
        """The names of its context classes."""
        blob = self.oracle.resolve(name)
        return [name + one[len(blob) :] for one in self.oracle.class_ids(blob)] if blob is not None else []

    def all_names(self) -> list[str]:
        """Every name, each followed by its classes."""
        return [one for name in self.names for one in (name, *self.classes_of(name))]

    def arrive(self, ask: Ask) -> RequestId:
        request = RequestId(f"r{self.next_request}")
        self.next_request += 1
        self.oracle.meet(f"RequestKind.{ask.kind}", f"Priority.{ask.priority}")
        if ask.name == UNHEARD_OF:
            self.habit(Habit.unheard_of)
        self.feed(
            e.RequestArrived(
                request=request,
                name=ask.name,
                deadline_us=InstantUs(self.now + ask.wait_us),
                kind=ask.kind,
                tenant=ask.tenant,
                priority=ask.priority,
                prompt_tokens=ask.tokens,
                fingerprint=ask.content if self.oracle.suspects or self.oracle.poison else "",
            )
        )
        self.contents = {one: said for one, said in self.contents.items() if one in self.oracle.requests}
        if ask.content and request in self.oracle.requests:
            self.contents[request] = ask.content
        return request

    def cancel(self, pick: int) -> None:
        """A client leaves, in whatever phase."""
        request = self.pick_request(pick, ("waiting", "running"), healthy=False)
        if request is None:
            return
        book = self.oracle.requests[request]
        running = Habit.cancel_streaming if book.first_token else Habit.cancel_prefill
        self.habit(running if book.phase == "running" else Habit.cancel_waiting)
        self.dead_requests = [dead for dead in self.dead_requests if dead[0] != request]
        self.feed(e.RequestCancelled(request=request))

    def cancel_late(self, pick: int) -> None:
        """A client leaves whose request has ended in the same moment."""
        if self.oracle.ended:
            ended = list(self.oracle.ended)[-1 - pick % min(len(self.oracle.ended), 8)]
            self.habit(Habit.cancel_too_late)
            self.feed(e.RequestCancelled(request=ended))

    def first_token(self, pick: int) -> None:
        request = self.pick_request(pick, ("running",))
        if request is not None and not self.oracle.requests[request].first_token:
            self.feed(e.FirstTokenReceived(request=request))

    def finish(self, pick: int, fault: int = -1) -> None:
        """It ends; failed after its first byte if there is a fault."""
        request = self.pick_request(pick, ("running",))
        if request is None:
            return
        if not self.oracle.requests[request].first_token:
            self.feed(e.FirstTokenReceived(request=request))
        kind = FAULT_KINDS[fault % len(FAULT_KINDS)] if fault >= 0 else None
        if kind is not None:
            self.fault(Fault.broken_off)
        outcome = e.Outcome.completed if fault < 0 else e.Outcome.failed
        self.feed(
            e.RequestFinished(
                request=request,
                outcome=outcome,
                fault=kind,
                output_tokens=7,
                fingerprint=self._fingerprint(request, kind),
            )
        )

    def fail_dispatch(self, pick: int, fault: int) -> None:
        """Nothing came of it and nothing was sent: it may run elsewhere."""
        request = self.pick_request(pick, ("running",))
        poisoned = [one for one in self.contents if self.phase(one) == "running"]
        if poisoned and pick % 4 and not any(dead in poisoned for dead, _ in self.dead_requests):
            request = poisoned[pick % len(poisoned)]
        if request is None or self.oracle.requests[request].first_token:
            return
        worker = self.oracle.requests[request].worker
        assert worker is not None
        self.fault(Fault.dispatch_failed)
        kind = FAULT_KINDS[fault % len(FAULT_KINDS)]
        if request in self.contents:
            kind = e.FaultKind.crashed  # poison does nothing else
        said = self._fingerprint(request, kind)
        self.feed(e.DispatchFailed(request=request, worker=worker, fault=kind, fingerprint=said))

    def report_dead(self, pick: int) -> None:
        """The data plane notices a connection that died."""
        if not self.dead_requests:
            return
        request, worker = self.dead_requests.pop(pick % len(self.dead_requests))
        self.fault(Fault.cut_off)
        if self.oracle.requests[request].first_token:
            self.feed(e.RequestFinished(request=request, outcome=e.Outcome.failed, fault=e.FaultKind.reset))
        else:
            self.feed(e.DispatchFailed(request=request, worker=worker, fault=e.FaultKind.reset))

    # ------------------------------------------------------------------ operators and hints

    def ask_load(self, name: int, pick: int) -> None:
        """An operator wants a model in; on the best worker if ``pick`` is negative."""
        worker = self.pick_worker(pick) if pick >= 0 else None
        self.habit(Habit.operator_load)
        self.feed(e.LoadRequested(ticket=f"t{self.steps}", name=self._some_name(name), worker=worker))

    def ask_unload(self, name: int, pick: int) -> None:
        worker = self.pick_worker(pick) if pick >= 0 else None
        self.habit(Habit.operator_unload)
        self.feed(e.UnloadRequested(ticket=f"t{self.steps}", name=self._some_name(name), worker=worker))

    def _some_name(self, number: int) -> str:
        """A name, or one of its classes."""
        plain = self.names[number % len(self.names)]
        names = [plain, *self.classes_of(plain)]
        return names[number // len(self.names) % len(names)]

    def release(self, name: int) -> None:
        self.feed(e.ModelReleased(name=self._some_name(name), alone=name % 2 == 0))

    def change_settings(self, config: CoreConfig) -> None:
        """The operator's file was read again."""
        self.feed(e.ConfigChanged(config=config))

    def stand_by(self, standby: bool) -> None:
        """Another process takes over what is resident, or gives it back."""
        if standby != self.oracle.standby:
            self.feed(e.StandbyChanged(standby=standby))

    def hint(self, event: e.HintGiven) -> None:
        self.oracle.meet(f"HintSource.{event.source}")
        self.feed(event)
