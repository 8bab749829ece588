"""Puts one gateway process together from its settings, and takes it apart again."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from bellmare import __version__
from bellmare.admin.app import LOOPBACK_HOSTS, admin_app
from bellmare.admin.listener import AdminListener, listen_admin
from bellmare.cli.own_workers import start_own_worker
from bellmare.core.decisions import Load, Unload
from bellmare.core.engine import Engine
from bellmare.core.events import OperationEnded
from bellmare.core.units import WorkerId
from bellmare.gateway.accounting import Accounts
from bellmare.gateway.app import Gateway
from bellmare.gateway.conversation import GatewayTimeouts
from bellmare.http.client import Upstream
from bellmare.http.server import Server, listen
from bellmare.observability.logs import Logs, OperationFields
from bellmare.observability.metrics import Metrics
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver
from bellmare.runtime.effects import Effects
from bellmare.runtime.fleet import WorkerFleet
from bellmare.runtime.observer import INTERVAL_S, Observer
from bellmare.runtime.recorder import Recorder, header_line
from bellmare.runtime.tasks import Tasks
from bellmare.settings import Settings, WorkerSettings
from bellmare.workers.capacity import local_capacity_bytes
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.ollama import WorkerSettings as AdapterSettings

SETTLE_TIMEOUT_S = 15.0
"""How long start-up waits for workers to answer; those that do not join later."""
CLOSE_GRACE_S = 30.0


def record_folder(path: str | None) -> Path:
    """Where the event log goes: as set, else the user's state directory."""
    if path is not None:
        return Path(path).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "bellmare" / "events"


class Service:
    """One gateway: workers of its own, core, data plane, admin. Made inside a running loop."""

    def __init__(self, settings: Settings, logs: Logs, *, observe_every_s: float = INTERVAL_S) -> None:
        self.settings = settings
        self.logs = logs
        self.clock = Clock()
        self.tasks = Tasks(lambda name, error: logs.error(f"task '{name}' failed", error=error))
        engine = Engine(settings.core_config())
        self.recorder = self._open_recorder(engine)
        self.driver = Driver(engine, self.clock, self.recorder)
        self.metrics = Metrics(engine)
        self.driver.watch(self.metrics.step)
        self.fleet = WorkerFleet(self.driver, Observer(self.driver, self.tasks, interval_s=observe_every_s), self.tasks)
        self.effects = Effects(self.driver, self.fleet.ports, tasks=self.tasks, report=self._report)
        limits = settings.limits
        self.gateway = Gateway(
            self.driver,
            self.fleet,
            accounts=Accounts(self.metrics, logs),
            timeouts=GatewayTimeouts(
                queue_s=settings.queue.timeout_us / 1e6,
                first_token_s=limits.first_token_timeout_us / 1e6,
                token_s=limits.token_timeout_us / 1e6,
            ),
            body_bytes_max=limits.body_bytes,
        )
        self._server: Server | None = None
        self._admin: AdminListener | None = None
        self._own_workers: list[Callable[[], Awaitable[None]]] = []

    @property
    def port(self) -> int:
        """Port of the data plane, once started."""
        assert self._server is not None
        return self._server.port

    @property
    def admin_port(self) -> int | None:
        return self._admin.port if self._admin is not None else None

    def _open_recorder(self, engine: Engine) -> Recorder | None:
        record = self.settings.record
        if record is None:
            return None
        config = engine.config

        def header() -> bytes:
            return header_line(__version__, config, engine.snapshot())

        return Recorder(
            record_folder(record.path), header=header, file_bytes_max=record.file_bytes, files_max=record.keep
        )

    async def start(self) -> None:
        """Start own workers, join all, observe, then listen. Raises OSError for a port that is taken."""
        settings = self.settings
        for position, worker in enumerate(settings.workers):
            await self._add(worker, position)
        await self.fleet.settled(SETTLE_TIMEOUT_S)
        self._server = await listen(self.gateway, settings.listen.host, settings.listen.port)
        if settings.admin is not None:
            hosts = LOOPBACK_HOSTS if settings.admin.loopback else ("*",)
            app = admin_app(self.driver, self.fleet, self.metrics, hosts=hosts)
            self._admin = await listen_admin(app, settings.admin.host, settings.admin.port)
        self.logs.info("listening", gateway=f"{settings.listen.host}:{self.port}", admin_port=self.admin_port)

    async def _add(self, worker: WorkerSettings, position: int) -> None:
        own = await start_own_worker(worker, position)
        if own is not None:
            self._own_workers.append(own.close)
            host, port, path = "127.0.0.1", own.port, ""
        else:
            assert worker.url is not None, "a worker is one of three kinds"
            host, port, path = worker.url.host, worker.url.port, worker.url.path
        default_name = f"{host}:{port}" if own is None else f"{worker.kind}-{position}"
        self.fleet.add(
            OllamaWorker(
                WorkerId(worker.name or default_name),
                Upstream(host, port, base_path=path),
                settings=self._adapter_settings(worker),
                now_utc=self.clock.rfc3339,
            )
        )

    def _adapter_settings(self, worker: WorkerSettings) -> AdapterSettings:
        local = worker.url.loopback if worker.url is not None else False
        return AdapterSettings(
            kind=worker.kind,
            capacity_bytes=worker.vram_bytes,
            headroom=self.settings.headroom_bytes,
            parallel=worker.parallel,
            runners_max=worker.max_loaded,
            local_capacity_bytes=local_capacity_bytes() if local and worker.vram_bytes is None else None,
        )

    def _report(self, decision: Load | Unload, event: OperationEnded, took_us: int) -> None:
        self.metrics.operation(decision, event, took_us)
        line = OperationFields(
            operation=decision.operation,
            kind=type(decision).__name__.lower(),
            model=decision.name,
            worker=decision.worker,
            cause=str(decision.cause),
            outcome=str(event.outcome),
            took_ms=round(took_us / 1000, 1),
        )
        if isinstance(decision, Load):
            line["expected_ms"] = round(decision.expected_us / 1000, 1)
        if event.detail:
            line["error"] = event.detail
        self.logs.operation_line(**line)

    async def close(self, *, grace_s: float = CLOSE_GRACE_S) -> None:
        """Let answers under way finish within ``grace_s``, then stop. Nothing is unloaded: a restart adopts it."""
        if self._server is not None:
            await self._server.close(grace_s)
        if self._admin is not None:
            await self._admin.close()
        self.driver.close()
        await self.tasks.close()
        await self.fleet.close()
        await asyncio.gather(*(close() for close in self._own_workers))
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.close)
