"""The fleet seen as one Ollama: merged lists of what is stored and what is loaded, answered from memory."""

import asyncio
from functools import cached_property
from operator import is_
from typing import Any
from urllib.parse import unquote

import msgspec

from bellmare.core.units import SECOND_US
from bellmare.gateway import replies
from bellmare.gateway.faults import public_text
from bellmare.gateway.hinting import Hinting
from bellmare.gateway.naming import Naming
from bellmare.gateway.shelf import Shelf
from bellmare.http.client import UpstreamError
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver
from bellmare.protocols import ollama
from bellmare.protocols.errors import Dialect, InvalidRequest, render_error, upstream_error_text
from bellmare.protocols.names import canonical_name, display_name, local_name
from bellmare.protocols.openai import model_entry, models_list
from bellmare.protocols.rfc3339 import parse_rfc3339
from bellmare.workers.ollama import OllamaWorker

SHOW_TIMEOUT_S = 30.0
SHOWS_MAX = 64
"""Questions for model details under way over all clients; an answer may be megabytes."""
UNKNOWN_VERSION = "0.0.0"


class Catalogue:
    """Answers the listing routes. A worker that is away delays no list."""

    def __init__(self, shelf: Shelf, naming: Naming, hinting: Hinting) -> None:
        self._driver = shelf.driver
        self._fleet = shelf.fleet
        self._shelf = shelf
        self._naming = naming
        self._hinting = hinting
        self._shows = 0
        self._last: _Listing | None = None

    def root(self, exchange: Exchange) -> None:
        exchange.respond(200, [replies.TEXT], b"Ollama is running")

    def version(self, exchange: Exchange) -> None:
        """The oldest version in the fleet: what a client may rely on everywhere."""
        workers = self._driver.engine.fleet.state.workers.values()
        versions = [worker.version for worker in workers if worker.version]
        oldest = min(versions, key=_version_key, default=UNKNOWN_VERSION)
        exchange.respond(200, [replies.JSON], msgspec.json.encode({"version": oldest}))

    def status(self, exchange: Exchange) -> None:
        """GET /api/status: whether ollama.com's models may be used through us, in Ollama's words."""
        cloud = {"disabled": not self._naming.rules.cloud, "source": "none" if self._naming.rules.cloud else "config"}
        exchange.respond(200, [replies.JSON], msgspec.json.encode({"cloud": cloud}))

    def tags(self, exchange: Exchange) -> None:
        self._hinting.listed(exchange.request)
        exchange.respond(200, [replies.JSON], self._listing().tags)

    def ps(self, exchange: Exchange) -> None:
        """Every runner of the fleet, each with its worker."""
        models: list[dict[str, Any]] = []
        state = self._driver.engine.fleet.state
        for worker_id, port in self._fleet.ports.items():
            worker = state.workers.get(worker_id)
            if worker is None or not worker.healthy:
                continue
            models.extend({**msgspec.json.decode(entry.raw), "worker": worker_id} for entry in port.running)
        models.sort(key=lambda entry: _instant(str(entry.get("expires_at", ""))), reverse=True)
        exchange.respond(200, [replies.JSON], msgspec.json.encode({"models": models}))

    def models(self, exchange: Exchange) -> None:
        self._hinting.listed(exchange.request)
        exchange.respond(200, [replies.PLAIN_JSON], self._listing().models)

    def model(self, exchange: Exchange) -> None:
        """GET /v1/models/NAME; names with slashes are served too, unlike by Ollama (ollama.md 1.3)."""
        spelling = unquote(exchange.request.path.removeprefix("/v1/models/"))
        try:
            name = canonical_name(local_name(spelling))
        except InvalidRequest as error:
            exchange.respond(400, [replies.JSON], render_error(Dialect.openai, 400, error.message))
            return
        meant = self._naming.meant(name)
        port = self._shelf.holder(meant)
        if port is None:
            self._not_found(exchange, _shown(spelling), name, dialect=Dialect.openai)
            return
        modified_s = _instant(port.tags[meant].modified_at) // 1_000_000
        exchange.respond(200, [replies.PLAIN_JSON], model_entry(spelling, modified_s))

    def show(self, exchange: Exchange) -> None:
        """Asked of a worker that stores the serving version."""
        try:
            request = ollama.parse_show(exchange.request.body)
            name = self._naming.meant(canonical_name(local_name(request.model)))
        except InvalidRequest as error:
            exchange.respond(error.status, [replies.JSON], render_error(Dialect.ollama, error.status, error.message))
            return
        port = self._shelf.holder(name)
        if port is None:
            self._not_found(exchange, _shown(request.model), name, dialect=Dialect.ollama)
            return
        if self._shows >= SHOWS_MAX:
            text = "too many requests for model details are under way: try again in 1 s"
            headers = [replies.JSON, (b"retry-after", b"1"), (b"retry-after-ms", b"1000")]
            exchange.respond(429, headers, render_error(Dialect.ollama, 429, text))
            return
        self._hinting.looked_at(exchange.request, name)
        body = ollama.encode_show(request, model=port.tags[name].name)
        self._shows += 1
        task = self._fleet.tasks.spawn(_show(exchange, port, body), name="show")
        task.add_done_callback(self._show_ended)
        exchange.listener = Leaver(task)

    def _show_ended(self, task: "asyncio.Task[None]") -> None:
        self._shows -= 1

    def _listing(self) -> "_Listing":
        """What is listed now. Made anew only when a worker shows other models, or when aliases change."""
        workers = self._driver.engine.fleet.state.workers
        seen: list[object] = [self._naming.rules]
        for worker_id, port in self._fleet.ports.items():
            worker = workers.get(worker_id)
            seen += (port, port.tags) if worker is None else (port, port.tags, worker.stored, worker.healthy)
        listing = self._last
        if listing is None or len(seen) != len(listing.seen) or not all(map(is_, seen, listing.seen)):
            listing = self._last = _Listing(seen, self._listed())
        return listing

    def _listed(self) -> list[tuple[ollama.TagsModel, str]]:
        """Every entry with the name under which it is listed; an alias stands beside its model."""
        stored = self._shelf.stored()
        listed = [(entry, entry.name) for name, entry in stored.items() if name not in self._naming.rules.aliases]
        for alias, name in self._naming.rules.aliases.items():
            if name in stored:
                listed.append((stored[name], alias))
        return listed

    def _not_found(self, exchange: Exchange, spelling: str, name: str, *, dialect: Dialect) -> None:
        text = replies.not_found_text(spelling, name, self._driver.engine.fleet.state.votes)
        kind = replies.JSON if dialect is Dialect.ollama else replies.PLAIN_JSON
        exchange.respond(404, [kind], render_error(dialect, 404, text))


