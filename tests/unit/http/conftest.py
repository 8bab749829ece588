"""Both loops, and the leak gate: after every test no connection, no task and no silent error is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from http_peers import App, ScriptedUpstream

from bellmare.http.client import Upstream, UpstreamLimits
from bellmare.http.server import Limits, Server, listen


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What reached the loop's exception handler; a test that expects something clears it."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    yield errors
    assert errors == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def serve(loop_errors: list[dict[str, Any]]) -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Start a server for an app; keyword arguments are limits."""
    servers: list[Server] = []

    async def start(app: App, **limits: Any) -> Server:
        server = await listen(app, "127.0.0.1", 0, limits=Limits(sweep_interval_s=0.02, **limits))
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close(0)
        assert server.connections == 0


@pytest.fixture
async def dial(loop_errors: list[dict[str, Any]]) -> AsyncIterator[Callable[..., Upstream]]:
    """Make an upstream for a port; keyword arguments are limits."""
    upstreams: list[Upstream] = []

    def make(port: int, *, base_path: str = "", **limits: Any) -> Upstream:
        upstream = Upstream(
            "127.0.0.1", port, limits=UpstreamLimits(sweep_interval_s=0.02, **limits), base_path=base_path
        )
        upstreams.append(upstream)
        return upstream

    yield make
    for upstream in upstreams:
        await upstream.close()
        assert (upstream.in_flight, upstream.idle, upstream.connections) == (0, 0, 0)


@pytest.fixture
async def scripted(loop_errors: list[dict[str, Any]]) -> AsyncIterator[Callable[..., Awaitable[ScriptedUpstream]]]:
    """Start an upstream server that answers with scripted bytes."""
    servers: list[ScriptedUpstream] = []

    async def start(*answers: Any) -> ScriptedUpstream:
        server = ScriptedUpstream(list(answers))
        await server.open()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()
