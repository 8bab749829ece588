"""Puts one gateway process together from its settings, and takes it apart again."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from fastapi import FastAPI

from bellmare import __version__
from bellmare.admin.app import LOOPBACK_HOSTS, Front, admin_app
from bellmare.admin.lifecycle import Lifecycle
from bellmare.admin.listener import AdminListener, listen_admin
from bellmare.cli.descriptors import connections_max, raise_limit
from bellmare.cli.handover import Taking
from bellmare.cli.inheriting import Inherited, check_inherited
from bellmare.cli.own_workers import CannotStart, start_own_worker
from bellmare.core.decisions import Load, Unload
from bellmare.core.engine import Engine
from bellmare.core.events import OperationEnded, StandbyChanged
from bellmare.core.units import WorkerId
from bellmare.gateway.accounting import Accounts
from bellmare.gateway.app import Gateway
from bellmare.gateway.guard import Guard
from bellmare.gateway.options import options_of
from bellmare.http.client import Upstream
from bellmare.http.messages import DEFAULT_LIMITS, Limits
from bellmare.http.server import Server, bind
from bellmare.observability.logs import Logs, OperationFields
from bellmare.observability.metrics import Metrics
from bellmare.observability.process_metrics import ProcessMetrics, ProcessSource, ReloadState
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver
from bellmare.runtime.effects import Effects
from bellmare.runtime.fleet import WorkerFleet
from bellmare.runtime.memory import Memory
from bellmare.runtime.observer import INTERVAL_S, Observer
from bellmare.runtime.pulse import Pulse
from bellmare.runtime.recorder import Recorder, header_line
from bellmare.runtime.tasks import Tasks
from bellmare.settings import Settings, WorkerSettings
from bellmare.settings.addresses import Address
from bellmare.workers.capacity import local_capacity_bytes
from bellmare.workers.ollama import OllamaWorker
from bellmare.workers.ollama import WorkerSettings as AdapterSettings

SETTLE_TIMEOUT_S = 15.0
"""How long start-up waits for workers to answer; those that do not join later."""
LEARNED_FILE = "learned.json"
"""In the folder of the event log."""
LINGER_S = 5.0
"""After a hand-over, idle connections are kept so long: whoever is about to send on one gets an answer, and with it the
word to open another."""
STEP_TIMEOUT_S = 15.0
"""Of each step of the end beyond the grace: embedded workers have 5 s of their own, and then end their children."""


class CannotListen(OSError):  # noqa: N818 - of the world, not of ours
    """An address of ours is taken, or not this machine's."""


@contextmanager
def _binding(address: Address) -> Iterator[None]:
    try:
        yield
    except TimeoutError:  # an OSError too, but not of binding
        raise
    except OSError as error:
        number = error.errno or 0  # asyncio's own text names the address again
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise CannotListen(f"cannot listen on {address}: {reason}") from error


def record_folder(path: str | None) -> Path:
    """Where the event log goes: as set, else the user's state directory."""
    if path is not None:
        return Path(path).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "bellmare" / "events"


