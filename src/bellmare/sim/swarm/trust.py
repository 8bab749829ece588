"""The oracle's books of failing workers, of retries and of poison: the documented contract once more, in its own words.

A worker is ejected after so many failures of transport in a row, or when failures are the documented share of enough
outcomes within a window; but never more than half of all. It comes back on trial, by an observation. All retries
together have a budget, and what took down two workers is refused.
"""

from zlib import crc32

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.units import WorkerId
from bellmare.sim.swarm.books import LOST, NEVER, SECOND, RequestBook, WorkerBook
from bellmare.sim.swarm.ledger import Ledger

OF_TRANSPORT = (*LOST, e.FaultKind.unreachable, e.FaultKind.timeout, e.FaultKind.bad_answer)
OF_OTHERS = (e.FaultKind.crashed, e.FaultKind.failed)
CRASHES_MAX = 2
FASTEST = 16
"""The last cap of a slow start, which begins with two and takes four steps."""
STEPS = 4
PANIC_REST = SECOND
"""Who would be one too many to be ejected gets nothing for so long, and is on trial then."""


class Trusting(Ledger):
    """What a ledger knows of whom to trust. ``Oracle`` judges by it."""

    window_since = NEVER
    first_tries = 0
    retries = 0
    first_tries_before = 0

    # ------------------------------------------------------------------ workers

    def went_well(self, worker: WorkerBook) -> None:
        worker.good += 1
        worker.row = 0
        if worker.cap and worker.grows == NEVER:
            self.meet("trial passed")
            self._allow(worker, 2)

    def fails(self, worker: WorkerBook, request: RequestBook, fault: e.FaultKind) -> None:
        """A failure counts if it was sent since the worker came into routing, and nobody knows of a loss since."""
        if fault not in (*OF_TRANSPORT, *OF_OTHERS) or not worker.routable or request.dispatched < worker.back:
            return
        config = self.config
        if worker.judged_since == NEVER or self.now >= worker.judged_since + config.breaker_window_us:
            worker.judged_since, worker.good_then, worker.bad = self.now, worker.good, 0
        worker.bad += 1
        worker.row += fault in OF_TRANSPORT
        if fault in LOST and (worker.loss == NEVER or self.now >= worker.loss + config.retry_window_us):
            worker.loss = self.now
        outcomes = worker.bad + worker.good - worker.good_then
        mostly = outcomes >= config.breaker_outcomes and worker.bad * 100 >= outcomes * config.breaker_percent
        on_trial = bool(worker.cap) and fault in OF_TRANSPORT
        if worker.row >= config.breaker_failures or mostly or on_trial:
            self.meet("ejected on trial" if on_trial else "ejected for its share" if mostly else "ejected in a row")
            self._eject(worker)

    def _eject(self, worker: WorkerBook) -> None:
        worker.row, worker.judged_since = 0, NEVER
        if (self._ejected() + 1) * 2 > len(self.workers):
            self.meet("nobody more is ejected")
            worker.cap, worker.grows = -1, self.now + PANIC_REST
            return
        if self.now - worker.back > self.config.ejection_max_us:
            worker.ejections = 0
        worker.ejections += 1
        span = int(self.config.ejection_us)
        for _ in range(worker.ejections - 1):
            span = min(2 * span, self.config.ejection_max_us)
        fifth = crc32(f"{worker.spec.worker}|{worker.ejections}".encode()) % 41 - 20
        span = min(span, self.config.ejection_max_us)
        worker.ejected_until = self.now + span * (100 + fifth) // 100
        worker.routable = False

    def _ejected(self) -> int:
        return sum(1 for worker in self.workers.values() if worker.ejected_until > self.now)

    def comes_back(self, worker: WorkerBook) -> bool:
        """Whether an observation brings it into routing."""
        if worker.ejected_until > self.now:
            return worker.routable
        if not worker.routable:
            worker.back = self.now
            if worker.ejected_until != NEVER:
                worker.ejected_until, worker.grows, worker.cap = NEVER, NEVER, 1
        return True

    def grow(self) -> None:
        """Slow starts go on as time passes."""
        for worker in self.workers.values():
            if worker.cap and worker.grows != NEVER and worker.grows <= self.now and worker.ejected_until == NEVER:
                if worker.cap < 0:
                    worker.cap, worker.grows = 1, NEVER
                else:
                    self._allow(worker, 0 if worker.cap >= FASTEST else 2 * worker.cap)

    def _allow(self, worker: WorkerBook, cap: int) -> None:
        worker.cap = cap
        worker.grows = self.now + self.config.slow_start_us // STEPS if cap else NEVER
        if not cap:
            self.meet("slow start over")

    # ------------------------------------------------------------------ retries and poison

    def tried_first(self) -> None:
        self.first_tries += 1

    def tries_again(self, request: RequestBook, event: e.DispatchFailed) -> None:
        """Whether the contract has room for one more try of a request that a worker failed."""
        request.timed_out = event.fault is e.FaultKind.timeout
        if event.fault is e.FaultKind.crashed:
            request.crashes += 1
            self.crashes(request, event.fingerprint)
        spent = request.attempts >= self.config.attempts_max or request.crashes >= CRASHES_MAX
        if spent or self.is_poison(request.fingerprint):
            return
        worker = self.workers.get(event.worker)
        exempt = worker is None
        if worker is not None and event.fault in LOST and worker.loss != NEVER:
            exempt = request.dispatched <= worker.loss and self.now < worker.loss + self.config.retry_window_us
        span = self.config.retry_window_us
        if self.window_since == NEVER or self.now >= self.window_since + span:
            passed = self.now - self.window_since
            self.first_tries_before = self.first_tries * span // passed if self.window_since != NEVER else 0
            self.window_since, self.first_tries, self.retries = self.now, 0, 0
        asked = max(self.first_tries, self.first_tries_before)
        room = max(self.config.retry_floor, asked * self.config.retry_percent // 100)
        request.may_retry = exempt or self.retries < room
        if exempt:
            self.meet("retried beside the budget")
        elif request.may_retry:
            self.retries += 1

    def crashes(self, request: RequestBook, fingerprint: str) -> None:
        """A runner died under it: the first worker makes it suspect, a second one poison."""
        fingerprint = fingerprint or request.fingerprint
        if not fingerprint or request.worker is None:
            return
        request.fingerprint = fingerprint
        self._forget_old()
        until = self.now + self.config.poison_us
        first = self.suspects.pop(fingerprint, None)
        if fingerprint in self.poison or (first is not None and first[0] != request.worker):
            self.meet("poison")
            self.poison.pop(fingerprint, None)
            self.poison[fingerprint] = until
        else:
            self.suspects[fingerprint] = (request.worker, until)

    def _forget_old(self) -> None:
        self.suspects = {one: (worker, end) for one, (worker, end) in self.suspects.items() if end > self.now}
        self.poison = {one: end for one, end in self.poison.items() if end > self.now}

    def is_poison(self, fingerprint: str) -> bool:
        return bool(fingerprint) and self.poison.get(fingerprint, NEVER) > self.now

    # ------------------------------------------------------------------ rules

    def judge_trust(self, decision: d.Dispatch, request: RequestBook, worker: WorkerBook) -> None:
        """Before the slot is taken: retries elsewhere and within the budget, no poison, no cap passed (I8, I11)."""
        if request.attempts == 1:
            self.tried_first()
        else:
            self.must(request.may_retry, "retries keep to their budget", decision, request)
        self.must(not self.is_poison(request.fingerprint), "no third worker for poison", decision, request)
        self.must(not worker.full, "no more at once than a worker has proved", decision, worker.cap)
        if worker.cap:
            self.meet("on trial" if worker.grows == NEVER else "slow start")
        self.avoids(request)
        if decision.worker in request.failed_on:
            others = [w for i, w in self.workers.items() if w.routable and i not in request.failed_on]
            self.must(not any(self.binds(w, request) for w in others), "a retry goes elsewhere", decision, request)
        elif request.failed_on:
            self.meet("retried elsewhere")
        elif request.attempts > 1:
            self.meet("forgiven")

    def judge_health(self, decision: d.HealthChange) -> None:
        """What is told is so; never more than half is ejected for what requests met (I18)."""
        worker = self.workers.get(decision.worker)
        if worker is None:
            return
        self.must(worker.routable == decision.healthy, "health is as it was told", decision)
        self.meet(f"HealthChange.{decision.healthy}")
        if decision.reason == "failing":
            few = self._ejected() * 2 <= len(self.workers)
            self.must(few, "never more than half of the workers are ejected", decision)

    def judge_routing(self, healthy: dict[WorkerId, bool]) -> None:
        """Both books agree on who is in routing, after every step."""
        for name, worker in self.workers.items():
            self.must(healthy[name] == worker.routable, "the books of routing agree", name, worker.routable)
