"""Judges every decision by the ledger. Nothing of the core is called: a rule that asks the core proves nothing.

The numbers I1 to I27 are those of the reliability findings; docs/simulation-testing.md has them in words.
"""

from collections.abc import Callable, Sequence
from typing import Any

from bellmare.core import decisions as d
from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.units import ModelId, RequestId, WorkerId
from bellmare.sim.swarm.books import (
    SECOND,
    SPECULATIVE,
    UNLOAD_TRIES,
    ClaimBook,
    OperationBook,
    RequestBook,
    RunnerBook,
    WorkerBook,
)
from bellmare.sim.swarm.forgetting import Forgetting
from bellmare.sim.swarm.holdings import weights
from bellmare.sim.swarm.refusals import judge_admission, judge_refusal

BYPASS_MAX = 16
"""Later arrivals of its own lane that may be served before a request that failed once (I15): while it looks for another
worker others go on. Before one that was never tried there may be none."""
BYPASS_BY_ANY_MAX = 64
"""Later arrivals of any lane of its model, for each request of its own lane that was ahead of it, and itself: a floor
share for the lowest priority."""
SPECULATIVE_FREE = 16
SPECULATIVE_EVERY_US = 10 * SECOND
"""Loads for which nobody waits: so many for nothing, one per arrival, and one per ten seconds and worker (I6)."""
SWITCH_PERCENT_MIN = 10
"""Load-seconds that a change of policy would have spared, by the shadows."""
MODELS_SURELY_TRIED = 8
"""With more models waiting than that, one that fits may have to wait for the next look (a step's work is bounded)."""


