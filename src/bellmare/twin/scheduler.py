"""Ollama's scheduler (server/sched.go): one loop that places requests, one that processes ends, and how they can
stall each other.

The pending loop pops one request, and blocks on it until it has a runner: while it loads, and while it waits for an
unload. The completed loop handles ends and expiries one after another, and blocks while it waits for video memory.
Both are kept as they are, including what is wrong with them (sections 3.2-3.5).
"""

from collections import deque
from enum import Enum

from bellmare.twin.config import FOREVER_US
from bellmare.twin.loading import load_us
from bellmare.twin.machine import Machine, Timer
from bellmare.twin.memory import Placement, fits_beside, place, predicted_bytes
from bellmare.twin.messages import (
    Failed,
    Generate,
    Granted,
    LoadAborted,
    LoadStarted,
    MemoryFreed,
    RunnerGone,
    RunnerLoaded,
)
from bellmare.twin.runner import Job, Runner, Stage
from bellmare.twin.shape import needs_reload

SERVER_BUSY = "server busy, please try again.  maximum pending requests exceeded"
LOAD_FAILED = "llama-server process has terminated: exit status 1"
LOAD_TIMED_OUT = "timed out waiting for llama-server to start - "


class Loop(Enum):
    """What the pending loop is doing."""

    idle = "idle"
    loading = "loading"
    aborting = "aborting"
    """A load was broken off; its process is being killed."""
    awaiting_unload = "awaiting_unload"
    """Waits for any unload event, without a timeout (section 3.5)."""


