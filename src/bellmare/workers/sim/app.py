"""Routes of the simulated worker, as ollama.md 1.3 lists them, and Ollama's refusals. Answers are made elsewhere."""

from collections.abc import Callable
from typing import Any

import msgspec

from bellmare.http.server import Exchange, Refusal, Request
from bellmare.protocols.errors import Dialect, InvalidRequest, render_error
from bellmare.protocols.names import canonical_name, display_name, local_name
from bellmare.twin.config import TwinModel
from bellmare.twin.messages import CopyName, DeleteName
from bellmare.workers.sim.driver import Driver
from bellmare.workers.sim.faults import Fault, Faults
from bellmare.workers.sim.guard import host_allowed, origin_allowed
from bellmare.workers.sim.inference import Inference
from bellmare.workers.sim.library import BLOBS_PATH, Library
from bellmare.workers.sim.listing import Shelf
from bellmare.workers.sim.render import JSON, JSON_V1, encode
from bellmare.workers.sim.requests import SHOW_FIELDS, Body
from bellmare.workers.sim.transfer import Downloads
from bellmare.workers.sim.world import World

VERSION = "0.33.0"
TEXT = ((b"content-type", b"text/plain; charset=utf-8"),)
PLAIN = ((b"content-type", b"text/plain"),)
"""Of gin's own refusals."""
BODY_BYTES_MAX = 256 << 20
"""Stock has no limit (ollama.md 1.3); a simulated one need not take more than any test sends."""

Handler = Callable[[Exchange], None]


