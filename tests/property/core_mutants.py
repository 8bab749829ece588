# ruff: noqa: E501 a patch is a line of the core as it stands there  # tidy: a list grows with what it lists
"""Planted bugs: small changes of the core as somebody could make them by mistake, each caught by a rule of the oracle.

A mutant is a patch of one line or two of one module's source, applied in memory as the module is imported, in a process
of its own: ``python core_mutants.py NAME SEEDS`` prints the rule that caught it, or nothing. A patch whose text is not
there exactly once no longer means anything and ends with an error: write the mutant anew.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

REQUESTS = 300
SEEDS = 24
LIFE_S = 20
"""A life takes a fraction of a second."""
"""From the mutant's own first seed on: it falls there, or soon after if the draws have changed."""


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    """Within ``bellmare.core``."""
    old: str
    new: str
    rules: tuple[str, ...]
    """Any of them may come first; each says what is wrong."""
    first_seed: int = 0
    """Where to begin, so that the rare ones cost no minutes."""


FIRST_SEEDS = {
    "zombies are buried early": 50,
    "what vanished is believed to be there": 1,
    "room ahead is made of young runners": 60,
    "rest ends with the next observation": 70,
    "room ahead is made of busy runners": 24,
    "a model that was sent away comes back at once": 70,
    "what is loaded ahead may drain": 44,
    "a larger context sends away what is resident": 90,
    "a cancelled placement leaves its victims draining": 10,
    "room ahead is made of pinned runners": 10,
    "on standby loaders go on": 24,
    "back from standby nobody looks at the loaders": 184,
    "ejections do not grow longer": 20,
    "what others loaded meanwhile is loaded over": 80,
    "an old sight brings another context back": 20,
    "a runner is of the canonical context, whatever it shows": 24,
    "a loss of many streams counts as many failures": 135,
    "the room of another context is not counted": 50,
}


def _mutant(name: str, place: tuple[str, str, str], *rules: str) -> Mutant:
    module, old, new = place
    return Mutant(name, module, old, new, rules, FIRST_SEEDS.get(name, 0))


