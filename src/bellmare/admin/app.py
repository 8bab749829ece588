"""The admin API on its own listener: metrics, state, and what operators may ask for. Loopback by default.

A web page in somebody's browser must not reach it: foreign Host and Origin headers and bodies that are not JSON are
refused.
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from bellmare import __version__
from bellmare.admin import views
from bellmare.admin.lifecycle import Lifecycle, add_lifecycle
from bellmare.admin.queue_views import queue_answer
from bellmare.core.events import LoadRequested, UnloadRequested
from bellmare.core.naming import CLASS_MARK
from bellmare.core.units import WorkerId
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import canonical_name
from bellmare.runtime.driver import Driver
from bellmare.runtime.fleet import WorkerFleet

LOOPBACK_HOSTS = ("localhost",)
"""Names that mean this machine; its addresses need no mention."""


class Wish(BaseModel):
    """A model to load or unload, on one worker or, without one, where it suits best (load) or everywhere (unload).

    ``name#32768`` is that context class; a plain name is the canonical context (load) or all of them (unload).
    """

    model: str = Field(max_length=400)
    worker: str | None = Field(default=None, max_length=100)


class Metered(Protocol):
    """Whatever tells the metrics."""

    def scrape(self) -> bytes: ...


@dataclass(slots=True, frozen=True)
class Front:
    """What the data plane says of itself."""

    unready: Callable[[], str] = lambda: ""
    """Why no request is taken at all, such as ``draining``; empty if they are."""
    core_id: Callable[[str], str | None] = lambda _: None
    """The core's id of the request that clients know by the given one."""
    lifecycle: Lifecycle | None = None
    """Who reloads and restarts; None: nobody does."""


_ANY_FRONT = Front()


def admin_app(
    driver: Driver,
    fleet: WorkerFleet,
    metrics: Metered,
    *,
    hosts: tuple[str, ...] = LOOPBACK_HOSTS,
    front: Front = _ANY_FRONT,
) -> FastAPI:
    """The application. ``hosts`` are the names (without port) that a Host header may say instead of an IP address."""
    app = FastAPI(title="bellmare admin", version=__version__, docs_url=None, redoc_url=None)
    app.middleware("http")(_guard(frozenset(host.lower().rstrip(".") for host in hosts)))
    _add_health(app, driver, metrics=metrics, front=front)
    _add_state(app, driver, fleet, front=front)
    _add_operations(app, driver)
    if front.lifecycle is not None:
        add_lifecycle(app, front.lifecycle)
    return app


def _guard(
    names: frozenset[str],
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "").lower()
        if not _is_ours(host, names):
            return JSONResponse({"error": "this Host is not served here"}, status_code=403)
        origin = request.headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host:
            return JSONResponse({"error": "no web page of another Origin is served here"}, status_code=403)
        json = request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"
        if request.method == "POST" and not json:
            return JSONResponse({"error": "the body must be application/json"}, status_code=415)
        return await call_next(request)

    return guard


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is a name of ours or an IP address: a page can bind only a name to another machine."""
    bare = host if host.endswith("]") else host.rpartition(":")[0] or host
    try:
        if bare.startswith("[") and bare.endswith("]"):
            ipaddress.IPv6Address(bare[1:-1])
        else:
            ipaddress.IPv4Address(bare)
    except ValueError:
        return bare.rstrip(".") in names
    return True


def _rows(rows: list[Any]) -> Response:
    return Response(msgspec.json.encode(rows), media_type="application/json")


def _add_health(app: FastAPI, driver: Driver, *, metrics: Metered, front: Front) -> None:
    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        """Requests can be served: they are taken, and some worker is in routing."""
        if why := front.unready():
            return PlainTextResponse(f"{why}\n", status_code=503)
        ready = any(worker.healthy for worker in driver.engine.fleet.state.workers.values())
        return PlainTextResponse("ready\n" if ready else "no healthy worker\n", status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_state(app: FastAPI, driver: Driver, fleet: WorkerFleet, *, front: Front) -> None:
    core = driver.engine.fleet

    @app.get("/api/v1/ps")
    async def ps() -> Response:
        return _rows(views.runner_rows(core))

    @app.get("/api/v1/workers")
    async def workers() -> Response:
        addresses = {name: f"{port.upstream.host}:{port.upstream.port}" for name, port in fleet.ports.items()}
        return _rows(views.worker_rows(core, addresses=addresses, joining=fleet.joining))

    @app.get("/api/v1/models")
    async def models() -> Response:
        return _rows(views.model_rows(core))

    @app.get("/api/v1/queue")
    async def queue() -> Response:
        """Who waits, whose turn it is, and for about how long."""
        rows = queue_answer(driver.engine, driver.clock.now_us())
        return Response(msgspec.json.encode(rows), media_type="application/json")

    @app.get("/api/v1/shadows")
    async def shadows() -> Response:
        """What other policies and stock Ollama would have done with the same requests, and what was saved."""
        return Response(msgspec.json.encode(driver.engine.shadows()), media_type="application/json")

    @app.get("/api/v1/explain/{subject:path}")
    async def explain(subject: str) -> dict[str, list[str]]:
        """What was decided about a request id (ours or the client's own), a model or a worker."""
        explain = driver.engine.explain
        plain, mark, context = subject.partition(CLASS_MARK)
        try:
            name = canonical_name(plain) + mark + context
        except InvalidRequest:
            name = subject
        return {"lines": explain(subject) or explain(name) or explain(front.core_id(subject) or subject)}

    @app.get("/api/v1/check")
    async def check() -> dict[str, list[str]]:
        """Invariants that do not hold; empty if all is well."""
        return {"problems": driver.engine.check()}


def _add_operations(app: FastAPI, driver: Driver) -> None:
    def name_of(wish: Wish) -> str:
        plain, mark, context = wish.model.partition(CLASS_MARK)
        try:
            return canonical_name(plain) + mark + context
        except InvalidRequest as error:
            raise HTTPException(400, error.message) from error

    async def ask(event: LoadRequested | UnloadRequested) -> Response:
        answer = await driver.ask(event)
        body = {"accepted": answer.accepted, "text": answer.text, "workers": list(answer.workers)}
        return JSONResponse(body, status_code=202 if answer.accepted else 409)

    @app.post("/api/v1/load")
    async def load(wish: Wish) -> Response:
        worker = WorkerId(wish.worker) if wish.worker is not None else None
        return await ask(LoadRequested(ticket=secrets.token_hex(8), name=name_of(wish), worker=worker))

    @app.post("/api/v1/unload")
    async def unload(wish: Wish) -> Response:
        worker = WorkerId(wish.worker) if wish.worker is not None else None
        return await ask(UnloadRequested(ticket=secrets.token_hex(8), name=name_of(wish), worker=worker))