class _Listing:
    """The lists of one state of the fleet, newest first: 2,000 models take 10 ms to gather (measured), clients poll."""

    def __init__(self, seen: list[object], listed: list[tuple[ollama.TagsModel, str]]) -> None:
        self.seen = seen
        """What it was made of. All of it is replaced when it changes, never changed in place."""
        rows = [(_instant(entry.modified_at), entry, name) for entry, name in listed]
        self._rows = sorted(rows, key=lambda row: row[0], reverse=True)

    @cached_property
    def tags(self) -> bytes:
        """The body of /api/tags."""
        entries = [entry.raw if name == entry.name else _renamed(entry, name) for _, entry, name in self._rows]
        return b'{"models":[' + b",".join(entries) + b"]}"

    @cached_property
    def models(self) -> bytes:
        """The body of /v1/models."""
        return models_list((name, modified_us // SECOND_US) for modified_us, _, name in self._rows)


async def _show(exchange: Exchange, port: OllamaWorker, body: bytes) -> None:
    try:
        answer = await port.upstream.fetch("POST", "/api/show", body=body, timeout_s=SHOW_TIMEOUT_S)
    except UpstreamError:
        text = f"worker '{port.worker}' did not answer"
        exchange.respond(502, [replies.JSON], render_error(Dialect.ollama, 502, text))
        return
    if answer.status == 200:
        exchange.respond(200, [replies.JSON], answer.body)
        return
    text = public_text(answer.status, upstream_error_text(answer.body))
    exchange.respond(answer.status, [replies.JSON], render_error(Dialect.ollama, answer.status, text))


def _shown(spelling: str) -> str:
    """A valid name as Ollama's show says it: with its tag."""
    return display_name(local_name(spelling))


def _renamed(entry: ollama.TagsModel, name: str) -> bytes:
    """The entry under another name."""
    return msgspec.json.encode({**msgspec.json.decode(entry.raw), "name": name, "model": name})


def _instant(text: str) -> int:
    """Microseconds since 1970; zero for what cannot be read."""
    try:
        return parse_rfc3339(text)
    except ValueError:
        return 0


def _version_key(version: str) -> tuple[int, ...]:
    parts = version.split("-", maxsplit=1)[0].split(".")
    return tuple(int(part) if part.isdigit() else 0 for part in parts)