MUTANTS: tuple[Mutant, ...] = (
    # ---- admission
    _mutant(
        "a queue takes one more than its bound",
        ("admission", "or model.waiting >= fleet.config.queue_per_model_max", "or model.waiting > fleet.config.queue_per_model_max"),
        "nobody waits beyond the model's bound",
    ),
    _mutant(
        "the bound of all queues is forgotten",
        ("admission", "if fleet.state.waiting >= fleet.config.queue_total_max or ", "if "),
        "nobody waits beyond the bound of all",
    ),
    _mutant(
        "a deadline behind others is not looked at",
        ("admission", "if model.waiting and fleet.now_us + predicted_us > request.deadline_us:", "if False:"),
        "nobody is let in to time out",
    ),
    _mutant(
        "who is due at this very instant may wait on",
        ("engine", "request.deadline_us <= self.fleet.now_us:", "request.deadline_us < self.fleet.now_us:"),
        "nobody waits past the deadline",
    ),
    _mutant(
        "a hit is called cold",
        ("admission", "CacheState.queued if _ready_somewhere(fleet, model) else CacheState.cold", "CacheState.cold"),
        "the cache's state is told as it was",
    ),
    _mutant(
        "a name is taken for another's",
        ("admission", "if fleet.holds(worker, request):", "if True:"),
        "only where the name means the blob",
    ),
    # ---- queueing
    _mutant(
        "Retry-After is a tenth of the wait",
        ("queueing", "span, most_us = max(RETRY_AFTER_MIN_US, wait_us),", "span, most_us = max(RETRY_AFTER_MIN_US, wait_us // 10),"),
        "Retry-After is honest",
    ),
    _mutant(
        "Retry-After has no upper bound",
        ("queueing", "    if span * (100 + JITTER_PERCENT) > most_us * 100:", "    if False:"),
        "Retry-After within bounds",
    ),
    _mutant(
        "a cancelled prefill leaves no zombie",
        ("queueing", "leave_zombie(fleet, worker, runner, span_us=left_us)", "pass"),
        "never beyond its slots", "a busy runner is never unloaded",
        "the books of slots agree",
    ),
    _mutant(
        "zombies are buried early",
        ("queueing", "while runner.zombies and runner.zombies[0] <= fleet.now_us:", "while runner.zombies:"),
        "never beyond its slots", "a busy runner is never unloaded", "the books of slots agree",
    ),
    _mutant(
        "only the head of a queue is served",
        ("queueing", "        if _serve_one(fleet, request):\n            return True\n", ""),
        "nobody waits beside a free slot",
    ),
    _mutant(
        "a slot comes back without a look at the queue",
        ("queueing", "    fleet.refresh_open(worker, runner)\n    fleet.touch(runner.model)\n    if not runner.used:\n        fleet.touch_worker(worker.worker)\n\n\ndef leave_zombie",
         "    fleet.refresh_open(worker, runner)\n    if not runner.used:\n        fleet.touch_worker(worker.worker)\n\n\ndef leave_zombie"),
        "nobody waits beside a free slot",
    ),
    _mutant(
        "the last comes first",
        ("fairness", "        return self.order[0][2].waiting[0][1]", "        return self.order[-1][2].waiting[-1][1]"),
        "its own lane does not overtake it", "nobody is overtaken for ever", "the engine's own check",
    ),
    _mutant(
        "a waiting request has no deadline",
        ("queueing", "    fleet.set_timer(request.deadline_us, Timer.request, request.request)\n", ""),
        "nobody waits past the deadline",
    ),
    _mutant(
        "who leaves is still counted as waiting",
        ("queueing", "    fleet.state.models[request.model].waiting -= 1\n    fleet.state.waiting -= 1\n", "    fleet.state.models[request.model].waiting -= 1\n"),
        "the gauge of waiting requests is true",
    ),
    # ---- engine
    _mutant(
        "a retry may go where it failed",
        ("fleet", "if worker.worker in request.excluded and self._others_can(request):", "if False:"),
        "a retry goes elsewhere",
    ),
    _mutant(
        "one attempt too many",
        ("attempts", "if request.attempts >= fleet.config.attempts_max or", "if request.attempts > fleet.config.attempts_max or"),
        "attempts are bounded", "retries_spent only when their budget is",
    ),
    _mutant(
        "exclusions are never forgiven",
        ("engine", "            request.excluded.clear()\n", ""),
        "nobody waits beside a free slot",
    ),
    _mutant(
        "a busy worker is believed to be free",
        ("engine", "queueing.leave_zombie(self.fleet, worker, runner, span_us=BUSY_US)", "pass"),
        "never beyond its slots", "a busy runner is never unloaded",
        "the books of slots agree",
    ),
    _mutant(
        "a cancelled request is served all the same",
        ("engine", "            queueing.leave_queue(self.fleet, request)\n            self.fleet.touch(request.model)\n        else:",
         "            self.fleet.touch(request.model)\n        else:"),
        "nothing is decided for who has left", "the gauge of waiting requests is true",
    ),
    _mutant(
        "a request that is done keeps its slot",
        ("engine", "        queueing.free_slot(fleet, request, aborted=False)\n        if event.outcome", "        if event.outcome"),
        "nobody waits beside a free slot", "the engine's own check", "the cache's state is told as it was",
        "all requests end",
        "the books of slots agree",
    ),
    # ---- placement and eviction
    _mutant(
        "victims that are not needed go too",
        ("victims", "        if fits(worker, claim, leaving_bytes=freed - runner.bytes, leaving=len(chosen) - 1):\n", "        if False:\n"),
        "no victim that is not needed",
    ),
    _mutant(
        "a pinned model may be a victim",
        ("placement", "if fleet.model_config(model).pinned or (model.waiting and not runner.used):", "if model.waiting and not runner.used:"),
        "a pinned model is no victim",
    ),
    _mutant(
        "a victim may be waited for",
        ("placement", "if fleet.model_config(model).pinned or (model.waiting and not runner.used):", "if fleet.model_config(model).pinned:"),
        "an idle victim is waited for by nobody",
    ),
    _mutant(
        "a young runner may go at once",
        ("fleet", "return InstantUs(runner.ready_us + runner.load_us)", "return InstantUs(runner.ready_us)"),
        "a young victim only after patience", "a young busy runner is no victim",
    ),
    _mutant(
        "busy victims are drained without patience",
        ("placement", "if runner.residency is not Residency.resident or (runner.used and not drain):", "if runner.residency is not Residency.resident:"),
        "a busy victim only after patience",
    ),
    _mutant(
        "headroom is lent out",
        ("state", "return self.capacity_bytes - self.headroom_bytes - self.foreign_bytes - self.used_bytes", "return self.capacity_bytes - self.foreign_bytes - self.used_bytes"),
        "memory is never promised twice", "real memory is enough", "victims make room",
    ),
    _mutant(
        "Ollama's own share is not heeded",
        ("victims", "return others == 0 or claim.predicted_bytes * 100 <= (free + worker.headroom_bytes) * worker.fit_percent", "return True"),
        "Ollama's own share", "victims make room",
    ),
    _mutant(
        "one runner more than Ollama allows",
        ("victims", "if worker.runners_max and others >= worker.runners_max:", "if worker.runners_max and others > worker.runners_max:"),
        "Ollama's own number of runners",
    ),
    _mutant(
        "a failed load is tried again at once",
        ("placement", "return retry is not None and retry[1] > fleet.now_us", "return False"),
        "a failed load rests",
    ),
    _mutant(
        "the overhead of a process is not counted",
        ("costs", "return Bytes(estimate_bytes(model, num_ctx, slots) + worker.overhead_bytes)", "return Bytes(estimate_bytes(model, num_ctx, slots))"),
        "booked as measured or by the formula",
    ),
    _mutant(
        "the cache of one slot is counted for all",
        ("costs", "cache = stored.kv_bytes_per_token * num_ctx * slots +", "cache = stored.kv_bytes_per_token * num_ctx +"),
        "booked as measured or by the formula",
    ),
    _mutant(
        "a context beyond training is asked for",
        ("naming", "return min(wanted, model.stored.context_max) if model.stored.context_max else wanted", "return wanted"),
        "loaded in its one shape",
    ),
    # ---- scheduler
    _mutant(
        "a copy that is loading does not count",
        ("scheduler", "usable = worker.healthy and runner.residency in (Residency.loading, Residency.resident)\n        if usable and (head",
         "usable = worker.healthy and runner.residency is Residency.resident\n        if usable and (head"),
        "no load for who will be served anyway",
    ),
    _mutant(
        "a placement outlives its last request",
        ("scheduler", "return model.waiting > 0 or fleet.model_config(model).pinned\n    return", "return True\n    return"),
        "a demand load has a demand", "no room is being made for nobody",
    ),
    _mutant(
        "a cancelled placement leaves its victims draining",
        ("scheduler", "            fleet.move(worker, runner, Cue.undrain)\n            fleet.decide(Undrain(worker=worker.worker, model=victim))\n",
         "            pass\n"),
        "nobody is left half gone", "who can be served is served", "all requests end",
        "nobody waits beside a worker with room",
    ),
    _mutant(
        "a load begins beside a worker that is in doubt",
        ("scheduler", "if not worker.healthy or worker.operation is not None or worker.distrust_us >= worker.observed_us:", "if not worker.healthy or worker.operation is not None:"),
        "nothing begins on a worker that is in doubt",
    ),
    _mutant(
        "blocked models are not looked at again",
        ("scheduler", "    if worker.placement is None and fleet.blocked and fleet.available(worker):\n        _try_blocked(fleet, policy, worker)\n", ""),
        "nobody waits beside a worker with room", "who can be served is served",
    ),
    # ---- operations
    _mutant(
        "memory is free before an unload is confirmed",
        ("operations", "    if event.outcome is OperationOutcome.done:\n        fleet.move(worker, runner, Cue.gone)\n        return\n", "    fleet.move(worker, runner, Cue.gone)\n    return\n"),
        "nothing begins on a worker that is in doubt", "memory is never promised twice", "the books of memory agree",
        "health is as it was told", "counters tell what happened", "no model is loaded twice",
        "the books of runners agree", "real memory is enough",
        "the books of routing agree",
    ),
    _mutant(
        "a lost end is never given up",
        ("operations", "if operation is not None and operation.deadline_us <= fleet.now_us:", "if False:"),
        "every operation is known until its end", "all operations end",
    ),
    _mutant(
        "the back-off does not double",
        ("operations", "fleet.config.load_backoff_us << min(tries - 1, 20)", "fleet.config.load_backoff_us"),
        "a failed load rests",
    ),
    _mutant(
        "a broken load is forgotten at once",
        ("operations", "        fleet.move(worker, runner, Cue.load_broke)\n", "        fleet.move(worker, runner, Cue.gone)\n"),
        "the books of memory agree", "no model is loaded twice", "nobody waits beside a worker with room",
        "memory is never promised twice", "real memory is enough",
        "the books of runners agree",
    ),
    _mutant(
        "another blob's load counts as this one's",
        ("operations", "return event.loaded is None or event.loaded.model in (None, model.blob)", "return True"),
        "only to a resident model", "the books of memory agree", "only residents are adopted", "the engine's own check",
        "the books of runners agree",
    ),
    _mutant(
        "a measured load is booked as reserved",
        ("operations", "        fleet.set_bytes(worker, runner, learn_bytes(worker, model, runner, measured=event.loaded.bytes))\n        runner.pinned", "        runner.pinned"),
        "the books of memory agree",
        "booked as measured or by the formula",
    ),
    # ---- reconcile
    _mutant(
        "a stale observation is believed",
        ("reconcile", "    return runner.since_us >= started_us\n", "    return False\n"),
        "no model is loaded twice", "only to a resident model", "the books of memory agree", "real memory is enough",
        "the books of runners agree",
        "Ollama's own number of runners",
    ),
    _mutant(
        "an old sight brings back who has gone",
        ("reconcile", "if classes.left_us(fleet, worker, model) < started_us:", "if True:"),
        "only to a resident model", "the books of memory agree",
        "the books of runners agree",
    ),
    _mutant(
        "what vanished is believed to be there",
        ("reconcile", "            fleet.count(\"found_gone\")\n            fleet.move(worker, runner, Cue.gone)\n", "            pass\n"),
        "only to a resident model", "the books of memory agree",
        "only what is there is unloaded",
        "the books of runners agree", "no victim that is not needed",
    ),
    _mutant(
        "foreign memory is not seen",
        ("reconcile", "    worker.foreign_bytes = Bytes(foreign)\n", ""),
        "memory is never promised twice", "real memory is enough",
        "victims make room",
    ),
    _mutant(
        "a lost vote stays",
        ("reconcile", "    votes[entry.model] -= 1\n", ""),
        "only where the name means the blob", "to the blob that its name meant", "unknown only if nobody stores it",
        "no_healthy_worker only if so", "the core does not crash",
    ),
    _mutant(
        "the order of observations is not looked at",
        ("reconcile", "if worker is None or event.started_us < worker.observed_us:", "if worker is None:"),
        "the books of memory agree", "only to a resident model", "the name reaches the blob there",
        "nothing begins on a worker that is in doubt", "only where the name means the blob",
        "the books of runners agree", "nobody waits beside a worker with room",
        "health is as it was told",
    ),
    # ---- health
    _mutant(
        "a refused connection takes no worker out",
        ("health", "if event.fault in LOST_AT_ONCE or worker.unreachable >=", "if worker.unreachable >="),
        "never to a lost worker", "operations on workers in routing only", "the engine's own check", "the cache's state is told as it was",
        "the books of routing agree",
    ),
    _mutant(
        "missed answers are never forgotten",
        ("health", "    worker.unreachable = 0\n", ""),
        "health is as it was told", "nobody waits beside a free slot",
    ),
    _mutant(
        "one missed answer too many",
        ("health", "worker.unreachable >= fleet.config.unreachable_max:", "worker.unreachable > fleet.config.unreachable_max:"),
        "never to a lost worker", "operations on workers in routing only", "who has lost his worker is told so",
        "health is as it was told",
        "the books of routing agree",
    ),
    _mutant(
        "the grace of a lost worker never ends",
        ("fleet", "            model.stranded_us = self.now_us\n            self.set_timer(self.now_us + self.config.worker_lost_grace_us, Timer.stranded, model.model)\n", "            model.stranded_us = self.now_us\n"),
        "who has lost his worker is told so",
    ),
    # ---- breaker, attempts, poison
    _mutant(
        "failures in a row eject nobody",
        ("breaker", "mind.row >= config.breaker_failures or ", ""),
        "the books of routing agree",
    ),
    _mutant(
        "a share of failures ejects nobody",
        ("breaker", "if often or mind.row", "if mind.row"),
        "the books of routing agree", "nobody waits beside a free slot", "no more at once than a worker has proved",
    ),
    _mutant(
        "all may be ejected",
        ("breaker", "if (ejected + 1) * 2 > len(workers):", "if False:"),
        "the books of routing agree", "never more than half of the workers are ejected", "no_healthy_worker only if so",
        "health is as it was told",
    ),
    _mutant(
        "an observation ends an ejection",
        ("health", "if worker.healthy or mind.until_us > fleet.now_us:", "if worker.healthy:"),
        "the books of routing agree", "health is as it was told", "never to a lost worker",
    ),
    _mutant(
        "ejections do not grow longer",
        ("breaker", "config.ejection_us << min(mind.ejections - 1, 20)", "config.ejection_us"),
        "the books of routing agree", "health is as it was told",
    ),
    _mutant(
        "who comes back is trusted at once",
        ("health", "        worker.cap = 1  # on trial\n", ""),
        "no more at once than a worker has proved", "the books of routing agree", "health is as it was told",
    ),
    _mutant(
        "a slow start begins with four",
        ("breaker", "_grow(fleet, worker, 2 * TRIAL)", "_grow(fleet, worker, 4 * TRIAL)"),
        "no more at once than a worker has proved",
    ),
    _mutant(
        "a trial that was passed is not noticed",
        ("breaker", "    if worker.breaker.grow_us < 0:\n        _grow(fleet, worker, 2 * TRIAL)\n", "    return\n"),
        "nobody waits beside a free slot",
    ),
    _mutant(
        "the cap of a worker is looked at per runner",
        ("fleet", "                self._refresh_others(worker, runner)\n", "                pass\n"),
        "no more at once than a worker has proved", "nobody waits beside a free slot", "the engine's own check",
    ),
    _mutant(
        "a loss of many streams counts as many failures",
        ("breaker", " and request.dispatched_us >= worker.breaker.back_us", ""),
        "the books of routing agree", "retries keep to their budget", "retries_spent only when their budget is",
        "no more at once than a worker has proved", "health is as it was told",
    ),
    _mutant(
        "retries have no budget",
        ("attempts", "if retries.again >=", "if False and retries.again >="),
        "retries keep to their budget",
    ),
    _mutant(
        "the budget is not renewed",
        ("attempts", "if retries.since_us < 0 or passed_us >= config.retry_window_us:", "if retries.since_us < 0:"),
        "retries_spent only when their budget is", "retries keep to their budget",
    ),
    _mutant(
        "what was lost with its worker has no exemption",
        ("attempts", "return event.fault in LOST_AT_ONCE and recent and request.dispatched_us <= lost_us", "return False"),
        "retries_spent only when their budget is",
    ),
    _mutant(
        "poison is tried on a third worker",
        ("attempts", "            return Refusal.poison_suspected, 0\n", "            pass\n"),
        "no third worker for poison", "poison does not wait", "worker_failed only when the attempts are spent",
        "the engine's own check", "retries_spent only when their budget is",
    ),
    _mutant(
        "poison is let in again",
        ("admission", "if event.fingerprint and poison.quarantined(fleet, event.fingerprint):", "if False:"),
        "no third worker for poison", "poison does not wait", "the engine's own check",
    ),
    _mutant(
        "one worker is enough for poison",
        ("poison", "if fingerprint not in state.poison and (first is None or first[0] == worker):", "if fingerprint not in state.poison and first is None:"),
        "poison only after two workers",
    ),
    _mutant(
        "poison is never forgiven",
        ("poison", "    while poison and next(iter(poison.values())) <= now_us:\n        del poison[next(iter(poison))]\n", ""),
        "poison only after two workers",
    ),
    # ---- fleet
    _mutant(
        "a runner keeps its bytes when it goes",
        ("fleet", "            worker.used_bytes = Bytes(worker.used_bytes - runner.bytes)\n", ""),
        "the books of memory agree", "the engine's own check", "nobody waits beside a worker with room",
        "no victim that is not needed",
    ),
    _mutant(
        "measured bytes are added, not set",
        ("fleet", "worker.used_bytes = Bytes(worker.used_bytes - runner.bytes + measured)", "worker.used_bytes = Bytes(worker.used_bytes + measured)"),
        "the books of memory agree", "the engine's own check", "nobody waits beside a worker with room",
        "over budget only beyond the capacity",
    ),
    _mutant(
        "a larger context sends away what is resident",
        ("reconfigure", "            runner.granted_num_ctx = runner.num_ctx\n", "            pass\n"),
        "only a smaller context is a wrong shape",
    ),
    _mutant(
        "on standby loaders go on",
        ("scheduler", "    if fleet.state.standby:\n        return\n    if worker.placement", "    if worker.placement"),
        "on standby nothing is loaded or unloaded",
    ),
    _mutant(
        "back from standby nobody looks at the loaders",
        ("reconfigure", "        fleet.touch_worker(worker.worker)\n    if not standby", "    if not standby"),
        "nobody waits beside a worker with room",
    ),
    _mutant(
        "a snapshot forgets which names are configured",
        ("naming", "        self.configured = {}\n        for name, said in self.config.models.items():\n", "        self.configured = {}\n        for name, said in list(self.config.models.items())[1:]:\n"),
        "what is pinned is resident", "loaded in its one shape", "a pinned model is no victim",
    ),
    _mutant(
        "the fullest runner is served first",
        ("fleet", "key = used * 1000 // slots if ready and used < slots else -1", "key = used * 1000 // slots if ready and used <= slots else -1"),
        "never beyond its slots", "dispatch needs a free slot", "the engine's own check",
    ),
    # ---- work ahead
    _mutant(
        "a model that was sent away comes back at once",
        ("prewarm", "if plan.worker.resting.get(model.model, 0) > fleet.now_us:", "if False:"),
        "what was just evicted is not loaded ahead of demand", "few loads and unloads without arrivals",
    ),
    _mutant(
        "rest ends with the next observation",
        ("reconcile", "        if until_us <= fleet.now_us:\n", "        if True:\n"),
        "what was just evicted is not loaded ahead of demand", "few loads and unloads without arrivals",
    ),
    _mutant(
        "what is loaded ahead may drain",
        ("prewarm", "plan = choose(fleet, policy, model, drain=False)", "plan = choose(fleet, policy, model, drain=True)"),
        "a busy victim only after patience", "a young victim only after patience", "a load ahead of demand costs nobody anything",
    ),
    _mutant(
        "room ahead is made of pinned runners",
        ("prewarm", "if runner.residency is not Residency.resident or runner.used or not evictable(fleet, worker, runner):", "if runner.residency is not Residency.resident or runner.used:"),
        "a pinned model is no victim", "who is waited for does not leave unasked", "the name reaches the blob there", "the core does not crash",
    ),
    _mutant(
        "room ahead is made of young runners",
        ("prewarm", "if fleet.evictable_us(runner) > fleet.now_us or runner.bytes <= gap:", "if runner.bytes <= gap:"),
        "a young runner does not leave unasked",
    ),
    _mutant(
        "what is resident is loaded ahead once more",
        ("prewarm", "if model.copies or model.placements or model.waiting or not model.healthy_holders:", "if model.waiting or not model.healthy_holders:"),
        "no copy of what is there is loaded ahead of demand", "no model is loaded twice",
    ),
    _mutant(
        "room ahead is made of busy runners",
        ("prewarm", "if runner.residency is not Residency.resident or runner.used or not evictable(fleet, worker, runner):", "if runner.residency is not Residency.resident or not evictable(fleet, worker, runner):"),
        "a busy runner does not leave unasked",
    ),
    # ---- context classes
    _mutant(
        "two contexts of a blob live on one worker",
        ("placement", "    if sibling is not None:\n        leaving", "    if False:\n        leaving"),
        "a worker is never made to load a blob anew", "another context of the blob leaves first",
        "no worker loads a blob anew by itself", "timers come to rest",
    ),
    _mutant(
        "another context leaves whoever it is",
        ("placement", "    if len(idle) + len(busy) == len(leaving[0]) + len(leaving[1]):\n        return None\n", ""),
        "a pinned model is no victim", "only residents are drained", "an idle victim is waited for by nobody",
        "a busy victim only after patience", "a young victim only after patience", "a young busy runner is no victim",
        "the core does not crash",
    ),
    _mutant(
        "what a client gives back leaves although others use it",
        ("operator", "if not event.alone or fleet.state.standby or one.waiting", "if fleet.state.standby or one.waiting"),
        "what is given back leaves at once", "unloads that were asked for were asked for",
    ),
    _mutant(
        "a pinned model is given back",
        ("operator", "or one.waiting or fleet.model_config(one).pinned:", "or one.waiting:"),
        "a pinned model is no victim",
    ),
    _mutant(
        "who is served is sent away by who gives back",
        ("operator", "if runner.residency is Residency.resident and not runner.used:\n                ask_to_leave(fleet, worker, runner, cause=UnloadCause.released)", "if runner.residency is Residency.resident:\n                ask_to_leave(fleet, worker, runner, cause=UnloadCause.released)"),
        "a busy runner does not leave unasked",
    ),
    _mutant(
        "another context leaves and takes others along",
        ("placement", "    if fits(space, claim):\n        return [sibling]\n", "    if fits(space, claim) and not idle:\n        return [sibling]\n"),
        "no victim that is not needed",
    ),
    _mutant(
        "the room of another context is not counted",
        ("placement", "    others = _victims(fleet, policy, space, claim=claim, leaving=(idle, busy))", "    others = _victims(fleet, policy, worker, claim=claim, leaving=(idle, busy))"),
        "no victim that is not needed",
    ),
    _mutant(
        "what others loaded meanwhile is loaded over",
        ("scheduler", "there = held is not None and held.model not in placement.victims", "there = held is not None and held.model == model.model"),
        "a worker is never made to load a blob anew", "no worker loads a blob anew by itself",
    ),
    _mutant(
        "a runner is of the canonical context, whatever it shows",
        ("classes", "        if one.holders and fleet.context_of(one) == loaded.num_ctx:\n", "        if False:\n"),
        "the books of runners agree", "the books of memory agree", "only to a resident model", "never beyond its slots",
        "only residents are drained", "only residents are adopted",
    ),
    _mutant(
        "an old sight brings another context back",
        ("classes", "    if not model.context and not model.classes:\n        return worker.left.get(model.model, never)\n", "    return worker.left.get(model.model, never)\n"),
        "the books of runners agree", "the books of memory agree", "only residents are drained", "only to a resident model",
    ),
    _mutant(
        "a context that came short stands in",
        ("classes", "                if worker.runners[one.model].num_ctx >= need:\n", "                if True:\n"),
        "never with less context than was asked for",
    ),
    _mutant(
        "a context stands in for a copy that is there",
        ("classes", " or model.copies or model.placements or model.waiting:", " or model.waiting:"),
        "nobody stands in for a copy that is there",
    ),
    _mutant(
        "a larger context is lent before its own queue is served",
        ("queueing", "if not fleet.open[large.model] or large.waiting or not large.holders:", "if not fleet.open[large.model] or not large.holders:"),
        "who stands in overtakes nobody",
    ),
    _mutant(
        "a context that came short is lent",
        ("queueing", "        if runner.num_ctx >= need and fleet.acceptable(worker, request):", "        if fleet.acceptable(worker, request):"),
        "never with less context than was asked for",
    ),
    _mutant(
        "a context is lent to who has a copy",
        ("queueing", "        small = [one for one in small if not one.copies and not one.placements]\n", ""),
        "nobody stands in for a copy that is there",
    ),
    _mutant(
        "who waits for a class behind a pin is not told",
        ("placement", "fleet.model_config(fleet.state.models[held.model]).pinned:\n        return False", "False:\n        return False"),
        "nobody waits for what a pin shuts out",
    ),
    _mutant(
        "classes are not capped to training",
        ("classes", "capped = {min(context, most) if most else context for context in said}", "capped = set(said)"),
        "loaded in its one shape", "the books of runners agree", "the core does not crash", "unknown only if nobody stores it",
        "only residents are adopted",
    ),
    _mutant(
        "a change of context is told as a want of room",
        ("placement", "        return UnloadCause.context\n", "        return UnloadCause.room\n"),
        "who leaves is told why",
    ),
    _mutant(
        "a class is loaded with the canonical context",
        ("naming", "        if model.context:\n            return model.context\n", ""),
        "loaded in its one shape", "booked as measured or by the formula", "the core does not crash", "the books of runners agree",
    ),
    _mutant(
        "the load of a class is taken for another blob's",
        ("operations", "event.loaded.model in (None, model.blob)", "event.loaded.model in (None, model.model)"),
        "only to a resident model", "nobody waits beside a free slot", "the books of runners agree", "who can be served is served",
        "the books of memory agree", "the engine's own check", "a failed load rests", "load_failed only when a load failed", "nothing begins on a worker that is in doubt", "retrying soon is pointless",
    ),
    # ---- hints, demand, forecast
    _mutant(
        "a hint never expires",
        ("hints", "    del model.demand.hints[HintSource(source)]\n    _judge", "    _judge"),
        "no hint outlives its time",
    ),
    _mutant(
        "a hint that was put off is not looked at again",
        ("hints", "        fleet.set_timer(hint.until_us, Timer.hint, model_id, key2=source)\n        return\n", "        return\n"),
        "no hint outlives its time",
    ),
    _mutant(
        "what has come is still expected",
        ("hints", "        if hint.expected <= 0:\n", "        if hint.expected < 0:\n"),
        "what is remembered is bounded",
    ),
    _mutant(
        "all habits are remembered",
        ("demand", "if len(counts) > HABITS_MAX:", "if False:"),
        "what is remembered is bounded",
    ),
    _mutant(
        "a model asked for again counts as new",
        ("demand", "    if demand.arrivals:\n        _age(demand, now_us)", "    if demand.arrivals > 1:\n        _age(demand, now_us)"),
        "every model is remembered once",
    ),
    _mutant(
        "samples wait in any number",
        ("forecast", "if len(samples) < SAMPLES_MAX and", "if"),
        "what is remembered is bounded",
    ),
    _mutant(
        "all sizes of misses are remembered",
        ("forecast", "if len(forecast.needs) > NEEDS_MAX:", "if False:"),
        "what is remembered is bounded",
    ),
)  # fmt: skip
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