class Oracle(Forgetting):
    """The ledger, and what the core may decide by it."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self.last_operation = 0
        self.began = -1
        self.speculative = 0
        self.decided_kinds: dict[str, int] = {}
        self._claimed: dict[tuple[WorkerId, ModelId], None] = {}
        """Room that began to be made in this step."""
        self._drained_again: dict[tuple[WorkerId, ModelId], dict[ModelId, None]] = {}
        """Victims of this step that were victims for the same model before: of the old intent, or of a new one."""
        self._judges: dict[type[Any], Callable[[Any], None]] = {
            kind: getattr(self, f"_{kind.__name__}") for kind in d.Decision.__subclasses__()
        }

    def decided(self, decisions: Sequence[d.Decision]) -> None:
        if self.began < 0:
            self.began = self.now
        for decision in decisions:
            kind = type(decision).__name__
            self.decided_kinds[kind] = self.decided_kinds.get(kind, 0) + 1
            self._judges[type(decision)](decision)

    # ------------------------------------------------------------------ requests

    def _live(self, decision: d.Reject | d.Dispatch) -> RequestBook:
        request = self.requests.get(decision.request)
        self.must(
            request is not None, "nothing is decided for who has left", decision, self.ended.get(decision.request)
        )
        assert request is not None
        return request

    def _Reject(self, decision: d.Reject) -> None:  # noqa: N802 named after its decision
        request = self._live(decision)
        self.meet(f"Refusal.{decision.refusal}")
        self.must(request.phase in ("new", "waiting"), "only who does not run is refused", decision, request)
        judge_refusal(self, request, decision)
        self.count(f"refused_{decision.refusal}")
        self._end(request, "refused")

    def _Dispatch(self, decision: d.Dispatch) -> None:  # noqa: N802
        self.meet(f"CacheState.{decision.cache}")
        request = self._live(decision)
        self.must(request.phase in ("new", "waiting"), "only who waits is dispatched", decision, request)
        worker = self.workers.get(decision.worker)
        self.must(worker is not None and worker.routable, "never to a lost worker", decision)
        assert worker is not None
        self.must(self.binds(worker, request), "only where the name means the blob", decision)
        runner = worker.runners.get(decision.model)
        self.must(runner is not None and runner.state == "ready", "only to a resident model", decision, runner)
        assert runner is not None
        self.must(runner.used < runner.slots, "never beyond its slots", decision, runner)
        self.must(decision.num_ctx == runner.num_ctx, "with the runner's own context", decision, runner)
        if decision.model != request.blob:
            self._judge_stand_in(decision, request)
        self.must(decision.model == request.blob, "to the blob that its name meant", decision)
        request.attempts += 1
        self.must(decision.attempt == request.attempts <= self.config.attempts_max, "attempts are bounded", decision)
        self._judge_words(decision, request, runner)
        self.judge_trust(decision, request, worker)
        self._judge_order(decision, request)
        self._waits_no_more(request)
        runner.in_flight[decision.request] = None
        request.phase, request.worker = "running", decision.worker
        request.dispatched, request.first_token = self.now, False

    def _judge_stand_in(self, decision: d.Dispatch, request: RequestBook) -> None:
        """Another context of its blob serves it: a larger one, where else it would wait for a load."""
        same = weights(decision.model) == weights(request.blob)
        self.must(same, "to the blob that its name meant", decision, request)
        less = min(decision.num_ctx, self.canonical(decision.model)) < self.canonical(request.blob)
        self.must(not less, "never with less context than was asked for", decision, request)
        own = any(request.blob in worker.runners for worker in self.workers.values())
        self.must(not own, "nobody stands in for a copy that is there", decision, request)
        self.must(decision.model not in self.waiting, "who stands in overtakes nobody", decision, request)
        self._judge_order(decision, request)
        self._waits_no_more(request)
        request.blob = decision.model
        self.meet("stood in at once" if request.phase == "new" else "stood in after a wait")

    def _judge_words(self, decision: d.Dispatch, request: RequestBook, runner: RunnerBook) -> None:
        """What the client and the log are told of its wait."""
        self.must(decision.queued_us == self.now - request.arrived, "the wait is told as it was", decision)
        before = max(0, min(runner.ready, self.now) - request.arrived)
        self.must(decision.load_us == before, "the load's share of the wait is told as it was", decision, before)
        at_once = request.phase == "new" and request.attempts == 1
        expected = [d.CacheState.queued if request.ready_then else d.CacheState.cold]
        if at_once or request.attempts > 1:  # a retry may have run at once, the first time
            expected.append(d.CacheState.hit)
        self.must(decision.cache in expected, "the cache's state is told as it was", decision, expected)

    def _judge_order(self, decision: d.Dispatch, request: RequestBook) -> None:
        """Whom it overtakes, among those who could have had its slot (I15)."""
        for other in self.waiting.get(request.blob, {}).values():
            if other.number >= request.number or other.event.name != request.event.name:
                continue
            self.avoids(other)
            if decision.worker in other.failed_on:
                continue
            other.bypassed_by_any += 1
            most = BYPASS_BY_ANY_MAX * (1 + other.ahead)
            self.must(other.bypassed_by_any <= most, "nobody is overtaken for ever", other, request)
            if other.lane == request.lane:
                other.bypassed += 1
                most = BYPASS_MAX if other.attempts else 0
                self.must(other.bypassed <= most, "its own lane does not overtake it", other, request)

    # ------------------------------------------------------------------ operations

    def _begin(self, decision: d.Load | d.Unload) -> WorkerBook:
        worker = self.workers[decision.worker]
        self.must(not self.standby, "on standby nothing is loaded or unloaded", decision)
        self.must(decision.operation > self.last_operation, "operation ids rise", decision)
        self.last_operation = decision.operation
        self.must(worker.routable, "operations on workers in routing only", decision)
        self.must(worker.operation is None, "one operation at a time on a worker", decision, worker.operation)
        self.must(worker.observed > worker.lost_at, "nothing begins on a worker that is in doubt", decision)
        entry = worker.stored.get(decision.name)
        reached = entry is not None and entry.model == weights(decision.model)
        self.must(reached, "the name reaches the blob there", decision)
        deadline = self.now + decision.timeout_us + self.config.operation_grace_us
        self.operations[decision.operation] = OperationBook(decision, deadline, self.now)
        worker.operation = decision.operation
        return worker

    def _Load(self, decision: d.Load) -> None:  # noqa: N802
        self.meet(f"LoadCause.{decision.cause}")
        worker, blob = self._begin(decision), decision.model
        self.must(decision.expected_us > 0 and decision.timeout_us > 0, "operations have a span", decision)
        if decision.cause is d.LoadCause.adopt:
            runner = worker.runners.get(blob)
            self.must(runner is not None and runner.state == "ready", "only residents are adopted", decision)
            same = runner is not None and runner.num_ctx == decision.num_ctx
            self.must(same, "a worker is never made to load a blob anew", decision, runner)
            return
        self.must(blob not in worker.runners, "no model is loaded twice", decision)
        sibling = self.sibling(worker, blob)
        self.must(sibling is None, "a worker is never made to load a blob anew", decision, sibling)
        claim = worker.claims.pop(blob, None)
        self._judge_shape(worker, decision, claim)
        if worker.spec.capacity_known:
            total = worker.held + worker.foreign + decision.reserved_bytes
            limit = worker.capacity - worker.spec.headroom_bytes
            self.must(total <= limit, "memory is never promised twice", decision, total, limit)
        if worker.runners:
            free = worker.capacity - worker.foreign - worker.held
            predicted = self.predicted(worker, blob, decision.num_ctx)
            self.must(
                predicted * 100 <= free * worker.spec.fit_percent, "Ollama's own share", decision, predicted, free
            )
        limit = worker.spec.runners_max
        self.must(not limit or len(worker.runners) < limit, "Ollama's own number of runners", decision)
        self.must(worker.refused_until.get(blob, 0) <= self.now, "a failed load rests", decision)
        self._judge_reason(worker, decision, claim)
        slots = worker.slots(self.entry(blob))
        worker.runners[blob] = RunnerBook("loading", decision.reserved_bytes, decision.num_ctx, slots, self.now)

    def _judge_shape(self, worker: WorkerBook, decision: d.Load, claim: ClaimBook | None) -> None:
        """One shape per model, booked as measured or by the formula: now, or when the room began to be made."""
        num_ctx = self.canonical(decision.model)
        later = claim.later if claim is not None else []
        contexts = (num_ctx, claim.num_ctx, *(one for one, _ in later)) if claim is not None else (num_ctx,)
        self.must(decision.num_ctx in contexts, "loaded in its one shape", decision, contexts)
        need = self.need(worker, decision.model, decision.num_ctx)
        needs = (need, claim.need, *(one for _, one in later)) if claim is not None else (need,)
        self.must(decision.reserved_bytes in needs, "booked as measured or by the formula", decision, needs)

    def _judge_reason(self, worker: WorkerBook, decision: d.Load, claim: ClaimBook | None) -> None:
        """Every load is for somebody (I6)."""
        blob, cause = decision.model, decision.cause
        waiting = self.waiting.get(blob, {})
        if cause is d.LoadCause.demand:
            self.must(bool(waiting) or self.pinned(blob), "a demand load has a demand", decision)
            if claim is None and waiting and not self.pinned(blob):
                unserved = any(not self._supplied(request) for request in waiting.values())
                self.must(unserved, "no load for who will be served anyway", decision)
        elif cause is d.LoadCause.replica:
            beside = any(blob in other.runners for other in self.workers.values())
            beside = beside or (claim is not None and claim.beside)
            self.must(bool(waiting) and beside, "a replica stands beside a copy that is not enough", decision)
        elif cause is d.LoadCause.pinned:
            self.must(blob in self.ever_pinned, "pinned loads are of pinned models", decision)
        elif cause is d.LoadCause.operator:
            self.must(blob in self.asked_in, "operators' loads were asked for", decision)
        elif cause in SPECULATIVE:
            self._judge_speculative(worker, decision, claim)

    def _supplied(self, request: RequestBook) -> bool:
        """Whether a copy that is ready or loading will serve it."""
        self.avoids(request)
        for name, worker in self.workers.items():
            runner = worker.runners.get(request.blob)
            if runner is None or not worker.routable or runner.state not in ("ready", "loading"):
                continue
            if self.binds(worker, request) and name not in request.failed_on:
                return True
        return False

    def _judge_speculative(self, worker: WorkerBook, decision: d.Load, claim: ClaimBook | None) -> None:
        """A load for which nobody waits takes nothing from anybody, and there is a budget for them (I5, I6)."""
        costly = claim.costly if claim is not None and not claim.asked else []
        self.must(not costly, "a load ahead of demand costs nobody anything", decision, costly)
        beside = any(decision.model in other.runners for other in self.workers.values())
        self.must(claim is not None or not beside, "no copy of what is there is loaded ahead of demand", decision)
        left = worker.evicted.get(decision.model)
        rested = left is None or self.now >= left or bool(self.waiting.get(decision.model))
        self.must(rested, "what was just evicted is not loaded ahead of demand", decision, left)
        self.speculative += 1
        span = (self.now - self.began) // SPECULATIVE_EVERY_US
        budget = SPECULATIVE_FREE + self.arrivals + span * max(1, len(self.workers))
        self.must(self.speculative <= budget, "loads ahead of demand keep to their budget", decision, budget)

    def _Unload(self, decision: d.Unload) -> None:  # noqa: N802
        self.meet(f"UnloadCause.{decision.cause}")
        worker = self._begin(decision)
        runner = worker.runners.get(decision.model)
        self.must(runner is not None, "only what is there is unloaded", decision)
        assert runner is not None
        self.must(runner.used == 0, "a busy runner is never unloaded", decision, runner)
        self.must(runner.state in ("draining", "unloading"), "drain before unload", decision, runner)
        for_others = (d.UnloadCause.room, d.UnloadCause.context)
        if decision.cause in (*for_others, d.UnloadCause.ahead, d.UnloadCause.replica):
            self.must(not self.pinned(decision.model), "a pinned model is no victim", decision)
        if decision.cause in for_others:
            self.must(decision.wanted_by is not None, "room is made for somebody", decision)
        elif decision.cause in (d.UnloadCause.ahead, d.UnloadCause.replica) and decision.wanted_by is None:
            self._judge_unwanted(worker, decision)
        elif decision.cause in (d.UnloadCause.operator, d.UnloadCause.released):
            asked = self.asked_out if decision.cause is d.UnloadCause.operator else self.given_back
            self.must(decision.model in asked, "unloads that were asked for were asked for", decision)
        runner.state, runner.since = "unloading", self.now

    def _judge_unwanted(self, worker: WorkerBook, decision: d.Unload | d.Drain) -> None:
        """A runner that nobody asked to go must be one that nobody wants."""
        waited = any(self.binds(worker, request) for request in self.waiting.get(decision.model, {}).values())
        self.must(not waited, "who is waited for does not leave unasked", decision)
        if decision.cause is d.UnloadCause.replica:
            others = [w.runners[decision.model] for i, w in self.workers.items()
                      if i != decision.worker and w.routable and decision.model in w.runners]  # fmt: skip
            self.must(any(r.state == "ready" for r in others), "the last copy is no replica", decision)

    # ------------------------------------------------------------------ draining

    def _Drain(self, decision: d.Drain) -> None:  # noqa: N802
        worker = self.workers[decision.worker]
        runner = worker.runners.get(decision.model)
        self.must(runner is not None and runner.state == "ready", "only residents are drained", decision, runner)
        assert runner is not None
        released = decision.cause is d.UnloadCause.released
        again = released and runner.why is not None
        if decision.wanted_by is not None or decision.cause is d.UnloadCause.room:
            again = not self._judge_victim(worker, runner, decision)
        if (released or decision.cause in (d.UnloadCause.ahead, d.UnloadCause.replica)) and not again:
            late = released and self.given_back.get(decision.model) != self.now
            self.must(not late, "what is given back leaves at once", decision)
            self.must(not runner.used, "a busy runner does not leave unasked", decision, runner)
            self.must(not self.pinned(decision.model), "a pinned model is no victim", decision)
            young = decision.cause is d.UnloadCause.ahead and self.now < runner.ready + runner.load_span
            self.must(not young, "a young runner does not leave unasked", decision, runner)
            self._judge_unwanted(worker, decision)
        elif decision.cause is d.UnloadCause.shape:
            less = runner.num_ctx < self.canonical(decision.model) and runner.num_ctx != runner.granted
            self.must(less or runner.why is not None, "only a smaller context is a wrong shape", decision, runner)
        elif decision.cause is d.UnloadCause.over_budget and runner.why is None:
            staying = sum(r.bytes for r in worker.runners.values() if r.state in ("ready", "loading"))
            over = staying + worker.foreign > worker.capacity
            self.must(over, "over budget only beyond the capacity", decision, staying)
            self.must(not runner.used and not self.pinned(decision.model), "only idle ones shrink", decision, runner)
        runner.state, runner.since, runner.why = "draining", self.now, decision.cause
        self.meet("drained busy" if runner.used else "drained idle")

    def _judge_victim(self, worker: WorkerBook, runner: RunnerBook, decision: d.Drain) -> bool:
        """Who may be sent away for ``wanted_by`` (I4, I5): not pinned, not waited for, not too young, not in vain.

        False if it was chosen before, and drains again because its unload broke or it was seen again.
        """
        wanted, blob = decision.wanted_by, decision.model
        self.must(wanted is not None and weights(wanted) in self.blobs, "room is made for somebody", decision)
        assert wanted is not None
        context = weights(wanted) == weights(blob)
        self.must(context == (decision.cause is d.UnloadCause.context), "who leaves is told why", decision)
        claim = worker.claims.get(wanted)
        again = self._drained_again.setdefault((decision.worker, wanted), {})
        fresh = (decision.worker, wanted) in self._claimed
        if claim is not None and blob in claim.victims and not fresh:
            self.meet("drained again")
            num_ctx = self.canonical(wanted)
            claim.later.append((num_ctx, self.need(worker, wanted, num_ctx)))
            again[blob] = None
            return False
        self.must(not self.pinned(blob), "a pinned model is no victim", decision)
        waited, young = bool(self.waiting.get(blob)), self.now < runner.ready + runner.load_span
        self.must(not waited or runner.used > 0, "an idle victim is waited for by nobody", decision)
        since = self.waiting_since.get(wanted)
        patient = since is not None and since <= self.now - self.config.drain_after_us
        patient = patient or wanted in self.ever_pinned or self.asked_in.get(wanted) == self.now
        self.must(not runner.used or patient, "a busy victim only after patience", decision, since)
        self.must(not young or patient, "a young victim only after patience", decision, runner)
        self.must(not (young and runner.used), "a young busy runner is no victim", decision, runner)
        if not fresh:
            num_ctx = self.canonical(wanted)
            beside = any(wanted in other.runners for other in self.workers.values())
            need = self.need(worker, wanted, num_ctx)
            asked = since is not None or wanted in self.ever_pinned or self.asked_in.get(wanted) == self.now
            claim = ClaimBook(need, num_ctx, self.now, asked=asked, beside=beside, victims=dict(again))
            worker.claims[wanted] = claim
            self._claimed[decision.worker, wanted] = None
        assert claim is not None
        claim.victims[blob] = None
        for holds, why in ((runner.used, "busy"), (waited, "waited for"), (young, "young")):
            if holds:
                claim.costly.append(f"{blob} is {why}")
        return True

    def _Undrain(self, decision: d.Undrain) -> None:  # noqa: N802
        if decision.worker not in self.workers:
            return  # it is being removed
        worker, runner = self.workers[decision.worker], self.workers[decision.worker].runners[decision.model]
        self.must(runner.state == "draining", "only the draining are undrained", decision, runner)
        runner.state, runner.since, runner.why = "ready", self.now, None
        for wanted in [wanted for wanted, claim in worker.claims.items() if decision.model in claim.victims]:
            del worker.claims[wanted]
            self._claimed.pop((decision.worker, wanted), None)
        for (name, _), again in self._drained_again.items():
            if name == decision.worker:
                again.pop(decision.model, None)
        self.meet("undrained")

    def _HealthChange(self, decision: d.HealthChange) -> None:  # noqa: N802
        self.judge_health(decision)

    def _PolicySwitch(self, decision: d.PolicySwitch) -> None:  # noqa: N802
        """Only where it is allowed, from the policy in use to another one, and never before the dwell is over."""
        config, since = self.config, max(self.began, self.switched)
        self.must(config.shadows and config.switch_policy, "policies change only where they may", decision)
        self.must(decision.before == self.policy, "the policy in use is told as it is", decision, self.policy)
        self.must(decision.policy != self.policy and decision.policy in POLICIES, "another policy takes over", decision)
        self.must(self.now - since >= config.switch_dwell_us, "a policy is given its time", decision, since)
        self.must(decision.loads >= config.switch_loads_min, "a switch rests on enough loads", decision)
        self.must(decision.saved_percent >= SWITCH_PERCENT_MIN, "a switch is worth it", decision)
        self.policy, self.switched = decision.policy, self.now
        self.count("policy_switch")

    def _Observe(self, decision: d.Observe) -> None:  # noqa: N802
        self.must(decision.worker in self.workers, "only known workers are asked", decision)

    def _Answer(self, decision: d.Answer) -> None:  # noqa: N802
        self.meet(f"Answer.{decision.accepted}")

    # ------------------------------------------------------------------ after a step

    def settled(self, asked: RequestId | None) -> None:
        """After a whole step: who came has a place, victims were needed, and nobody waits beside a free slot (I10)."""
        request = self.requests.get(asked) if asked is not None else None
        if request is not None and request.phase == "new":
            request.phase = "waiting"
            judge_admission(self, request)
        for place in self._claimed:
            self._judge_claim(*place)
        self._claimed.clear()
        self._drained_again.clear()
        self.forget_blobs()
        for blob, waiting in self.waiting.items():
            self._judge_idle_slots(blob, waiting)
            if any(worker.routable and self.stores(worker, blob) for worker in self.workers.values()):
                self.stranded_since.pop(blob, None)
            else:
                self.stranded_since.setdefault(blob, self.now)
        for blob in [blob for blob in self.stranded_since if blob not in self.waiting]:
            del self.stranded_since[blob]

    def _judge_idle_slots(self, blob: ModelId, waiting: dict[RequestId, RequestBook]) -> None:
        for name, worker in self.workers.items():
            runner = worker.runners.get(blob)
            if runner is None or not worker.routable or runner.state != "ready" or runner.used >= runner.slots:
                continue
            if worker.full:
                continue
            for request in waiting.values():
                free = self.binds(worker, request) and name not in request.failed_on
                self.must(not free, "nobody waits beside a free slot", request, name)

    def _judge_claim(self, name: WorkerId, wanted: ModelId) -> None:
        """Victims make room, and none of them for nothing (I4)."""
        worker = self.workers.get(name)
        claim = worker.claims.get(wanted) if worker is not None else None
        if worker is None or claim is None:
            return
        victims = list(claim.victims)
        self.must(self.fits(worker, wanted, claim, leaving=victims), "victims make room", name, wanted, victims)
        sibling = self.sibling(worker, wanted)
        gone = sibling is None or sibling in victims
        self.must(gone, "another context of the blob leaves first", name, wanted, victims, sibling)
        for victim in victims:
            if victim == sibling:
                self.meet("context changed")
                continue
            rest = [other for other in victims if other != victim]
            needed = not self.fits(worker, wanted, claim, leaving=rest)
            self.must(needed, "no victim that is not needed", name, wanted, victim)

    def fits(self, worker: WorkerBook, blob: ModelId, claim: ClaimBook, *, leaving: Sequence[ModelId]) -> bool:
        """Whether a load may be sent once ``leaving`` are gone: by the ledger and by Ollama's own test."""
        others = len(worker.runners) - len(leaving)
        if others == 0 and not worker.spec.capacity_known:
            return True
        if worker.spec.runners_max and others >= worker.spec.runners_max:
            return False
        free = worker.capacity - worker.foreign - worker.held + sum(worker.runners[one].bytes for one in leaving)
        if claim.need > free - worker.spec.headroom_bytes:
            return False
        return others == 0 or self.predicted(worker, blob, claim.num_ctx) * 100 <= free * worker.spec.fit_percent

    def rested(self) -> None:
        """Once all that was due is done: deadlines were kept (I7), and who can be helped is helped (I10, I16)."""
        for blob, waiting in self.waiting.items():
            for request in waiting.values():
                self.avoids(request)
                self.must(not self.is_poison(request.fingerprint), "poison does not wait", request)
                late = request.event.deadline_us <= self.now
                self.must(not late, "nobody waits past the deadline", request)
            self._judge_idle_slots(blob, waiting)
            since = self.stranded_since.get(blob)
            told = since is None or self.now < since + self.config.worker_lost_grace_us
            self.must(told, "who has lost his worker is told so", blob, since)
        for worker in self.workers.values():
            if worker.claims and worker.operation is None and worker.routable and worker.observed > worker.lost_at:
                kept = {blob: claim for blob, claim in worker.claims.items() if claim.victims}
                worker.claims = kept  # others gave up
        if len(self.waiting) <= MODELS_SURELY_TRIED and not self.standby:
            for blob, waiting in self.waiting.items():
                self._judge_idle_workers(blob, waiting)

    def _judge_idle_workers(self, blob: ModelId, waiting: dict[RequestId, RequestBook]) -> None:
        """A model without any copy is being loaded if some worker has room for it and nothing to do."""
        if any(blob in worker.runners or blob in worker.claims for worker in self.workers.values()):
            return
        for name, worker in self.workers.items():
            busy = worker.operation is not None or worker.claims or worker.unloads_broken >= UNLOAD_TRIES
            busy = busy or not worker.routable
            if busy or worker.observed <= worker.lost_at or worker.refused_until.get(blob, 0) > self.now:
                continue
            if not all(self.binds(worker, r) and name not in r.failed_on for r in waiting.values()):
                continue
            if self.sibling(worker, blob) is not None or not self.stores(worker, blob):
                continue
            num_ctx = self.canonical(blob)
            claim = ClaimBook(self.need(worker, blob, num_ctx), num_ctx, self.now)
            idle = self.fits(worker, blob, claim, leaving=())
            self.must(not idle, "nobody waits beside a worker with room", blob, name)


def event_request(event: e.Event) -> RequestId | None:
    """Who asks with this event, if anybody does."""
    return event.request if isinstance(event, e.RequestArrived) else None
