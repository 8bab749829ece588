"""`bellmare up` and `bellmare serve`: settings to a running service in the foreground, until a signal."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from rich.console import Console

from bellmare.admin.lifecycle import Lifecycle
from bellmare.cli import banner
from bellmare.cli.discovery import Found, NothingFound, find_workers
from bellmare.cli.handover import Handover, same_command
from bellmare.cli.inheriting import BadInheritance, Inherited, take_inherited
from bellmare.cli.own_workers import CannotStart
from bellmare.cli.reloading import Reloader
from bellmare.cli.service import CannotListen, Service
from bellmare.observability.logs import open_logs
from bellmare.settings import Settings, SettingsError, load_settings

DEFAULT_FILE = Path("bellmare.yaml")
EXIT_NOT_STARTED = 1
EXIT_SETTINGS = 2
EXIT_NOTHING_FOUND = 3
EXIT_PORT_TAKEN = 4


def fail(message: str, status: int) -> NoReturn:
    """Say why on standard error and leave."""
    sys.stderr.write(f"bellmare: {message}\n")
    raise SystemExit(status)


def _file(path: Path | None) -> Path | None:
    return DEFAULT_FILE if path is None and DEFAULT_FILE.exists() else path


def read_settings(path: Path | None, overrides: dict[str, object] | None = None) -> Settings:
    """Settings from file, environment and flags; every problem is printed and the process ends if there is one."""
    try:
        return load_settings(_file(path), environment=os.environ, overrides=overrides or {})
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        raise SystemExit(EXIT_SETTINGS) from None


def serve_command(
    config: Path | None,
    *,
    listen: str | None,
    admin: str | None,
    workers: list[str] | None,
    discover: bool,
    quiet: bool,
) -> None:  # tidy: one parameter per flag of the command line
    """Run in the foreground until SIGINT or SIGTERM."""
    overrides: dict[str, object] = {}
    if listen is not None:
        overrides["listen"] = listen
    if admin is not None:
        overrides["admin"] = admin
    if workers:
        overrides["workers"] = [{"url": url} for url in workers]
    try:
        inherited = take_inherited(os.environ)
    except BadInheritance as error:
        fail(str(error), EXIT_NOT_STARTED)
    settings = read_settings(config, overrides)
    console = Console(stderr=True)
    if not settings.workers and not discover:
        fail("no workers are set; name them in bellmare.yaml or with --worker, or use `bellmare up`", EXIT_SETTINGS)
    found = Found()
    with _sigterm_unwinds():
        try:
            if not settings.workers:
                settings = _discover(settings, console, found)

            def reread() -> Settings:
                again = load_settings(_file(config), environment=os.environ, overrides=overrides)
                return again if again.workers else again.with_workers(*found.workers)

            _run(_serve(settings, Start(found, inherited, reread), console=None if quiet else console))
        finally:
            found.close()


def _discover(settings: Settings, console: Console, found: Found) -> Settings:
    try:
        find_workers(settings, console, found)
    except NothingFound as nothing:
        fail(str(nothing), EXIT_NOTHING_FOUND)
    return settings.with_workers(*found.workers)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does, through every ``finally``, until the loop takes the signals over."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(work: Coroutine[None, None, None]) -> None:
    """On uvloop where it exists."""
    if sys.platform == "win32":
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)


@dataclass(slots=True, frozen=True)
class Start:
    """What a process began with beside its settings."""

    found: Found
    inherited: Inherited
    reread: Callable[[], Settings]


async def _serve(settings: Settings, start: Start, *, console: Console | None) -> None:
    logs = open_logs(level=settings.log.level, line_format=settings.log.format)
    logs.capture_standard()
    for warning in settings.warnings:
        logs.warning(warning)
    service = Service(settings, logs, inherited=start.inherited)
    try:
        with _Stop(service) as stop, _Commands(service, start, stop):
            try:
                if await _started(service, stop):
                    gc.collect()
                    gc.freeze()  # what start-up made lives for ever: the collector need not look at it again
                    if console is not None:
                        banner.show(console, service, start.found if start.found.how else None)
                    await stop.asked.wait()
                logs.info("stopping; a second signal cuts what still runs", requests=service.driver.requests)
            finally:
                await service.close()
    finally:
        logs.close()


async def _started(service: Service, stop: "_Stop") -> bool:
    """Whether the service stands; not if a signal came first. What keeps it from standing ends the process in words."""
    try:
        async with asyncio.timeout(None) as stop.start:
            await service.start()
    except CannotListen as error:
        fail(f"{error}; is another bellmare running? choose another port with --listen and --admin", EXIT_PORT_TAKEN)
    except (OSError, CannotStart) as error:
        if not (isinstance(error, TimeoutError) and stop.asked.is_set()):
            fail(f"cannot start: {str(error) or type(error).__name__}", EXIT_NOT_STARTED)
    finally:
        stop.start = None
    return not stop.asked.is_set()


class _Commands:
    """SIGHUP and SIGUSR2 while it lasts, and the same from the admin API."""

    def __init__(self, service: Service, start: Start, stop: "_Stop") -> None:
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._stop = stop
        self._reloader = Reloader(service, start.reread)
        self._handover = Handover(
            service, command=same_command(), children=bool(start.found.processes), on_done=stop.asked.set
        )
        self._terminal = _has_terminal()
        service.lifecycle = Lifecycle(reload=self._reloader.reload, restart=self._handover.restart)

    def __enter__(self) -> Self:
        if sys.platform != "win32":
            self._loop.add_signal_handler(signal.SIGHUP, self._hung_up)
            self._loop.add_signal_handler(signal.SIGUSR2, self._handover.signalled)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.platform != "win32":
            for number in (signal.SIGHUP, signal.SIGUSR2):
                self._loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # by default they would end what is just ending in good order

    def _hung_up(self) -> None:
        """Reload; but a terminal that is gone sends the same signal, and means the end."""
        if self._terminal and not _has_terminal():
            self._stop.signalled()
        else:
            self._reloader.signalled()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _Stop:
    """SIGINT and SIGTERM while it lasts: the first stops in good order, the second cuts what still runs."""

    def __init__(self, service: Service) -> None:
        self.asked = asyncio.Event()
        self._signals = 0
        self.start: asyncio.Timeout | None = None
        """While the service starts: the first signal gives that up."""
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._sigterm_before = signal.getsignal(signal.SIGTERM)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._loop.add_signal_handler(number, self.signalled)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self.signalled))
        return self

    def __exit__(self, *_: object) -> None:
        """From here on a signal unwinds what is left."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._loop.remove_signal_handler(number)
            except NotImplementedError:  # Windows
                signal.signal(number, signal.default_int_handler)
        signal.signal(signal.SIGTERM, self._sigterm_before)

    def signalled(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._service.cut()
            return
        self.asked.set()  # set already after a hand-over: then it ends in good order anyway
        if self.start is not None and not self.start.expired():
            self.start.reschedule(self._loop.time())
