"""The gateway's application: routes, parsing, and what all conversations share. Unknown paths reach no worker."""

import asyncio
import re
from collections.abc import Callable
from functools import partial

import msgspec

from bellmare.context.counter import Counter
from bellmare.context.library import Library
from bellmare.core.events import ModelReleased
from bellmare.core.units import SECOND_US, InstantUs, RequestId, WorkerId
from bellmare.gateway import replies
from bellmare.gateway.accounting import Accounts
from bellmare.gateway.catalogue import Catalogue
from bellmare.gateway.cloud import Cloud
from bellmare.gateway.context import ContextGuard
from bellmare.gateway.conversation import SHUTTING_DOWN, Conversation
from bellmare.gateway.counting import TokenCounter, answer_count
from bellmare.gateway.cross_origin import lines_for, preflight
from bellmare.gateway.errands import anthropic, native, openai
from bellmare.gateway.errands.errand import Errand
from bellmare.gateway.faults import STATUS_LEFT
from bellmare.gateway.guard import LOOPBACK_GUARD, Guard
from bellmare.gateway.hinting import Hinting, next_models
from bellmare.gateway.management.access import REFUSED, Managers
from bellmare.gateway.management.blobs import PREFIX as BLOBS
from bellmare.gateway.management.blobs import Blobs
from bellmare.gateway.management.changes import Changes
from bellmare.gateway.management.spool import Spool
from bellmare.gateway.naming import Naming
from bellmare.gateway.options import GatewayOptions
from bellmare.gateway.parsing import INLINE_BYTES_MAX, LargeBodies
from bellmare.gateway.relay import Relay
from bellmare.gateway.routes import CHANGE_BYTES_MAX, Route, Ticket
from bellmare.gateway.shelf import Shelf
from bellmare.gateway.tenants import Tenants, priority_of
from bellmare.gateway.unfit import first_refusal
from bellmare.gateway.users import Users
from bellmare.gateway.vocabularies import FleetSource
from bellmare.gateway.waiting import Heart
from bellmare.http.bodies import BodySink
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.messages import Refusal, Request
from bellmare.protocols import ollama
from bellmare.protocols.errors import CONTEXT_LENGTH_EXCEEDED, ContextExceeded, InvalidRequest, render_error
from bellmare.runtime.driver import Driver
from bellmare.runtime.fleet import WorkerFleet