class Scheduler:
    """Who is loaded, who waits, who must go."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._config = machine.config
        self.loaded: dict[str, Runner] = {}
        """By blob, in order of load. A runner leaves at its kill, before its memory is back."""
        self.loop = Loop.idle
        self.fail_loads: list[str] = []
        self.hang_loads: list[str] = []
        self._pending: deque[Job] = deque()
        """Cancelled requests keep their place until popped (section 3.2). Bounded by ``queue_max``."""
        self._current: Job | None = None
        self._load_placement: Placement | None = None
        self._load_timer: Timer | None = None
        self._unload_events = 0
        """Events that no one has waited for yet; any of them satisfies the next wait (section 3.5, #17309)."""
        self._ends: deque[Runner] = deque()
        self._recovering = False

    # ---- from the server --------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """A request arrives: fast path, pending queue, or 503."""
        runner = self.loaded.get(job.model.blob)
        if runner is not None and self._usable(runner, job) and (self._config.stall_switch or not runner.victim):
            self._grant(job, runner)
            return
        if len(self._pending) >= self._config.queue_max:
            self._machine.counters.rejected_503 += 1
            self._fail(job, 503, text=SERVER_BUSY)
            return
        self._pending.append(job)
        self._place_pending()
        if job.stage is Stage.pending:
            self._wait(job)

    def cancel(self, job: Job) -> None:
        """The client left."""
        if job.stage is Stage.loading:
            job.stage = Stage.ended
            self._abort_load()
        elif job.stage is Stage.pending:
            job.stage = Stage.ended
            self._stop_waiting(job)
        else:
            assert job.runner is not None
            job.runner.cancel(job)

    def expire(self, blob: str) -> None:
        """keep_alive 0 with an empty prompt: leave as soon as idle; nothing if it is not loaded (section 2.3)."""
        runner = self.loaded.get(blob)
        if runner is None:
            return
        runner.expires_us = self._machine.now_us
        self._set_to_expire(runner)

    def ended(self, job: Job) -> None:
        """A granted request's handler returned."""
        assert job.runner is not None
        job.runner.in_flight -= isinstance(job.asked, Generate)
        self._ends.append(job.runner)
        self._process_ends()

    # ---- the pending loop -------------------------------------------------------------------------------------------

    def _place_pending(self) -> None:
        """Run the loop until it blocks or has nothing to do."""
        if self.loop is not Loop.idle:
            return
        while True:
            if self._current is None:
                if not self._pending:
                    self._unload_events = 0
                    return
                self._current = self._pending.popleft()
            if self._current.stage is not Stage.ended and not self._place(self._current):
                return
            self._current = None

    def _place(self, job: Job) -> bool:
        """Find ``job`` a runner; False if the loop now blocks on it."""
        while True:
            victim = self._in_the_way(job)
            if victim is None:
                runner = self.loaded.get(job.model.blob)
                if runner is None:
                    self._start_load(job)
                    return False
                self._stop_waiting(job)
                self._grant(job, runner)
                return True
            self._set_to_expire(victim)
            if not self._unload_events:
                self.loop = Loop.awaiting_unload
                self._wait(job)
                return False
            self._unload_events -= 1  # somebody else's unload: the loop believes it was its own

    def _in_the_way(self, job: Job) -> Runner | None:
        """The runner that must go before ``job`` can be placed (section 3.3), counted as our own choice."""
        counters = self._machine.counters
        runner = self.loaded.get(job.model.blob)
        if runner is not None:
            if self._usable(runner, job):
                return None
            counters.reloads += not runner.victim
            runner.victim = True
            return runner
        if not self.loaded or (len(self.loaded) < self._config.runners_max and self._fits(job)):
            return None
        victim = self._choose_victim()
        counters.own_evictions += not victim.victim
        victim.victim = True
        return victim

    def _fits(self, job: Job) -> bool:
        if job.shape.num_gpu == 0:
            return True
        total = self._config.gpu.vram_bytes
        own = sum(runner.placement.vram_bytes for runner in self.loaded.values())
        free = min(total - self._machine.vram_used_bytes, total - own)
        slots = job.model.parallel(self._config.num_parallel)
        predicted = predicted_bytes(job.model, job.shape, slots=slots)
        return fits_beside(self._config, predicted, free_bytes=free) if total else True

    def _choose_victim(self) -> Runner:
        """Shortest keep_alive first, then blob; the first idle one, else the first (section 3.3 item 5)."""
        order = sorted(self.loaded.values(), key=lambda runner: (runner.duration_us, runner.model.blob))
        for runner in order:
            if not runner.refcount:
                return runner
        return order[0]

    @staticmethod
    def _usable(runner: Runner, job: Job) -> bool:
        """Not needsReload: the shape matches and the process answers a ping. A hung one still does (section 8)."""
        return runner.alive and not needs_reload(runner.shape, job.shape)

    def _resume(self) -> None:
        self.loop = Loop.idle
        self._place_pending()

    # ---- loading ----------------------------------------------------------------------------------------------------

    def _start_load(self, job: Job) -> None:
        machine, config, model = self._machine, self._config, job.model
        self._stop_waiting(job)
        self.loop = Loop.loading
        job.stage = Stage.loading
        free = config.gpu.vram_bytes - machine.vram_used_bytes
        slots = model.parallel(config.num_parallel)
        placement = place(config, model, shape=job.shape, free_bytes=free, slots=slots)
        machine.counters.loads += 1
        machine.counters.vram_overcommits += placement.short
        machine.take(placement.used_bytes)
        self._load_placement = placement
        expected_us = load_us(config, model, cached=model.blob in machine.cache)
        machine.emit(LoadStarted(machine.now_us, model.blob, expected_us))
        if model.blob in self.hang_loads:
            self.hang_loads.remove(model.blob)
            self._load_timer = machine.after(config.load_timeout_us, lambda: self._load_failed(job, LOAD_TIMED_OUT))
        elif model.blob in self.fail_loads:
            self.fail_loads.remove(model.blob)
            self._load_timer = machine.after(config.spawn_us, lambda: self._load_failed(job, LOAD_FAILED))
        else:
            self._load_timer = machine.after(expected_us, lambda: self._load_finished(job))

    def _load_finished(self, job: Job) -> None:
        machine, placement = self._machine, self._load_placement
        assert placement is not None and job is self._current
        machine.cache.touch(job.model.blob, job.model.weights_bytes)
        runner = Runner(job, placement, machine=machine, ended=self.ended)
        runner.duration_us = self._config.keep_alive_us
        self.loaded[job.model.blob] = runner
        machine.emit(RunnerLoaded(machine.now_us, job.model.blob, placement.vram_bytes))
        self._current = None
        self._grant(job, runner)
        self._resume()

    def _load_failed(self, job: Job, text: str) -> None:
        job.stage = Stage.ended
        self._fail(job, 500, text=text)
        self._abort_load()

    def _abort_load(self) -> None:
        """Kill the loading process; the loop goes on when its memory is back."""
        assert self._load_timer is not None and self._current is not None
        self._load_timer.cancel()
        self.loop = Loop.aborting
        self._machine.counters.loads_aborted += 1
        self._machine.emit(LoadAborted(self._machine.now_us, self._current.model.blob))
        self._machine.after(self._config.unload_us, self._load_aborted)

    def _load_aborted(self) -> None:
        placement, job = self._load_placement, self._current
        assert placement is not None and job is not None
        self._machine.give_back(placement.used_bytes)
        self._machine.emit(MemoryFreed(self._machine.now_us, job.model.blob, placement.used_bytes))
        self._current = None
        self._resume()

    # ---- granting, idling, unloading --------------------------------------------------------------------------------

    def _grant(self, job: Job, runner: Runner) -> None:
        """useLoadedRunner: take a reference, stop the timer, and let the request's keep_alive overwrite."""
        machine, counters = self._machine, self._machine.counters
        self._stop_idle_timer(runner)
        runner.refcount += 1
        if job.asked.keep_alive_us is not None:
            runner.duration_us = job.asked.keep_alive_us
            runner.victim = False
        job.granted_us = machine.now_us
        blob = runner.model.blob
        counters.granted_total += 1
        runner.in_flight += isinstance(job.asked, Generate)
        counters.in_flight_max[blob] = max(counters.in_flight_max.get(blob, 0), runner.in_flight)
        machine.emit(Granted(machine.now_us, job.asked.request, machine.now_us - job.arrived_us, runner.shape.context))
        runner.enter(job)

    def _set_to_expire(self, runner: Runner) -> None:
        self._stop_idle_timer(runner)
        runner.duration_us = 0
        if not runner.refcount:
            self._expired(runner)

    def _expired(self, runner: Runner) -> None:
        """The completed loop gets an expiry; it is processed when the loop is free."""
        runner.expiry_waits = True
        self._process_ends()

    def _process_ends(self) -> None:
        """The completed loop: ends first, then expiries, nothing while it waits for video memory."""
        while not self._recovering:
            if self._ends:
                runner = self._ends.popleft()
                runner.refcount -= 1
                if not runner.refcount:
                    self._gone_idle(runner)
                continue
            leaving = next((r for r in self.loaded.values() if r.expiry_waits and not r.refcount), None)
            if leaving is None:
                return
            self._unload(leaving)

    def _gone_idle(self, runner: Runner) -> None:
        if runner.duration_us <= 0:
            runner.expiry_waits = True
            return
        self._stop_idle_timer(runner)
        runner.expires_us = self._machine.now_us + runner.duration_us
        if runner.duration_us < FOREVER_US:
            runner.idle_timer = self._machine.after(runner.duration_us, lambda: self._expired(runner))

    def _unload(self, runner: Runner) -> None:
        machine = self._machine
        self._stop_idle_timer(runner)
        self._recovering = True
        runner.kill()
        del self.loaded[runner.model.blob]
        machine.emit(RunnerGone(machine.now_us, runner.model.blob, runner.victim))
        machine.after(self._config.unload_us, lambda: self._unloaded(runner))

    def _unloaded(self, runner: Runner) -> None:
        machine = self._machine
        machine.emit(MemoryFreed(machine.now_us, runner.model.blob, runner.forget()))
        self._recovering = False
        self._process_ends()
        if self.loop is Loop.awaiting_unload:
            self._resume()
        elif self.loop is not Loop.idle:
            self._unload_events += 1

    @staticmethod
    def _stop_idle_timer(runner: Runner) -> None:
        if runner.idle_timer is not None:
            runner.idle_timer.cancel()
            runner.idle_timer = None

    # ---- waiting and failing ----------------------------------------------------------------------------------------

    def _wait(self, job: Job) -> None:
        if not job.waiting:
            job.waiting = True
            self._machine.waiting(+1)

    def _stop_waiting(self, job: Job) -> None:
        if job.waiting:
            job.waiting = False
            self._machine.waiting(-1)

    def _fail(self, job: Job, status: int, *, text: str) -> None:
        job.stage = Stage.ended
        self._machine.emit(Failed(self._machine.now_us, job.asked.request, status, text))
        self._machine.counters.failed_total += 1
