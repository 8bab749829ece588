"""Settings read again while the gateway runs: all of a good file at once, nothing of a bad one.

It never loads or unloads anything: workers that leave keep what they hold, residents keep the context they have.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bellmare.admin.lifecycle import ReloadAnswer
from bellmare.core.events import ConfigChanged
from bellmare.core.units import WorkerId
from bellmare.settings import Settings, SettingsError, WorkerSettings
from bellmare.settings.describe import settings_rows

if TYPE_CHECKING:
    from bellmare.cli.service import Service

RESTART_KEYS = ("listen", "admin", "insecure", "headroom", "shadows", "record", "log.format")
"""Sockets, files and what a worker was told when it joined; everything else holds at once."""
PROBLEMS_MAX = 20
"""Of a bad file so many are told."""
JOIN_TIMEOUT_S = 15.0
"""Workers leave only once those that come have answered, or did not for so long: a swap must not leave a gap."""


class Reloader:
    """``reread`` reads file, environment and flags as at the start; it runs on a thread and may raise SettingsError."""

    def __init__(self, service: "Service", reread: Callable[[], Settings]) -> None:
        self._service = service
        self._reread = reread
        self._lock = asyncio.Lock()
        self._asked = False

    def signalled(self) -> None:
        """SIGHUP: reload soon. However many come while one is under way, one more follows."""
        if not self._asked:
            self._asked = True
            self._service.tasks.spawn(self._on_signal(), name="reload")

    async def _on_signal(self) -> None:
        async with self._lock:
            self._asked = False  # what is changed from here on is not read any more
            await self._reload(force=False)

    async def reload(self, force: bool) -> ReloadAnswer:
        """Read and apply; the answer says what holds now and what does not."""
        async with self._lock:
            return await self._reload(force=force)

    async def _reload(self, *, force: bool) -> ReloadAnswer:
        answer = await self._attempt(force=force)
        state, logs = self._service.reload_state, self._service.logs
        state.succeeded = answer.accepted
        if not answer.accepted:
            state.failures += 1
            logs.error(
                "settings not reloaded; the old ones hold", reason=answer.text, problems="; ".join(answer.problems)
            )
            return answer
        state.reloads += 1
        state.succeeded_s = time.time()
        logs.info(
            "settings reloaded",
            changed=", ".join(answer.changed) or None,
            added=", ".join(answer.added) or None,
            removed=", ".join(answer.removed) or None,
            after_restart=", ".join(answer.restart) or None,
        )
        return answer

    async def _attempt(self, *, force: bool) -> ReloadAnswer:
        service = self._service
        if why := service.busy():
            return ReloadAnswer(accepted=False, text=f"the gateway is {why}")
        try:
            new = await asyncio.to_thread(self._reread)
        except SettingsError as error:
            said = tuple(str(problem) for problem in error.problems[:PROBLEMS_MAX])
            return ReloadAnswer(accepted=False, text=f"{len(error.problems)} problems in the settings", problems=said)
        if why := service.busy():  # it may have begun to stop meanwhile
            return ReloadAnswer(accepted=False, text=f"the gateway is {why}")
        change = Change(service.settings, new)
        if change.removed and 2 * len(change.removed) > len(service.settings.workers) and not force:
            count = f"{len(change.removed)} of {len(service.settings.workers)}"
            text = f"{count} workers would be removed: if that is meant, `bellmare reload --force`"
            return ReloadAnswer(accepted=False, text=text)
        await self._apply(change)
        text = "some keys hold after a restart only" if change.restart else ""
        return ReloadAnswer(
            accepted=True,
            text=text or ("nothing has changed" if change.nothing else "the new settings hold"),
            changed=tuple(change.changed),
            restart=tuple(change.restart),
            added=tuple(worker.name for worker in change.added),
            removed=tuple(worker.name for worker in change.removed),
        )

    async def _apply(self, change: "Change") -> None:
        """All in one turn of the loop, save that workers leave last."""
        service = self._service
        settings = service.settings = change.effective
        core = settings.core_config()
        if core != service.driver.engine.config:
            service.driver.feed(ConfigChanged(config=core))
        service.reconfigure()
        for worker in change.added:
            service.add_remote(worker)
        if not change.removed:
            return
        names = [WorkerId(worker.name) for worker in change.added]
        await service.fleet.settled(JOIN_TIMEOUT_S, names=names)
        for worker in change.removed:
            service.fleet.remove(WorkerId(worker.name))


class Change:
    """What differs between the settings in force and those that were read."""

    def __init__(self, old: Settings, new: Settings) -> None:
        before, after = _rows(old), _rows(new)
        keys = [key for key in dict.fromkeys((*before, *after)) if before.get(key) != after.get(key)]
        self.restart = [key for key in keys if _needs_restart(key)]
        self.changed = [key for key in keys if not _needs_restart(key)]
        here, there = _by_name(old), _by_name(new)
        self.added = [worker for name, worker in there.items() if name not in here and worker.url is not None]
        self.removed = [worker for name, worker in here.items() if name not in there and worker.url is not None]
        for name in dict.fromkeys((*here, *there)):
            one, other = here.get(name), there.get(name)
            own = any(worker is not None and worker.url is None for worker in (one, other))
            if one != other and (own or (one is not None and other is not None)):
                self.restart.append(f"workers ({name})")
        kept = [worker for worker in here.values() if worker not in self.removed]
        self.effective = new.model_copy(
            update={
                "listen": old.listen,
                "admin": old.admin,
                "insecure": old.insecure,
                "headroom": old.headroom,
                "shadows": old.shadows,
                "record": old.record,
                "log": new.log.model_copy(update={"format": old.log.format}),
                "workers": (*kept, *self.added),
            }
        )

    @property
    def nothing(self) -> bool:
        return not (self.changed or self.restart or self.added or self.removed)


def _rows(settings: Settings) -> dict[str, str]:
    """Values by key as one would write them; workers are compared by name."""
    rows = settings_rows(settings)
    return {row.key: row.value for row in rows if not row.key.startswith("workers")}


def _needs_restart(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in RESTART_KEYS)


def _by_name(settings: Settings) -> dict[str, WorkerSettings]:
    return {worker.name: worker for worker in settings.workers}
