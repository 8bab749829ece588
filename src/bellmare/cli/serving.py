"""`bellmare up` and `bellmare serve`: settings to a running service in the foreground, until a signal."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from bellmare.cli import banner
from bellmare.cli.discovery import Found, NothingFound, find_workers
from bellmare.cli.service import Service
from bellmare.observability.logs import open_logs
from bellmare.settings import Settings, SettingsError, load_settings

DEFAULT_FILE = Path("bellmare.yaml")
EXIT_SETTINGS = 2
EXIT_NOTHING_FOUND = 3
EXIT_PORT_TAKEN = 4


def fail(message: str, status: int) -> NoReturn:
    """Say why on standard error and leave."""
    sys.stderr.write(f"bellmare: {message}\n")
    raise SystemExit(status)


def read_settings(path: Path | None, overrides: dict[str, object] | None = None) -> Settings:
    """Settings from file, environment and flags; every problem is printed and the process ends if there is one."""
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    try:
        return load_settings(path, environment=os.environ, overrides=overrides or {})
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
    settings = read_settings(config, overrides)
    console = Console(stderr=True)
    found: Found | None = None
    if discover and not settings.workers:
        try:
            found = find_workers(settings, console)
        except NothingFound as nothing:
            fail(str(nothing), EXIT_NOTHING_FOUND)
        settings = settings.with_workers(*found.workers)
    elif not settings.workers:
        fail("no workers are set; name them in bellmare.yaml or with --worker, or use `bellmare up`", EXIT_SETTINGS)
    try:
        _run(_serve(settings, found, console=None if quiet else console))
    finally:
        if found is not None:
            found.close()


def _run(work: Coroutine[None, None, None]) -> None:
    """On uvloop where it exists."""
    if sys.platform == "win32":
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)


async def _serve(settings: Settings, found: Found | None, *, console: Console | None) -> None:
    logs = open_logs(level=settings.log.level, line_format=settings.log.format)
    logs.capture_standard()
    for warning in settings.warnings:
        logs.warning(warning)
    service = Service(settings, logs)
    stop = _stop_on_signals()
    try:
        try:
            await service.start()
        except OSError as error:
            _port_taken(settings, error)
        gc.collect()
        gc.freeze()  # what start-up made lives for ever: the collector need not look at it again
        if console is not None:
            banner.show(console, service, found)
        await stop.wait()
        logs.info("stopping", requests=service.driver.requests)
    finally:
        await service.close()
        logs.close()


def _port_taken(settings: Settings, error: OSError) -> NoReturn:
    hint = "is another bellmare running? choose another port with --listen and --admin"
    fail(f"cannot listen on {settings.listen} or {settings.admin}: {error.strerror}; {hint}", EXIT_PORT_TAKEN)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: stop.set())
    return stop