class SimApplication:
    """One simulated Ollama as ``http.server`` sees it."""

    def __init__(
        self,
        driver: Driver,
        shelf: Shelf,
        *,
        world: World,
        downloads: Downloads,
        seed: int,
        extension: bool,
        loopback: bool,
    ) -> None:  # tidy: one call site
        self._driver = driver
        self._shelf = shelf
        self._loopback = loopback
        self.faults = Faults(driver)
        inference = Inference(driver, self.faults, world=world, seed=seed)
        self.library = library = Library(driver, shelf, world=world, faults=self.faults, downloads=downloads)
        version, tags = self._json({"version": VERSION}), self._get(shelf.tags)
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._running, "HEAD": self._running},
            "/api/version": {"GET": version, "HEAD": version},
            "/api/status": {"GET": self._json({"cloud": {"disabled": True, "source": "env"}})},
            "/api/tags": {"GET": tags, "HEAD": tags},
            "/api/ps": {"GET": self._get(shelf.loaded)},
            "/api/show": {"POST": self._show},
            "/api/generate": {"POST": inference.generate},
            "/api/chat": {"POST": inference.chat},
            "/api/embed": {"POST": inference.embed},
            "/api/embeddings": {"POST": inference.embeddings},
            "/api/pull": {"POST": library.pull},
            "/api/push": {"POST": library.push},
            "/api/create": {"POST": library.create},
            BLOBS_PATH: {"HEAD": library.head_blob, "POST": library.post_blob},
            "/api/copy": {"POST": self._copy},
            "/api/delete": {"DELETE": self._delete},
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": inference.openai_chat},
        }
        if extension:
            self._routes["/api/bellmare"] = {"GET": self._get(self._bellmare)}
            self._routes["/sim/fault"] = {"POST": self._fault}

    # ---- http.server's Application ----------------------------------------------------------------------------------

    def on_head(self, request: Request) -> Refusal | int:
        """The rule of ollama.md 1.7: 403 with an empty body."""
        origin, host = request.header(b"origin"), request.header(b"host")
        if not origin_allowed(origin) or (self._loopback and not host_allowed(host)):
            return Refusal(403)
        return BODY_BYTES_MAX

    def on_request(self, exchange: Exchange) -> None:
        """Route, and turn what a client did wrong into Ollama's words."""
        path = exchange.request.path
        if path != "/sim/fault":
            if self.faults.take_refusal():
                exchange.abort()
                return
            if self.faults.frozen:
                return
        methods = self._routes.get(BLOBS_PATH if path.startswith(BLOBS_PATH) else path)
        if methods is None:
            exchange.respond(404, PLAIN, b"404 page not found")
            return
        handler = methods.get(exchange.request.method)
        if handler is None:
            allow = (b"allow", ", ".join(methods).encode())
            exchange.respond(405, (*PLAIN, allow), b"405 method not allowed")
            return
        try:
            handler(exchange)
        except InvalidRequest as error:
            v1 = path.startswith("/v1/")
            dialect = Dialect.openai if v1 else Dialect.ollama
            body = render_error(dialect, error.status, error.message)
            exchange.respond(error.status, JSON_V1 if v1 else JSON, body)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        """Go's server answers in plain text."""
        return Refusal(status, TEXT, f"{status} {reason}".encode())

    # ---- handlers ---------------------------------------------------------------------------------------------------

    def _json(self, value: object) -> Handler:
        body = encode(value)
        return lambda exchange: exchange.respond(200, JSON, body)

    def _get(self, read: Callable[[], dict[str, Any]]) -> Handler:
        return lambda exchange: exchange.respond(200, JSON, encode(read()))

    def _running(self, exchange: Exchange) -> None:
        exchange.respond(200, TEXT, b"Ollama is running")

    def _models(self, exchange: Exchange) -> None:
        exchange.respond(200, JSON_V1, encode(self._shelf.openai_models()))

    def _show(self, exchange: Exchange) -> None:
        body = Body(exchange.request.body)
        body.check_types(SHOW_FIELDS)
        model = self._find(body.asked_name, shown=True)
        verbose = body.flag("verbose", default=False) is True
        exchange.respond(200, JSON, encode(self._shelf.show(model, verbose=verbose)))

    def _copy(self, exchange: Exchange) -> None:
        body = Body(exchange.request.body)
        source = self._driver.twin.model(_part(body, "source"))
        if source is None:
            raise InvalidRequest(f'model "{body.text("source")}" not found', status=404)
        destination = _part(body, "destination")
        self._driver.give(CopyName(source.name, destination))
        self._shelf.touch(destination)
        exchange.respond(200, (), b"")

    def _delete(self, exchange: Exchange) -> None:
        model = self._find(Body(exchange.request.body).asked_name)
        self._driver.give(DeleteName(model.name))
        self._shelf.forget(model.name)
        exchange.respond(200, (), b"")

    def _fault(self, exchange: Exchange) -> None:
        try:
            fault = msgspec.json.decode(exchange.request.body, type=Fault)
        except msgspec.DecodeError as error:
            raise InvalidRequest(str(error)) from None
        if fault.model:
            fault = msgspec.structs.replace(fault, model=canonical_name(fault.model))
        self.faults.set(fault)
        exchange.respond(200, JSON, b"{}")

    def _bellmare(self) -> dict[str, Any]:
        """What a stock Ollama does not tell: capacity, rules, and the counters that a gateway should keep at zero."""
        twin, config = self._driver.twin, self._driver.twin.config
        return {
            "kind": "sim",
            "vram_bytes": config.gpu.vram_bytes,
            "parallel": config.num_parallel,
            "runners_max": config.runners_max,
            "fit_percent": config.fit_percent,
            "overhead_bytes": config.gpu.context_overhead_bytes,
            "headroom_bytes": config.fit_target_bytes,
            "vram_used_bytes": twin.vram_used_bytes,
            "stalled": twin.stalled,
            "counters": msgspec.to_builtins(twin.counters),
        }

    def _find(self, asked: str, *, shown: bool = False) -> TwinModel:
        """``shown``: show says which tag it looked for."""
        name = local_name(asked)
        model = self._driver.twin.model(canonical_name(name))
        if model is None:
            raise InvalidRequest(f"model '{display_name(name) if shown else asked}' not found", status=404)
        return model


def _part(body: Body, key: str) -> str:
    """A name of /api/copy, with its own words for what is none."""
    name = body.text(key)
    try:
        return canonical_name(name)
    except InvalidRequest:
        raise InvalidRequest(f'{key} "{name}" is invalid') from None
