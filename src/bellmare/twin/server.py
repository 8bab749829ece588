"""The twin itself: inputs in, effects out, time as an argument, the next timer as a return value."""

from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.twin.config import TwinConfig, TwinModel
from bellmare.twin.machine import Machine
from bellmare.twin.messages import (
    Cancel,
    CopyName,
    Counters,
    CrashRunner,
    DeleteName,
    Effect,
    Failed,
    FailLoad,
    Finished,
    Generate,
    HangRunner,
    Input,
    Loaded,
    LoadOnly,
    LoadReplied,
    Slow,
    StoreName,
    Tick,
    Unload,
    UnloadReplied,
)
from bellmare.twin.runner import Job, Stage
from bellmare.twin.scheduler import Loop, Scheduler
from bellmare.twin.shape import resolve


class Twin:
    """One stock Ollama server. Deterministic: equal configurations and inputs give equal effects, whatever the hash
    seed.
    """

    def __init__(self, config: TwinConfig, models: tuple[TwinModel, ...]) -> None:
        self.config = config
        self._names = {model.name: model for model in models}
        assert len(self._names) == len(models), "two models with one name"
        self._machine = Machine(config)
        self._scheduler = Scheduler(self._machine)
        self._jobs: dict[str, Job] = {}
        """Requests under way, by the caller's id. Ghosts are not among them."""
        self._handlers: dict[type[Input], Callable[[Any], None]] = {
            Generate: self._generate,
            LoadOnly: self._generate,
            Unload: self._unload,
            Cancel: self._cancel,
            CopyName: self._copy_name,
            StoreName: self._store_name,
            DeleteName: self._delete_name,
            CrashRunner: self._crash,
            HangRunner: self._hang,
            FailLoad: self._fail_load,
            Slow: self._slow,
            Tick: lambda _: None,
        }

    def step(self, now_us: int, given: Input) -> list[Effect]:
        """Let time pass to ``now_us``, then take ``given``. Returns what happened since the last step, in order."""
        self._machine.run_until(now_us)
        self._handlers[type(given)](given)
        effects, self._machine.effects = self._machine.effects, []
        for effect in effects:
            if isinstance(effect, Finished | Failed | LoadReplied):
                self._jobs.pop(effect.request, None)
        return effects

    def next_deadline_us(self) -> int | None:
        """When something happens without further input; None: never."""
        return self._machine.next_deadline_us()

    # ---- what an observer can read ----------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        return self._machine.counters

    @property
    def vram_used_bytes(self) -> int:
        """What the driver would show, loading and dying processes included."""
        return self._machine.vram_used_bytes

    @property
    def stalled(self) -> bool:
        """The pending loop waits for an unload event; it may wait for ever (section 3.5)."""
        return self._scheduler.loop is Loop.awaiting_unload

    def model(self, name: str) -> TwinModel | None:
        """What ``name`` means now."""
        return self._names.get(name)

    def names(self) -> tuple[TwinModel, ...]:
        """/api/tags, oldest first."""
        return tuple(self._names.values())

    def loaded(self) -> tuple[Loaded, ...]:
        """/api/ps at the instant of the last step: latest expiry first (section 2.5)."""
        now_us = self._machine.now_us
        rows = [
            Loaded(
                name=runner.model.name,
                digest=runner.model.digest,
                blob=blob,
                size_bytes=runner.placement.size_bytes,
                vram_bytes=runner.placement.vram_bytes,
                context_length=runner.shape.context,
                expires_us=now_us + runner.duration_us if runner.expires_us is None else runner.expires_us,
                refcount=runner.refcount,
                alive=runner.alive,
            )
            for blob, runner in self._scheduler.loaded.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-row.expires_us, row.blob)))

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def _generate(self, asked: Generate | LoadOnly) -> None:
        now_us, model = self._machine.now_us, self._names.get(asked.name)
        assert asked.request not in self._jobs, "a request id is used once"
        if model is None:
            quote = '"' if asked.embed else "'"
            text = f"model {quote}{asked.name}{quote} not found" + (", try pulling it first" if asked.embed else "")
            self._machine.emit(Failed(now_us, asked.request, 404, text))
            return
        shape = resolve(self.config, model, options=asked.options, shift=asked.shift)
        job = Job(asked, model, shape=shape, now_us=now_us)
        self._jobs[asked.request] = job
        self._scheduler.submit(job)

    def _unload(self, asked: Unload) -> None:
        model = self._names.get(asked.name)
        if model is None:
            self._machine.emit(Failed(self._machine.now_us, asked.request, 404, f"model '{asked.name}' not found"))
            return
        self.counters.unloads_asked += 1
        self._scheduler.expire(model.blob)
        self._machine.emit(UnloadReplied(self._machine.now_us, asked.request))

    def _cancel(self, asked: Cancel) -> None:
        job = self._jobs.pop(asked.request, None)
        if job is not None and job.stage is not Stage.ended:
            self.counters.cancelled_total += 1
            self._scheduler.cancel(job)

    def _copy_name(self, asked: CopyName) -> None:
        source = self._names.get(asked.source)
        if source is not None:
            self._names[asked.destination] = msgspec.structs.replace(source, name=asked.destination)

    def _store_name(self, asked: StoreName) -> None:
        self._names[asked.model.name] = asked.model

    def _delete_name(self, asked: DeleteName) -> None:
        self._names.pop(asked.name, None)

    def _crash(self, asked: CrashRunner) -> None:
        runner = self._scheduler.loaded.get(asked.blob)
        if runner is not None:
            runner.crash()

    def _hang(self, asked: HangRunner) -> None:
        runner = self._scheduler.loaded.get(asked.blob)
        if runner is not None:
            runner.hang()
        else:
            self._scheduler.hang_loads.append(asked.blob)

    def _fail_load(self, asked: FailLoad) -> None:
        self._scheduler.fail_loads.append(asked.blob)

    def _slow(self, asked: Slow) -> None:
        assert asked.percent > 0
        self._machine.slow_percent = asked.percent
