"""Shared by the suites that run whole servers: the production loop, and the leak gate."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")  # a machine with other work is no fault of an example's

LOOP_RESERVE = 1
"""libuv opens one descriptor with the first listener, to have one to close when they run out."""
_BACK_TIMEOUT_S = 5.0
"""A closed transport is gone in the next turns of the loop; a child's exit is noticed within milliseconds."""


def described() -> list[str]:
    """What each open descriptor of this process is, where the system tells."""
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return sorted(found)


def open_sockets() -> int:
    """Open sockets of this process, as the kernel sees them."""
    found = 0
    for name in os.listdir("/dev/fd"):
        try:
            found += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            continue  # the directory's own descriptor
    return found


def open_descriptors() -> int:
    """Everything that this process has open: sockets, pipes, files."""
    return len(os.listdir("/dev/fd"))


@pytest.fixture(scope="session")
def libuv_begun() -> None:
    """libuv opens a pipe with the first loop of a process and keeps it."""
    uvloop.new_event_loop().close()


@pytest.fixture
async def leak_gate(libuv_begun: None) -> AsyncIterator[list[dict[str, Any]]]:
    """After the test the loop has the tasks and the process the descriptors of before, and no error was silent.

    Yields what reached the loop's exception handler; a test that expects something clears it.
    """
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    sockets, tasks, descriptors = open_sockets(), len(asyncio.all_tasks()), open_descriptors() + LOOP_RESERVE
    yield errors
    end = asyncio.get_running_loop().time() + _BACK_TIMEOUT_S
    while asyncio.get_running_loop().time() < end:
        if open_descriptors() <= descriptors and open_sockets() <= sockets and len(asyncio.all_tasks()) == tasks:
            break
        await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == tasks, sorted(task.get_name() for task in asyncio.all_tasks())
    assert open_sockets() <= sockets  # fewer is no leak: an earlier test's may have closed meanwhile
    assert open_descriptors() <= descriptors, described()
    assert errors == []


@pytest.fixture(scope="session")
def smollm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M: the user's own copy, else fetched once into pytest's cache (without one: for this run)."""
    from bellmare.workers.embedded.fetch import FetchError, default_models_dir, fetch_model, is_present

    if is_present(default_models_dir()):
        return default_models_dir()
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("models")) if cache is not None else tmp_path_factory.mktemp("models")
    try:
        fetch_model(folder, timeout_s=100)
    except FetchError as error:
        pytest.skip(f"SmolLM2 is neither present nor can it be fetched: {error}")
    return folder
