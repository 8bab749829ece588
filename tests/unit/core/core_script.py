"""A tiny language for the core's unit tests: a script of events, and what was decided."""

from __future__ import annotations

from typing import Any

import msgspec

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine
from bellmare.core.state import Runner, Worker

S = 1_000_000
GIB = 1 << 30


def stored(name: str, gib: int = 1, *, model: str = "", **more: Any) -> e.StoredModel:
    """A name on disk; without a shape it takes 1.08 times its weights and half a GiB."""
    blob = model or f"blob-{name}"
    return e.StoredModel(name=name, model=blob, digest=f"digest-{name}-{blob}", weights_bytes=gib * GIB, **more)


def loaded(name: str, gib: float = 1.5, *, model: str = "", num_ctx: int = 8192, **more: Any) -> e.LoadedModel:
    more.setdefault("pinned", True)
    return e.LoadedModel(name=name, model=model or f"blob-{name}", bytes=int(gib * GIB), num_ctx=num_ctx, **more)


def need(gib: int) -> int:
    """What the ledger books for a model of unknown shape, before it is measured."""
    return gib * GIB * 108 // 100 + GIB // 2


class Script:
    """One engine and its clock. Each call is one event; ``out`` holds what the last one decided."""

    def __init__(self, config: CoreConfig | None = None, **limits: Any) -> None:
        self.config = config or CoreConfig(**limits)
        self.engine = Engine(self.config)
        self.now = 1000 * S
        self.out: list[Any] = []
        self.all: list[Any] = []
        self.sound = True

    def tell(self, event: e.Event) -> list[Any]:
        self.now += 1
        self.out = self.engine.step(self.now, event)
        self.all += self.out
        if self.sound:
            assert self.engine.check() == []
        return self.out

    # ------------------------------------------------------------------ events

    def worker(self, name: str, *names: e.StoredModel, gib: int = 24, holds: tuple[Any, ...] = (), **more: Any) -> None:
        """A worker joins and shows itself."""
        self.joins(name, gib=gib, **more)
        self.shows(name, *holds, stores=names)

    def joins(self, name: str, *, gib: int = 24, **more: Any) -> list[Any]:
        more.setdefault("parallel", 2)
        return self.tell(e.WorkerAdded(worker=name, kind=e.WorkerKind.ollama, capacity_bytes=gib * GIB, **more))

    def shows(
        self, name: str, *holds: e.LoadedModel, stores: Any = None, asked: int | None = None, foreign: int = 0
    ) -> list[Any]:
        """An observation, asked for just now unless ``asked`` says when."""
        return self.tell(
            e.WorkerObserved(
                worker=name,
                started_us=self.now + 1 if asked is None else asked,
                loaded=tuple(holds),
                stored=None if stores is None else tuple(stores),
                foreign_bytes=foreign * GIB,
            )
        )

    def unreachable(self, name: str, fault: str = "refused", asked: int | None = None) -> list[Any]:
        started = self.now + 1 if asked is None else asked
        return self.tell(e.WorkerUnreachable(worker=name, started_us=started, fault=e.FaultKind(fault)))

    def asks(self, request: str, name: str, *, within: int = 100, **more: Any) -> list[Any]:
        return self.tell(e.RequestArrived(request=request, name=name, deadline_us=self.now + 1 + within * S, **more))

    def first(self, request: str) -> list[Any]:
        return self.tell(e.FirstTokenReceived(request=request))

    def done(self, request: str) -> list[Any]:
        return self.tell(e.RequestFinished(request=request, outcome=e.Outcome.completed, output_tokens=1))

    def breaks(self, request: str, fault: str) -> list[Any]:
        """It failed after its first byte."""
        fault_kind = e.FaultKind(fault)
        return self.tell(e.RequestFinished(request=request, outcome=e.Outcome.failed, fault=fault_kind))

    def fails(self, request: str, worker: str, fault: str = "failed") -> list[Any]:
        """It failed before anything was sent."""
        return self.tell(e.DispatchFailed(request=request, worker=worker, fault=e.FaultKind(fault)))

    def cancels(self, request: str) -> list[Any]:
        return self.tell(e.RequestCancelled(request=request))

    def ends(self, operation: d.Load | d.Unload, *, line: e.LoadedModel | None = None) -> list[Any]:
        """An operation is done; a load shows its runner at nine tenths of what was reserved."""
        if line is None and isinstance(operation, d.Load):
            line = e.LoadedModel(
                name=operation.name,
                model=operation.model.partition("#")[0],
                bytes=operation.reserved_bytes * 9 // 10,
                num_ctx=operation.num_ctx,
                pinned=True,
            )
        return self.tell(e.OperationEnded(operation=operation.operation, outcome=e.OperationOutcome.done, loaded=line))

    def broken(self, operation: d.Load | d.Unload, fault: str = "failed") -> list[Any]:
        outcome = e.OperationOutcome.timed_out if fault == "timeout" else e.OperationOutcome.failed
        return self.tell(
            e.OperationEnded(operation=operation.operation, outcome=outcome, fault=e.FaultKind(fault), detail="oh")
        )

    def configures(self, config: CoreConfig) -> list[Any]:
        self.config = config
        return self.tell(e.ConfigChanged(config=config))

    def loads(self, name: str, worker: str | None = None) -> d.Answer:
        self.tell(e.LoadRequested(ticket="t", name=name, worker=worker))
        return self.one(d.Answer)

    def unloads(self, name: str, worker: str | None = None) -> d.Answer:
        self.tell(e.UnloadRequested(ticket="t", name=name, worker=worker))
        return self.one(d.Answer)

    def passes(self, seconds: float) -> list[Any]:
        """Time goes on; a driver wakes at every deadline on the way. All that was decided meanwhile."""
        until = self.now + int(seconds * S)
        said: list[Any] = []
        for _ in range(10_000):
            deadline = self.engine.next_deadline_us()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline - 1)
            said += self.tell(e.TimePassed())
        self.now = max(self.now, until)  # every step takes a microsecond
        self.out = said
        return said

    # ------------------------------------------------------------------ what was decided

    def some(self, kind: type[Any]) -> list[Any]:
        return [decision for decision in self.out if isinstance(decision, kind)]

    def one(self, kind: type[Any]) -> Any:
        found = self.some(kind)
        assert len(found) == 1, (kind.__name__, self.out)
        return found[0]

    def none(self, *kinds: type[Any]) -> bool:
        return not any(isinstance(decision, kinds) for decision in self.out)

    def resident(self, name: str, worker: str, **load: Any) -> None:
        """Bring a model in by an operator's hand and let it be old enough to leave."""
        self.loads(name, worker)
        self.ends(self.one(d.Load), **load)
        self.passes(1)

    def seen(self, worker: str) -> Worker:
        return self.engine.fleet.state.workers[worker]  # type: ignore[index]

    def runner(self, name: str, worker: str) -> Runner:
        return self.seen(worker).runners[f"blob-{name}"]  # type: ignore[index]

    def copy(self) -> Script:
        other = Script(self.config)
        other.engine = Engine.restore(self.config, self.engine.snapshot())
        other.now = self.now
        return other


def names(decisions: list[Any]) -> list[str]:
    return [type(decision).__name__ for decision in decisions]


def plain(decisions: list[Any]) -> Any:
    return msgspec.to_builtins(decisions)
