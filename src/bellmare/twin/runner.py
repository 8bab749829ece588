"""One loaded model: Ollama's semaphore in front, llama-server's slots behind. Knows nothing of loading or eviction.

The two are separate on purpose. Ollama's semaphore is free as soon as a client leaves; the slot is free only when a
prefill under way has ended (section 2.4), so the next request passes the first and waits at the second, without any
signal.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum

from bellmare.twin.config import SECOND_US, TwinModel
from bellmare.twin.machine import Machine, Timer
from bellmare.twin.memory import Placement
from bellmare.twin.messages import Failed, Finished, FirstToken, Generate, LoadOnly, LoadReplied, Stalled
from bellmare.twin.shape import Shape

NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
RUNNER_EOF = "an error was encountered while running the model: unexpected EOF"
INPUT_TOO_LONG = "the input length exceeds the context length"
OUTPUT_CONTEXTS_MAX = 10
"""num_predict is cut to ten contexts (section 5)."""
NUM_KEEP = 5
"""Default num_keep and the BOS token: what survives the cut of an overlong prompt (section 12: 4096 -> 2051)."""


class Stage(Enum):
    """Where a request is."""

    pending = "pending"
    loading = "loading"
    semaphore = "semaphore"
    slot = "slot"
    prefill = "prefill"
    decode = "decode"
    ended = "ended"


class Job:
    """One request on its way through the server."""

    __slots__ = (
        "arrived_us",
        "asked",
        "first_us",
        "granted_us",
        "model",
        "prompt_tokens",
        "runner",
        "shape",
        "stage",
        "started_us",
        "timer",
        "token_us",
        "tokens",
        "waiting",
    )

    def __init__(self, asked: Generate | LoadOnly, model: TwinModel, *, shape: Shape, now_us: int) -> None:
        self.asked = asked
        self.model = model
        self.shape = shape
        self.arrived_us = now_us
        self.stage = Stage.pending
        self.runner: Runner | None = None
        self.waiting = False
        """Counted in the machine's number of waiting requests."""
        self.timer: Timer | None = None
        self.prompt_tokens = 0
        self.tokens = 0
        self.token_us = 0
        self.granted_us = 0
        self.started_us = 0
        self.first_us = 0