CORE_IDS_MAX = 10_000
BUSY_PARSING = "too many large requests at once"
SERVED_METHODS = ("GET", "HEAD", "POST")
"""What ``OPTIONS *`` is told: of the server as a whole nothing else can be asked."""
_PUBLIC_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class Gateway:
    """``http.Application`` and ``conversation.Desk`` in one: the data plane of one process."""

    def __init__(
        self,
        driver: Driver,
        fleet: WorkerFleet,
        *,
        accounts: Accounts,
        options: GatewayOptions,
        guard: Guard = LOOPBACK_GUARD,
    ) -> None:
        self.driver = driver
        self.fleet = fleet
        self.accounts = accounts
        self.timeouts = options.timeouts
        self.guard = guard
        self.tenants = Tenants(driver.engine.config.tenants)
        self.shelf = Shelf(driver, fleet)
        self.naming = Naming(options.names, self.shelf.abilities, self.shelf.in_context)
        self.hinting = Hinting(driver, self.tenants, accounts, naming=self.naming)
        self.catalogue = Catalogue(self.shelf, self.naming, self.hinting)
        self.managers = Managers(options.managers)
        self.changes = Changes(self.shelf, refused=accounts.refused_early, log=accounts.changed)
        self.blobs = Blobs(self.shelf)
        self._born = f"{driver.clock.wall_us():x}"
        self._count = 0
        self._settings = 0
        """Counts the settings that have held so far: what was read from a head by older ones is read again."""
        self._open: dict[RequestId, Conversation] = {}
        self._core_ids: dict[str, RequestId] = {}
        """For requests that brought their own id, what the core calls them; the newest ``CORE_IDS_MAX``."""
        self.large_bodies = LargeBodies(lambda: accounts.refused_early(STATUS_LEFT))
        self._routes = self._table(options.body_bytes_max)
        self._blob_route = Route(("HEAD", "POST"), self._blob, manages=True)
        counter = Counter(Library(FleetSource(self.shelf), fleet.tasks, report=accounts.unread))
        accounts.context.state = counter.figures
        self.counter: TokenCounter | None = counter
        self.context = ContextGuard(
            driver.engine.fleet,
            counter,
            accounts.context,
            rules=options.context,
            on_left=lambda: accounts.refused_early(STATUS_LEFT),
        )
        self.users = Users()
        self.cloud = Cloud(self.shelf, lambda talk: accounts.passed_on(talk, driver.clock.now_us()))
        self.heart = Heart(
            lambda: list(self._open.values()), lambda one: driver.engine.position(one.request), driver.clock.now_us
        )
        self.heart.set(options.heartbeat_us)
        self.relay: Relay | None = None
        """Once another process has taken over: requests for models are its to answer."""

    def reconfigure(self, options: GatewayOptions) -> None:
        """Let changed settings hold for the requests that come from now on."""
        self.timeouts = options.timeouts
        self.naming.rules = options.names
        self.guard.allow(options.origins)
        self.managers = Managers(options.managers)
        self.heart.set(options.heartbeat_us)
        self.context.rules = options.context
        self._routes = self._table(options.body_bytes_max)
        self.tenants.name(self.driver.engine.config.tenants)
        self._settings += 1

    def _table(self, body: int) -> dict[str, Route]:
        catalogue = self.catalogue
        get = ("GET", "HEAD")
        return {
            "/": Route(get, catalogue.root),
            "/api/version": Route(get, catalogue.version),
            "/api/status": Route(("GET",), catalogue.status),
            "/api/tags": Route(get, catalogue.tags),
            "/api/ps": Route(("GET",), catalogue.ps),
            "/api/show": Route(("POST",), catalogue.show),
            "/v1/models": Route(("GET",), catalogue.models),
            "/api/pull": self._manage("POST", self.changes.pull),
            "/api/push": self._manage("POST", self.changes.push),
            "/api/create": self._manage("POST", self.changes.create),
            "/api/copy": self._manage("POST", self.changes.copy),
            "/api/delete": self._manage("DELETE", self.changes.delete),
            "/api/prepare": Route(("POST",), self.hinting.prepare),
            "/v1/prepare": Route(("POST",), self.hinting.prepare),
            "/api/generate": self._infer(native.generate, body),
            "/api/chat": self._infer(native.chat, body),
            "/api/embed": self._infer(native.embed, body),
            "/api/embeddings": self._infer(native.embeddings, body),
            "/v1/chat/completions": self._infer(openai.chat_completions, body),
            "/v1/completions": self._infer(openai.completions, body),
            "/v1/embeddings": self._infer(openai.embeddings, body),
            "/v1/responses": self._infer(openai.responses, body),
            "/v1/messages": self._infer(anthropic.messages, body),
            "/v1/messages/count_tokens": Route(
                ("POST",), self._taken(anthropic.count_tokens, self._count_tokens), body
            ),
        }

    # ------------------------------------------------------------------ http.Application

    def on_head(self, request: Request) -> Refusal | int | BodySink:
        if not self.guard.lets_pass(request):
            self.accounts.refused_early(403)
            return Refusal(status=403, close=True)
        verdict = preflight(request) or self._admit(request)
        if isinstance(verdict, Refusal) and verdict.status != 204 and (origin := request.header(b"origin")) is not None:
            headers = (*verdict.headers, (b"access-control-allow-origin", origin), (b"vary", b"Origin"))
            return msgspec.structs.replace(verdict, headers=headers)
        return verdict

    def _admit(self, request: Request) -> Refusal | int | BodySink:
        route = self._route(request.path)
        if route is None and request.target != "*":
            self.accounts.refused_early(404)
            return replies.http_refusal(404, f"nothing is served at {request.path}", request.path)
        if route is None or request.method not in route.methods:
            self.accounts.refused_early(405)
            allowed = ", ".join(route.methods if route is not None else SERVED_METHODS)
            text = f"{request.method} is not allowed at {request.path}, only {allowed}"
            refusal = replies.http_refusal(405, text, request.path)
            return msgspec.structs.replace(refusal, headers=(*refusal.headers, (b"allow", allowed.encode())))
        if route.inference:
            self.hinting.uploading(request)
        request.ticket = ticket = Ticket(route)
        origin = request.header(b"origin")
        if origin is not None:
            ticket.cors = lines_for(origin)
        if route.manages:
            if not self.managers.may(request.peer) or not (origin is None or self.guard.names(origin)):
                self.accounts.refused_early(403)
                return replies.http_refusal(403, REFUSED, request.path)
            if route is self._blob_route and request.method == "POST":
                taker = self.blobs.accept(request)
                if isinstance(taker, Refusal):
                    self.accounts.refused_early(taker.status)
                else:
                    ticket.spool = taker
                return taker
        return route.body_bytes_max

    def on_request(self, exchange: Exchange) -> None:
        ticket: Ticket = exchange.request.ticket
        if ticket.cors:
            exchange.extra = ticket.cors
            if not self.guard.lets_pass(exchange.request):  # as below: no on_head for the same head again
                exchange.extra = b""
                self.accounts.refused_early(403)
                exchange.respond(403, (), b"")
                return
        if ticket.route.manages and not self.managers.may(exchange.request.peer):  # the settings may have changed
            if ticket.spool is not None:
                ticket.spool.close()
            self._refuse(exchange, 403, REFUSED)
            return
        ticket.route.answer(exchange)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        self.accounts.refused_early(status)
        refusal = replies.http_refusal(status, reason, target, close=True)
        if status == 503:
            headers = (*refusal.headers, *replies.retry_headers(SECOND_US))
            refusal = msgspec.structs.replace(refusal, headers=headers)
        return refusal

    def _route(self, path: str) -> Route | None:
        route = self._routes.get(path)
        if route is None and path.startswith("/v1/models/"):
            return Route(("GET",), self.catalogue.model)
        if route is None and path.startswith(BLOBS):
            return self._blob_route
        return route

    @staticmethod
    def _manage(method: str, answer: Callable[[Exchange], None]) -> Route:
        return Route((method,), answer, CHANGE_BYTES_MAX, manages=True)

    def _blob(self, exchange: Exchange) -> None:
        spool: Spool | None = exchange.request.ticket.spool
        if spool is not None:
            self.blobs.receive(exchange, spool)
        elif exchange.request.method == "POST":  # the same head again
            self._refuse(exchange, 400, "a blob has a body")
        else:
            self.blobs.head(exchange)

    # ------------------------------------------------------------------ inference

    def _infer(self, parse: Callable[[bytes], Errand], body_bytes_max: int) -> Route:
        return Route(("POST",), self._taken(parse, self._take_up), body_bytes_max, inference=True)

    def _taken(
        self, parse: Callable[[bytes], Errand], take_up: Callable[[Exchange, Errand], None]
    ) -> Callable[[Exchange], None]:
        """An answer to requests that are parsed, beside the loop if they are large, and then taken up."""
        parsed = partial(self._parsed, take_up)

        def answer(exchange: Exchange) -> None:
            request = exchange.request
            if self.relay is not None:
                self.relay.take(exchange)
                return
            if request.body_bytes <= INLINE_BYTES_MAX:
                try:
                    errand = parse(request.body)
                except InvalidRequest as error:
                    self._invalid(exchange, error)
                    return
                take_up(exchange, errand)
            elif not self.large_bodies.parse(exchange, parse, parsed):
                self._refuse(exchange, 503, BUSY_PARSING, headers=replies.retry_headers(SECOND_US))

        return answer

    def _parsed(
        self, take_up: Callable[[Exchange, Errand], None], exchange: Exchange, result: Errand | BaseException
    ) -> None:
        """A large body has been parsed, or a long prompt has been judged."""
        if isinstance(result, Errand):
            try:
                take_up(exchange, result)
                return
            except Exception as error:  # noqa: BLE001 - what the server does around smaller requests
                result = error
        if isinstance(result, ContextExceeded):
            text = result.text(replies.dialect_of(exchange.request.path))
            self._refuse(exchange, result.status, text, code=CONTEXT_LENGTH_EXCEEDED)
            return
        if isinstance(result, InvalidRequest):
            self._invalid(exchange, result)
            return
        self.report("a large request could not be taken up", result)
        if exchange.started:
            exchange.abort()
        else:
            self._refuse(exchange, 500, "internal error")

    def _invalid(self, exchange: Exchange, error: InvalidRequest) -> None:
        first = first_refusal(error, self.naming, self.driver.engine.fleet.state.votes)
        self._refuse(exchange, first.status, first.message)

    def _take_up(self, exchange: Exchange, errand: Errand) -> None:
        request = exchange.request
        ticket: Ticket = request.ticket
        try:
            if ticket.settings != self._settings:
                self._read(request, ticket)
            errand = self.naming.address(errand)
        except InvalidRequest as error:
            self._refuse(exchange, error.status, error.message)
            return
        if errand.released:
            self._release(exchange, errand)
            return
        if not errand.name:
            self.cloud.take(exchange, errand, public_id=ticket.own_id or self._new_id(), timeouts=self.timeouts)
        elif self.context.passes(errand, ticket.tenant, request.body_bytes):
            self._run(exchange, errand)
        else:
            self.context.take(exchange, errand, ticket.tenant, taken=partial(self._parsed, self._run))

    def _run(self, exchange: Exchange, errand: Errand) -> None:
        """The context guard lets it go on."""
        ticket: Ticket = exchange.request.ticket
        conversation = self._converse(exchange, errand, ticket)
        if ticket.models and not conversation.ended:  # who was refused will hardly go on with the next
            # At its arrival, not at its dispatch: its own wait is time in which the next model can be loaded.
            self.hinting.announce(ticket.models, ticket.tenant)

    def _count_tokens(self, exchange: Exchange, errand: Errand) -> None:
        """The tokens of a request that is not to be run."""
        known = self.driver.engine.fleet.state.votes
        try:
            errand = self.naming.address(errand)
        except InvalidRequest as error:
            self._refuse(exchange, error.status, error.message)
            return
        if errand.name not in known:
            self._refuse(exchange, 404, replies.not_found_text(errand.spelling, errand.name, known))
            return
        answer_count(exchange, errand, self.counter)

    def _read(self, request: Request, ticket: Ticket) -> None:
        """Take from the head what one of an inference request may say. Raises ``InvalidRequest``."""
        ticket.priority = priority_of(request)
        ticket.models = next_models(request)
        ticket.tenant = self.tenants.of(request)
        theirs = request.header(b"x-request-id")
        if theirs is not None and _PUBLIC_ID.fullmatch(theirs):
            ticket.own_id = theirs.decode()
        ticket.settings = self._settings

    def _refuse(
        self,
        exchange: Exchange,
        status: int,
        message: str,
        *,
        headers: replies.Headers | tuple[()] = (),
        code: str | None = None,
    ) -> None:  # tidy: an error has a status, a text, a code and headers
        """Answer a request that does not become one."""
        self.accounts.refused_early(status)
        dialect = replies.dialect_of(exchange.request.path)
        begin, body = replies.error_answer(dialect, status, message, code=code)
        exchange.respond(status, [*begin, *headers], body)

    def _converse(self, exchange: Exchange, errand: Errand, ticket: Ticket) -> Conversation:
        request = self._new_id()
        public = ticket.own_id or request
        arrived_us = self.driver.clock.now_us()
        conversation = Conversation(self, exchange, errand, request, public, arrived_us)
        self._open[request] = conversation
        if public != request:
            self._remember(public, request)
        self.users.used(errand.name, ticket.tenant, arrived_us)
        deadline_us = InstantUs(arrived_us + int(self.timeouts.queue_s * SECOND_US))
        conversation.begin(deadline_us, tenant=ticket.tenant, priority=ticket.priority)
        return conversation

    def _new_id(self) -> RequestId:
        self._count += 1
        return RequestId(f"{self._born}-{self._count:x}")

    def _release(self, exchange: Exchange, errand: Errand) -> None:
        """A client's keep_alive 0: what was its alone leaves, for others it stays; answered as Ollama would (2.3)."""
        if errand.name not in self.driver.engine.fleet.state.votes:
            text = f"model '{errand.spelling}' not found"
            exchange.respond(404, [replies.JSON], render_error(errand.dialect, 404, text))
            return
        tenant = exchange.request.ticket.tenant
        alone = self.users.alone(self.shelf.names_of(errand.name), tenant, self.driver.clock.now_us())
        self.driver.feed(ModelReleased(name=errand.name, alone=alone))
        answer: dict[str, object] = {"model": errand.spelling, "created_at": self.driver.clock.rfc3339()}
        if isinstance(errand.native, ollama.ChatRequest):
            answer["message"] = {"role": "assistant", "content": ""}
        else:
            answer["response"] = ""
        answer |= {"done": True, "done_reason": "unload"}
        exchange.respond(200, [replies.JSON], msgspec.json.encode(answer))

    # ------------------------------------------------------------------ conversation.Desk

    def upstream(self, worker: WorkerId) -> Upstream | None:
        port = self.fleet.ports.get(worker)
        return port.upstream if port is not None else None

    def known_names(self) -> list[str]:
        return list(self.driver.engine.fleet.state.votes)

    def account(self, conversation: Conversation) -> None:
        del self._open[conversation.request]
        self.accounts.ended(conversation, self.driver.clock.now_us())
        translator, decision = conversation.translator, conversation.dispatched
        if conversation.outcome == "completed" and translator is not None and decision is not None:
            final = translator.final
            if final is not None:
                tokens, output = final.prompt_eval_count, final.eval_count
                self.context.ended(conversation.errand, tokens=tokens, output=output, num_ctx=decision.num_ctx)

    def again(self, conversation: Conversation) -> RequestId:
        """What the core is to call a request whose last name there has come to its end."""
        del self._open[conversation.request]
        request = self._new_id()
        self._open[request] = conversation
        self._remember(conversation.public_id, request)
        return request

    def _remember(self, public_id: str, request: RequestId) -> None:
        """What the core calls a request that its client calls otherwise."""
        self._core_ids[public_id] = request
        if len(self._core_ids) > CORE_IDS_MAX:
            del self._core_ids[next(iter(self._core_ids))]

    def report(self, what: str, error: BaseException) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": what, "exception": error})

    # ------------------------------------------------------------------ for the rest of the process

    def core_id(self, public_id: str) -> str | None:
        """What the core calls a request that its client called ``public_id``; None if that is not remembered."""
        return self._core_ids.get(public_id)

    def give_away(self, relay: Relay) -> None:
        """Have another process answer all that waits and all that comes; what is being answered goes on here."""
        self.relay = relay
        for conversation in list(self._open.values()):
            if conversation.withdraw():
                del self._open[conversation.request]
                relay.take(conversation.exchange)

    def end_all(self) -> None:
        """The grace of a shutdown is over: every request under way gets its error, none is cut in silence."""
        for exchange in (*self.large_bodies.shut(), *self.context.shut()):
            self._refuse(exchange, 503, SHUTTING_DOWN, headers=replies.retry_headers(SECOND_US))
        self.cloud.shut(SHUTTING_DOWN)
        for conversation in list(self._open.values()):
            conversation.shut()
        self.changes.shut(SHUTTING_DOWN)

    def close(self) -> None:
        """Nobody is served any more."""
        self.large_bodies.shut()
        self.heart.stop()
        self.blobs.close()
        self.context.close()