class _Patching(importlib.machinery.SourceFileLoader):
    """Loads one module with its source changed."""

    mutant: Mutant

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        source = self.get_source(fullname)
        assert source is not None
        found = source.count(self.mutant.old)
        if found != 1:
            raise SystemExit(f"mutant '{self.mutant.name}': its text stands {found} times in {fullname}; write it anew")
        return compile(source.replace(self.mutant.old, self.mutant.new), self.path, "exec", dont_inherit=True)


class Planter(importlib.abc.MetaPathFinder):
    """Finds the mutant's module before Python does."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != f"bellmare.core.{self.mutant.module}":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None
        loader = _Patching(fullname, spec.origin)
        loader.mutant = self.mutant
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def caught_by(mutant: Mutant, seeds: int) -> str:
    """The seed and the rule that caught it; empty if it survived. Only in a process that has not imported the core."""
    assert "bellmare.core" not in sys.modules, "the core is imported with the mutant, or not at all"
    sys.meta_path.insert(0, Planter(mutant))
    from bellmare.sim.swarm.books import Broken
    from bellmare.sim.swarm.life import live

    def never_ends(_number: int, _frame: object) -> NoReturn:
        raise TimeoutError("a step does not end")

    signal.signal(signal.SIGALRM, never_ends)
    for seed in range(mutant.first_seed, mutant.first_seed + seeds):
        signal.alarm(LIFE_S)  # a core that never ends its step raises, and that is a crash
        try:
            live(seed, REQUESTS)
        except Broken as broken:
            return f"seed {seed}: {broken}"
        except AssertionError:
            continue  # the core's own assertions do not count here
        finally:
            signal.alarm(0)
    return ""


if __name__ == "__main__":
    print(caught_by(BY_NAME[sys.argv[1]], int(sys.argv[2])))