class Runner:
    """One llama-server process and the Ollama-side record of it."""

    def __init__(self, job: Job, placement: Placement, *, machine: Machine, ended: Callable[[Job], None]) -> None:
        self.model = job.model
        """The name that caused the load; another name over the same blob does not change it (section 3.1)."""
        self.shape = job.shape
        self.placement = placement
        self.slots = job.model.parallel(machine.config.num_parallel)
        self.refcount = 0
        """Granted requests whose end Ollama has not yet processed. The scheduler's to change."""
        self.in_flight = 0
        """Generations that hold a slot or wait for one: without the ends that the completed loop has yet to process,
        because it waits for video memory, and without loads, which take no slot. The scheduler's to change."""
        self.duration_us = 0
        self.expires_us: int | None = None
        """What /api/ps shows. None: never idle yet, shown as now + duration."""
        self.idle_timer: Timer | None = None
        self.victim = False
        """Chosen by the scheduler, not by a client."""
        self.expiry_waits = False
        """An expiry met a busy runner; it unloads at refcount 0 whatever its duration says by then."""
        self.alive = True
        self.hung = False
        self._machine = machine
        self._ended = ended
        self._permits = self.slots
        self._at_semaphore: deque[Job] = deque()
        self._at_slots: deque[Job] = deque()
        self._active: dict[Job, None] = {}
        """Jobs in a slot, ghosts included, in order of start. Bounded by ``slots``."""
        self._held_bytes = placement.used_bytes

    def enter(self, job: Job) -> None:
        """The scheduler granted ``job`` this runner."""
        machine, asked = self._machine, job.asked
        job.runner = self
        if isinstance(asked, LoadOnly):
            machine.emit(LoadReplied(machine.now_us, asked.request))
            machine.counters.load_replies_total += 1
            self._end(job)
        elif asked.embed and not self.model.embedding:
            self._fail(job, 501, text=NO_EMBEDDINGS)
        elif self._measure(job, asked):
            if self._permits:
                self._permits -= 1
                self._into_server(job)
            else:
                job.stage = Stage.semaphore
                self._at_semaphore.append(job)
                machine.counters.semaphore_waits += 1
                job.waiting = True
                machine.waiting(+1)

    def cancel(self, job: Job) -> None:
        """The client left. Decode stops at once; prefill and embeddings run on as ghosts (section 2.4)."""
        stage, job.stage = job.stage, Stage.ended
        if stage is Stage.semaphore:
            self._at_semaphore.remove(job)
            self.stop_waiting(job)
        elif stage is Stage.slot:
            self._at_slots.remove(job)
            self._release_permit()
        elif stage is Stage.decode:
            self._free_slot(job)
            self._release_permit()
        else:
            assert stage is Stage.prefill
            self._release_permit()
        self._ended(job)

    def stop_waiting(self, job: Job) -> None:
        """Take ``job`` out of the number of waiting requests, if it is in it."""
        if job.waiting:
            job.waiting = False
            self._machine.waiting(-1)

    def crash(self) -> None:
        """The process dies: its memory is back, everything inside fails, Ollama's record of it stays (section 12)."""
        if not self.alive:
            return
        self.alive = False
        self._give_back()
        inside = [*self._active, *self._at_slots, *self._at_semaphore]
        self._clear()
        self._permits = self.slots
        for job in inside:
            if job.stage is Stage.ended:  # a ghost
                continue
            self.stop_waiting(job)
            if job.stage is Stage.decode:
                self._fail(job, 500, text=RUNNER_EOF, tokens=self._tokens_out(job))
            else:
                self._fail(job, 500, text=RUNNER_STOPPED)

    def hang(self) -> None:
        """Stop working, keep everything."""
        self.hung = True
        for job in self._active:
            if job.timer is not None:
                job.timer.cancel()
            if job.stage is Stage.decode:
                self._machine.emit(Stalled(self._machine.now_us, job.asked.request, self._tokens_out(job)))

    def kill(self) -> None:
        """SIGKILL by Ollama, with no request left; ghosts vanish. The memory comes back by :meth:`forget`."""
        assert self.refcount == 0, "nothing is cut by an unload"
        self.alive = False
        self._clear()

    def forget(self) -> int:
        """The driver has the memory back; returns how much it was."""
        return self._give_back()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _give_back(self) -> int:
        held, self._held_bytes = self._held_bytes, 0
        self._machine.give_back(held)
        return held

    def _clear(self) -> None:
        if self._active:
            self._machine.runners_busy -= 1
        for job in self._active:
            if job.timer is not None:
                job.timer.cancel()
        self._active = {}
        self._at_slots.clear()
        self._at_semaphore.clear()

    def _measure(self, job: Job, asked: Generate) -> bool:
        """Fit prompt and output into the context (section 5); False if that failed the request."""
        context = self.shape.context
        job.prompt_tokens = max(1, asked.prompt_tokens)
        if job.prompt_tokens > context and not asked.truncate:
            text = INPUT_TOO_LONG if asked.embed else exceed_context_text(job.prompt_tokens, context)
            self._fail(job, 400, text=text)
            return False
        if job.prompt_tokens > context:
            job.prompt_tokens = context if asked.embed else context - (context - NUM_KEEP) // 2
        job.tokens = min(max(1, asked.output_tokens), OUTPUT_CONTEXTS_MAX * context)
        if not self.shape.shift:
            job.tokens = max(1, min(job.tokens, context - job.prompt_tokens))
        return True

    def _into_server(self, job: Job) -> None:
        if len(self._active) < self.slots:
            self._start(job)
        else:
            job.stage = Stage.slot
            self._at_slots.append(job)
            self._machine.counters.slot_waits += 1

    def _start(self, job: Job) -> None:
        machine = self._machine
        if not self._active:
            machine.runners_busy += 1
        self._active[job] = None
        job.stage = Stage.prefill
        job.started_us = machine.now_us
        if not self.hung:
            alone_us = job.prompt_tokens * self.model.weights_bytes * SECOND_US
            prefill_us = alone_us // machine.config.gpu.prefill_byte_tokens_per_s * machine.slow_percent // 100
            job.timer = machine.after(max(1, prefill_us), lambda: self._prefilled(job))

    def _prefilled(self, job: Job) -> None:
        machine, asked = self._machine, job.asked
        job.first_us = machine.now_us
        if job.stage is Stage.ended:  # a ghost's prefill is over
            self._free_slot(job)
            return
        assert isinstance(asked, Generate)
        if asked.embed:
            self._finish(job)
            return
        job.stage = Stage.decode
        job.token_us = self._token_us()
        last = job.tokens - 1
        if 0 <= asked.fail_after_tokens <= last:
            last = asked.fail_after_tokens
        if last or asked.fail_after_tokens:
            machine.emit(FirstToken(machine.now_us, asked.request, job.token_us, job.tokens, job.prompt_tokens))
        fails = 0 <= asked.fail_after_tokens < job.tokens
        job.timer = machine.after(last * job.token_us, lambda: self._break(job) if fails else self._finish(job))

    def _token_us(self) -> int:
        """Span of one token at this moment's load, fixed for the whole answer."""
        gpu = self._machine.config.gpu
        weights, size = self.model.weights_bytes, self.placement.size_bytes
        on_gpu = weights * self.placement.vram_bytes // size if size else 0
        alone_us = (
            on_gpu * SECOND_US // gpu.decode_bytes_per_s + (weights - on_gpu) * SECOND_US // gpu.host_decode_bytes_per_s
        )
        batched = 100 + gpu.slot_cost_percent * (len(self._active) - 1)
        return max(1, alone_us * self._machine.runners_busy * batched * self._machine.slow_percent // 10_000)

    def _tokens_out(self, job: Job) -> int:
        return min(job.tokens, 1 + (self._machine.now_us - job.first_us) // job.token_us)

    def _break(self, job: Job) -> None:
        asked = job.asked
        assert isinstance(asked, Generate)
        self._free_slot(job)
        self._release_permit()
        self._fail(job, 500, text=RUNNER_EOF, tokens=asked.fail_after_tokens)

    def _finish(self, job: Job) -> None:
        machine, asked = self._machine, job.asked
        assert isinstance(asked, Generate)
        cut = asked.length_cut or (not asked.embed and job.tokens < asked.output_tokens)
        machine.emit(
            Finished(
                machine.now_us,
                asked.request,
                prompt_tokens=job.prompt_tokens,
                output_tokens=0 if asked.embed else job.tokens,
                total_us=machine.now_us - job.arrived_us,
                load_us=job.granted_us - job.arrived_us,
                prompt_us=job.first_us - job.started_us,
                output_us=machine.now_us - job.first_us,
                done_reason="length" if cut else "stop",
            )
        )
        machine.counters.finished_total += 1
        self._free_slot(job)
        self._release_permit()
        self._end(job)

    def _fail(self, job: Job, status: int, *, text: str, tokens: int = 0) -> None:
        self._machine.emit(Failed(self._machine.now_us, job.asked.request, status, text, tokens))
        self._machine.counters.failed_total += 1
        self._end(job)

    def _end(self, job: Job) -> None:
        job.stage = Stage.ended
        self._ended(job)

    def _free_slot(self, job: Job) -> None:
        del self._active[job]
        if job.timer is not None:
            job.timer.cancel()
        if not self._active:
            self._machine.runners_busy -= 1
        if self._at_slots:
            self._start(self._at_slots.popleft())

    def _release_permit(self) -> None:
        if self._at_semaphore:
            job = self._at_semaphore.popleft()
            self.stop_waiting(job)
            self._into_server(job)
        else:
            self._permits += 1


def exceed_context_text(prompt_tokens: int, context: int) -> str:
    """llama-server's JSON as a string, as Ollama passes it on (section 1.6)."""
    message = (
        f"request ({prompt_tokens} tokens) exceeds the available context size ({context} tokens), try increasing it"
    )
    return (
        f'{{"error":{{"code":400,"message":"{message}","type":"exceed_context_size_error",'
        f'"n_prompt_tokens":{prompt_tokens},"n_ctx":{context}}}}}'
    )