class Service:
    """One gateway: workers of its own, core, data plane, admin. Made inside a running loop."""

    def __init__(
        self,
        settings: Settings,
        logs: Logs,
        *,
        observe_every_s: float = INTERVAL_S,
        inherited: Inherited | None = None,
    ) -> None:
        self.settings = settings
        """Those in force; a reload replaces them."""
        self.logs = logs
        self.clock = Clock()
        self.tasks = Tasks(lambda name, error: logs.error(f"task '{name}' failed", error=error))
        engine = Engine(settings.core_config())
        self.recorder: Recorder | None = None
        self.memory: Memory | None = None
        self.driver = Driver(engine, self.clock, on_error=lambda what, error: logs.error(what, error=error))
        self.metrics = Metrics(engine, lost_lines=lambda: logs.dropped)
        self.driver.watch(self.metrics.step)
        self.fleet = WorkerFleet(self.driver, Observer(self.driver, self.tasks, interval_s=observe_every_s), self.tasks)
        self.effects = Effects(self.driver, self.fleet.ports, tasks=self.tasks, report=self._report)
        self.gateway = Gateway(
            self.driver,
            self.fleet,
            accounts=Accounts(self.metrics, logs),
            options=options_of(settings),
            guard=Guard(loopback=settings.listen.loopback, origins=settings.origins),
        )
        self.lifecycle: Lifecycle | None = None
        """Set before ``start`` by whoever can reload and restart."""
        self.reload_state = ReloadState(succeeded_s=self.clock.wall_us() / 1e6)
        self._inherited = inherited if inherited is not None else Inherited()
        self._pulse = Pulse()
        self.metrics.add(ProcessMetrics(self._source()))
        self._memory_task: asyncio.Task[None] | None = None
        self._server: Server | None = None
        self._admin: AdminListener | None = None
        self._own_workers: list[Callable[[], Awaitable[None]]] = []
        self._unready = "starting"
        self._in_a_hurry = False
        self._retired = False

    @property
    def port(self) -> int:
        """Port of the data plane, once started."""
        assert self._server is not None
        return self._server.port

    @property
    def admin_port(self) -> int | None:
        return self._admin.port if self._admin is not None else None

    def busy(self) -> str:
        """Why the process can be neither reloaded nor restarted now, such as ``starting``; empty if it can."""
        return "handing over" if self.driver.engine.fleet.state.standby else self._unready

    @property
    def has_own_workers(self) -> bool:
        """Whether workers end with this process."""
        return bool(self._own_workers)

    @property
    def descriptors(self) -> tuple[list[int], list[int]]:
        """Of the listening sockets: data plane, admin."""
        assert self._server is not None
        return self._server.descriptors, [self._admin.descriptor] if self._admin is not None else []

    @property
    def local_address(self) -> tuple[str, int]:
        """Where the data plane is reached from this machine."""
        host = self.settings.listen.host
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), self.port

    def _source(self) -> ProcessSource:
        return ProcessSource(
            worst_lag_s=lambda: self._pulse.worst_s,
            stalled_s=lambda: self._pulse.stalled_s,
            clients=lambda: self._server.connections if self._server is not None else 0,
            workers=lambda: sum(
                port.upstream.connections for port in (*self.fleet.ports.values(), *self.fleet.leaving)
            ),
            standby=lambda: self.driver.engine.fleet.state.standby,
            reload=lambda: self.reload_state,
        )

    def reconfigure(self) -> None:
        """Let ``settings`` hold in the shell; the core is told by an event."""
        self.gateway.reconfigure(options_of(self.settings))
        self.logs.set_level(self.settings.log.level)

    def retire(self) -> None:
        """Another process lets clients in: what is open here ends here, and what was learned is for it to keep."""
        assert self._server is not None
        self._unready, self._retired = "draining", True
        self._server.retire()
        if self._admin is not None:
            self._admin.retire()
        self.memory = None
        if self._memory_task is not None:
            self._memory_task.cancel()

    async def save_learned(self) -> None:
        """Write down what was learned, for the next process to read."""
        if self.memory is not None:
            await self.memory.write()

    def _record(self) -> None:
        """Begin the event log, if it is wanted and can be written: its first line is the state of this moment."""
        record, engine = self.settings.record, self.driver.engine
        if record is None:
            return

        def header() -> bytes:
            return header_line(__version__, engine.config, engine.snapshot())

        try:
            folder = record_folder(record.path)
            self.recorder = Recorder(folder, header=header, file_bytes_max=record.file_bytes, files_max=record.keep)
        except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where home is
            self.logs.warning("no event log: its folder cannot be written; set `record.path`", error=str(error))
            return
        self.driver.record_with(self.recorder)
        self.metrics.event_log = self.recorder

    def _recall(self) -> None:
        """Go on with what earlier lives have learned; kept beside the files of the event log."""
        record = self.settings.record
        if record is None:
            return
        try:
            path = record_folder(record.path) / LEARNED_FILE
        except RuntimeError:  # nobody knows where home is
            return
        self.memory = Memory(
            path, self.driver.engine, self.clock, complain=lambda text, why: self.logs.warning(text, error=why)
        )
        if self.memory.recall():
            self.logs.info("remembered what was learned earlier", file=str(path))
        self._memory_task = self.tasks.spawn(self.memory.keep(), name="memory")

    async def start(self) -> None:
        """Take the addresses, start own workers, join all, observe, then let clients in.

        Raises CannotListen for an address that cannot be had, CannotStart for a worker of our own. The log begins
        before the first step, but after the addresses: a start in vain must not push older files out.
        """
        settings = self.settings
        taking = await self._prepare()
        if settings.admin is not None and taking is None:
            await self._open_admin(settings.admin)
        self._recall()
        self._record()
        if taking is not None:
            self.driver.feed(StandbyChanged(standby=True))
        for position, worker in enumerate(settings.workers):
            await self._add(worker, position)
        await self.fleet.settled(SETTLE_TIMEOUT_S)
        self._warn_of_shared_memory()
        assert self._server is not None
        with _binding(settings.listen):
            await self._server.accept()
        self._unready = ""
        if taking is not None:
            if settings.admin is not None:
                await self._open_admin(settings.admin)
            self.tasks.spawn(taking.accepting(), name="take over")
        self.logs.info("listening", gateway=f"{settings.listen.host}:{self.port}", admin_port=self.admin_port)

    def _http_limits(self) -> Limits:
        most = connections_max(raise_limit(), len(self.settings.workers))
        if most < DEFAULT_LIMITS.connections_max:
            self.logs.warning("few file descriptors: fewer clients at once; raise `ulimit -n`", connections=most)
        return Limits(connections_max=most, bodies_bytes_max=self.settings.limits.bodies_bytes)

    async def _prepare(self) -> Taking | None:
        """Take the data plane's address; who takes over from another process then waits until that leaves the rest."""
        settings, inherited = self.settings, self._inherited
        with _binding(settings.listen):
            check_inherited(inherited.gateway, settings.listen, insecure=settings.insecure)
            host, port = settings.listen.host, settings.listen.port
            self._server = await bind(self.gateway, host, port, socks=inherited.gateway, limits=self._http_limits())
        if settings.admin is not None:
            with _binding(settings.admin):
                check_inherited(inherited.admin, settings.admin, insecure=settings.insecure)
        if inherited.talk is None:
            return None
        if any(worker.url is None for worker in settings.workers):
            raise CannotStart("workers of our own cannot be taken over from another process")
        taking = Taking(self, inherited.talk)
        await taking.prepared()
        return taking

    async def _open_admin(self, address: Address) -> None:
        socks = self._inherited.admin
        with _binding(address):
            self._admin = await listen_admin(
                self._admin_app(address), address.host, address.port, sock=socks[0] if socks else None
            )

    def _admin_app(self, address: Address) -> FastAPI:
        hosts = [*LOOPBACK_HOSTS, address.host]
        if not address.loopback:
            hosts.append(socket.gethostname())
        front = Front(unready=lambda: self._unready, core_id=self.gateway.core_id, lifecycle=self.lifecycle)
        return admin_app(self.driver, self.fleet, self.metrics, hosts=tuple(hosts), front=front)

    async def _add(self, worker: WorkerSettings, position: int) -> None:
        own = await start_own_worker(worker, position)
        if own is not None:
            self._own_workers.append(own.close)
            self._join(worker, worker.name or f"{worker.kind}-{position}", Upstream("127.0.0.1", own.port))
        else:
            self.add_remote(worker)

    def add_remote(self, worker: WorkerSettings) -> None:
        """Begin to join somebody else's server; returns at once."""
        assert worker.url is not None, "a worker is one of three kinds"
        host, port, path = worker.url.host, worker.url.port, worker.url.path
        self._join(worker, worker.name or f"{host}:{port}", Upstream(host, port, base_path=path))

    def _join(self, worker: WorkerSettings, name: str, upstream: Upstream) -> None:
        adapter = self._adapter_settings(worker)
        self.fleet.add(OllamaWorker(WorkerId(name), upstream, settings=adapter, now_utc=self.clock.rfc3339))

    def _adapter_settings(self, worker: WorkerSettings) -> AdapterSettings:
        alone = worker.vram_bytes is None and self._here() == [worker]
        return AdapterSettings(
            kind=worker.kind,
            capacity_bytes=worker.vram_bytes,
            headroom=self.settings.headroom_bytes,
            parallel=worker.parallel,
            runners_max=worker.max_loaded,
            local_capacity_bytes=local_capacity_bytes() if alone else None,
        )

    def _here(self) -> list[WorkerSettings]:
        """Somebody else's servers on this machine: they share its memory in a way that only the operator knows."""
        return [worker for worker in self.settings.workers if worker.url is not None and worker.url.loopback]

    def _warn_of_shared_memory(self) -> None:
        here = self._here()
        if len(here) < 2:
            return
        known = {worker.worker for worker in self.driver.engine.fleet.state.workers.values() if worker.capacity_known}
        silent = [worker.name for worker in here if worker.vram_bytes is None and worker.name not in known]
        if silent:
            text = "several workers share this machine's memory, so their parts are guessed; set `workers[].vram`"
            self.logs.warning(text, workers=", ".join(silent))

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

    def cut(self) -> None:
        """Let the grace of a :meth:`close`, under way or to come, be over."""
        self._in_a_hurry = True
        if self._server is not None:
            self._server.end_grace()

    async def close(self, *, grace_s: float | None = None) -> None:
        """Let answers under way finish within ``grace_s``, then stop. Nothing is unloaded: a restart adopts it.

        Without ``grace_s`` it is what the settings say. A step that fails or hangs is logged and keeps no later one
        from being taken, nor does a cancellation.
        """
        self._unready = "draining"
        grace_s = self.settings.limits.grace_us / 1e6 if grace_s is None else grace_s
        grace_s = 0.0 if self._in_a_hurry else grace_s
        self._pulse.close()
        self._inherited.close_talk()
        async with AsyncExitStack() as steps:  # they run from the last one to the first
            if self.recorder is not None:
                steps.push_async_callback(self._end, "event log", asyncio.to_thread, self.recorder.close)
            for close in self._own_workers:
                steps.push_async_callback(self._end, "own worker", close)
            steps.push_async_callback(self._end, "workers", self.fleet.close)
            if self.gateway.relay is not None:
                steps.push_async_callback(self._end, "relay", self.gateway.relay.upstream.close)
            steps.push_async_callback(self._end, "tasks", self.tasks.close)
            if self.memory is not None:
                steps.push_async_callback(self._end, "memory", self.memory.write)
            steps.callback(self.driver.close)
            steps.callback(self.gateway.close)
            if self._admin is not None:
                steps.push_async_callback(self._end, "admin", self._admin.close)
            if self._server is not None:
                steps.push_async_callback(self._drain, self._server, grace_s)

    async def _drain(self, server: Server, grace_s: float) -> None:
        lame_duck_s = LINGER_S if self._retired else self.settings.lame_duck_s

        async def drain() -> None:
            await server.close(grace_s, lame_duck_s=lame_duck_s, on_cut=self.gateway.end_all)

        await self._end("gateway", drain, grace_s=grace_s)

    async def _end(
        self, what: str, step: Callable[..., Awaitable[None]], *arguments: object, grace_s: float = 0.0
    ) -> None:
        try:
            async with asyncio.timeout(grace_s + STEP_TIMEOUT_S):
                await step(*arguments)
        except Exception as error:  # noqa: BLE001 - the later steps must be taken: children end, the log is flushed
            self.logs.error(f"closing: {what} failed", error=error)
